"""Every statement of the PostgreSQL layer, whole; see also ``sql_durable``, ``sql_groups`` and ``sql_history``.

``statement_timestamp()`` is the database's clock at this statement: the clocks of hosts decide nothing, and ``now()``
would be the start of the site's transaction, however long that lasts.

The payload of a wakeup names the readers: ``h`` for workers that take ``http.*``, ``w`` for ``websocket.*``, ``d`` for
durable channels, or the queue of a process-specific channel. PostgreSQL merges equal payloads of one transaction
(https://www.postgresql.org/docs/current/sql-notify.html).
"""

LISTEN = "LISTEN dbchannels"
# A pooler stands between if this is not the backend that libpq learned of when it connected.
BACKEND = "SELECT pg_catalog.pg_backend_pid()"

# How our own session begins. FIND looks for our tables by the site's search_path, and uses no operator: any role that
# may create objects in one of its schemas could plant a better match there. From then on names are looked up in
# pg_catalog alone, and those of our tables are qualified (session.py). If the tables are not on the path, as on a site
# that sets it for each request, those that belong to our role are taken, provided that they are in one schema.
ASSUME_ROLE = "SELECT pg_catalog.set_config('role', %s, false)"
FIND = "SELECT pg_catalog.pg_backend_pid(), pg_catalog.to_regclass('dbchannels_inflight')::pg_catalog.oid"
SCHEMAS = """
SELECT quote_ident(nspname) FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE relname = 'dbchannels_inflight' AND CASE WHEN %(table)s::oid IS NOT NULL THEN pg_class.oid = %(table)s::oid
      ELSE relkind = 'r' AND pg_has_role(relowner, 'USAGE') END
"""
SAFE_PATH = "SET search_path = pg_catalog, pg_temp"
# Settings of the role or the database that would end our sessions, or change what our statements mean: LOCK_LIMITED,
# for example, needs a snapshot for each statement.
_SETTINGS = {
    "default_transaction_isolation": "'read committed'",
    "default_transaction_read_only": "off",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
}
# A backend whose client fell silent ends after 11 s instead of two hours, and frees its locks. Over a Unix socket these
# do nothing (https://www.postgresql.org/docs/current/runtime-config-connection.html).
_KEEPALIVE = {
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
# Generic plans must consist of index scans only, see prepared.py. A forbidden plan merely costs 10**10 more, which
# would start the compiler (jit) at each clean-up.
_PLANNER = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "jit": "off",
}
SETTINGS = "; ".join(f"SET {name} = {value}" for name, value in (_SETTINGS | _KEEPALIVE | _PLANNER).items())
# Since PostgreSQL 17.
TRANSACTION_TIMEOUT = "SET transaction_timeout = 0"
# The site gets a pooler's session next, so settings must end with each transaction.
IN_EACH_TRANSACTION = """
SET TRANSACTION ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0
"""
END_LAST = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE pid = %(pid)s AND application_name = %(name)s AND pid <> pg_backend_pid()
"""
# Rows that a silent client has locked are released after 15 s.
BEGIN = "BEGIN; SET LOCAL idle_in_transaction_session_timeout = 15000"

# A NOTIFY fails its transaction when the queue of notifications is full, which one idle listener inside a transaction
# can bring about. When it is more than half full none is sent, and the poll finds the rows.
QUIET = "pg_notification_queue_usage() < 0.5::float"
# For a single row. The first asks the queue, and gives NULL when nobody was woken. The second, in the same string,
# serves while the queue is known to have room, see PostgreSQLLayer. The payload is the last parameter.
WAKE_ONE = f" RETURNING CASE WHEN {QUIET} THEN pg_catalog.pg_notify('dbchannels', %s) END"
WAKE_ONE_UNASKED = "; NOTIFY dbchannels, %s"
# How full the queue is, from 0 to 1, and whether a probe was sent, see wakeup_check.py.
QUEUE_USAGE = "SELECT pg_notification_queue_usage(), false, NULL"
PROBE = f"""
SELECT pg_notification_queue_usage(), {QUIET},
       CASE WHEN {QUIET} THEN pg_catalog.pg_notify('dbchannels', %(wake)s) END
"""
WAKE = f"""
SELECT pg_catalog.pg_notify('dbchannels', payload) FROM pg_catalog.unnest(%(wake)s::text[]) AS payload WHERE {QUIET}"""

_INTO = """
INSERT INTO dbchannels_protocolmessage (channel, recipients, reply_channel, payload, sent_at, expires_at)
SELECT channel, recipients, reply_channel, payload, statement_timestamp(),
       statement_timestamp() + %(expiry)s::float * interval '1 second'
"""
_ARRAYS = "%(channels)s::text[], %(recipients)s::text[], %(reply_channels)s::text[], %(payloads)s::bytea[]"

# For queues that are known to have room, see CapacityCache. A scan of unnest gives its rows in order, without a sort.
# A single row is 1.4 times as fast without the arrays. Its text is short, as it is parsed and planned each time:
# parameters by position are put in 2 us faster than by name, and a literal interval costs less than a product.
SEND = f"{_INTO} FROM unnest({_ARRAYS}) AS message(channel, recipients, reply_channel, payload)"
SEND_ONE = """
INSERT INTO dbchannels_protocolmessage (channel, recipients, reply_channel, payload, sent_at, expires_at)
VALUES (%s, %s, %s, %s, statement_timestamp(), statement_timestamp() + %s::interval)"""

# Messages that differ only in their payloads: one array instead of four takes two thirds of the time.
SEND_ALIKE = """
INSERT INTO dbchannels_protocolmessage (channel, recipients, reply_channel, payload, sent_at, expires_at)
SELECT %(channel)s, %(recipient)s, %(reply_channel)s, payload, statement_timestamp(),
       statement_timestamp() + %(expiry)s::float * interval '1 second'
FROM pg_catalog.unnest(%(payloads)s::bytea[]) AS payload"""

# Rows are inserted only while their queue has room. The count stops at the capacity, so a long queue costs no more.
# Gives (channel, messages that waited before, whether the rows went in); the count is NULL for a queue without a limit.
ROOM = """
counted AS MATERIALIZED (
    SELECT channel, capacity, CASE WHEN capacity IS NOT NULL THEN (
        SELECT count(*) FROM (SELECT FROM {0} AS waiting
            WHERE waiting.channel::text = queue.channel {1} LIMIT queue.capacity) AS rows
    ) END AS waited
    FROM unnest(%(queues)s::text[], %(capacities)s::int[]) AS queue(channel, capacity)
), room AS MATERIALIZED (
    SELECT channel, waited, capacity IS NULL OR waited < capacity AS has_room FROM counted
)
"""
SEND_IF_ROOM = f"""
WITH {ROOM.format("dbchannels_protocolmessage", "")}, sent AS (
    {_INTO} FROM unnest({_ARRAYS}, %(certain)s::boolean[]) WITH ORDINALITY
                 AS message(channel, recipients, reply_channel, payload, certain, position)
    WHERE certain OR channel IN (SELECT channel FROM room WHERE has_room) ORDER BY position
)
SELECT channel, waited, has_room FROM room
"""

CONNECT = """
INSERT INTO dbchannels_connection (reply_channel, server, path, session_key, session_digest, login, connected_at)
SELECT reply_channel, server, path, session_key, session_digest, login, statement_timestamp()
FROM unnest(%(reply_channels)s::text[], %(servers)s::text[], %(paths)s::text[], %(session_keys)s::text[],
            %(session_digests)s::text[], %(logins)s::text[])
     AS opened(reply_channel, server, path, session_key, session_digest, login)
ON CONFLICT (reply_channel) DO NOTHING
"""

KEEP = """
UPDATE dbchannels_connection
SET session = coalesce(%(session)s::bytea, session),
    login = CASE WHEN login::text = ''::text OR %(login)s::text <> '-'::text THEN coalesce(%(login)s::text, login::text)
            ELSE login END
WHERE reply_channel::text = %(reply_channel)s::text
"""

# Rows that an open transaction of the site has locked are skipped; a clean-up deletes them, see ClosedConnections.
DISCONNECT = """
WITH gone AS (
    DELETE FROM dbchannels_connection WHERE reply_channel = ANY(ARRAY(
        SELECT reply_channel FROM dbchannels_connection WHERE reply_channel::text = ANY(%(reply_channels)s::text[])
        FOR UPDATE SKIP LOCKED
    ))
)
DELETE FROM dbchannels_membership WHERE id = ANY(ARRAY(
    SELECT membership.id FROM unnest(%(channels)s::text[], %(recipients)s::text[]) AS closed(channel, recipient)
    JOIN dbchannels_membership AS membership USING (channel, recipient) FOR UPDATE OF membership SKIP LOCKED
))
"""
# By the index of the channel, which has few rows: an index by reply channel would cost each send more.
WITHDRAW = """
DELETE FROM dbchannels_protocolmessage WHERE id = ANY(ARRAY(
    SELECT id FROM dbchannels_protocolmessage
    WHERE channel = %(channel)s AND reply_channel = ANY(%(reply_channels)s::text[]) FOR UPDATE SKIP LOCKED
))
"""
# The pop. LATERAL gives each queue an index scan of its own; `channel IN (...) ORDER BY id` may walk the primary key
# through the rows of all queues instead. ANY(ARRAY(...)) measured 1.1 to 2 times as fast as IN (...). ``scan_from`` is
# a hint, and often 0, see ScanHints. With `channel = ... ORDER BY id`, statistics of a time when all rows were dead
# make the primary key look as cheap, which has the rows of all queues; (channel, id) is the order of one index only.
_POPPED = """
popped AS (
    DELETE FROM dbchannels_protocolmessage
    WHERE id = ANY(ARRAY(
        SELECT oldest.id FROM unnest(%(queues)s::text[], %(scan_from)s::bigint[]) AS queue(name, scan_from)
        CROSS JOIN LATERAL (
            SELECT id FROM dbchannels_protocolmessage
            WHERE (channel, id) > (queue.name, queue.scan_from) AND channel <= queue.name
                  AND expires_at > statement_timestamp()
            ORDER BY channel, id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
        ) AS oldest LIMIT %(limit)s
    ))
    RETURNING id, channel, recipients, audience, reply_channel, payload, sent_at
)
"""
# The recipients are NULL when the audience that has them was deleted. A reader need not remember them: to read those of
# 10,000 members again takes 0.5 ms, and to write them a frame each 60.
_TAKEN = """
SELECT channel, payload, CASE WHEN audience IS NULL THEN recipients ELSE (
    SELECT one.recipients FROM dbchannels_audience AS one
    WHERE one.key = popped.audience AND one.recipients <> '' LIMIT 1
) END, reply_channel, id, extract(epoch FROM statement_timestamp() - sent_at)::float
FROM popped ORDER BY id
"""

RECEIVE = f"""
WITH {_POPPED}{_TAKEN}"""

# The same, and on record: if the worker is killed, its row of dbchannels_inflight has what it had popped.
RECEIVE_IN_FLIGHT = f"""
WITH {_POPPED}, in_flight AS (
    INSERT INTO dbchannels_inflight (worker, messages, since)
    SELECT %(worker)s, string_agg(channel || ' ' || reply_channel, E'\\n' ORDER BY id), statement_timestamp()
    FROM popped HAVING count(*) > 0
    ON CONFLICT (worker) DO UPDATE SET messages = EXCLUDED.messages, since = EXCLUDED.since
){_TAKEN}"""

SET_IN_FLIGHT = """
UPDATE dbchannels_inflight SET messages = %(messages)s, since = statement_timestamp() WHERE worker = %(worker)s
"""

# The table is UNLOGGED: a row that was there and is not shows that a crash, or a failover, has emptied it and its like.
MARK = """
INSERT INTO dbchannels_inflight (worker, messages, since) VALUES (%(worker)s, '', statement_timestamp())
ON CONFLICT (worker) DO NOTHING RETURNING true
"""
UNFINISHED_OF_CLIENTS = """
SELECT reply_channel FROM dbchannels_protocolmessage WHERE reply_channel = ANY(%(reply_channels)s::text[])
UNION ALL SELECT split_part(line, ' ', 2) FROM dbchannels_inflight, regexp_split_to_table(messages, E'\\n') AS line
WHERE messages <> ''
"""

# For results that wait for another transaction, see lock_waits.py: in a row beside the worker's own, which the next pop
# overwrites.
SET_BLOCKED = """
INSERT INTO dbchannels_inflight (worker, messages, since) VALUES (%(worker)s, %(messages)s, statement_timestamp())
ON CONFLICT (worker) DO UPDATE SET messages = EXCLUDED.messages
"""
# For the transaction that the statements of one string are.
LOCK_TIMEOUT = "SET LOCAL lock_timeout = %(milliseconds)s"

FLUSH = """
DELETE FROM dbchannels_protocolmessage;
DELETE FROM dbchannels_audience;
DELETE FROM dbchannels_durablemessage;
DELETE FROM dbchannels_deadletter;
DELETE FROM dbchannels_taskresult;
DELETE FROM dbchannels_inflight;
DELETE FROM dbchannels_membership;
DELETE FROM dbchannels_schedule;
DELETE FROM dbchannels_channelstate;
DELETE FROM dbchannels_history;
DELETE FROM dbchannels_trimmed
"""

# The messages that wait, those that are taken and not finished, and the age in seconds of the oldest one that could be
# taken now. Ready and delayed messages are counted in their partial indexes, and only the oldest row is read.
_OF_CHANNEL = "(%(channel)s::text IS NULL OR channel::text = %(channel)s::text)"
STATISTICS = f"""
WITH protocol AS (
    SELECT count(*) AS number, pg_catalog.min(sent_at) AS sent_at FROM dbchannels_protocolmessage
    WHERE expires_at > statement_timestamp() AND {_OF_CHANNEL}
), ready AS (
    SELECT count(*) AS number, pg_catalog.min(id) AS oldest FROM dbchannels_durablemessage
    WHERE claimed_by IS NULL AND due_at IS NULL AND {_OF_CHANNEL}
), delayed AS (
    SELECT count(*) AS number FROM dbchannels_durablemessage WHERE due_at IS NOT NULL AND {_OF_CHANNEL}
), due AS (
    SELECT pg_catalog.min(sent_at) AS sent_at FROM dbchannels_durablemessage
    WHERE due_at <= statement_timestamp() AND {_OF_CHANNEL}
), claimed AS (
    SELECT count(*) AS number FROM dbchannels_durablemessage WHERE claimed_by IS NOT NULL AND {_OF_CHANNEL}
), in_flight AS (
    SELECT count(*) AS number
    FROM dbchannels_inflight CROSS JOIN LATERAL pg_catalog.regexp_split_to_table(messages, E'\\n') AS line
    WHERE messages <> ''::text
          AND (%(channel)s::text IS NULL OR pg_catalog.split_part(line, ' ', 1) = %(channel)s::text)
)
SELECT protocol.number + ready.number + delayed.number, claimed.number + in_flight.number,
       greatest(0, coalesce(extract(epoch FROM statement_timestamp() - least(
           protocol.sent_at, due.sent_at,
           (SELECT sent_at FROM dbchannels_durablemessage WHERE id = ready.oldest)
       )), 0))::float
FROM protocol, ready, delayed, due, claimed, in_flight
"""

TABLES_PRESENT = "SELECT pg_catalog.to_regclass('dbchannels_inflight') IS NOT NULL"
SERVER = "SELECT pg_catalog.current_setting('server_version'), current_database()"

# The user of a WebSocket. Written only if it changes.
IDENTIFY = """
UPDATE dbchannels_connection SET user_id = %(user_id)s
WHERE reply_channel::text = %(reply_channel)s::text AND user_id::text <> %(user_id)s::text
"""

# Live processes, and what dead ones and expired messages leave behind.
#
# A process has a lease by the database's clock, and the advisory lock of a session, numbered by its row. Clean-ups skip
# locked rows, since a transaction of the site may stay open for an hour.

REGISTER = """
INSERT INTO dbchannels_process (name, kind, queue, host, pid, reads, started_at, lease_until)
VALUES (%(name)s, %(kind)s, %(queue)s, %(host)s, %(pid)s, %(reads)s, statement_timestamp(),
        statement_timestamp() + %(lease)s * interval '1 second')
ON CONFLICT (name) DO UPDATE SET lease_until = EXCLUDED.lease_until
RETURNING id
"""

# 1684169832 is "dbch" in ASCII, the first half of our locks' 64-bit keys.
LOCK_KEY = "((1684169832::bigint << 32) | (%(id)s::bigint & 4294967295))"
LOCK = f"SELECT pg_try_advisory_lock({LOCK_KEY})"
TRY_LOCK = f"SELECT pg_try_advisory_xact_lock({LOCK_KEY})"
# Of a process that was declared dead, and is back under its name: what it has now is not what it left.
FINISHED = "DELETE FROM dbchannels_process WHERE name = %(unfinished)s"

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
WHERE queue.name <> ALL(ARRAY(SELECT channel::text FROM dbchannels_channelstate))
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
