"""Files that a worker has sent: read at their clients' pace, and closed whatever happens."""

from __future__ import annotations

import logging
import os
import socket
from contextlib import suppress
from http.client import IncompleteRead

import gevent
import pytest

from dbchannels.server.http import response_buffer
from dbchannels.server.http.response_buffer import ResponseBudget, SentFiles
from tests.server import test_server
from tests.server.test_server import until

new_site, told = test_server.new_site, test_server.told
SIZE = 600_000
CONTENT = bytes(range(200)) * (SIZE // 200)


def open_files():
    """Return how many descriptors of the file of this test are open here."""
    gevent.get_hub().threadpool.join()
    links = []
    for one in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # of the listing itself
            links.append(os.readlink(f"/proc/self/fd/{one}"))
    return sum(link.endswith("sent.bin") for link in links)


@pytest.fixture
def stored(tmp_path):
    path = tmp_path / "sent.bin"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def site(new_site, stored):
    """Its worker sends the file for each request, and then the head."""
    site = new_site()
    site.server.requests.files = SentFiles(site.relay, site.server.connection_limits)
    site.hand_over = lambda channel: hand_over(site, stored, channel)

    def view(message, reply):
        site.hand_over(message["reply_channel"])
        respond(reply)

    yield site.on("http.request", view)
    site.end()
    assert (open_files(), site.server.requests.responses.sent_files) == (0, 0)


def hand_over(site, stored, channel):
    with open(stored, "rb") as file:
        socket.send_fds(site.server.requests.files.sender, [channel.encode()], [file.fileno()])


def respond(reply, position=0, length=SIZE):
    headers = [[b"Content-Length", str(length).encode()]]
    span = [position, length]
    reply(status=200, headers=headers, content=b"", more_content=True, from_descriptor=span)


def test_it_is_sent_to_each_client(site, told):
    client = site.client()
    for _ in range(3):
        assert client.ask("GET", "/").content == CONTENT
    answer = client.ask("HEAD", "/")
    assert (answer.content, answer.header("Content-Length")) == (b"", str(SIZE))
    until(site.is_quiet)
    assert open_files() == 0
    assert f'"GET / HTTP/1.1" 200 {SIZE} ' in told(logging.INFO)[0]


def test_only_the_part_that_the_head_names(site, stored):
    def view(message, reply):
        site.hand_over(message["reply_channel"])
        respond(reply, 1_000, 300_000)

    site.on("http.request", view)
    assert site.get().content == CONTENT[1_000:301_000]


def test_without_the_file_it_is_a_503(site):
    site.hand_over = lambda channel: None
    assert site.get().status == 503
    until(site.is_quiet)


def test_files_that_nobody_waits_for_are_closed(site):
    site.hand_over("reply.x!nobody")
    site.server.requests.files.receive()
    assert open_files() == 0

    def view(message, reply):
        for _ in range(3):
            site.hand_over(message["reply_channel"])
        until(lambda: open_files() == 1)
        respond(reply)

    assert site.on("http.request", view).get().content == CONTENT


@pytest.mark.parametrize("reply", [{"status": 200, "content": b"other"}, {"lost": "worker died"}])
def test_a_response_that_does_not_begin_with_it_closes_it(site, reply):
    def view(message, send):
        site.hand_over(message["reply_channel"])
        until(lambda: open_files() == 1)
        send(**reply)

    assert site.on("http.request", view).get().status in (200, 502)
    until(site.is_quiet)
    assert open_files() == 0


def test_descriptors_are_kept_for_the_site(site, monkeypatch, told):
    kept = [1_000_000 + site.server.connection_limits.total, site.server.connection_limits.total]
    monkeypatch.setattr(response_buffer, "first_kept", lambda: kept[0])
    assert site.get().content == CONTENT
    del kept[0]
    assert [site.get().status for _ in range(2)] == [503] * 2
    (line,) = told(logging.WARNING)
    assert line.startswith("Files are answered with 503, because this process has too many open files")


def test_one_that_becomes_shorter_is_broken_off(site, stored, told):
    def view(message, reply):
        site.hand_over(message["reply_channel"])
        until(lambda: open_files() == 1)
        os.truncate(stored, 200_000)
        respond(reply)

    with pytest.raises(IncompleteRead) as error:
        site.on("http.request", view).get()
    assert error.value.partial == CONTENT[:200_000]
    (line,) = told(logging.ERROR)
    assert "could not be read (it became shorter)" in line


def test_a_client_that_leaves_tells_no_worker(site, stored):
    os.truncate(stored, 50_000_000)
    site.on(
        "http.request",
        lambda message, reply: (site.hand_over(message["reply_channel"]), respond(reply, 0, 50_000_000)),
    )
    client = site.client()
    client.send_request("GET", "/")
    assert client.head().status == 200
    assert open_files() == 1
    client.reset()
    until(site.is_quiet)
    assert open_files() == 0
    assert site.reports() == []


@pytest.mark.parametrize(("files", "size"), [(0, 131_072), (128, 131_072), (256, 65_536), (10_000, 8_192)])
def test_where_there_are_many_less_is_held_for_each(files, size):
    budget = ResponseBudget(0, 0, lambda: 0)
    budget.sent_files = files
    assert budget.read_size == size
