"""Fault 17: a consumer hangs. Its worker is replaced, its message has failed, and nobody else waits for it."""

from __future__ import annotations

import pytest

from tests.harness import LiveSite, is_running, until

pytestmark = pytest.mark.postgresql

SHORT = {"soft_timeout": 0.2, "hard_timeout": 1.0, "retries": 0}
SETTINGS = {"DBCHANNELS": {"default": {"OPTIONS": SHORT}}}


def letters(site: LiveSite) -> list[str]:
    """Return the errors of the dead letters."""
    return [error for (error,) in site.rows("SELECT error FROM dbchannels_deadletter ORDER BY id")]


@pytest.mark.parametrize("way", ["sleep", "busy"])
def test_a_hung_consumer_costs_its_worker_and_its_message_alone(site, way):
    served = site.serve("--workers", "2", settings=SETTINGS)
    before = until(lambda: len(served.workers()) == 2 and served.workers(), "both have started")
    site.send("ledger", {"text": way, way: 3600, "announce": True}, {"text": "next"})
    (error,) = until(lambda: letters(site), "the hung message is a dead letter")
    assert "had not ended after 1 s (hard_timeout)" in error and "consumers.py" in error
    until(lambda: site.entries() == [f"started {way}", "next"], "the next one has run")
    until(lambda: sum(is_running(pid) for pid in before) == 1, "the worker has ended")
    until(lambda: len(served.workers()) == 2, "another has taken its place")
    assert "has run for 0.2 s (soft_timeout) and stands here" in served.output()
    assert served.get("/").text == "hello"
    assert site.count("durablemessage") == 0


def test_a_hung_view_is_answered_and_the_next_one_works(site):
    served = site.serve("--workers", "1", settings=SETTINGS)
    assert served.get("/sleep/3600000").status == 500
    assert served.get("/").text == "hello"


def test_a_worker_by_itself_becomes_a_new_one(site):
    worker = site.work("--only", "ledger", settings=SETTINGS)
    site.send("ledger", {"text": "hangs", "sleep": 3600}, {"text": "next"})
    until(lambda: "next" in site.entries(), "it works again")
    assert len(letters(site)) == 1
    assert worker.process.poll() is None
    until(lambda: worker.output().count("reads") == 2, "it has started anew")
    assert worker.terminate() == 0
