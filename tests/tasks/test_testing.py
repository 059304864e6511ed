"""Tasks in the tests of a site: they run when a test says so, and their results can be asked for."""

from __future__ import annotations

import pytest

from dbchannels.testing.channels import use_channels


def test_tasks_run_in_drain(jobs, db):
    with use_channels() as channels:
        result = jobs.add.enqueue(2, b=3)
        assert jobs.add.get_result(result.id).status == "READY"
        channels.drain()
        result.refresh()
        assert (result.status, result.return_value, result.worker_ids) == ("SUCCESSFUL", 5, ["test"])


def test_what_a_task_raises_is_raised_by_drain(jobs, db):
    with use_channels() as channels:
        jobs.broken.enqueue("no")
        with pytest.raises(ValueError, match="no"):
            channels.drain()
