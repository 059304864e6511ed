"""What MySQL and MariaDB need: columns that tell all names apart, and a server whose settings fit."""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.db import OperationalError

from dbchannels.codec import ENVELOPE

DEADLOCK = 1213  # https://mariadb.com/kb/en/mariadb-error-codes/
#: Bytes of a statement for each byte of a message, which may be escaped, and what stands beside it.
ESCAPED, STATEMENT = 2, 65_536


def is_deadlock(error: OperationalError) -> bool:
    """Whether the transaction was rolled back because it and another one waited for each other."""
    return error.args[:1] == (DEADLOCK,)


def compare_exactly(connection: Any) -> None:
    """Let the text of our tables be compared by its bytes, in UTF-8.

    The usual collations take ``Mail``, ``mail`` and ``mail `` for one name, and old character sets refuse an emoji.
    """
    tables = [model._meta.db_table for model in apps.get_app_config("dbchannels").get_models()]
    collation = "utf8mb4_nopad_bin" if connection.mysql_is_mariadb else "utf8mb4_0900_bin"
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT table_name FROM information_schema.tables"
            " WHERE table_schema = DATABASE() AND table_name IN %s AND table_collation <> %s",
            [tables, collation],
        )
        for (table,) in cursor.fetchall():
            cursor.execute(f"ALTER TABLE {table} CONVERT TO CHARACTER SET utf8mb4 COLLATE {collation}")


def problems(connection: Any, max_message_size: int) -> list[str]:
    """Return sentences on what in the server's or the session's settings does not fit, each with what to do."""
    isolation = "@@tx_isolation" if connection.mysql_is_mariadb else "@@transaction_isolation"
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {isolation}, @@default_storage_engine")
        ((isolation, engine),) = cursor.fetchall()
    found = []
    if isolation != "READ-COMMITTED":
        found.append(
            f"Its transactions are {isolation}, in which workers wait for rows that they do not take: set "
            "'isolation_level': 'read committed' in its OPTIONS, which is Django's default."
        )
    if too_small := packet_problem(connection, max_message_size):
        found.append(too_small)
    if connection.settings_dict["CONN_MAX_AGE"] == 0:
        found.append(
            "A worker opens a new session for each message, which may take longer than the message: set CONN_MAX_AGE "
            "to 60 in its entry."
        )
    if engine != "InnoDB":
        found.append(
            f"It makes tables for {engine}, which has no transactions: set default_storage_engine to InnoDB, and "
            "convert the tables whose names begin with dbchannels_."
        )
    if not connection.features.has_select_for_update_skip_locked:
        found.append(
            "It has no SKIP LOCKED, so workers wait for each other: move to MariaDB 10.6 or MySQL 8.0.1, or later."
        )
    return found


def packet_problem(connection: Any, max_message_size: int) -> str:
    """Return a sentence if the server refuses the largest message; "" otherwise.

    It ends the session of such a statement, so that a process would take it for an outage, and try for ever.
    """
    needed = ESCAPED * (max_message_size + ENVELOPE) + STATEMENT
    with connection.cursor() as cursor:
        cursor.execute("SELECT @@max_allowed_packet")
        ((packet,),) = cursor.fetchall()
    if packet >= needed:
        return ""
    return (
        f"It takes statements of at most {packet} bytes, too few for the largest message: set max_allowed_packet to "
        f"{needed} or more in the server's configuration, or lower OPTIONS['max_message_size']."
    )
