"""Every statement about live processes, and about what dead ones and expired messages leave behind. See also ``sql``.

A process has a lease by the database's clock, and the advisory lock of a session, numbered by its row. Clean-ups skip
locked rows, since a transaction of the site may stay open for an hour.
"""

REGISTER = """
INSERT INTO dbchannels_process (name, kind, queue, host, pid, started_at, lease_until)
VALUES (%(name)s, %(kind)s, %(queue)s, %(host)s, %(pid)s, statement_timestamp(),
        statement_timestamp() + %(lease)s * interval '1 second')
ON CONFLICT (name) DO UPDATE SET lease_until = EXCLUDED.lease_until
RETURNING id
"""

# 1684169832 is "dbch" in ASCII, the first half of our locks' 64-bit keys.
LOCK_KEY = "((1684169832::bigint << 32) | (%(id)s::bigint & 4294967295))"
LOCK = f"SELECT pg_try_advisory_lock({LOCK_KEY})"
TRY_LOCK = f"SELECT pg_try_advisory_xact_lock({LOCK_KEY})"

RENEW = """
UPDATE dbchannels_process SET lease_until = statement_timestamp() + %(lease)s * interval '1 second'
WHERE name = %(name)s RETURNING id
"""

RECORD_WORK = "UPDATE dbchannels_process SET work = %(work)s WHERE name = %(name)s"
WORKERS = "SELECT name, work FROM dbchannels_process WHERE kind = 'worker'"
# A row for each channel with messages that wait: the id of the next one, and the greatest id of its table.
HEADS = """
SELECT queue.name, head.id, (SELECT max(id) FROM dbchannels_durablemessage)
FROM unnest(%(queues)s::text[]) AS queue(name) CROSS JOIN LATERAL (
    SELECT id FROM dbchannels_durablemessage
    WHERE channel = queue.name AND claimed_by IS NULL AND due_at IS NULL
    ORDER BY priority DESC, id LIMIT 1
) AS head
UNION ALL
SELECT queue.name, head.id, (SELECT max(id) FROM dbchannels_protocolmessage)
FROM unnest(%(queues)s::text[]) AS queue(name) CROSS JOIN LATERAL (
    SELECT id FROM dbchannels_protocolmessage WHERE channel = queue.name ORDER BY id LIMIT 1
) AS head
"""
COUNT_LIVE = """
SELECT count(*) FILTER (WHERE kind = 'worker' AND queue = %(queue)s), count(*) FILTER (WHERE kind = 'server')
FROM dbchannels_process WHERE lease_until >= statement_timestamp()
"""

# A process whose lease has expired still counts as alive for half a lease if it has its lock. After that it does not: a
# stopped process, or one on a host that hangs, keeps its session, and its messages would wait forever.
EXPIRED_LEASES = """
SELECT id, name, lease_until < statement_timestamp() - %(lease)s * interval '0.5 second' AS silent
FROM dbchannels_process WHERE lease_until < statement_timestamp()
"""
# In front of what only a process on record may write: divides by 0 otherwise. Whoever declares the process dead waits
# for the end of that transaction, and cleans up after it too.
ON_RECORD = """
WITH process AS MATERIALIZED (SELECT FROM dbchannels_process WHERE name = %(name)s FOR KEY SHARE)
SELECT 1 / count(*) FROM process
"""
UNREGISTER = "DELETE FROM dbchannels_process WHERE name = %(name)s RETURNING kind, queue"
# The process may have woken and renewed its lease meanwhile: whoever locks the row first is right.
UNREGISTER_EXPIRED = """
DELETE FROM dbchannels_process WHERE name = %(name)s AND lease_until < statement_timestamp() RETURNING kind, queue
"""
TAKE_IN_FLIGHT = "DELETE FROM dbchannels_inflight WHERE worker = %(name)s RETURNING messages"

# What a dead server leaves behind. Rows that a transaction of the site has locked are skipped, and UNFINISHED_OF notes
# that by a process whose lease is over from the start, so that the next clean-up takes the rest. Connections whose
# disconnect message the server itself has sent stay until its consumer has run. EXCEPT hashes or sorts, whatever the
# statistics say: as many messages may wait as there are connections, of a server that died before.
CONNECTIONS_OF = """
DELETE FROM dbchannels_connection WHERE reply_channel = ANY(ARRAY(
    SELECT reply_channel FROM dbchannels_connection WHERE reply_channel = ANY(ARRAY(
        SELECT reply_channel FROM dbchannels_connection WHERE server = %(name)s
        EXCEPT (
            SELECT reply_channel FROM dbchannels_protocolmessage WHERE channel = 'websocket.disconnect'
            UNION ALL
            SELECT split_part(line, ' ', 2) FROM dbchannels_inflight, regexp_split_to_table(messages, E'\\n') AS line
            WHERE split_part(line, ' ', 1) = 'websocket.disconnect'
        )
    )) FOR UPDATE SKIP LOCKED
)) RETURNING path, reply_channel, session_key, login, session
"""
MEMBERSHIPS_OF = """
DELETE FROM dbchannels_membership WHERE id = ANY(ARRAY(
    SELECT id FROM dbchannels_membership WHERE channel = %(queue)s FOR UPDATE SKIP LOCKED
))
"""
UNFINISHED_OF = """
INSERT INTO dbchannels_process (name, kind, queue, host, pid, started_at, lease_until)
SELECT %(unfinished)s, 'server', %(queue)s, '', 0, statement_timestamp(), statement_timestamp()
WHERE EXISTS (SELECT FROM dbchannels_connection WHERE server = %(name)s)
      OR EXISTS (SELECT FROM dbchannels_membership WHERE channel = %(queue)s)
"""
REPLIES_OF = "DELETE FROM dbchannels_protocolmessage WHERE channel = %(queue)s"
# Requests that no worker has taken: their clients are gone with the server.
REQUESTS_OF = """
DELETE FROM dbchannels_protocolmessage WHERE id = ANY(ARRAY(
    SELECT id FROM dbchannels_protocolmessage
    WHERE channel = 'http.request' AND left(reply_channel, length(%(queue)s)) = %(queue)s FOR UPDATE SKIP LOCKED
))
"""

# Closed connections whose rows were locked when they closed.
LEFT_BEHIND = """
WITH closed AS (
    SELECT * FROM unnest(%(reply_channels)s::text[], %(channels)s::text[], %(recipients)s::text[])
             AS one(reply_channel, channel, recipient)
)
SELECT reply_channel FROM closed JOIN dbchannels_connection USING (reply_channel)
UNION SELECT reply_channel FROM closed JOIN dbchannels_membership USING (channel, recipient)
"""

# The recipients serve DROP_MEMBERS, for members that expire, which no audience has.
# The oldest rows are read along the primary key: an index by expiry would cost each send, to save a clean-up in 5 s.
EXPIRE_MESSAGES = """
DELETE FROM dbchannels_protocolmessage WHERE id = ANY(ARRAY(
    SELECT id FROM (
        SELECT id, expires_at FROM dbchannels_protocolmessage ORDER BY id LIMIT %(limit)s
    ) AS oldest WHERE expires_at < statement_timestamp()
)) AND expires_at < statement_timestamp()
RETURNING channel, recipients, reply_channel
"""
EXPIRE_AUDIENCES = "DELETE FROM dbchannels_audience WHERE expires_at < statement_timestamp()"
# Locked rows are being renewed or deleted.
EXPIRE_MEMBERSHIPS = """
DELETE FROM dbchannels_membership WHERE id = ANY(ARRAY(
    SELECT id FROM dbchannels_membership WHERE expires_at < statement_timestamp() FOR UPDATE SKIP LOCKED
))
"""

# Adds up the tally's new rows, see migration 0002; the sum stays the same in every snapshot. Two clean-ups each merge
# what the other has not locked, and two merged rows of a queue do no harm. The setting tells a merge from the loading
# of a dump.
MERGE_TALLY = """
SET LOCAL dbchannels.merges = on;
WITH fresh AS MATERIALIZED (
    SELECT id, "group", channel FROM dbchannels_tally WHERE NOT merged ORDER BY id LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM dbchannels_tally AS tally USING (SELECT DISTINCT "group", channel FROM fresh) AS queue
    WHERE tally."group" = queue."group" AND tally.channel = queue.channel
          AND (tally.merged OR tally.id IN (SELECT id FROM fresh))
    RETURNING tally."group", tally.channel, tally.members, tally.expiring, tally.digest
), sums AS (
    INSERT INTO dbchannels_tally ("group", channel, members, expiring, digest, merged)
    SELECT "group", channel, sum(members), sum(expiring), sum(digest), true FROM gone
    GROUP BY "group", channel HAVING sum(members) <> 0 OR sum(expiring) <> 0 OR sum(digest) <> 0
)
SELECT count(*) FROM fresh
"""

# An expired message on a process-specific channel takes the channel out of its groups, unless its server is alive.
DROP_MEMBERS = """
DELETE FROM dbchannels_membership WHERE id = ANY(ARRAY(
    SELECT membership.id FROM unnest(%(channels)s::text[], %(recipients)s::text[]) AS silent(channel, recipient)
    JOIN dbchannels_membership AS membership USING (channel, recipient)
    WHERE membership.expires_at IS NOT NULL FOR UPDATE OF membership SKIP LOCKED
))
"""
