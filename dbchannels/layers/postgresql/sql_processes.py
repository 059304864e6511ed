"""Every statement about who is alive, and about what is left of the dead and of what has expired. See also ``sql``.

A process has a lease by the database's clock, and a session's advisory lock numbered by its row. Whoever cleans up
skips rows that others have locked: a stranger's transaction may stay open for an hour.
"""

REGISTER = """
INSERT INTO dbchannels_process (name, kind, queue, host, pid, started_at, lease_until)
VALUES (%(name)s, %(kind)s, %(queue)s, %(host)s, %(pid)s, statement_timestamp(),
        statement_timestamp() + %(lease)s * interval '1 second')
ON CONFLICT (name) DO UPDATE SET lease_until = EXCLUDED.lease_until
RETURNING id
"""

# 1684169832 is "dbch" in ASCII: the first half of our locks' 64-bit keys.
LOCK_KEY = "((1684169832::bigint << 32) | (%(id)s::bigint & 4294967295))"
LOCK = f"SELECT pg_try_advisory_lock({LOCK_KEY})"
TRY_LOCK = f"SELECT pg_try_advisory_xact_lock({LOCK_KEY})"

RENEW = """
UPDATE dbchannels_process SET lease_until = statement_timestamp() + %(lease)s * interval '1 second'
WHERE name = %(name)s RETURNING id
"""

TELL_WORK = "UPDATE dbchannels_process SET work = %(work)s WHERE name = %(name)s"
WORKERS = "SELECT name, work FROM dbchannels_process WHERE kind = 'worker'"
# A row for each channel with messages that wait: the next one's id, and the greatest of the table.
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

# A held lock speaks for a process whose lease has ended, for half a lease: one that was stopped, or whose host
# hangs, keeps its session, and what it holds would wait for ever.
EXPIRED_LEASES = """
SELECT id, name, lease_until < statement_timestamp() - %(lease)s * interval '0.5 second' AS silent
FROM dbchannels_process WHERE lease_until < statement_timestamp()
"""
# In front of what only a process that is on record may write: divides by 0 otherwise. Whoever declares it dead waits
# for the end of that transaction, and cleans up after it too.
ON_RECORD = """
WITH process AS MATERIALIZED (SELECT FROM dbchannels_process WHERE name = %(name)s FOR KEY SHARE)
SELECT 1 / count(*) FROM process
"""
UNREGISTER = "DELETE FROM dbchannels_process WHERE name = %(name)s RETURNING kind, queue"
# It may have woken and renewed meanwhile: whoever has the row first is right.
UNREGISTER_EXPIRED = """
DELETE FROM dbchannels_process WHERE name = %(name)s AND lease_until < statement_timestamp() RETURNING kind, queue
"""
TAKE_IN_FLIGHT = "DELETE FROM dbchannels_inflight WHERE worker = %(name)s RETURNING messages"

# Of a dead server; here too what a site's open transaction holds is left, and with it a row that says so: a process
# whose lease is over from the start, so that the next sweep comes back for the rest.
# Those whose disconnect consumer runs by a message of the server's own are left too, until it has run. EXCEPT hashes or
# sorts, whatever the statistics say: as many messages may wait as there are connections, of a server that died before.
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
# Requests that no worker has taken: their clients went with their server.
REQUESTS_OF = """
DELETE FROM dbchannels_protocolmessage WHERE id = ANY(ARRAY(
    SELECT id FROM dbchannels_protocolmessage
    WHERE channel = 'http.request' AND left(reply_channel, length(%(queue)s)) = %(queue)s FOR UPDATE SKIP LOCKED
))
"""

# Connections that have ended and whose rows were locked then.
LEFT_BEHIND = """
WITH closed AS (
    SELECT * FROM unnest(%(reply_channels)s::text[], %(channels)s::text[], %(recipients)s::text[])
             AS one(reply_channel, channel, recipient)
)
SELECT reply_channel FROM closed JOIN dbchannels_connection USING (reply_channel)
UNION SELECT reply_channel FROM closed JOIN dbchannels_membership USING (channel, recipient)
"""

# Only members with an end are to be told from it, and these stand in no audience.
# The oldest are looked at, along the primary key: an index by expiry would cost each send to save a sweep in 5 s.
EXPIRE_MESSAGES = """
DELETE FROM dbchannels_protocolmessage WHERE id = ANY(ARRAY(
    SELECT id FROM (
        SELECT id, expires_at FROM dbchannels_protocolmessage ORDER BY id LIMIT %(limit)s
    ) AS oldest WHERE expires_at < statement_timestamp()
)) AND expires_at < statement_timestamp()
RETURNING channel, recipients, reply_channel
"""
EXPIRE_AUDIENCES = "DELETE FROM dbchannels_audience WHERE expires_at < statement_timestamp()"
# What is locked is being made new, or taken out.
EXPIRE_MEMBERSHIPS = """
DELETE FROM dbchannels_membership WHERE id = ANY(ARRAY(
    SELECT id FROM dbchannels_membership WHERE expires_at < statement_timestamp() FOR UPDATE SKIP LOCKED
))
"""

# What the tally has grown by is added up, see migration 0002; the sum stays the same in every snapshot. Of two
# sweepers each merges what the other has not locked, and two merged rows of a queue do no harm. The setting tells a
# merge from a dump that is being loaded.
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

# An expired message on a process-specific channel takes that channel out of its groups, unless its server lives.
DROP_MEMBERS = """
DELETE FROM dbchannels_membership WHERE id = ANY(ARRAY(
    SELECT membership.id FROM unnest(%(channels)s::text[], %(recipients)s::text[]) AS silent(channel, recipient)
    JOIN dbchannels_membership AS membership USING (channel, recipient)
    WHERE membership.expires_at IS NOT NULL FOR UPDATE OF membership SKIP LOCKED
))
"""
