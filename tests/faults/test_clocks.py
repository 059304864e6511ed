"""Fault 14: the hosts' clocks are an hour wrong, one this way and one that; the database's decides."""

from __future__ import annotations

import pytest

from tests.harness import LiveSite, until
from tests.soak.clocks import HOUR, LOOK, clocks, host

pytestmark = pytest.mark.postgresql


GIVEN = {"lease": 0.6}  # seconds


def shell(site: LiveSite, seconds: int, code: str) -> str:
    """Run a line of Python on a host whose clock is wrong."""
    done = site.manage("shell", "--verbosity", "0", "-c", code, settings=host(seconds, GIVEN))
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
    served = site.serve("--workers", "2", settings=host(HOUR, GIVEN))
    site.work("--only", "stream", settings=host(-HOUR, GIVEN))
    shell(site, -HOUR, "from dbchannels import Channel; Channel('parked?early').send({})")
    shell(site, HOUR, "from dbchannels import Channel, Group; Group('g').add('parked?late')")
    until(lambda: len(leases(site)) == 4, "all are on record")
    assert len(renewed(site, 3)) == 4  # every process cleans up at each renewal
    assert "declared dead" not in served.output()
    assert site.rows(
        "SELECT round(extract(epoch FROM expires_at - sent_at)) FROM dbchannels_protocolmessage "
        "WHERE channel = 'parked?early' AND expires_at > now() AND sent_at <= now()"
    ) == [(60,)]
    assert site.rows(
        "SELECT round(extract(epoch FROM expires_at - added_at)) FROM dbchannels_membership WHERE added_at <= now()"
    ) == [(86_400,)]
    assert served.get("/").text == "hello"


def test_what_begins_or_ends_at_a_time_is_not_early(site):
    found = clocks(site, 40, lease=2.0, expiry=3.0)
    assert (found.tally[1:], found.declared_dead) == ((0, 0), 0)
    assert all(-LOOK < late < 600 for late in found.late)
    assert all(life > 3.0 - LOOK for life in found.lives)
    assert found.rescue.seconds > found.rescue.lease - LOOK


def test_what_failed_is_tried_again_by_the_databases_clock(site):
    site.work("--only", "ledger", settings=host(HOUR, GIVEN))
    site.send("ledger", {"text": "second", "raise": 1})
    until(lambda: site.count("durablemessage") == 0, "it has succeeded")
    assert site.entries() == ["second"]
