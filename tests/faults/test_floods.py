"""Faults 18, 22, 23 and 41: what is too large, clients that hold connections for nothing, and heads that are none."""

from __future__ import annotations

import socket
from collections import Counter

from tests.endtoend.test_http import LIMIT
from tests.harness import HOST, ask, connect, reset, until
from tests.soak import floods, hoards, resets, tiny_frames

HALF = f"GET / HTTP/1.1\r\nHost: {HOST}\r\nX: ".encode()
HALF_BODY = f"POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 100\r\n\r\nhalf".encode()
CROWD, CAP = 1_000, 400


def begin(port: int, data: bytes) -> socket.socket:
    """Send a part of a request."""
    raw = connect(port)
    raw.sendall(data)
    return raw


def status(raw: socket.socket) -> bytes:
    """Return the status that comes in the end, b"" for a connection that is closed without."""
    data = b""
    try:
        while more := raw.recv(65_536):
            data += more
    except ConnectionError:
        pass
    return data[9:12]


def test_a_flood_of_half_requests_leaves_a_good_client_served(site):
    served = site.serve("--workers", "1", "--head-timeout", "3", "--max-connections", f"{CAP}")
    with served.connection() as kept:
        assert ask(kept, "GET", "/").text == "hello"
        crowd = [begin(served.port, HALF) for _ in range(CROWD)]
        assert ask(kept, "GET", "/").text == "hello"
        found = Counter(map(status, crowd))
        assert found[b"408"] == CAP - 1 and set(found) <= {b"408", b"503", b""}
        assert ask(kept, "GET", "/").text == "hello"
    until(lambda: served.get("/").status == 200, "there is room again")
    assert "Traceback" not in served.output() and served.output().count("Rejected") < 5


def test_so_does_a_flood_of_half_bodies(site):
    served = site.serve("--workers", "1", "--body-timeout", "1")
    crowd = [begin(served.port, HALF_BODY) for _ in range(300)]
    assert served.get("/").text == "hello"
    assert Counter(map(status, crowd)) == {b"408": 300}
    assert served.get("/").text == "hello"


def test_a_body_beyond_the_limit_leaves_no_row(site):
    served = site.serve("--workers", "0", "--http-timeout", "60", "--max-body", str(LIMIT))
    refused = served.request("POST", "/", b"x" * (LIMIT + 1))
    assert refused.status == 413
    assert site.count("protocolmessage") == 0
    begin(served.port, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % LIMIT + b"x" * LIMIT)
    site.work()
    assert served.get("/").text == "hello"
    assert site.count("protocolmessage") == 0


def test_a_byte_too_many_and_every_hostile_request_are_refused_once_in_one_line(site):
    served = site.serve("--workers", "1", "--max-body", str(LIMIT))
    assert floods.hostile(served, 1) == []
    until(lambda: floods.lines(served) == len(floods.HOSTILE), "each has its line")
    assert served.get("/").text == "hello"
    assert floods.sizes(site, served) == floods.Sizes((200, 413), (True, 1009), "True True", 0)
    assert "Traceback" not in served.output()


def test_tiny_fragments_and_pings_without_end_are_closed(site):
    served = site.serve("--workers", "1", "--ws-max-size", str(2 * len(tiny_frames.FRAGMENTS)))
    found = tiny_frames.tiny_frames(served, 1)
    assert (found.codes, found.wrong) == ({1009: 2, 1008: 2}, 0)
    assert site.count("protocolmessage", "channel = 'websocket.receive'") == 0


def test_clients_that_hoard_cost_no_more_than_the_budget(site):
    served = site.serve(
        *("--workers", "1", "--probe-port", "0", "--ws-compression"),
        *("--max-websocket-memory", str(8 * hoards.MEBIBYTE)),
    )
    found = hoards.unread(served, 12, dropped=4, seconds=20)
    assert found.growth <= 48 and found.codes[1013] >= 4 and found.codes[None] <= 8, str(found)
    compression = {"Sec_WebSocket_Extensions": "permessage-deflate"}
    for path, data in (
        ("/echo/", hoards.UNFINISHED),
        (hoards.SLOW, hoards.TINY),
        (hoards.SLOW, hoards.BOMBS),
    ):
        found = hoards.hoard(served, path, data, 12, 0.3, **compression)
        assert found.growth <= 24 and found.codes == {None: 12}, (path[:10], str(found))
    assert served.socket("/echo/").ask("hello") == "hello"
    assert "Traceback" not in served.output()


# Fault 41.


def test_requests_whose_clients_left_are_in_nobodys_way(site):
    served = site.serve("--workers", "0", "--proxy-headers", "--max-waiting-per-address", "8")
    left, stay = ([resets.ask(served, resets.ATTACKER) for _ in range(number)] for number in (20, 3))
    waits = "channel = 'http.request'"
    until(lambda: site.count("protocolmessage", waits) == 8, "one address has its share of the layer")
    visitor = resets.ask(served, resets.VISITOR)
    until(lambda: site.count("protocolmessage", waits) == 9, "the visitor is in the layer at once")
    for raw in left:
        reset(raw)
    until(lambda: site.count("protocolmessage", waits) == 4, "those who wait are there, and nobody else")
    site.work()
    assert [status(raw) for raw in (visitor, *stay)] == [b"200"] * 4
    until(lambda: site.count("protocolmessage") == 0, "nothing is left")
    assert served.output().count('"GET /sleep/100 HTTP/1.1" 499 ') == 20
