"""The statements about groups; see also ``sql``."""

from dbchannels.layers.postgresql.sql_history import LAST

# One row for each queue that has members, however many they are: the body is stored once. The function is in migration
# 0002, because a statement that is planned at each broadcast takes three times as long.
SEND_GROUP = """
SELECT dbchannels_send_group(%s::text, %s::bytea, %s::float, %s::text[], %s::int[], %s::boolean, %s::text[])
"""
# The same with a history, which also takes how many messages it keeps, and for how long. The servers deliver what they
# read there, so only members of other processes get rows.
KEEP_GROUP = """
SELECT dbchannels_keep_group(
    %s::text, %s::bytea, %s::float, %s::text[], %s::int[], %s::boolean, %s::text[], %s::int, %s::float
)
"""

# Whether messages wait in the caller's queues, and how many members each of these groups has in which queue. The tally,
# see migration 0002, tells whether the members are still those that were read before.
_WAITS = "EXISTS (SELECT FROM dbchannels_protocolmessage WHERE channel = ANY(%(queues)s::text[]))"
WAITING = f"SELECT {_WAITS}"
MEMBERS_BY_QUEUE = f"""
SELECT {_WAITS}, "group", channel, sum(members)::bigint, sum(digest)::text, sum(expiring) > 0
FROM dbchannels_tally WHERE "group" = ANY(%(groups)s::text[]) GROUP BY "group", channel HAVING sum(members) > 0
"""
# The members, with the tally that they make up. Only groups without members elsewhere are looked up, so they are
# found by their names. The empty text keeps PostgreSQL from the index on channels, which has all members in a queue.
MEMBERS_IN_QUEUES = """
SELECT "group", channel, count(*), sum(
    hashtextextended(recipient, 0)::numeric * 18446744073709551616 + hashtextextended(recipient, 1)
)::text, string_agg(recipient, ' ')
FROM dbchannels_membership WHERE "group" = ANY(%(groups)s::text[]) AND channel || '' = ANY(%(queues)s::text[])
      AND (expires_at IS NULL OR expires_at > statement_timestamp())
GROUP BY "group", channel
"""

# The membership of a channel whose server is alive does not expire. The row is updated only if that changes it, so that
# adding a channel at each of its messages writes nothing.
GROUP_ADD = f"""
INSERT INTO dbchannels_membership ("group", channel, recipient, added_at, since, expires_at)
SELECT %(group)s::text, %(channel)s::text, %(recipient)s::text, statement_timestamp(),
       CASE WHEN %(is_later)s::boolean THEN {LAST} END,
       CASE WHEN %(channel)s::text NOT LIKE '%%!'
                 OR NOT EXISTS (SELECT FROM dbchannels_process WHERE queue::text = %(channel)s::text)
            THEN statement_timestamp() + %(expiry)s::float * interval '1 second' END
ON CONFLICT ("group", channel, recipient) DO UPDATE SET expires_at = EXCLUDED.expires_at
WHERE dbchannels_membership.expires_at IS NOT NULL OR EXCLUDED.expires_at IS NOT NULL
"""

GROUP_DISCARD = """
DELETE FROM dbchannels_membership
WHERE "group"::text = %(group)s::text AND channel::text = %(channel)s::text AND recipient::text = %(recipient)s::text
"""

GROUP_CLEAR = 'DELETE FROM dbchannels_membership WHERE "group"::text = %(group)s::text'

GROUP_COUNT = """
SELECT count(*) FROM dbchannels_membership
WHERE "group"::text = %(group)s::text AND (expires_at IS NULL OR expires_at > statement_timestamp())
"""

GROUP_CHANNELS = """
SELECT channel::text || recipient::text FROM dbchannels_membership
WHERE "group"::text = %(group)s::text AND (expires_at IS NULL OR expires_at > statement_timestamp()) ORDER BY id
"""

GROUP_USERS = """
SELECT DISTINCT connection.user_id FROM dbchannels_membership AS member
JOIN dbchannels_connection AS connection
     ON connection.reply_channel::text = member.channel::text || member.recipient::text
WHERE member."group"::text = %(group)s::text AND connection.user_id::text <> ''::text
      AND (member.expires_at IS NULL OR member.expires_at > statement_timestamp())
"""
