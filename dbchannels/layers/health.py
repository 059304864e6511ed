"""What is raised when a database cannot be used now, and how to wait until it can."""

from __future__ import annotations

import logging
import re
import time
from typing import TYPE_CHECKING

from django.db import DatabaseError, InterfaceError, OperationalError

from dbchannels.backoff import Backoff
from dbchannels.exceptions import LayerUnavailable

if TYPE_CHECKING:
    from dbchannels.layers.base import BaseLayer

log = logging.getLogger("dbchannels.layer")

# A refused connection has no SQLSTATE, neither with psycopg2 nor with psycopg 3, so only its text says why it was
# refused. PostgreSQL's texts, SQLite's, then MySQL's; a text in another language counts as one that may pass.
_FINAL = re.compile(
    r"does not exist|authentication failed|no password supplied|no pg_hba\.conf entry|permission denied"
    r"|not permitted to log in|unable to open database file|Access denied|Unknown database"
)


def may_pass(error: BaseException) -> bool:
    """Whether a database that refuses a connection may take it later: it cannot be reached, or is starting up."""
    return not _FINAL.search(str(error))


def await_layer(layer: BaseLayer, seconds: float) -> None:
    """Check a layer, and wait so long for a database that may be there soon. Raises DBChannelsError."""
    started, delays, told = time.monotonic(), Backoff(0.1, 2.0), False
    while True:
        try:
            layer.check()
        except LayerUnavailable as error:
            left = seconds - (time.monotonic() - started)
            if not error.may_pass or left <= 0:
                raise
            if not told:
                log.warning("%s Waiting for it for up to %g s.", error, seconds)
                told = True
            time.sleep(min(left, delays.delay()))
        else:
            break
    if told:
        log.warning("The database can be used, after %.1f s.", time.monotonic() - started)


def is_unavailable(error: BaseException) -> bool:
    """Whether an error of Django's says that the database cannot be used, and not that a statement is wrong.

    Of a server that closed in the middle of a statement psycopg2 says no more than DatabaseError, the base of them
    all; Django's own, of a row that was not there to be saved, has no cause.
    """
    if type(error) is DatabaseError:
        return error.__cause__ is not None
    return isinstance(error, (InterfaceError, OperationalError))
