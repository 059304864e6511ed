"""Django's connection without its cursor, for the one statement that a send is.

Django's wraps psycopg2's twice, to log and to show what is run: 15 us of a send's 50 in Python. Where somebody looks at
queries, or another driver is there, it is used all the same.
"""

from __future__ import annotations

from typing import Any

from django.db.backends.postgresql.psycopg_any import is_psycopg3


def execute(connection: Any, text: str, values: Any, fetch: bool = False) -> list[tuple[Any, ...]]:
    """Run a statement on Django's connection, in its transaction; return its rows, if they are wanted.

    Raises Django's errors.
    """
    if (
        is_psycopg3
        or connection.queries_logged
        or connection.execute_wrappers
        or connection.connection is None
    ):
        with connection.cursor() as cursor:
            cursor.execute(text, values)
            return cursor.fetchall() if fetch else []
    # What connection.cursor() and its cursor do otherwise.
    connection.validate_thread_sharing()
    connection.close_if_health_check_failed()
    if connection.connection is None:
        connection.connect()
    connection.validate_no_broken_transaction()
    with connection.wrap_database_errors, connection.connection.cursor() as cursor:
        cursor.execute(text, values)
        return cursor.fetchall() if fetch else []
