"""Answers that come when they come: long poll, server-sent events, and clients that do not wait for them."""

from __future__ import annotations

import socket

from tests.endtoend.conftest import emptied
from tests.endtoend.test_http import open_request
from tests.harness import until


def read_until(raw: socket.socket, text: bytes) -> bytes:
    """Return what comes up to and with a text."""
    data = b""
    while text not in data:
        more = raw.recv(65_536)
        assert more, f"The server closed after {data!r}."
        data += more
    return data


def test_a_view_leaves_its_answer_to_a_consumer(any_site):
    """The consumer runs after the time in which a view must answer; what the view wrote and sent is kept."""
    served = any_site.serve("--workers", "2", "--http-timeout", "3")
    until(lambda: served.get("/").status == 200, "the workers are warm")
    with served.connection() as connection:
        connection.request("GET", "/later/hello")
        response = connection.getresponse()
        assert (response.status, response.read()) == (200, b"hello")
        connection.request("GET", "/")
        assert connection.getresponse().read() == b"hello"
    assert any_site.entries() == ["kept"]


def test_an_answer_that_never_comes_is_a_504(site):
    served = site.serve("--workers", "1", "--later-timeout", "0.5")
    assert served.get("/never").status == 504
    assert site.entries() == ["waits"]


def test_events_go_to_everybody_in_the_group_until_the_end(served):
    site = emptied(served).site
    readers = [open_request(served, "/events") for _ in range(3)]
    for reader in readers:
        head = read_until(reader, b": hello\n\n")
        assert b"Content-Type: text/event-stream\r\n" in head and b"Transfer-Encoding: chunked\r\n" in head
    until(lambda: site.count("membership") == 3, "all are in the group")
    for text in ("one", "two"):
        assert served.get(f"/tell/{text}").text == "told"
        for reader in readers:
            assert b"data: %s\n\n" % text.encode() in read_until(reader, b"\n\n")
    served.get("/tell/end")
    assert [read_until(reader, b"0\r\n\r\n").count(b"data: end\n\n") for reader in readers] == [1, 1, 1]
    until(lambda: site.count("membership") == 0, "nobody is in the group any more")
    assert site.entries() == []


def test_a_reader_of_events_that_leaves_is_told_of_and_in_no_group(any_served):
    site = any_served.site
    readers = [open_request(any_served, "/events") for _ in range(2)]
    for reader in readers:
        read_until(reader, b": hello\n\n")
    until(lambda: site.count("membership") == 2, "both are in the group")
    readers[0].close()
    until(lambda: site.entries() == ["gone /events"], site.entries)
    until(lambda: site.count("membership") == 1, "one is left in the group")
    any_served.get("/tell/still")
    assert b"data: still" in read_until(readers[1], b"\n\n")
    readers[1].close()
    until(lambda: site.entries() == ["gone /events"] * 2, site.entries)
    until(lambda: site.count("membership") == 0, "the group is empty")


def test_a_client_that_leaves_before_its_answer_is_told_of(served):
    site, before = emptied(served).site, len(served.output())
    waiting = open_request(served, "/never")
    until(lambda: site.entries() == ["waits"], "the view has run")
    waiting.close()
    until(lambda: site.entries() == ["waits", "gone /never"], site.entries)
    assert '"GET /never HTTP/1.1" 499 ' in served.output()[before:]
