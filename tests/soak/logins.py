"""Fault 25: logins end, in each way, and with them the WebSockets that were opened by them."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import NamedTuple

from tests.harness import Served, Socket
from tests.soak.row import Row, Seen
from tests.soak.sites import on_postgresql, scaled

PATHS = ("/who/", "/quiet/")  # the first one's consumers ask who it is, the other's never
PROMISED = 5.0  # seconds
#: What ends the logins of a user in another process, at once for all of them.
CHANGES = {
    "deactivated": "user.is_active = False; user.save()",
    "password": "user.set_password('another'); user.save()",
    "deleted": "user.delete()",
}
ALL = "from django.contrib.auth.models import User\nfor user in User.objects.filter(username__startswith={!r}): {}"


class Logins(NamedTuple):
    """What became of the sockets whose logins ended, and of the others."""

    codes: Counter[int | None]
    slowest: float  # seconds from the end of a login until its sockets were closed
    kept: int  # of the others, that are open
    forged: bool  # whether a session's key in the query string was taken for one


def logins(served: Served, each: int) -> Logins:
    """Let so many users log out one after another, and as many end in each other way at once."""
    codes, slowest = Counter[int | None](), 0.0
    others = []
    for number in range(each):
        cookie = log_in(served, f"out-{number}")
        sockets = _opened(served, cookie)
        others += _opened(served, log_in(served, f"out-{number}"))  # another session of the same user
        started = time.monotonic()
        assert served.get("/log-out", Cookie=cookie).text == "out"
        slowest = max(slowest, _closed(sockets, started, codes))
    for name, change in CHANGES.items():
        sockets = [
            one for number in range(each) for one in _opened(served, log_in(served, f"{name}-{number}"))
        ]
        started = time.monotonic()
        served.site.shell(ALL.format(f"{name}-", change))
        slowest = max(slowest, _closed(sockets, started, codes))
    kept = sum(one.is_open() for one in others)
    key = log_in(served, "anna").partition("=")[2]
    forged = who(served.socket(f"/who/?sessionid={key}")) != ""
    return Logins(codes, slowest, kept, forged)


def log_in(served: Served, name: str) -> str:
    """Log in; return the cookie."""
    return f"sessionid={served.get(f'/log-in/{name}').cookies()['sessionid']}"


def who(socket: Socket) -> object:
    """Ask the site who the client is."""
    answer = socket.ask("{}")
    assert isinstance(answer, str)
    return json.loads(answer)["user"]


def _opened(served: Served, cookie: str) -> list[Socket]:
    sockets = [served.socket(path, Cookie=cookie) for path in PATHS]
    who(sockets[0])
    return sockets


def _closed(sockets: list[Socket], started: float, codes: Counter[int | None]) -> float:
    """Count the codes with which they are closed; return the seconds until all were."""
    codes += Counter(one.closed() for one in sockets)
    return time.monotonic() - started


def _logins(scale: float) -> Seen:
    each = scaled(50, scale)
    with on_postgresql() as (site, _):
        found = logins(site.serve("--workers", "2"), each)
    closed = len(PATHS) * each * (1 + len(CHANGES))
    text = (
        f"{dict(found.codes)} of {closed}, after {found.slowest:.1f} s at most; {found.kept} of {len(PATHS) * each} "
        f"of other sessions open; a key in the query string taken for a user: {found.forged}"
    )
    right = found.codes == {4401: closed} and found.kept == len(PATHS) * each and not found.forged
    return Seen(text, right and found.slowest <= PROMISED)


ROWS = [
    Row(25, "50 logouts; 150 users changed or deleted", "their sockets 4401 within 5 s, no others", _logins)
]
