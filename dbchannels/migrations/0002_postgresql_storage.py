"""PostgreSQL's own part: how it stores the tables, the triggers that keep the tally, and the function that broadcasts.

An UNLOGGED table writes no WAL: 82,000 rows a second instead of 57,000, and one-row transactions without a flush to the
disk. Queues turn over all the time, so autovacuum starts after 1,000 dead rows, whatever the size of the table, and does
not pause; updates find room on their page (HOT). https://www.postgresql.org/docs/current/sql-createtable.html
"""

import re

from django.db import migrations

UNLOGGED = ("dbchannels_protocolmessage", "dbchannels_inflight", "dbchannels_audience")
BUSY = (
    "dbchannels_protocolmessage",
    "dbchannels_audience",
    "dbchannels_durablemessage",
    "dbchannels_inflight",
    "dbchannels_process",
    "dbchannels_membership",
    "dbchannels_tally",
    "dbchannels_connection",
)
STORAGE = (
    "autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 1000, "
    "autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0.0, autovacuum_analyze_threshold = 5000"
)

# Anybody who may create objects in a schema of the search_path can plant functions and operators there that fit a call
# better than PostgreSQL's own, and they run with the caller's rights. So our functions look names up in pg_catalog
# alone. "our." stands for the schema of the tables, wherever the search_path had them made: a restore, which sets no
# search_path, finds them too. https://wiki.postgresql.org/wiki/A_Guide_to_CVE-2018-1058
SAFE = "SET search_path = pg_catalog, pg_temp"
DIGEST = "(hashtextextended(recipient, 0)::numeric * 18446744073709551616 + hashtextextended(recipient, 1))"

# Each statement that changes memberships adds rows to the tally. In any snapshot they add up to the memberships of that
# snapshot, and two statements that change one group at once do not wait for each other. The digest adds up hashes of 128
# bits, so that equal tallies mean equal members.
# Rows of the tally that are loaded from a dump of the data are skipped, since the memberships of the dump make it anew.
# The only rows that are inserted outside a trigger are the sums of a merge (MERGE_TALLY in sql.py).
UPDATE_TALLY = f"""
CREATE OR REPLACE FUNCTION our.dbchannels_update_tally() RETURNS trigger LANGUAGE plpgsql {SAFE} AS $function$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO our.dbchannels_tally ("group", channel, members, expiring, digest, merged)
        SELECT "group", channel, count(*), count(expires_at), sum({DIGEST}), false
        FROM come GROUP BY "group", channel;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO our.dbchannels_tally ("group", channel, members, expiring, digest, merged)
        SELECT "group", channel, -count(*), -count(expires_at), -sum({DIGEST}), false
        FROM gone GROUP BY "group", channel;
    ELSIF TG_OP = 'UPDATE' THEN
        INSERT INTO our.dbchannels_tally ("group", channel, members, expiring, digest, merged)
        SELECT "group", channel, sum(number), coalesce(sum(number) FILTER (WHERE ends), 0), sum(number * digest), false FROM (
            SELECT "group", channel, -1 AS number, expires_at IS NOT NULL AS ends, {DIGEST} AS digest
            FROM gone UNION ALL
            SELECT "group", channel, 1, expires_at IS NOT NULL, {DIGEST} FROM come
        ) AS changed GROUP BY "group", channel
        HAVING sum(number) FILTER (WHERE ends) <> 0 OR sum(number * digest) <> 0;
    ELSE
        DELETE FROM our.dbchannels_tally;
    END IF;
    RETURN NULL;
END
$function$;
CREATE OR REPLACE FUNCTION our.dbchannels_skip_row() RETURNS trigger LANGUAGE plpgsql {SAFE} AS $function$
BEGIN
    RETURN NULL;
END
$function$;
CREATE OR REPLACE TRIGGER dbchannels_added AFTER INSERT ON our.dbchannels_membership
    REFERENCING NEW TABLE AS come FOR EACH STATEMENT EXECUTE FUNCTION our.dbchannels_update_tally();
CREATE OR REPLACE TRIGGER dbchannels_discarded AFTER DELETE ON our.dbchannels_membership
    REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION our.dbchannels_update_tally();
CREATE OR REPLACE TRIGGER dbchannels_changed AFTER UPDATE ON our.dbchannels_membership
    REFERENCING OLD TABLE AS gone NEW TABLE AS come FOR EACH STATEMENT EXECUTE FUNCTION our.dbchannels_update_tally();
CREATE OR REPLACE TRIGGER dbchannels_emptied AFTER TRUNCATE ON our.dbchannels_membership
    FOR EACH STATEMENT EXECUTE FUNCTION our.dbchannels_update_tally();
CREATE OR REPLACE TRIGGER dbchannels_restored BEFORE INSERT ON our.dbchannels_tally FOR EACH ROW
    WHEN (pg_catalog.pg_trigger_depth() OPERATOR(pg_catalog.=) 0
          AND (pg_catalog.current_setting('dbchannels.merges', true) OPERATOR(pg_catalog.=) 'on'::text) IS NOT TRUE)
    EXECUTE FUNCTION our.dbchannels_skip_row();
"""

# The tally identifies the members of a group without reading them. A broadcast to more than 40 members on one server, none
# of whom expires, names an audience by their tally (from 2 kB on PostgreSQL would store the recipients out of line).
# Members that were not seen before are only noted, and their broadcast lists them in its row; the second broadcast to the
# same members writes the audience, and those after it write nothing. So a group that changes between any two broadcasts
# costs one short row more.
# The key of an audience is always made of the members that were read for it, so a wrong tally makes a broadcast slow, but
# never wrong. An audience serves for 60 s; a message that names it has expired 60 s before the audience is deleted, so no
# lock is needed. A queue whose ids span less than its capacity is not counted.
# Comparing a long text with '' reads only its length. The session keeps the plans, so they must not be those that suit a
# small table: enable_seqscan. Names without a '!' or '?' that do not start with http. or websocket. are durable channels,
# as in names.is_protocol. No NOTIFY is sent when its queue is more than half full, see sql.py.
AUDIENCE_KEY = "encode(substring(sha256(convert_to({members} || ' ' || {digest}, 'UTF8')) FOR 16), 'hex')::uuid"
# Row comparisons leave only one index to choose, whatever the statistics say: they may date from before 50,000 members of
# a server came back under its new name, when the index by channel seemed as good.
MEMBERS = '("group", channel) >= (to_group, queue.channel) AND ("group", channel) <= (to_group, queue.channel)'
LAST_ID = 2**63 - 1
SEND_GROUP = f"""
CREATE OR REPLACE FUNCTION our.dbchannels_send_group(
    to_group text, body bytea, expiry float, patterns text[], capacities int[], wakes boolean, local_wakeups text[]
) RETURNS void LANGUAGE plpgsql SET enable_seqscan = off {SAFE} AS $function$
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
    wakeups text[] := '{{}}';
BEGIN
    FOR queue IN
        SELECT channel, sum(members) AS members, sum(digest) AS digest, sum(expiring) = 0 AND sum(members) > 40 AS named
        FROM our.dbchannels_tally WHERE "group" = to_group GROUP BY channel HAVING sum(members) > 0
    LOOP
        FOR position IN 1 .. cardinality(patterns) LOOP  -- the first that matches
            capacity := capacities[position];
            EXIT WHEN queue.channel ~ patterns[position];
        END LOOP;
        IF queue.channel !~ '[!?]|^http[.]|^websocket[.]' THEN
            CONTINUE WHEN NOT EXISTS (
                SELECT FROM our.dbchannels_membership WHERE {MEMBERS} AND (expires_at IS NULL OR expires_at > statement_timestamp())
            );
            IF capacity IS NOT NULL THEN
                SELECT count(*) INTO waiting FROM (
                    SELECT FROM our.dbchannels_durablemessage
                    WHERE channel = queue.channel AND claimed_by IS NULL LIMIT capacity
                ) AS counted;
                CONTINUE WHEN waiting >= capacity;
            END IF;
            INSERT INTO our.dbchannels_durablemessage (channel, payload, priority, unique_key, attempts, alone, sent_at)
            VALUES (queue.channel, body, 0, '', 0, false, statement_timestamp());
            wakeups := wakeups || 'd'::text;
            CONTINUE;
        END IF;
        IF capacity IS NOT NULL AND capacity <= (
            SELECT id FROM our.dbchannels_protocolmessage
            WHERE (channel, id) < (queue.channel, {LAST_ID}) AND channel >= queue.channel
            ORDER BY channel DESC, id DESC LIMIT 1
        ) - (
            SELECT id FROM our.dbchannels_protocolmessage
            WHERE (channel, id) > (queue.channel, 0) AND channel <= queue.channel ORDER BY channel, id LIMIT 1
        ) + 1 THEN
            SELECT count(*) INTO waiting FROM (
                SELECT FROM our.dbchannels_protocolmessage WHERE channel = queue.channel LIMIT capacity
            ) AS counted;
            CONTINUE WHEN waiting >= capacity;
        END IF;
        audience_key := NULL;
        seen := 0;
        IF queue.named THEN
            audience_key := {AUDIENCE_KEY.format(members="queue.members", digest="queue.digest")};
            SELECT coalesce(max(CASE WHEN recipients <> '' THEN 2 ELSE 1 END), 0) INTO seen FROM our.dbchannels_audience
            WHERE key = audience_key AND expires_at > ends + spare;
        END IF;
        IF seen < 2 THEN
            SELECT string_agg(recipient, ' '),
                   CASE WHEN queue.named
                   THEN {AUDIENCE_KEY.format(members="count(*)", digest=f"sum({DIGEST})")} END
            INTO parts, audience_key FROM our.dbchannels_membership
            WHERE {MEMBERS} AND (expires_at IS NULL OR expires_at > statement_timestamp());
            CONTINUE WHEN parts IS NULL;
            IF audience_key IS NOT NULL THEN
                INSERT INTO our.dbchannels_audience (key, recipients, expires_at)
                VALUES (audience_key, CASE WHEN seen = 1 THEN parts ELSE '' END, ends + serves + spare);
                IF seen = 0 THEN
                    audience_key := NULL;
                END IF;
            END IF;
        END IF;
        INSERT INTO our.dbchannels_protocolmessage
            (channel, recipients, audience, reply_channel, payload, sent_at, expires_at)
        VALUES (queue.channel, CASE WHEN audience_key IS NULL THEN parts ELSE '' END, audience_key, '', body,
                statement_timestamp(), ends);
        wakeups := wakeups || CASE WHEN queue.channel ~ '[!?]' THEN queue.channel ELSE left(queue.channel, 1) END::text;
    END LOOP;
    IF wakes AND wakeups <> '{{}}' AND pg_notification_queue_usage() < 0.5 THEN
        FOREACH wakeup IN ARRAY wakeups LOOP  -- an expression: a PERFORM would be planned and run as a query
            CONTINUE WHEN wakeup = ANY (local_wakeups) OR pg_notify('dbchannels', wakeup) IS NULL;
        END LOOP;
    END IF;
END
$function$;
"""


SCHEMA = """
SELECT pg_catalog.quote_ident(nspname) FROM pg_catalog.pg_namespace JOIN pg_catalog.pg_class
    ON pg_namespace.oid OPERATOR(pg_catalog.=) relnamespace
WHERE pg_class.oid OPERATOR(pg_catalog.=) pg_catalog.to_regclass('dbchannels_membership')
"""
DROP = """
DROP TRIGGER dbchannels_restored ON our.dbchannels_tally;
DROP FUNCTION our.dbchannels_send_group, our.dbchannels_skip_row;
DROP FUNCTION our.dbchannels_update_tally CASCADE
"""


def run(connection, text):
    """Run statements in which "our." stands for the schema where the tables are."""
    with connection.cursor() as cursor:
        cursor.execute(SCHEMA)
        ((schema,),) = cursor.fetchall()
        cursor.execute(re.sub(r"\bour\.", lambda found: f"{schema}.", text))


def set_storage(apps, schema_editor):
    if schema_editor.connection.vendor != "postgresql":
        return
    for table in UNLOGGED:
        schema_editor.execute(f"ALTER TABLE {table} SET UNLOGGED")
    for table in BUSY:
        schema_editor.execute(f"ALTER TABLE {table} SET ({STORAGE})")
    for table in ("dbchannels_inflight", "dbchannels_process", "dbchannels_durablemessage"):
        schema_editor.execute(f"ALTER TABLE {table} SET (fillfactor = 70)")
    run(schema_editor.connection, UPDATE_TALLY + SEND_GROUP)


def drop_functions(apps, schema_editor):
    if schema_editor.connection.vendor == "postgresql":
        run(schema_editor.connection, DROP)


class Migration(migrations.Migration):
    dependencies = [("dbchannels", "0001_initial")]

    operations = [migrations.RunPython(set_storage, drop_functions, elidable=False)]
