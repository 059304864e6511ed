"""Tasks whose workers are killed and whose database restarts: each one ends, and with ``atomic`` it ends once."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from dbchannels.tasks import framework
from examples.embedded_postgres import EmbeddedPostgres
from tests.harness import LiveSite, until
from tests.soak.workers import LONG_LEASE, kill_in_mid_consumer

pytestmark = [
    pytest.mark.postgresql,
    pytest.mark.skipif(not framework.AVAILABLE, reason="no task framework: pip install django-tasks"),
]
NUMBER = 300


def with_tasks(**options: Any) -> dict[str, Any]:
    """Return the settings of a site with tasks."""
    backend = {"BACKEND": "dbchannels.tasks.ChannelsBackend", "OPTIONS": {"backoff": 0, **options}}
    return {**LONG_LEASE, "TASKS": {"default": backend}}


def enqueue(site: LiveSite, settings: dict[str, Any], number: int) -> None:
    """Enqueue so many tasks, each of which takes 2 ms."""
    lines = f"from livesite.tasks import note\nfor n in range({number}): note.enqueue(str(n), sleep=0.002)"
    done = site.manage("shell", "--verbosity", "0", "-c", lines, settings=settings)
    assert done.returncode == 0, done.stderr


def ended(site: LiveSite) -> Counter[str]:
    """Wait until no task waits or runs; return how many have which status."""
    until(lambda: site.count("durablemessage") == 0, "all tasks have ended", 120)
    return Counter(status for (status,) in site.rows("SELECT status FROM dbchannels_taskresult"))


@pytest.mark.parametrize("atomic", [False, True])
def test_each_task_ends_when_workers_are_killed(site: LiveSite, atomic: bool) -> None:
    settings = with_tasks(atomic=atomic, retries=50)
    site.serve("--workers", "3", settings=settings)
    enqueue(site, settings, NUMBER)
    in_flight = sum(kill_in_mid_consumer(site)[0] for _ in range(3))
    assert ended(site) == {"SUCCESSFUL": NUMBER}
    entries = Counter(site.entries())
    assert len(entries) == NUMBER
    doubled = sum(entries.values()) - NUMBER
    assert doubled == 0 if atomic else doubled <= in_flight
    tried = site.rows("SELECT worker_ids FROM dbchannels_taskresult WHERE worker_ids LIKE '% % '")
    assert len(tried) <= in_flight


def test_each_task_ends_when_the_database_restarts(site: LiveSite, server: EmbeddedPostgres) -> None:
    settings = with_tasks(atomic=True, retries=50)
    site.serve("--workers", "2", settings=settings)
    enqueue(site, settings, NUMBER)
    for _ in range(2):
        until(lambda: site.count("durablemessage") > 0, "tasks run", 60)
        server.restart("immediate")
    assert set(ended(site)) == {"SUCCESSFUL"}
    assert site.count("taskresult") == NUMBER
    assert sorted(site.entries()) == sorted(map(str, range(NUMBER)))
