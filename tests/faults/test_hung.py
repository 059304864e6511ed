"""Fault 17: a consumer hangs. Its worker is replaced, its message has failed, and nobody else waits for it."""

from __future__ import annotations

import pytest

from tests.harness import until
from tests.soak.hung import hung
from tests.soak.sites import options

pytestmark = pytest.mark.postgresql


def test_what_hangs_costs_its_worker_and_its_message_alone(site):
    found = hung(site, 1, each=5, soft=0.2, hard=1.0)
    assert found.others == (10, 0, 0)
    assert (found.letters, found.statuses, found.replaced, found.unbroken) == (2, [500], 3, True)
    assert (
        found.stacks >= 3
    )  # on a slow machine one that does not hang may take longer than the soft time-out


def test_a_worker_by_itself_becomes_a_new_one(site):
    worker = site.work("--only", "ledger", settings=options(soft_timeout=0.2, hard_timeout=1.0, retries=0))
    site.send("ledger", {"text": "hangs", "sleep": 3600}, {"text": "next"})
    until(lambda: "next" in site.entries(), "it works again")
    assert site.count("deadletter") == 1
    assert worker.process.poll() is None
    until(lambda: worker.output().count("reads") == 2, "it has started anew")
    assert worker.terminate() == 0
