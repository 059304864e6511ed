"""Every statement about samples, whole: what workers measured, and what waits in the whole site. See also ``sql``."""

CLOCK = "SELECT extract(epoch FROM statement_timestamp())::float"

WRITE_SAMPLE = """
INSERT INTO dbchannels_sample (at, source, data) VALUES (to_timestamp(%(moment)s::float), %(source)s, %(data)s)
ON CONFLICT (at, source) DO NOTHING RETURNING id
"""
COMPLETE_SAMPLE = """
UPDATE dbchannels_sample SET data = %(data)s WHERE at = to_timestamp(%(moment)s::float) AND source = ''
"""
DROP_SAMPLES = (
    "DELETE FROM dbchannels_sample WHERE at < statement_timestamp() - %(kept)s * interval '1 second'"
)
NEWEST_SAMPLE = """
SELECT data FROM dbchannels_sample
WHERE at <= statement_timestamp() AND source = '' AND data <> '' ORDER BY at DESC LIMIT 1
"""

# In front of GAUGES, in one transaction with it.
LIMIT = "SET LOCAL statement_timeout = %(milliseconds)s"
# Rows (position in measures.GAUGES, channel, number, age in seconds). The counts are index-only scans; of each channel
# one row is read, the one that was sent first. Expired messages count until a clean-up deletes them, a few seconds
# later. With many names, as of a channel for each user, the shortest queues are added up.
GAUGES = """
WITH ready AS MATERIALIZED (
    SELECT channel, count(*) AS number, pg_catalog.min(id) AS first FROM dbchannels_durablemessage
    WHERE claimed_by IS NULL AND due_at IS NULL GROUP BY channel
), protocol AS MATERIALIZED (
    SELECT channel, count(*) AS number, pg_catalog.min(id) AS first FROM dbchannels_protocolmessage
    WHERE right(channel, 1) <> '!' GROUP BY channel
), counted AS (
    SELECT 0 AS position, channel::text, number, (
        SELECT coalesce(ready_at, sent_at) FROM dbchannels_durablemessage AS oldest WHERE oldest.id = ready.first
    ) AS since FROM ready
    UNION ALL
    SELECT 0, channel::text, number, (
        SELECT sent_at FROM dbchannels_protocolmessage AS oldest WHERE oldest.id = protocol.first
    ) FROM protocol
    UNION ALL
    SELECT 1, channel::text, count(*), NULL FROM dbchannels_durablemessage WHERE due_at IS NOT NULL GROUP BY channel
    UNION ALL
    SELECT 2, channel::text, count(*), NULL FROM dbchannels_durablemessage WHERE claimed_by IS NOT NULL GROUP BY channel
    UNION ALL
    SELECT 4, channel::text, count(*), NULL FROM dbchannels_deadletter GROUP BY channel
), named AS (
    SELECT position, number, since,
           CASE WHEN row_number() OVER (PARTITION BY position ORDER BY number DESC) <= %(most)s THEN channel
                ELSE %(others)s::text END AS channel
    FROM counted
)
SELECT position, channel, sum(number)::bigint,
       greatest(0, coalesce(extract(epoch FROM statement_timestamp() - pg_catalog.min(since)), 0))::float
FROM named GROUP BY position, channel
UNION ALL
SELECT -1, kind::text, count(*), 0 FROM dbchannels_process WHERE lease_until >= statement_timestamp() GROUP BY kind
UNION ALL
SELECT -1, 'socket', count(*), 0 FROM dbchannels_connection
"""
