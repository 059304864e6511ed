"""The probes of a worker without a server: answered in a thread, whatever the worker does."""

from __future__ import annotations

import http.client
import threading
from contextlib import closing
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dbchannels import route
from dbchannels.processes.probes import Probes
from dbchannels.server.listeners import Address, AddressInUse
from dbchannels.testing.contract.case import wait_until
from tests.harness import HOST

HERE = Address(HOST, 0)


def asked(address, path):
    with closing(http.client.HTTPConnection(HOST, address.port, timeout=60)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def test_a_worker_is_ready_from_its_registration_to_its_end(layer, new_worker, run, monkeypatch):
    one = new_worker(route("own", lambda message: None), registered=False)
    with Probes(HERE, [one]) as address:
        assert asked(address, "/healthz") == (200, "This process is alive.\n")
        assert asked(address, "/readyz") == (503, "Not ready: the worker is starting.\n")
        run(one)
        wait_until(lambda: asked(address, "/readyz") == (200, "Ready.\n"))
        monkeypatch.setitem(one._health.failing, "main", (1, 0.0))
        assert asked(address, "/readyz") == (503, "Not ready: the layer cannot be used.\n")
        monkeypatch.undo()
        one._renewed_at = -layer.options["lease"]  # its thread and its watchdog hang
        assert one.why_not_ready() == "the layer cannot be used"
        one.stop()
        assert asked(address, "/readyz") == (503, "Not ready: stopping.\n")
        assert asked(address, "/healthz")[0] == 200


def test_the_metrics_are_those_of_all_workers_of_the_process(layer, new_worker, run):
    both = [new_worker(route("own", lambda message: None), only=["own"], registered=False) for _ in "ab"]
    layer.send_many([("own", {})] * 5)
    with Probes(HERE, both) as address:
        for one in both:
            run(one)
        wait_until(
            lambda: sum(one.consumed for one in both) == 5 and not any(w.why_not_ready() for w in both)
        )
        found = {
            (one.name, *one.labels.values()): one.value
            for family in text_string_to_metric_families(asked(address, "/metrics")[1])
            for one in family.samples
        }
    assert found["dbchannels_messages_started_total", "own"] == 5
    assert found["dbchannels_message_wait_seconds_bucket", "own", "+Inf"] == 5
    assert (found["dbchannels_workers_ready",], found["dbchannels_layer_outages_total",]) == (2, 0)
    assert not [name for name, *_ in found if name.startswith("dbchannels_site_")]


def test_nothing_is_left_at_the_end():
    worker = SimpleNamespace(why_not_ready=lambda: "", measures=None)
    with Probes(HERE, [worker]) as address, pytest.raises(AddressInUse):
        Probes(address, [worker])
    assert "probes" not in {one.name for one in threading.enumerate()}
    with pytest.raises(ConnectionRefusedError):
        asked(address, "/healthz")
    with Probes(address, [worker]):  # the same address again
        assert asked(address, "/readyz")[0] == 200
