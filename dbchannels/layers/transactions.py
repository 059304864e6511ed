"""What is sent inside a transaction on another database than the layer's: it waits for that one's commit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from django.db import connections, transaction


def open_transactions(database: str) -> list[str]:
    """Return the aliases of the databases, but this one, on which the calling thread is inside ``atomic()``."""
    # Half of a send's time in Python went into looks at threads' connections; a site with one database pays for none.
    return [alias for alias in connections if alias != database and connections[alias].in_atomic_block]


def after_commit(aliases: Sequence[str], write: Callable[[], None]) -> None:
    """Call ``write`` once, when the last of these transactions has committed; never, when one is rolled back.

    Django calls in the order in which it was asked, so what was sent first is written first. What ``write`` raises
    leaves the ``atomic()`` block, as from any ``on_commit``: the transaction is committed then.
    """
    left = set(aliases)

    def committed(alias: str) -> None:
        left.discard(alias)
        if not left:
            write()

    for alias in aliases:
        transaction.on_commit(partial(committed, alias), using=alias)
