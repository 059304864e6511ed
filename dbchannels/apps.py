"""The application ``dbchannels``."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from django.apps import AppConfig, apps
from django.db import connections
from django.db.models.signals import post_migrate


class DBChannelsConfig(AppConfig):
    """The AppConfig for ``"dbchannels"`` in INSTALLED_APPS."""

    name = "dbchannels"
    verbose_name = "Channels"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the system checks, and connect to signals. Only workers look for consumers."""
        from dbchannels import checks, redaction  # noqa: F401  (the import of checks registers them)
        from dbchannels.auth import logout
        from dbchannels.bindings import binding
        from dbchannels.layers import addresses

        addresses.learn()
        redaction.escape_logs()
        binding.connect_pending()
        post_migrate.connect(finish_tables, sender=self)
        if apps.is_installed("django.contrib.auth"):
            logout.connect_signals()


def finish_tables(using: str, **kwargs: Any) -> None:
    """Do what migrations cannot say for one kind of database.

    On PostgreSQL create the functions of the migrations if the tables were created without migrations, as some tests
    do. On MySQL and MariaDB let the tables compare names exactly.
    """
    connection = connections[using]
    if connection.vendor == "mysql":
        import_module("dbchannels.layers.database.mysql").compare_exactly(connection)
    if connection.vendor != "postgresql":
        return
    storage = import_module("dbchannels.migrations.0002_postgresql_storage")
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_catalog.to_regclass('dbchannels_membership') IS NOT NULL"
            " AND pg_catalog.to_regproc('dbchannels_send_group') IS NULL"
        )
        ((missing,),) = cursor.fetchall()
    if missing:
        doors = import_module("dbchannels.migrations.0004_doors")
        storage.run(connection, storage.UPDATE_TALLY + storage.SEND_GROUP + doors.keep_group())
