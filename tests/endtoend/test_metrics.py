"""The metrics of a running site, read by Prometheus' own parser while clients come and workers die."""

from __future__ import annotations

import os
import re
import signal
import socket

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.endtoend.conftest import migrated, postgresql_database
from tests.harness import HOST, Answer, Served, connect, until


@pytest.fixture(scope="module")
def lasting(tmp_path_factory):
    """A server for all tests that leave it at work."""
    site = migrated(postgresql_database("dbchannels_metrics"), tmp_path_factory.mktemp("metrics"))
    try:
        yield site.serve("--workers", "1", "--probe-port", "0")
    finally:
        site.end()


def probes(served: Served) -> int:
    found = re.search(r"at 127\.0\.0\.1:(\d+)", served.output())
    assert found
    return int(found[1])


def ask_probes(served: Served, data: bytes) -> bytes:
    with socket.create_connection((HOST, probes(served)), timeout=60) as raw:
        raw.sendall(data)
        return b"".join(iter(lambda: raw.recv(65_536), b""))


def metrics(served: Served) -> dict[tuple[str, str], float]:
    """Return the values by (name without the prefix, value of the label)."""
    answer = ask_probes(served, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    head, _, text = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), answer
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        for one in family.samples:
            if "le" not in one.labels:
                found[one.name.removeprefix("dbchannels_"), "".join(one.labels.values())] = one.value
    return found


def wait_for(served: Served, name: str, label: str, value: float) -> None:
    seen: list[dict[tuple[str, str], float]] = []

    def reached() -> bool:
        seen.append(metrics(served))
        return seen[-1].get((name, label)) == value

    until(reached, lambda: f"{name} {label} = {value}: {seen[-1]}", 60)


def test_what_was_done_is_what_is_shown(site):
    served = site.serve("--workers", "2", "--probe-port", "0")
    answers: list[Answer] = [served.get(path) for path in ("/no-such-page/",) * 3]
    assert {one.status for one in answers} == {404}
    open_ones = [served.socket("/echo/") for _ in range(3)]
    assert open_ones[0].ask("?") == "?"
    refused = served.socket("/no-such-socket/")
    assert refused.status == 404
    open_ones.pop().close(4321)
    site.send("stream", *({"text": str(number)} for number in range(5)))
    site.send("poison", {"poison": "raise"})

    wait_for(served, "messages_done_total", "stream", 5)
    wait_for(served, "http_requests_total", "404", 3)
    wait_for(served, "websockets", "", 2)
    wait_for(served, "websocket_closes_total", "4321", 1)
    until(
        lambda: any(metrics(served).get((f"messages_{one}_total", "poison")) for one in ("failed", "dead")),
        "the poison has failed",
    )
    found = metrics(served)
    assert found["websocket_handshakes_total", "101"] == 3
    assert found["websocket_handshakes_total", "404"] == 1
    assert found["messages_sent_total", "http.request"] == 3
    assert found["messages_sent_total", "websocket.connect"] >= 3
    assert found["message_wait_seconds_count", "stream"] == found["messages_started_total", "stream"] == 5
    assert found["workers_ready", ""] == 2
    assert found["lease_renewals_total", ""] > 0
    assert found["layer_outages_total", ""] == 0
    assert found["site_takers", "stream"] >= 1
    until(lambda: metrics(served).get(("site_websockets", "")) == 2, "a worker has counted the site", 60)


def test_counters_do_not_go_down_when_a_worker_is_killed(lasting):
    served, site = lasting, lasting.site
    site.send("stream", *({"text": str(number)} for number in range(20)))
    wait_for(served, "messages_done_total", "stream", 20)
    for pid in served.workers():
        os.kill(pid, signal.SIGKILL)
    until(lambda: "was killed by SIGKILL" in served.output(), "they were seen to die")
    assert metrics(served)["messages_done_total", "stream"] == 20
    site.send("stream", {"text": "more"})
    wait_for(served, "messages_done_total", "stream", 21)


@pytest.mark.parametrize(
    "data",
    [
        b"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 8,
        b"GET /metrics\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n",
    ],
)
def test_a_hostile_client_gets_no_metrics(lasting, data):
    try:
        answer = ask_probes(lasting, data + b"\r\n\r\n")
    except ConnectionResetError:
        answer = b""
    assert b"dbchannels_" not in answer
    assert metrics(lasting)["workers_ready", ""] >= 0


def test_clients_that_do_not_read_and_a_crowd_do_not_hold_it_up(lasting):
    idle = [connect(probes(lasting)) for _ in range(40)]
    for one in idle[:20]:
        one.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert metrics(lasting)["connections_limit", ""] > 0
    assert lasting.get("/no-such-page/").status == 404
    for one in idle:
        one.close()
