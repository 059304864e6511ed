"""The signals at which a server ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import gevent
from gevent.event import Event


class Stopping(Event):  # type: ignore[misc]
    """Set when the process is to end; ``restart``: another one follows it at once."""

    restart = False


def stop_at_signals(kill: Callable[[], None] = lambda: None) -> Stopping:
    """Return an event that SIGTERM and SIGINT set, and SIGUSR1 before a restart; a second one ends the process now.

    ``kill`` then ends what would live on.
    """
    stopping = Stopping()

    def stop(restart: bool) -> None:
        if stopping.is_set():
            kill()
            os._exit(1)
        stopping.restart = restart
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        gevent.signal_handler(number, stop, number == signal.SIGUSR1)
    return stopping


def has_terminal() -> bool:
    """Whether this process has a terminal that Ctrl-C comes from, and that is still there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
