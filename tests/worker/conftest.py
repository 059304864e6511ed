"""Workers for tests, in the test's thread or in one of their own."""

from __future__ import annotations

import pytest

from dbchannels import channel_layers
from dbchannels.routing.table import Routing
from dbchannels.testing.contract.case import in_thread
from dbchannels.worker.worker import Worker


@pytest.fixture
def new_worker(new_layer):
    """Make workers, on record, whose sessions are closed at the end: ``new_worker(route(...), only=[...])``."""
    made = []

    def new(*routes, registered=True, **options):
        made.append(Worker(channel_layers["default"], Routing(routes), **options))
        if registered:
            made[-1]._register()
        return made[-1]

    yield new
    for one in made:
        one.link.close()


@pytest.fixture
def run(new_layer):
    """Run a worker in a thread of its own, as a process would; it is stopped at the end of the test."""
    started = []

    def start(one):
        started.append((one, in_thread(one.layer, one.run)))
        return started[-1][1]

    yield start
    for one, thread in started:
        one.stop()
        thread.join(10)
        assert not thread.is_alive()
