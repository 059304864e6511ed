"""Whether what was written in a transaction of Django's has been rolled back since."""

from __future__ import annotations

from collections.abc import Callable

from django.db import connections, transaction


def rollback_probe(database: str) -> Callable[[], bool]:
    """Return a function that says whether the innermost transaction or savepoint was rolled back since.

    Django drops what ``on_commit`` was given in a transaction or savepoint that is rolled back, runs it at
    commit, and keeps it until then.
    """
    connection = connections[database]
    committed: list[bool] = []

    def commit() -> None:
        committed.append(True)

    transaction.on_commit(commit, using=database)
    return lambda: not committed and all(entry[1] is not commit for entry in connection.run_on_commit)
