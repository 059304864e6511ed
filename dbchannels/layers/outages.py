"""What Django raises when its database cannot be used now."""

from __future__ import annotations

from django.db import DatabaseError, InterfaceError, OperationalError


def is_unavailable(error: BaseException) -> bool:
    """Whether an error of Django's says that the database cannot be used, and not that a statement is wrong.

    Of a server that closed in the middle of a statement psycopg2 says no more than DatabaseError, the base of them
    all; Django's own, of a row that was not there to be saved, has no cause.
    """
    if type(error) is DatabaseError:
        return error.__cause__ is not None
    return isinstance(error, (InterfaceError, OperationalError))
