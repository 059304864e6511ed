"""The statements for the histories of groups; see ``sql``, and the models ``History`` and ``Trimmed``.

A message is written by ``dbchannels_keep_group`` of migration 0004, in the sender's transaction and without a position.
"""

# Positions become visible in their order, because the lock is held until they are committed. NUMBER is a statement of
# its own after LOCK, so that its snapshot shows all positions that were given before. 1684169833 is the first half of
# no other lock of ours, see sql.LOCK_KEY. ``scan_from`` is a hint, and often 0, see ScanHints: while a stranger's
# transaction is open, each message leaves an entry in the index of those without a position.
LOCK = "SELECT pg_advisory_xact_lock(1684169833, 1)"
LAST = """
greatest((SELECT max(position) FROM dbchannels_history), (SELECT max(position) FROM dbchannels_trimmed), 0::bigint)
"""
POSITION = f"SELECT {LAST}"
NUMBER = f"""
UPDATE dbchannels_history AS message SET position = base.last + fresh.number
FROM (
    SELECT id, row_number() OVER (ORDER BY id) AS number FROM (
        SELECT id FROM dbchannels_history WHERE position IS NULL AND id > %(scan_from)s ORDER BY id LIMIT %(limit)s
    ) AS oldest
) AS fresh, (
    SELECT greatest({LAST}, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint) AS last
) AS base
WHERE message.id = fresh.id
"""
# The members of a group are listed once. Of messages to groups without members here only the positions are read.
READ = """
WITH fresh AS MATERIALIZED (
    SELECT position, "group", payload, id FROM dbchannels_history WHERE position > %(after)s
    ORDER BY position LIMIT %(limit)s
), here AS MATERIALIZED (
    SELECT "group", (
        SELECT string_agg(recipient::text, ' '::text) FROM dbchannels_membership AS member
        WHERE member."group" = one."group" AND member.channel::text = %(queue)s::text
              AND (expires_at IS NULL OR expires_at > statement_timestamp())
    ) AS recipients FROM (SELECT DISTINCT "group" FROM fresh) AS one
)
SELECT position, "group", CASE WHEN recipients IS NOT NULL THEN payload END,
       CASE WHEN row_number() OVER (PARTITION BY "group" ORDER BY position) = 1 THEN recipients END, id
FROM fresh JOIN here USING ("group") ORDER BY position
"""

# The rows of each channel: at most ``limit``, and after the first no more than ``size`` bytes in all; one without a
# position if there are none. A group that it has joined later counts from then on, see the model ``Membership``.
MISSED = f"""
WITH known AS MATERIALIZED (SELECT {LAST} AS last), client AS MATERIALIZED (
    SELECT recipient, groups, starts, (
        SELECT max(coalesce(position, 0)) FROM unnest(groups || ''::text, starts || start) AS one(name, start)
        LEFT JOIN dbchannels_trimmed ON "group"::text = name WHERE coalesce(position, 0) > one.start
    ) AS gap
    FROM known, unnest(%(recipients)s::text[], %(afters)s::bigint[]) AS one(recipient, after)
    CROSS JOIN LATERAL (SELECT CASE WHEN after > last THEN -1 ELSE after END AS start) AS begin
    CROSS JOIN LATERAL (
        SELECT coalesce(array_agg("group"::text), ARRAY[]::text[]) AS groups,
               coalesce(array_agg(greatest(start, since)), ARRAY[]::bigint[]) AS starts
        FROM dbchannels_membership AS member
        WHERE member.channel::text = %(queue)s::text AND member.recipient::text = one.recipient
              AND (expires_at IS NULL OR expires_at > statement_timestamp())
    ) AS joined
)
SELECT recipient, gap, position, payload, number
FROM client LEFT JOIN LATERAL (
    SELECT position, payload, count(*) OVER () AS number,
           sum(octet_length(payload)) OVER (ORDER BY position) AS bytes, octet_length(payload) AS own
    FROM unnest(groups, starts) AS joined(name, start) CROSS JOIN LATERAL (
        SELECT position, payload FROM dbchannels_history
        WHERE "group"::text = name AND position > start ORDER BY position LIMIT %(limit)s
    ) AS message
) AS message ON bytes <= %(size)s OR bytes = own
ORDER BY recipient, position
"""

# What servers may not have read yet stays: a server that does not read for so long is declared dead, and its clients
# come back. Of groups that have had messages in the meantime, all but the newest are deleted, as many as the newest one
# says; and what has expired. One process at a time trims, so that no two wait for each other.
HAS_SERVER = "SELECT EXISTS (SELECT FROM dbchannels_process WHERE kind = 'server')"
TRIM_LOCK = "SELECT pg_advisory_xact_lock(1684169833, 2)"
TRIM = """
WITH horizon AS MATERIALIZED (
    SELECT ((extract(epoch FROM statement_timestamp()) - %(expiry)s::float) * 1000000)::bigint AS position
), looked AS MATERIALIZED (
    SELECT history.position, "group" FROM dbchannels_history AS history
    WHERE history.position > %(after)s AND history.position <= (SELECT position FROM horizon)
    ORDER BY history.position LIMIT %(limit)s
), doomed AS MATERIALIZED (
    SELECT message.id FROM (SELECT DISTINCT "group" FROM looked) AS one
    CROSS JOIN LATERAL (
        SELECT keep FROM dbchannels_history AS newest
        WHERE newest."group" = one."group" AND newest.position IS NOT NULL ORDER BY newest.position DESC LIMIT 1
    ) AS rule
    CROSS JOIN LATERAL (
        SELECT cut.position FROM dbchannels_history AS cut
        WHERE cut."group" = one."group" AND cut.position IS NOT NULL AND rule.keep IS NOT NULL
        ORDER BY cut.position DESC OFFSET rule.keep LIMIT 1
    ) AS beyond
    CROSS JOIN LATERAL (
        SELECT id FROM dbchannels_history AS message
        WHERE message."group" = one."group" AND message.position <= beyond.position
              AND message.position <= (SELECT position FROM horizon)
        ORDER BY message.position LIMIT %(limit)s
    ) AS message
    UNION ALL SELECT id FROM (
        SELECT id FROM dbchannels_history WHERE expires_at < statement_timestamp()
               AND position <= (SELECT position FROM horizon) ORDER BY expires_at LIMIT %(limit)s
    ) AS expired
    LIMIT %(limit)s
), gone AS (
    DELETE FROM dbchannels_history WHERE id = ANY(ARRAY(SELECT id FROM doomed)) RETURNING "group", position
), noted AS (
    INSERT INTO dbchannels_trimmed ("group", position) SELECT "group", max(position) FROM gone GROUP BY "group"
    ON CONFLICT ("group") DO UPDATE SET position = greatest(dbchannels_trimmed.position, EXCLUDED.position)
)
SELECT (SELECT max(position) FROM looked), (SELECT count(*) FROM looked), (SELECT count(*) FROM doomed)
"""
# A group to which nobody has sent for so long is forgotten: who comes back from such a time is told of a gap.
FORGET = """
WITH past AS (
    DELETE FROM dbchannels_trimmed WHERE "group" <> ''
           AND position < ((extract(epoch FROM statement_timestamp()) - %(expiry)s::float) * 1000000)::bigint
    RETURNING position
)
INSERT INTO dbchannels_trimmed ("group", position) SELECT '', max(position) FROM past HAVING count(*) > 0
ON CONFLICT ("group") DO UPDATE SET position = greatest(dbchannels_trimmed.position, EXCLUDED.position)
"""
