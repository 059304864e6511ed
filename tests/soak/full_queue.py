"""Fault 9: the queue of notifications fills, because a session that LISTENs sits in a transaction."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import NamedTuple

import psycopg2.errors

from tests.harness import LiveSite, Socket, until
from tests.sender import Sender, sender
from tests.soak.notifications import LONGEST
from tests.soak.row import Row, Seen
from tests.soak.sites import on_postgresql, scaled
from tests.soak.tally import Tally, drained, numbered, tally

USAGE = "SELECT pg_notification_queue_usage()"
SAID = "queue of notifications is"
GARBAGE = f"SELECT pg_notify('strangers', rpad(g || ' ', {LONGEST}, 'x')) FROM generate_series(1, 5000) AS g"


class FullQueue(NamedTuple):
    """What became of messages and echoes while the queue filled, was full, and was free again."""

    tally: Tally
    usage: float  # of the queue in the end, from 0 to 1
    refused: bool  # a stranger's NOTIFY in the end
    notified: int  # NOTIFYs of ours when more than a half was full
    past_half: float  # seconds until the slowest message ran, when more than a half was full
    full: float  # when all of it was
    again: float  # the median, once the session had ended
    wrong: int  # echoes
    said: int  # lines about it in the server's log
    minutes: float  # that the queue was anything but free


def full_queue(site: LiveSite, number: int) -> FullQueue:
    """Fill the queue of a server's and its workers' database to the brim, and send so many messages three times."""
    served = site.serve("--workers", "2")
    socket = served.socket("/echo/")
    with sender(site) as one:
        started = time.monotonic()
        with idle_listener(site):
            wrong = _fill(site, socket, 0.12)
            served.wait_for_line(SAID)
            wrong += _fill(site, socket, 0.55)
            time.sleep(2)  # each process asks once a second
            with witness(site) as heard:
                past_half = _sent(site, one, 0, number)
                notified = heard()
            wrong += _fill(site, socket, 1.0)
            ((usage,),) = site.rows(USAGE)
            refused = _is_refused(site, "SELECT pg_notify('strangers', '')")
            full = _sent(site, one, number, number)
        until(lambda: site.rows(USAGE)[0][0] < 0.1, "the queue is free again", 120)
        minutes = (time.monotonic() - started) / 60
        time.sleep(2)
        again = _sent(site, one, 2 * number, number)
    site.rows("UPDATE livesite_entry SET text = split_part(text, ' ', 1)")
    return FullQueue(
        tally(site, numbered(0, 3 * number)),
        usage,
        refused,
        notified,
        past_half[-1],
        full[-1],
        again[number // 2],
        wrong,
        served.output().count(SAID),
        minutes,
    )


@contextmanager
def idle_listener(site: LiveSite) -> Iterator[None]:
    """Let a session LISTEN and sit in a transaction."""
    with closing(site.connect()) as connection:
        for statement in ("LISTEN strangers", "BEGIN", "SELECT 1"):
            connection.cursor().execute(statement)
        yield


@contextmanager
def witness(site: LiveSite) -> Iterator[Callable[[], int]]:
    """Lend what says how many NOTIFYs of ours a session has heard since the block began."""
    with closing(site.connect()) as connection:
        connection.cursor().execute("LISTEN dbchannels")

        def heard() -> int:
            connection.poll()
            return len(connection.notifies)

        yield heard


def _fill(site: LiveSite, socket: Socket, share: float) -> int:
    """Let a stranger notify until so much of the queue is taken; return how many echoes between went wrong."""
    wrong = 0
    while site.rows(USAGE)[0][0] < share and not _is_refused(site, GARBAGE):
        wrong += socket.ask("hello") != "hello"
    return wrong


def _is_refused(site: LiveSite, notify: str) -> bool:
    try:
        site.rows(notify)
    except psycopg2.errors.ProgramLimitExceeded:
        return True
    return False


def _sent(site: LiveSite, one: Sender, first: int, number: int) -> list[float]:
    """Send so many messages at odd moments; return the seconds until each had run, the slowest last."""
    for text in numbered(first, number):
        one.send("timed", [{"text": text, "sent": time.time()}])
        time.sleep(random.uniform(0, 0.5))
    drained(site)
    return sorted(float(text.split()[1]) for text in site.entries()[first:])


def _full_queue(scale: float) -> Seen:
    """The queue has one size, 8 GB, whatever the scale."""
    with on_postgresql() as (site, _):
        found = full_queue(site, scaled(40, scale, 4))
    text = (
        f"{found.tally}; {found.notified} NOTIFYs past a half; the slowest {found.past_half:.2f} s there and "
        f"{found.full:.2f} s at {100 * found.usage:.0f} %, where a stranger's NOTIFY was refused: {found.refused}; "
        f"again after {1000 * found.again:.0f} ms; {found.wrong} echoes wrong; "
        f"said {found.said} times in {found.minutes:.1f} min"
    )
    right = found.tally[1:] == (0, 0) and found.wrong == found.notified == 0 and found.refused
    said = 1 <= found.said <= found.minutes + 1
    return Seen(text, right and said and found.past_half <= 1.2 and found.full <= 1.2 and found.again < 0.2)


ROWS = [
    Row(
        9,
        "an idle listener, the queue of 8 GB filled",
        "said at 10 %, no NOTIFY past 50; 0 lost, <= 1.2 s",
        _full_queue,
    )
]
