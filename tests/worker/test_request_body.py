"""The body of a large request, read as a view does: in order, from what is asked for, whatever is lost on the way."""

from __future__ import annotations

import io

import pytest

from dbchannels import codec
from dbchannels.exceptions import LayerUnavailable
from dbchannels.layers.link import Link
from dbchannels.layers.operations import Delivery
from dbchannels.protocol import WINDOW
from dbchannels.worker import views
from dbchannels.worker.views import BodyRest, open_body

CHUNK = 100_000
BODY = b"".join(b"%07d\n" % number for number in range(400_000))  # 3.2 MB
FIRST = 50_000


class Server:
    """Who has the body; ``loses`` are the numbers of chunks that do not arrive."""

    def __init__(self, body=BODY, loses=(), closes_after=None):
        self.body, self.loses, self.closes_after = body, set(loses), closes_after
        self.asked = []
        self.position = FIRST
        self.number = 0
        self.chunks = []
        self.most = 0  # bytes that waited at once

    def ask(self, fields):
        wanted = fields["body"]
        self.asked.append(wanted)
        self.position = wanted.get("since", self.position)
        while self.position < wanted["until"]:
            content = self.body[self.position : self.position + CHUNK]
            chunk = {"offset": self.position, "content": content, "more_content": True}
            self.position += len(content)
            self.number += 1
            if self.number == self.closes_after:
                chunk = {"content": b"", "more_content": False, "closed": True}
            if self.number not in self.loses:
                self.chunks.append(chunk)
        self.most = max(self.most, sum(len(one["content"]) for one in self.chunks))

    def receive(self):
        given, self.chunks = self.chunks[:3], self.chunks[3:]
        return given

    def stream(self):
        rest = BodyRest(self.body[:FIRST], len(self.body), self.receive, self.ask)
        return io.BufferedReader(rest, 8_192)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(views, "ASK_AGAIN", 0.01)


def test_it_is_read_whole_and_no_more_than_a_window_waits():
    server = Server()
    assert server.stream().read() == BODY
    assert server.most <= WINDOW + CHUNK
    assert [wanted["until"] for wanted in server.asked] == sorted(
        {wanted["until"] for wanted in server.asked}
    )


def test_nothing_is_asked_for_before_it_is_read():
    server = Server()
    stream = server.stream()
    assert stream.read(FIRST) == BODY[:FIRST] and server.asked == []
    assert stream.readline() == BODY[FIRST : FIRST + 8] and len(server.asked) == 1


@pytest.mark.parametrize("loses", [[1], [2], [1, 2, 3], [5, 9, 30], range(1, 12)])
def test_what_is_lost_is_asked_for_again(loses):
    server = Server(loses=loses)
    assert server.stream().read() == BODY
    assert any("since" in wanted for wanted in server.asked)


def test_what_comes_twice_or_too_early_is_read_once():
    server = Server()
    receive = server.receive

    def jumbled():
        chunks = receive()
        return [*chunks[1:], *chunks, *chunks]

    server.receive = jumbled
    assert server.stream().read() == BODY


def test_a_client_that_went_away_is_an_error():
    stream = Server(closes_after=3).stream()
    assert stream.read(FIRST + CHUNK) == BODY[: FIRST + CHUNK]
    with pytest.raises(OSError, match=r"The client went away before the request's body was read\."):
        stream.read()


def test_a_server_that_is_gone_is_an_error_in_the_end(monkeypatch):
    monkeypatch.setattr(views, "STALLED", 0.05)
    stream = Server(loses=range(1_000)).stream()
    with pytest.raises(OSError, match="the server that has it is gone"):
        stream.read()


def test_an_outage_of_the_layer_is_waited_out():
    server = Server()
    ask, receive, outages = server.ask, server.receive, [1, 1, 1]

    def unavailable(*given):
        if outages:
            outages.pop()
            raise LayerUnavailable("away")
        return ask(*given) if given else receive()

    server.ask = server.receive = unavailable
    assert server.stream().read() == BODY and outages == []


class Through(Link):
    """A link to the server above."""

    def __init__(self, server, apart):
        self.server, self.apart = server, apart

    def apply(self, operations):
        for one in operations:
            assert (one.channel, one.reply_channel) == ("reply.a!b", "")
            self.server.ask(codec.decode(one.payload))
        return []

    def receive_many(self, queues, limit, worker=""):
        assert queues == ["http.request.body?b"]
        return [Delivery(queues[0], codec.encode_trusted(one)) for one in self.server.receive()]


def request(body=BODY):
    fields = {"reply_channel": "reply.a!b", "body": body[:FIRST], "body_size": len(body)}
    return {**fields, "body_channel": "http.request.body?b"}


def test_a_small_body_is_in_its_message():
    message = {"reply_channel": "reply.a!b", "body": b"small", "body_channel": None}
    assert open_body(message, Through(None, True), 60).read() == b"small"


@pytest.mark.parametrize("apart", [True, False])
def test_where_the_link_is_not_apart_it_is_fetched_before_the_view_runs(apart):
    server = Server()
    with open_body(request(), Through(server, apart), 60) as stream:
        assert (server.asked == []) == apart
        assert stream.read() == BODY


@pytest.mark.parametrize("apart", [True, False])
def test_one_that_breaks_off_does_so_for_the_view(apart):
    stream = open_body(request(), Through(Server(closes_after=2), apart), 60)
    with stream, pytest.raises(OSError, match="The client went away"):
        stream.read()
