"""What a worker counts of its messages."""

from __future__ import annotations

import pytest

from dbchannels import route
from dbchannels.exceptions import DenyConnection
from dbchannels.layers.operations import Delivery, Failure, Result
from dbchannels.measures import DEAD, DONE, FAILED, STARTED
from dbchannels.models import Sample
from dbchannels.samples import read_sample, summarize
from dbchannels.testing.contract.case import wait_until
from tests import kinds


def fail(message):
    raise ZeroDivisionError


def refuse(message):
    raise DenyConnection


def numbers(worker, channel):
    return [worker._batch.measures.counts[channel][one] for one in (STARTED, DONE, FAILED, DEAD)]


@pytest.mark.parametrize(
    ("consumer", "retries", "outcome"),
    [(lambda message: None, 0, DONE), (fail, 1, FAILED), (fail, 0, DEAD)],
)
def test_what_became_of_a_durable_message_is_counted(layer, new_worker, consumer, retries, outcome):
    worker = new_worker(route("own", consumer, retries=retries, backoff=60.0))
    layer.send("own", {})
    worker.run_once()
    counts = worker._batch.measures.counts["own"]
    assert numbers(worker, "own") == [1, *(int(one == outcome) for one in (DONE, FAILED, DEAD))]
    assert counts[outcome] == 1


@pytest.mark.parametrize(("consumer", "outcome"), [(fail, FAILED), (refuse, DONE)])
def test_a_consumer_that_refuses_has_not_failed(layer, new_worker, consumer, outcome):
    worker = new_worker(route("websocket.connect", consumer))
    layer.send("websocket.connect", {"reply_channel": "reply.a!b", "order": 0, "path": "/"})
    worker.run_once()
    assert numbers(worker, "websocket.connect") == [1, *(int(one == outcome) for one in (DONE, FAILED, DEAD))]


def test_a_message_that_is_handed_back_is_not_counted(layer, new_worker):
    worker = new_worker(route("own", lambda message: worker.stop()))
    worker._batch.sizer.limit = 2
    layer.send_many([("own", {}), ("own", {})])
    worker.run_once()
    assert numbers(worker, "own") == [1, 1, 0, 0]


def test_a_consumer_that_hangs_counts_as_failed(new_worker):
    worker = new_worker(route("own", fail))
    batch = worker._batch
    delivery = Delivery("own", b"", id=1, attempt=1)
    batch.fill([delivery])
    batch.start_next()
    assert batch.time_out(delivery, Result([], Failure(delivery, "hung", None), False))
    batch.finished(Result([], None, True))  # later it returns after all
    assert numbers(worker, "own") == [1, 0, 0, 1]


@kinds.on_databases
def test_a_worker_that_stops_has_written_what_it_did(layer, new_worker, run):
    worker = new_worker(route("own", lambda message: None), registered=False)
    run(worker)
    layer.send_many([("own", {})] * 3)
    wait_until(lambda: worker.consumed == 3)
    worker.stop()
    wait_until(
        lambda: layer.rows(Sample).exclude(source="").exists()
    )  # it is read once its ten seconds are over
    rows = layer.rows(Sample).exclude(source="").values_list("source", "data")
    found = summarize([read_sample(*row) for row in rows], "own")["values"]
    assert sum(found["out"]) == pytest.approx(0.3)
