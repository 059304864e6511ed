"""How PostgreSQL keeps the tables: UNLOGGED for what means nothing after a crash, and vacuumed early; and its broadcast.

No WAL is written for an UNLOGGED table: 82,000 rows a second where a logged one takes 57,000, and one-row
transactions without a flush to the disk. Queues turn over all the time, so autovacuum starts after 1,000 dead
rows whatever the table's size, and does not pause; updates find room on their page (HOT).
See https://www.postgresql.org/docs/current/sql-createtable.html.
"""

from django.db import migrations

UNLOGGED = ("dbchannels_protocolmessage", "dbchannels_held", "dbchannels_audience")
BUSY = (
    "dbchannels_protocolmessage",
    "dbchannels_audience",
    "dbchannels_durablemessage",
    "dbchannels_held",
    "dbchannels_process",
    "dbchannels_membership",
    "dbchannels_tally",
    "dbchannels_connection",
)
STORAGE = (
    "autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 1000, "
    "autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0.0, autovacuum_analyze_threshold = 5000"
)

# What each statement does to memberships is added to the tally as rows of its own. They add up, in any snapshot, to
# what that snapshot's memberships are, and no two that change one group at once wait for each other. The digest adds up
# hashes of 128 bits, so that a tally says whether two sets of members are equal.
KEEP_TALLY = """
CREATE OR REPLACE FUNCTION dbchannels_digest(local text) RETURNS numeric LANGUAGE sql IMMUTABLE AS $function$
    SELECT hashtextextended(local, 0)::numeric * 18446744073709551616 + hashtextextended(local, 1)
$function$;
CREATE OR REPLACE FUNCTION dbchannels_keep_tally() RETURNS trigger LANGUAGE plpgsql AS $function$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO dbchannels_tally ("group", channel, members, ending, digest, merged)
        SELECT "group", channel, count(*), count(expires_at), sum(dbchannels_digest(local)), false
        FROM come GROUP BY "group", channel;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO dbchannels_tally ("group", channel, members, ending, digest, merged)
        SELECT "group", channel, -count(*), -count(expires_at), -sum(dbchannels_digest(local)), false
        FROM gone GROUP BY "group", channel;
    ELSIF TG_OP = 'UPDATE' THEN
        INSERT INTO dbchannels_tally ("group", channel, members, ending, digest, merged)
        SELECT "group", channel, sum(number), coalesce(sum(number) FILTER (WHERE ends), 0), sum(number * digest), false FROM (
            SELECT "group", channel, -1 AS number, expires_at IS NOT NULL AS ends, dbchannels_digest(local) AS digest
            FROM gone UNION ALL
            SELECT "group", channel, 1, expires_at IS NOT NULL, dbchannels_digest(local) FROM come
        ) AS changed GROUP BY "group", channel
        HAVING sum(number) FILTER (WHERE ends) <> 0 OR sum(number * digest) <> 0;
    ELSE
        DELETE FROM dbchannels_tally;
    END IF;
    RETURN NULL;
END
$function$;
DROP TRIGGER IF EXISTS dbchannels_added ON dbchannels_membership;
CREATE TRIGGER dbchannels_added AFTER INSERT ON dbchannels_membership
    REFERENCING NEW TABLE AS come FOR EACH STATEMENT EXECUTE FUNCTION dbchannels_keep_tally();
DROP TRIGGER IF EXISTS dbchannels_discarded ON dbchannels_membership;
CREATE TRIGGER dbchannels_discarded AFTER DELETE ON dbchannels_membership
    REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION dbchannels_keep_tally();
DROP TRIGGER IF EXISTS dbchannels_changed ON dbchannels_membership;
CREATE TRIGGER dbchannels_changed AFTER UPDATE ON dbchannels_membership
    REFERENCING OLD TABLE AS gone NEW TABLE AS come FOR EACH STATEMENT EXECUTE FUNCTION dbchannels_keep_tally();
DROP TRIGGER IF EXISTS dbchannels_emptied ON dbchannels_membership;
CREATE TRIGGER dbchannels_emptied AFTER TRUNCATE ON dbchannels_membership
    FOR EACH STATEMENT EXECUTE FUNCTION dbchannels_keep_tally();
"""

# Who the members are, the tally says without looking at them. A broadcast to more than 40 on one server (from 2 kB on
# PostgreSQL would put the local parts out of line), of whom none has an end, names an audience by what the tally says.
# Of members that were not seen before only that is noted, their broadcast has them in its row; the second one to just
# these writes the audience, and those after it nothing: a group that changes between any two costs one short row more.
# An audience's key is always made of the members that were read for it, so a tally that is wrong makes a broadcast
# slow, and not false. An audience serves for 60 s; a message that names it has ended 60 s before it is swept, so that
# no lock is needed. Of a queue whose ids span less than its capacity no row is counted.
# To compare a long text with '' reads its length alone. A plan is kept by the session, so it must not be one that a
# small table invited: enable_seqscan. Names without a '!' or '?' that do not start as http. or websocket. are the
# site's own, durable channels, the same rule as names.is_protocol; no NOTIFY past a half of its queue, see sql.py.
SEND_GROUP = """
CREATE OR REPLACE FUNCTION dbchannels_send_group(
    to_group text, body bytea, expiry float, patterns text[], capacities int[], wakes boolean, near text[]
) RETURNS void LANGUAGE plpgsql SET enable_seqscan = off AS $function$
DECLARE
    queue record;
    parts text;
    capacity int;
    waiting bigint;
    audience_key uuid;
    seen int;
    ends timestamptz := statement_timestamp() + expiry * interval '1 second';
    serves interval := interval '60 s';
    spare interval := interval '60 s';
    wakeup text;
    wakeups text[] := '{}';
BEGIN
    FOR queue IN
        SELECT channel, sum(members) AS members, sum(digest) AS digest, sum(ending) = 0 AND sum(members) > 40 AS named
        FROM dbchannels_tally WHERE "group" = to_group GROUP BY channel HAVING sum(members) > 0
    LOOP
        FOR position IN 1 .. cardinality(patterns) LOOP  -- the first that fits
            capacity := capacities[position];
            EXIT WHEN queue.channel ~ patterns[position];
        END LOOP;
        IF queue.channel !~ '[!?]|^http[.]|^websocket[.]' THEN
            CONTINUE WHEN NOT EXISTS (
                SELECT FROM dbchannels_membership WHERE "group" = to_group AND channel = queue.channel
                AND (expires_at IS NULL OR expires_at > statement_timestamp())
            );
            IF capacity IS NOT NULL THEN
                SELECT count(*) INTO waiting FROM (
                    SELECT FROM dbchannels_durablemessage
                    WHERE channel = queue.channel AND claimed_by IS NULL LIMIT capacity
                ) AS counted;
                CONTINUE WHEN waiting >= capacity;
            END IF;
            INSERT INTO dbchannels_durablemessage (channel, payload, priority, unique_key, attempts, alone, sent_at)
            VALUES (queue.channel, body, 0, '', 0, false, statement_timestamp());
            wakeups := wakeups || 'd'::text;
            CONTINUE;
        END IF;
        IF capacity IS NOT NULL AND capacity <= (
            SELECT id FROM dbchannels_protocolmessage WHERE channel = queue.channel ORDER BY id DESC LIMIT 1
        ) - (
            SELECT id FROM dbchannels_protocolmessage WHERE channel = queue.channel ORDER BY id LIMIT 1
        ) + 1 THEN
            SELECT count(*) INTO waiting FROM (
                SELECT FROM dbchannels_protocolmessage WHERE channel = queue.channel LIMIT capacity
            ) AS counted;
            CONTINUE WHEN waiting >= capacity;
        END IF;
        audience_key := NULL;
        seen := 0;
        IF queue.named THEN
            audience_key := dbchannels_audience_key(queue.members, queue.digest);
            SELECT coalesce(max(CASE WHEN locals <> '' THEN 2 ELSE 1 END), 0) INTO seen FROM dbchannels_audience
            WHERE key = audience_key AND expires_at > ends + spare;
        END IF;
        IF seen < 2 THEN
            SELECT string_agg(local, ' '),
                   CASE WHEN queue.named
                   THEN dbchannels_audience_key(count(*), sum(dbchannels_digest(local))) END
            INTO parts, audience_key FROM dbchannels_membership
            WHERE "group" = to_group AND channel = queue.channel
                  AND (expires_at IS NULL OR expires_at > statement_timestamp());
            CONTINUE WHEN parts IS NULL;
            IF audience_key IS NOT NULL THEN
                INSERT INTO dbchannels_audience (key, locals, expires_at)
                VALUES (audience_key, CASE WHEN seen = 1 THEN parts ELSE '' END, ends + serves + spare);
                IF seen = 0 THEN
                    audience_key := NULL;
                END IF;
            END IF;
        END IF;
        INSERT INTO dbchannels_protocolmessage
            (channel, locals, audience, reply_channel, payload, sent_at, expires_at)
        VALUES (queue.channel, CASE WHEN audience_key IS NULL THEN parts ELSE '' END, audience_key, '', body,
                statement_timestamp(), ends);
        wakeups := wakeups || CASE WHEN queue.channel ~ '[!?]' THEN queue.channel ELSE left(queue.channel, 1) END::text;
    END LOOP;
    IF wakes AND wakeups <> '{}' AND pg_notification_queue_usage() < 0.5 THEN
        FOREACH wakeup IN ARRAY wakeups LOOP  -- an expression: a PERFORM would be planned and run as a query
            CONTINUE WHEN wakeup = ANY (near) OR pg_notify('dbchannels', wakeup) IS NULL;
        END LOOP;
    END IF;
END
$function$;
CREATE OR REPLACE FUNCTION dbchannels_audience_key(members numeric, digest numeric) RETURNS uuid
LANGUAGE sql IMMUTABLE AS $function$
    SELECT encode(substring(sha256(convert_to(members || ' ' || digest, 'UTF8')) FOR 16), 'hex')::uuid
$function$;
"""
FUNCTIONS = f"{KEEP_TALLY}{SEND_GROUP}"


def set_storage(apps, schema_editor):
    if schema_editor.connection.vendor != "postgresql":
        return
    for table in UNLOGGED:
        schema_editor.execute(f"ALTER TABLE {table} SET UNLOGGED")
    for table in BUSY:
        schema_editor.execute(f"ALTER TABLE {table} SET ({STORAGE})")
    for table in ("dbchannels_held", "dbchannels_process", "dbchannels_durablemessage"):
        schema_editor.execute(f"ALTER TABLE {table} SET (fillfactor = 70)")
    schema_editor.execute(FUNCTIONS, params=None)


def drop_functions(apps, schema_editor):
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute("DROP FUNCTION dbchannels_send_group, dbchannels_audience_key")
        schema_editor.execute("DROP FUNCTION dbchannels_keep_tally, dbchannels_digest CASCADE")


class Migration(migrations.Migration):
    dependencies = [("dbchannels", "0001_initial")]

    operations = [migrations.RunPython(set_storage, drop_functions, elidable=False)]
