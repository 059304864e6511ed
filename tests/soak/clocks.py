"""Fault 14: hosts whose clocks are an hour wrong, one this way and one that; the database's decides."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from tests.harness import LiveSite, until
from tests.soak.row import Row, Seen
from tests.soak.sites import on_postgresql, options, scaled
from tests.soak.tally import Tally, drained, numbered, tally
from tests.soak.workers import CLAIMED_BY

HOUR = 3600  # seconds
HOSTS = (HOUR, -HOUR)
WORK = 0.002  # seconds that each message of the stream is under way
DELAY = 2.0  # seconds
LOOK = 0.3  # seconds that may lie between two looks at the same thing

STREAM = """
from dbchannels import channel_layers
texts = [str(number) for number in range({0}, {1})]
for start in range(0, len(texts), 100):
    few = [("stream", {{"text": text, "sleep": {2}}}) for text in texts[start : start + 100]]
    channel_layers["default"].send_many(few)
"""
NOW = (
    "from django.db import connection; from dbchannels import Channel; cursor = connection.cursor(); "
    "cursor.execute('SELECT extract(epoch FROM clock_timestamp())'); print(cursor.fetchone()[0])"
)
PARKED = "SELECT count(*) FROM dbchannels_protocolmessage WHERE channel = '{}'"
LEASE = """
SELECT name, extract(epoch FROM lease_until - clock_timestamp())::float FROM dbchannels_process WHERE pid = {}
"""


class Rescue(NamedTuple):
    """How long a message stayed with a worker that had been killed."""

    seconds: float
    lease: float  # seconds that it still had when it was killed


class Clocks(NamedTuple):
    """What became of a stream between hosts of both clocks, and of what ends or begins at a time."""

    tally: Tally
    declared_dead: int  # processes that were, though they lived
    rescue: Rescue
    late: list[float]  # seconds from the due time of a delayed message until it had run
    lives: list[float]  # seconds until a message that nobody reads had expired


def host(seconds: int, given: dict[str, float]) -> dict[str, Any]:
    """Return the settings of a host whose clock is so many seconds wrong, with these OPTIONS of the layer."""
    return {"CLOCK": seconds, **options(**given)}


def clocks(site: LiveSite, messages: int, lease: float, expiry: float) -> Clocks:
    """Let senders, servers and workers of both clocks share a site."""
    given = {"lease": lease, "expiry": expiry}
    served = [site.serve("--workers", "1", settings=host(seconds, given)) for seconds in HOSTS]
    half = messages // 2
    for number, seconds in enumerate(HOSTS):
        _run(site, seconds, given, STREAM.format(number * half, (number + 1) * half, WORK))
    drained(site)
    assert [one.get("/").text for one in served] == ["hello"] * 2
    streamed = tally(site, numbered(0, 2 * half))
    lives = _lives(site, given)
    late = [_late(site, seconds, given) for seconds in HOSTS]
    declared_dead = sum(one.output().count("declared dead") for one in served)
    site.end()
    return Clocks(streamed, declared_dead, _rescue(site, given), late, lives)


def _run(site: LiveSite, seconds: int, given: dict[str, float], code: str) -> str:
    done = site.manage("shell", "--verbosity", "0", "-c", code, settings=host(seconds, given))
    assert done.returncode == 0, done.stderr
    return done.stdout


def _lives(site: LiveSite, given: dict[str, float]) -> list[float]:
    """Send what nobody reads; return the seconds from each send until a clean-up has taken it."""
    sent = {
        f"parked?{host}": _sent(site, host, given, f"Channel('parked?{host}').send({{}})") for host in HOSTS
    }
    lives = []
    for channel, at in sent.items():
        until(lambda channel=channel: site.rows(PARKED.format(channel)) == [(0,)], "it has expired", 120)  # type: ignore[misc]
        lives.append(time.time() - at)
    return lives


def _late(site: LiveSite, seconds: int, given: dict[str, float]) -> float:
    """Return the seconds from the due time of a delayed message until it had run; below 0: early."""
    text = f"delayed {seconds}"
    code = f"Channel('stream', delay={DELAY}).send({{'text': {text!r}}})"
    due = _sent(site, seconds, given, code) + DELAY
    until(lambda: text in site.entries(), "it has run")
    return time.time() - due


def _sent(site: LiveSite, seconds: int, given: dict[str, float], code: str) -> float:
    """Send on such a host; return when it began, by the clock of the database, which is this process's too."""
    return float(_run(site, seconds, given, f"{NOW}; {code}"))


def _rescue(site: LiveSite, given: dict[str, float]) -> Rescue:
    """Kill a worker that no parent watches, with a message under way; another, of the other clock, takes it over."""
    first = site.work("--only", "stream", settings=host(HOUR, given))
    site.send("stream", {"text": "taken over", "sleep": 3600})
    until(lambda: "taken over" in site.entries(), "it is under way")
    site.work("--only", "stream", settings=host(-HOUR, given))
    started = time.monotonic()
    ((name, lease),) = site.rows(LEASE.format(first.process.pid))
    first.process.kill()
    until(lambda: not site.rows(CLAIMED_BY.format(name)), "another has it", 60)
    return Rescue(time.monotonic() - started, lease)


def _seen(found: Clocks, expiry: float) -> Seen:
    """Nothing is early, but for the moments between two looks; what a clean-up or a poll does may be seconds late."""
    late, lives = (", ".join(f"{seconds:.1f}" for seconds in times) for times in (found.late, found.lives))
    text = (
        f"{found.tally}; {found.declared_dead} declared dead; delayed by {DELAY:g} s: {late} s late; "
        f"expired after {lives} s of {expiry:g}; a killed one's message taken over after {found.rescue.seconds:.1f} s, "
        f"its lease had {found.rescue.lease:.1f} s"
    )
    exact = found.tally[1:] == (0, 0) and found.declared_dead == 0
    timely = all(-LOOK <= seconds <= 1.2 for seconds in found.late)
    kept = all(seconds >= expiry - LOOK for seconds in found.lives)
    rescued = found.rescue.lease - LOOK <= found.rescue.seconds <= 20
    return Seen(text, exact and timely and kept and rescued)


def _clocks(scale: float) -> Seen:
    lease, expiry = (15.0, 60.0) if scale >= 1 else (3.0, 3.0)
    with on_postgresql() as (site, _):
        return _seen(clocks(site, scaled(20_000, scale, 200), lease, expiry), expiry)


ROWS = [Row(14, "hosts an hour ahead and behind", "nothing early, nobody declared dead, 0 lost", _clocks)]
