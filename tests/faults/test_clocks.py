"""Fault 14: the hosts' clocks are an hour wrong, one this way and one that; the database's decides."""

from __future__ import annotations

import pytest

from tests.harness import LiveSite, until
from tests.soak.sites import options

pytestmark = pytest.mark.postgresql

HOUR = 3600  # seconds
LEASE = 0.6  # seconds


def clock(seconds: int) -> dict:
    """Return the settings of a host whose clock is wrong."""
    return {"CLOCK": seconds, **options(lease=LEASE)}


def shell(site: LiveSite, seconds: int, code: str) -> str:
    """Run a line of Python on such a host."""
    done = site.manage("shell", "--verbosity", "0", "-c", code, settings=clock(seconds))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def leases(site: LiveSite) -> dict[str, str]:
    """Return when the lease of each process ends."""
    return dict(site.rows("SELECT name, lease_until::text FROM dbchannels_process"))


def renewed(site: LiveSite, times: int) -> set[str]:
    """Wait until every process has renewed its lease so often; return all names that were seen."""
    names = set(leases(site))
    for _ in range(times):
        before = leases(site)
        until(lambda before=before: not before.items() & leases(site).items(), "all have renewed")
        names |= set(leases(site))
    return names


def test_the_clock_is_wrong_as_it_is_to_be(site):
    code = "import time; from django.utils import timezone; print(time.time(), timezone.now().timestamp())"
    for seconds in (HOUR, -HOUR):
        ((now,),) = site.rows("SELECT extract(epoch FROM now())::float")
        assert [round(float(one) - now, -2) for one in shell(site, seconds, code).split()] == [seconds] * 2


def test_nobody_is_declared_dead_and_nothing_expires_by_a_hosts_clock(site):
    served = site.serve("--workers", "2", settings=clock(HOUR))
    site.work("--only", "stream", settings=clock(-HOUR))
    shell(site, -HOUR, "from dbchannels import Channel; Channel('parked?early').send({})")
    shell(site, HOUR, "from dbchannels import Channel, Group; Group('g').add('parked?late')")
    until(lambda: len(leases(site)) == 4, "all are on record")
    assert len(renewed(site, 3)) == 4  # every process sweeps at each renewal
    assert "declared dead" not in served.output()
    assert site.rows(
        "SELECT round(extract(epoch FROM expires_at - sent_at)) FROM dbchannels_protocolmessage "
        "WHERE channel = 'parked?early' AND expires_at > now() AND sent_at <= now()"
    ) == [(60,)]
    assert site.rows(
        "SELECT round(extract(epoch FROM expires_at - added_at)) FROM dbchannels_membership WHERE added_at <= now()"
    ) == [(86_400,)]
    assert served.get("/").text == "hello"


def test_a_delay_is_by_the_databases_clock(site):
    code = (
        "from dbchannels import Channel\n"
        "Channel('stream', delay=2).send({'text': 'soon'})\n"
        "Channel('stream', delay=1800).send({'text': 'later'})\n"
    )
    for sender in (HOUR, -HOUR):
        shell(site, sender, code)
    delays = "SELECT round(extract(epoch FROM due_at - sent_at)) FROM dbchannels_durablemessage ORDER BY id"
    assert site.rows(delays) == [(2,), (1800,)] * 2
    soon = (
        "SELECT max(due_at)::text FROM dbchannels_durablemessage WHERE due_at < now() + interval '1 minute'"
    )
    ((due,),) = site.rows(soon)
    site.work("--only", "stream", settings=clock(-HOUR))
    until(lambda: site.entries() == ["soon", "soon"], "the first ones have run")
    assert site.rows(f"SELECT now() >= '{due}'") == [(True,)]
    assert site.count("durablemessage") == 2


def test_what_failed_is_tried_again_by_the_databases_clock(site):
    site.work("--only", "ledger", settings=clock(HOUR))
    site.send("ledger", {"text": "second", "raise": 1})
    until(lambda: site.entries() == ["second"], "it has run again")
    assert site.count("durablemessage") == 0
