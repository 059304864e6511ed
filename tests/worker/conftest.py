"""Workers in threads of their own."""

from __future__ import annotations

import pytest

from dbchannels.testing.contract.case import in_thread


@pytest.fixture
def new_worker(make_worker):
    """Make workers: ``new_worker(route(...), only=[...])``."""
    return make_worker


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
