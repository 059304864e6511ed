"""One WebSocket between its socket and the layer: order, decisions, losses, closing, slow readers."""

from __future__ import annotations

import gc
import logging
import random
import socket
import time
from types import SimpleNamespace

import gevent
import pytest

from dbchannels import codec
from dbchannels.layers.operations import Connect, Disconnect, Send
from dbchannels.layers.relay import OutboxFull
from dbchannels.measures import ServerCounts
from dbchannels.protocol import DECLARED_DEAD
from dbchannels.server import budget
from dbchannels.server.http.messages import Request
from dbchannels.server.options import WebSocketLimits
from dbchannels.server.relay import Reply
from dbchannels.server.websocket import connection
from dbchannels.server.websocket.connection import EVENTS, INBOX, Connection
from dbchannels.server.websocket.handshake import Accepted, Denied
from tests.clocks import patch_time
from tests.server.test_server import until

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
REQUEST = Request("GET", "/chat/tea/?a=b", "1.1", [(b"host", b"h")], "http", ("c", 1), ("s", 2))


class FakeRelay:
    """Records what is sent; ``full`` makes it refuse."""

    name = "s1"

    def __init__(self):
        self.counts, self.housekeeper = ServerCounts(), SimpleNamespace(has_sessions=False)
        self.history = SimpleNamespace(
            position=7, catch_up=lambda channel, address: self.behind.append(channel)
        )
        self.behind = []  # the channels that are to catch up
        self.operations = []
        self.receivers = {}
        self.full = False

    def open(self, receiver):
        self.receivers["reply.s1!c1"] = receiver
        return "reply.s1!c1"

    def close(self, reply_channel):
        self.receivers.pop(reply_channel, None)

    def waiting(self):
        return len(self.receivers)

    def send(self, *operations):
        if self.full:
            raise OutboxFull
        self.operations += operations

    def disconnect(self, reply_channel):
        self.operations.append(Disconnect(reply_channel))

    def make_send(self, channel, message):
        return Send(channel, codec.encode(message), message["reply_channel"], 60, 0)


def frame(opcode, payload=b""):
    """A client's frame, masked with zeros."""
    length = len(payload)
    if length < 126:
        head = bytes([0x80 | opcode, 0x80 | length])
    else:
        head = bytes([0x80 | opcode, 0xFE]) + length.to_bytes(2, "big")
    return head + bytes(4) + payload


def close_frame(code):
    return frame(CLOSE, code.to_bytes(2, "big"))


def server_frames(data):
    """Take a server's bytes apart: (opcode, payload) of each whole frame."""
    found = []
    while len(data) >= 2:
        length, start = data[1], 2
        if length == 126:
            length, start = int.from_bytes(data[2:4], "big"), 4
        elif length == 127:
            length, start = int.from_bytes(data[2:10], "big"), 10
        if len(data) < start + length:
            break
        found.append((data[0] & 15, data[start : start + length]))
        data = data[start + length :]
    return found


class Line:
    """A connection with its fake relay, and the client's end of its socket."""

    def __init__(self, last_id=None):
        self.relay = FakeRelay()
        self.connection = Connection(self.relay, REQUEST._replace(resume=last_id))
        self.client, self._server = socket.socketpair()
        self.client.setblocking(False)
        self._server.setblocking(False)
        self._read = b""
        self.ended = False

    def connect(self):
        self.connection.connect()
        return self

    def open(self, buffered=b""):
        """Accept it: from here on the socket is the connection's."""
        self.connect().reply(finished=0)
        return self.start(buffered)

    def start(self, buffered=b""):
        self.connection.start(self._server, buffered)
        return self

    def reply(self, **message):
        self.connection.deliver(Reply(message))

    def lose(self, why, channel):
        self.reply(lost=why, channel=channel)

    def finish(self):
        """Let the worker finish what is in the layer."""
        self.reply(finished=self.sent()[-1][1]["order"])

    def decision(self):
        assert self.connection.decision.ready()
        return self.connection.decision.value

    def sent(self, *channels):
        """The messages sent so far, as (channel, fields); of these channels, or all."""
        sends = [one for one in self.relay.operations if isinstance(one, Send)]
        return [
            (one.channel, codec.decode(one.payload))
            for one in sends
            if one.channel in (channels or [one.channel])
        ]

    def texts(self):
        return [fields["text"] for _, fields in self.sent("websocket.receive")]

    def codes(self):
        """The codes of the disconnect messages."""
        return [fields["code"] for _, fields in self.sent("websocket.disconnect")]

    def say(self, *texts):
        self.client.sendall(b"".join(frame(TEXT, text.encode()) for text in texts))

    def received(self):
        """The frames that the client has so far."""
        while True:
            try:
                data = self.client.recv(1_000_000)
            except (BlockingIOError, ConnectionResetError):
                break
            if not data:
                self.ended = True
                break
            self._read += data
        return server_frames(self._read)

    def closed_with(self):
        """Wait for the server's close frame; return its code."""
        until(lambda: any(opcode == CLOSE for opcode, _ in self.received()))
        return int.from_bytes(self.received()[-1][1][:2], "big")

    def is_over(self):
        """Nothing is left: no receiver, no socket, and the record is dropped, once."""
        drops = [one for one in self.relay.operations if isinstance(one, Disconnect)]
        return self.relay.waiting() == 0 and self.connection.closed and drops == [Disconnect("reply.s1!c1")]

    def drop(self, code=1006):
        """Let the socket end; before the 101 there is none of the connection's."""
        if self.connection._transport is not None:
            self.connection._transport.drop(code)

    def end(self):
        self.drop()
        self._server.close()
        self.client.close()


def pushed(line, data):
    """Send as much as the server takes, until it reads nothing while the hub turns twenty times; return how much."""
    sent = idle = 0
    while sent < len(data) and idle < 20:
        try:
            sent += line.client.send(data[sent : sent + 65_536])
            idle = 0
        except BlockingIOError:
            idle += 1
        gevent.sleep(0.001)  # a turn of the hub: with 0 it runs callbacks and looks at no socket
    return sent


@pytest.fixture(autouse=True)
def _slow_machines_too(monkeypatch):
    """One turn of the hub suffices for whatever a test sends."""
    monkeypatch.setattr(budget, "SOCKET_SLICE", 10.0)
    monkeypatch.setattr(budget, "SLICE", 10.0)


@pytest.fixture
def new_line():
    made = []

    def new(last_id=None):
        made.append(Line(last_id))
        return made[-1]

    yield new
    for line in made:
        line.end()


@pytest.fixture
def line(new_line):
    return new_line()


@pytest.fixture
def at_once(monkeypatch):
    """Retries come at once."""
    monkeypatch.setattr(random, "uniform", lambda low, high: 0.0)


@pytest.fixture
def logged(caplog):
    """The lines that were logged."""
    caplog.set_level(logging.DEBUG)
    return lambda: [record.getMessage() for record in caplog.records]


# --- the handshake


def test_a_connection_is_recorded_and_then_its_connect_message_sent(line):
    line.connect()
    record, send = line.relay.operations
    assert record == Connect("reply.s1!c1", "s1", "/chat/tea/")
    assert (send.channel, send.reply_channel) == ("websocket.connect", "reply.s1!c1")
    fields = codec.decode(send.payload)
    assert (fields["order"], fields["scheme"], fields["path"]) == (0, "ws", "/chat/tea/")
    assert not line.connection.decision.ready()


@pytest.mark.parametrize(
    ("message", "decision"),
    [
        ({"finished": 0}, Accepted(None, [])),
        ({"accept": True}, Accepted(None, [])),
        (
            {"accept": True, "subprotocol": "v1", "headers": [["X-A", "b"]]},
            Accepted("v1", [("X-A", "b")]),
        ),
        ({"text": "hello", "finished": 0}, Accepted(None, [])),
        ({"text": "bye", "close": True, "finished": 0}, Accepted(None, [])),
    ],
)
def test_what_accepts(line, message, decision):
    line.connect().reply(**message)
    assert line.decision() == decision


@pytest.mark.parametrize(
    ("message", "status"),
    [
        ({"accept": False}, 403),
        ({"close": True}, 403),
        ({"close": 4000}, 403),
        ({"accept": False, "status": 404}, 404),
        ({"accept": False, "status": 500, "finished": 0}, 500),
        ({"accept": False, "status": 401}, 401),
        ({"accept": False, "text": "you shall not"}, 403),
        ({"lost": "worker died", "channel": "websocket.connect"}, 502),
        ({"lost": "expired", "channel": "websocket.connect"}, 503),
        ({"lost": "full", "channel": "websocket.connect"}, 503),
        ({"lost": "worker died"}, 502),
    ],
)
def test_what_refuses(line, message, status):
    line.connect().reply(**message)
    assert isinstance(line.decision(), Denied)
    assert line.decision().status == status
    assert line.decision().sentence.endswith(".")


@pytest.mark.parametrize("status", [200, 101, 599, 0, -1, "404", [404], None, True, 4.5])
def test_a_status_that_is_no_errors_is_403(line, status):
    line.connect().reply(accept=False, status=status)
    assert line.decision().status == 403


def test_data_waits_for_the_decision(line):
    line.connect().reply(text="early")
    assert not line.connection.decision.ready()
    line.reply(finished=0)
    assert line.decision() == Accepted(None, [])


def test_early_data_is_sent_once_the_socket_is_there_in_order(line):
    line.connect().reply(text="one")
    line.reply(accept=True, text="two")
    line.reply(bytes=b"three")
    line.reply(finished=0)
    assert line.received() == []
    line.start()
    assert line.received() == [(TEXT, b"one"), (TEXT, b"two"), (BINARY, b"three")]


@pytest.mark.parametrize("limits", [{"waiting_frames": 3}, {"waiting_bytes": 30}])
def test_more_early_data_than_may_wait_closes_with_1013(line, limits):
    line.connection._limits = WebSocketLimits(**limits)
    line.connect()
    for _ in range(10):
        line.reply(text="x" * 10)
    assert len(line.connection._early) == 1 and line.connection._unsent.used == 0
    line.reply(finished=0)
    line.start()
    assert line.closed_with() == 1013
    assert [opcode for opcode, _ in line.received()] == [CLOSE]


@pytest.mark.parametrize("end", ["start", "abandon"])
def test_early_data_is_counted_until_it_is_sent_or_the_client_leaves(line, end):
    line.connect().reply(accept=True, text="early")
    unsent = line.connection._unsent
    assert unsent.used == line.connection.charged > len("early")
    line.start() if end == "start" else line.connection.abandon()
    assert unsent.used == line.connection.charged == 0
    line.reply(text="late")
    assert unsent.used == 0 and line.connection._early == []


def test_data_with_a_close_is_sent_and_then_closed(line):
    line.connect().reply(text="bye", close=4001, finished=0)
    line.start()
    assert line.received()[0] == (TEXT, b"bye")
    assert line.closed_with() == 4001


def test_data_and_then_a_close_apart_is_sent_and_then_closed(line):
    line.connect().reply(text="bye")
    line.reply(close=True)
    line.reply(finished=0)
    line.start()
    assert line.received()[0] == (TEXT, b"bye")
    assert line.closed_with() == 1000


def test_the_first_decision_counts(line):
    line.connect().reply(accept=True)
    line.reply(accept=False)
    line.lose("worker died", "websocket.connect")
    assert line.decision() == Accepted(None, [])


def test_a_refusal_of_an_open_connection_is_logged(line, logged, monkeypatch):
    monkeypatch.setattr(connection.refused_late, "_logged_at", -1e9)
    line.open().reply(accept=False, status=500, finished=0)  # the connect consumer has raised afterwards
    assert not [text for text in logged() if "refused" in text]
    line.reply(accept=False)
    (told,) = [text for text in logged() if "refused" in text]
    assert told.startswith(
        "1 message(s) refused a WebSocket that is open, which does nothing: write 'close'."
    )
    assert not line.connection.closing


def test_a_refused_connection_leaves_nothing(line):
    line.connect().reply(accept=False, finished=0)
    line.connection.abandon()
    assert line.is_over() and line.codes() == []


def test_a_connection_refused_before_its_consumer_is_through_leaves_nothing(line):
    line.connect().reply(accept=False)
    line.connection.abandon()
    assert line.relay.waiting() == 1  # a consumer that adds it to a group after that is not forgotten
    line.reply(finished=0)
    assert line.is_over() and line.codes() == []


def test_a_connection_that_the_outbox_refused_leaves_nothing(line):
    line.relay.full = True
    line.connect()
    assert line.connection.decision.get().status == 503
    line.relay.full = False
    line.connection.abandon()
    assert line.is_over()


@pytest.mark.parametrize(
    "late", [{"finished": 0}, {"accept": True, "finished": 0}, {"text": "x", "finished": 0}]
)
def test_an_abandoned_connection_that_is_accepted_later_is_disconnected(line, late):
    line.connect()
    line.connection.abandon()
    assert line.codes() == []
    line.reply(**late)
    assert line.codes() == [1006]
    line.finish()
    assert line.is_over()


def test_a_connection_that_is_abandoned_after_its_acceptance_is_disconnected(line):
    line.connect().reply(accept=True, finished=0)
    line.connection.abandon()
    assert line.codes() == [1006]
    line.finish()
    assert line.is_over() and line.codes() == [1006]


def test_an_abandoned_connection_that_is_refused_later_has_no_disconnect(line):
    line.connect()
    line.connection.abandon()
    line.reply(accept=False, finished=0)
    assert line.is_over() and line.codes() == []


@pytest.mark.parametrize("why", ["worker died", "expired", "full"])
def test_an_abandoned_connection_whose_connect_message_is_lost_leaves_nothing(line, why):
    line.connect()
    line.connection.abandon()
    line.lose(why, "websocket.connect")
    assert line.is_over() and line.codes() == []


# --- order


def test_one_message_at_a_time_is_in_the_layer(line):
    line.open()
    line.say("a", "b", "c")
    until(line.texts)
    assert line.texts() == ["a"]
    line.finish()
    assert line.texts() == ["a", "b"]
    line.finish()
    line.finish()
    assert line.texts() == ["a", "b", "c"]
    assert [fields["order"] for _, fields in line.sent()] == [0, 1, 2, 3]


def test_frames_wait_until_the_connect_consumer_is_through(line):
    line.connect().reply(accept=True)
    line.start(frame(TEXT, b"first"))
    assert line.texts() == []
    line.reply(finished=0)
    assert line.texts() == ["first"]


def test_an_event_waits_for_its_turn_among_the_frames(line):
    line.connect().reply(accept=True)
    line.reply(type="line.written", line=1, finished=-1)
    line.start(frame(TEXT, b"first"))
    line.reply(type="line.written", line=2)
    assert line.sent("websocket.event") == []
    line.reply(finished=0)
    for _ in range(2):
        line.finish()
    assert [(channel, fields["order"]) for channel, fields in line.sent()[1:]] == [
        ("websocket.event", 1),
        ("websocket.receive", 2),
        ("websocket.event", 3),
    ]
    assert line.sent("websocket.event")[0][1] == {
        "reply_channel": "reply.s1!c1",
        "path": "/chat/tea/",
        "order": 1,
        "type": "line.written",
        "event": {"type": "line.written", "line": 1},
    }
    line.reply(type="line.written", line=3, finished=3)  # its consumer sends the next one to its own socket
    assert line.sent()[-1][1]["event"]["line"] == 3 and line.received() == []


def test_a_socket_that_sends_itself_an_event_at_the_connect_is_accepted(line):
    line.connect().reply(type="greet", finished=0)
    assert isinstance(line.decision(), Accepted)
    assert line.start().sent()[-1][0] == "websocket.event"


def test_frames_are_read_while_events_wait(line):
    line.open()
    for number in range(INBOX + 1):
        line.reply(type="a", number=number)
    line.say("hi")
    until(lambda: len(line.connection._inbox) == INBOX + 1)
    assert not line.connection._transport.paused


def test_more_events_than_may_wait_are_dropped_and_counted(line, logged, monkeypatch):
    monkeypatch.setattr(connection.dropped_events, "_logged_at", -1e9)
    line.open()
    for number in range(EVENTS + 4):
        line.reply(type="line.written", number=number)
    for _ in range(EVENTS):
        line.finish()
    line.reply(type="line.written", number=999)
    line.finish()
    sent = [fields["event"]["number"] for _, fields in line.sent("websocket.event")]
    assert sent == [*range(EVENTS + 1), 999] and line.relay.counts.dropped_events == 3
    assert [text for text in logged() if "dropped" in text] == [
        "1 event(s) were dropped, as handlers take longer than events come. The last was line.written on /chat/tea/."
    ]


@pytest.mark.parametrize("end", ["vanishes", "is closed", "is refused", "leaves before the 101"])
def test_no_event_is_sent_to_a_socket_that_ends_and_nothing_stays_counted(line, end):
    events = [Reply({"type": "a", "number": number}, b"%d" % number) for number in range(3)]
    if end in ("vanishes", "is closed"):
        line.open()
    else:
        line.connect()
    for event in events:
        line.connection.deliver(event)
    unsent = line.connection._unsent
    assert unsent.used > 0
    if end == "vanishes":
        line.drop()
    elif end == "is closed":
        line.reply(close=4000)
    else:
        line.reply(**({"accept": False} if end == "is refused" else {}))
        line.connection.abandon()
    line.connection.deliver(Reply({"type": "a"}, b"4"))
    line.finish()
    assert unsent.used == line.connection.charged == 0
    assert [fields["event"]["number"] for _, fields in line.sent("websocket.event")] in ([], [0])
    assert line.connection._inbox == [] and line.connection._events == 0


def test_a_payload_counts_once_for_all_members_and_the_fullest_socket_is_closed(new_line, monkeypatch):
    lines = [new_line().open() for _ in range(2)]
    unsent = lines[0].connection._unsent
    lines[1].connection._unsent = unsent
    for number in range(3):
        event = Reply({"type": "a"}, bytes([number]) * 100_000)
        for one in lines:
            one.connection.deliver(event)
    assert 200_000 < unsent.used < 210_000  # the first is in the layer
    monkeypatch.setattr(unsent, "total", 300_000)
    own = [Reply({"type": "a"}, bytes([number]) * 60_000) for number in (4, 5)]
    for event in own:
        lines[0].connection.deliver(event)
    assert lines[0].closed_with() == 1013
    assert lines[1].received() == [] and unsent.used <= 300_000


def test_an_event_whose_worker_died_closes_as_a_frame_does(line):
    line.open().reply(type="a")
    line.lose("worker died", "websocket.event")
    assert line.closed_with() == 1011


@pytest.mark.parametrize("why", ["expired", "full", "later"])
def test_an_event_that_no_worker_takes_in_time_is_dropped_and_the_next_message_goes_on(
    line, logged, monkeypatch, why
):
    monkeypatch.setattr(connection.dropped_events, "_logged_at", -1e9)
    monkeypatch.setattr(connection, "FULL_DEADLINE" if why == "full" else "RETRY_DEADLINE", -1.0)
    line.open().reply(type="line.written")
    line.say("hi")
    until(lambda: line.connection._inbox)
    if why == "later":
        line.reply(again=1)
    else:
        line.lose(why, "websocket.event")
    assert line.texts() == ["hi"] and not line.connection.closing
    assert line.relay.counts.dropped_events == 1
    assert "The last was line.written on /chat/tea/." in "".join(logged())
    line.finish()
    line.reply(type="a")
    assert line.sent()[-1][0] == "websocket.event"


def test_what_a_client_sends_before_it_closes_is_consumed_first(line):
    line.open()
    line.client.sendall(b"".join(frame(TEXT, b"%d" % number) for number in range(8)) + close_frame(4000))
    until(lambda: line.connection.disconnected)
    line.connection.tick(time.monotonic())
    for _ in range(8):
        assert line.codes() == []
        line.finish()
    assert line.texts() == [*"01234567"] and line.codes() == [4000]
    line.finish()
    assert line.is_over() and line.connection._share.held == 0


@pytest.mark.parametrize("who", ["consumer", "server", "lifetime", "protocol", "nobody"])
def test_once_the_server_has_closed_or_the_client_is_lost_the_disconnect_alone_waits(line, who):
    line.open()
    line.say(*"abcdefgh")
    until(line.texts)
    if who == "protocol":
        line.client.sendall(b"\xff" * 6)
    elif who == "consumer":
        line.reply(close=4000)
    elif who == "server":
        line.connection.close(1001, "")
    elif who == "lifetime":
        line.connection._limits = line.connection._transport._limits = WebSocketLimits(lifetime=1.0)
        line.connection.tick(time.monotonic() + 2)
    else:
        line.client.close()
    if who not in ("protocol", "nobody"):
        assert line.closed_with() in (4000, 1001)
        line.client.sendall(frame(TEXT, b"late") + close_frame(1000))
    until(lambda: line.connection.disconnected)
    assert line.codes() == []  # it waits for the message in the layer
    line.finish()
    assert line.texts() == ["a"] and line.codes() == [{"nobody": 1006, "protocol": 1002}.get(who, 1000)]
    assert [fields["order"] for _, fields in line.sent()] == [0, 1, 2]
    line.finish()
    line.client.close()
    until(line.is_over)
    assert line.connection._share.held == 0


def test_a_consumer_that_closes_is_heard_though_the_inbox_is_full(line):
    line.open()
    line.client.sendall(b"".join(frame(TEXT, b"x") for _ in range(2_125)) + close_frame(4000))
    until(lambda: len(line.connection._inbox) == INBOX)
    line.reply(close=4000, finished=1)
    until(line.codes)  # the client's Close was behind all of them
    assert line.texts() == ["x"] and line.codes() == [4000]


def test_word_of_another_message_is_left_alone(line):
    line.open()
    line.say("a", "b", "c")
    until(line.texts)
    line.reply(finished=0)  # the connect consumer's, twice
    line.reply(finished=7)
    line.reply(finished=True)
    assert line.texts() == ["a", "b"]  # True is 1, the one in the layer
    line.reply(finished=1)
    assert line.texts() == ["a", "b"]


def test_frames_read_ahead_are_the_first(line):
    line.open(frame(TEXT, b"ahead"))
    line.say("behind")
    line.finish()
    until(lambda: len(line.texts()) == 2)
    assert line.texts() == ["ahead", "behind"]


def test_an_open_socket_keeps_no_headers_but_those_of_its_log_line(new_line, monkeypatch):
    headers = [(b"cookie", b"x" * 8_000), (b"user-agent", b"curl/8")]
    monkeypatch.setattr("tests.server.test_connection.REQUEST", REQUEST._replace(headers=headers))
    line = new_line().open()
    assert line.sent("websocket.connect")[0][1]["headers"] == [list(pair) for pair in headers]
    assert line.connection.request.headers == [(b"user-agent", b"curl/8")]


def test_binary_frames_are_bytes(line):
    line.open(frame(BINARY, b"\0\xff"))
    fields = line.sent("websocket.receive")[0][1]
    assert (fields["bytes"], fields["path"], fields["reply_channel"]) == (
        b"\0\xff",
        "/chat/tea/",
        "reply.s1!c1",
    )
    assert "text" not in fields


def test_a_client_that_is_faster_than_the_workers_is_not_read(line):
    line.open()
    one = frame(TEXT, b"x" * 50_000)
    taken = pushed(line, one * 200)  # 10 MB: far more than the kernel's buffers and one read hold
    assert INBOX <= taken // len(one) < INBOX + 30
    assert len(line.texts()) == 1
    for _ in range(INBOX):
        line.finish()
    assert len(line.texts()) == INBOX + 1
    assert pushed(line, (one * 200)[taken:]) > 10 * len(one)  # it is read on


def test_a_refusal_of_the_outbox_is_tried_again(line, at_once):
    line.open()
    line.relay.full = True
    line.say("a", "b")
    gevent.sleep(0.01)
    assert line.texts() == []
    line.relay.full = False
    until(line.texts)
    assert line.texts() == ["a"]
    line.finish()
    assert line.texts() == ["a", "b"]


# --- what is lost


def test_a_frame_whose_worker_died_closes_1011_and_runs_the_disconnect(line):
    line.open()
    line.say("a", "b", "c")
    until(line.texts)
    gevent.sleep(0)
    line.lose("worker died", "websocket.receive")
    assert line.closed_with() == 1011
    assert line.texts() == ["a"]  # what is behind a lost frame is not consumed
    line.client.sendall(close_frame(1011))
    until(line.codes)
    line.finish()
    assert line.is_over() and line.codes() == [1011]


def test_a_frame_that_expired_closes_1013(line):
    line.open(frame(TEXT, b"a"))
    line.lose("expired", "websocket.receive")
    assert line.closed_with() == 1013


def test_a_frame_for_a_full_channel_is_tried_again(line, at_once):
    line.open(frame(TEXT, b"a"))
    line.lose("full", "websocket.receive")
    until(lambda: len(line.texts()) == 2)
    assert line.texts() == ["a", "a"]
    assert [fields["order"] for _, fields in line.sent("websocket.receive")] == [1, 1]


def test_a_channel_that_stays_full_closes_1013(line, monkeypatch):
    monkeypatch.setattr(connection, "FULL_DEADLINE", -1.0)
    line.open(frame(TEXT, b"a"))
    line.lose("full", "websocket.receive")
    assert line.closed_with() == 1013
    assert line.texts() == ["a"]


def test_word_of_a_message_that_is_not_in_the_layer_is_left_alone(line):
    line.open()
    line.lose("worker died", "websocket.receive")
    line.reply(lost="worker died")
    line.say("a")
    until(line.texts)
    line.lose("worker died", "websocket.connect")
    assert not line.connection.closed and line.received() == []


def test_a_lost_answer_without_a_channel_is_of_the_message_in_the_layer(line):
    line.open(frame(TEXT, b"a"))
    line.reply(lost="worker died")
    assert line.closed_with() == 1011


@pytest.mark.parametrize("why", ["expired", "full"])
def test_a_disconnect_is_sent_until_somebody_takes_it(line, why, at_once, monkeypatch):
    monkeypatch.setattr(connection, "FULL_DEADLINE", -1.0)
    line.open(close_frame(1000))
    line.lose(why, "websocket.disconnect")
    until(lambda: len(line.codes()) == 2)
    line.lose(why, "websocket.disconnect")
    until(lambda: len(line.codes()) == 3)
    line.finish()
    assert line.is_over() and set(line.codes()) == {1000}


def test_a_disconnect_whose_worker_died_is_the_end(line):
    line.open(close_frame(1000))
    line.lose("worker died", "websocket.disconnect")
    assert line.is_over() and line.codes() == [1000]


# --- closing


@pytest.mark.parametrize(
    ("sent", "code"), [(close_frame(1000), 1000), (close_frame(4321), 4321), (frame(CLOSE), 1005)]
)
def test_the_clients_close_is_answered_and_reported(line, sent, code):
    line.open(sent)
    assert line.received() == [(CLOSE, sent[6:])]
    assert line.connection.closed
    assert line.codes() == [code]
    line.finish()
    assert line.is_over()


def test_a_client_that_vanishes_is_reported_as_1006(line):
    line.open()
    line.client.close()
    until(line.codes)
    assert line.codes() == [1006]
    line.finish()
    assert line.is_over()


@pytest.mark.parametrize(("close", "code"), [(True, 1000), (4000, 4000), (3999, 3999), (1011, 1011)])
def test_a_consumer_closes_with_its_code(line, close, code):
    line.open()
    line.reply(close=close)
    assert line.closed_with() == code
    assert line.codes() == []
    line.client.sendall(close_frame(code))
    until(line.codes)
    assert line.codes() == [code] and line.connection.closed


def test_a_close_has_a_reason_both_ways(line):
    line.open()
    line.reply(text="bye", close=4001, reason="Zu viele Gäste " * 20)
    assert line.closed_with() == 4001
    reason = line.received()[-1][1][2:].decode()
    assert reason == ("Zu viele Gäste " * 20)[: len(reason)] and len(reason.encode()) in (122, 123)
    line.client.sendall(frame(CLOSE, b"\x0f\xa1" + "Schön war es".encode()))
    until(line.codes)
    _, fields = line.sent("websocket.disconnect")[-1]
    assert (fields["code"], fields["reason"]) == (4001, "Schön war es")


def test_a_broken_frame_closes_with_the_protocols_code(line):
    line.open(b"\xf1\x80" + bytes(4))
    assert line.closed_with() == 1002
    assert line.codes() == [1002] and not line.connection.closed
    line.client.close()
    until(lambda: line.connection.closed)


def test_nothing_is_sent_after_a_close(line):
    line.open()
    line.reply(text="one", close=True)
    line.reply(text="two")
    line.reply(close=4000)
    assert [opcode for opcode, _ in line.received()] == [TEXT, CLOSE]
    assert line.closed_with() == 1000


def test_the_client_has_five_seconds_for_its_half_of_the_close(line):
    line.open()
    line.connection.close(1001, "")
    line.connection.tick(time.monotonic() + 4.5)
    assert not line.connection.closed
    line.connection.tick(time.monotonic() + 5.5)
    assert line.connection.closed and line.codes() == [1006]


def test_the_disconnect_is_sent_once_whatever_happens(line):
    line.open(close_frame(1000))
    line.connection.close(1001, "")
    line.connection.tick(time.monotonic() + 1_000)
    line.drop(1013)
    line.connection.abandon()
    assert line.codes() == [1000]
    line.finish()
    line.reply(finished=1)
    assert line.is_over() and line.codes() == [1000]


def test_the_end_does_not_need_room_in_the_outbox(line):
    line.open(close_frame(1000))
    line.relay.full = True
    line.finish()
    assert line.relay.waiting() == 0


def test_a_connection_that_others_cleaned_up_after_sends_no_disconnect(line):
    line.open()
    line.say("a", "b")
    until(line.texts)
    line.reply(lost=DECLARED_DEAD)
    assert line.closed_with() == 1012
    assert line.relay.waiting() == 0
    line.client.sendall(close_frame(1012))
    until(lambda: line.connection.closed)
    assert line.codes() == [] and line.texts() == ["a"]


def test_one_whose_disconnect_was_under_way_then_sends_it_no_second_time(line):
    line.open(close_frame(1000))
    line.reply(lost=DECLARED_DEAD)
    assert line.relay.waiting() == 0 and line.codes() == [1000]


def test_one_that_was_just_accepted_then_is_closed_when_it_opens(line):
    line.connect().reply(finished=0)
    line.reply(lost=DECLARED_DEAD)
    line.start(frame(TEXT, b"a"))
    assert line.closed_with() == 1012
    assert line.relay.waiting() == 0 and line.texts() == []


def test_one_in_its_handshake_then_is_refused_503(line):
    line.connect().reply(lost=DECLARED_DEAD)
    assert line.decision().status == 503
    line.connection.abandon()
    assert line.is_over() and line.codes() == []


# --- what replies do


def test_replies_are_frames_in_order(line):
    line.open()
    for message in ({"text": "héllo"}, {"bytes": b"\0"}, {"text": ""}, {"content": "p", "binary": False}):
        line.reply(**message)
    assert line.received() == [(TEXT, "héllo".encode()), (BINARY, b"\0"), (TEXT, b""), (TEXT, b"p")]


@pytest.mark.parametrize(
    "message",
    [
        {"text": 5},
        {"close": 4000, "reason": 5},
        {"bytes": "str"},
        {"close": 1006},
        {"accept": "yes"},
        {"headers": [1]},
        {"headers": 5},
    ],
)
def test_a_malformed_reply_is_left_out_with_one_line_in_the_log(line, logged, message):
    line.open()
    line.reply(**message)
    line.reply(text="good")
    assert line.received() == [(TEXT, b"good")]
    (said,) = logged()
    assert said.startswith("A message for reply.s1!c1 on /chat/tea/ was left out: ") and "\n" not in said


def test_a_malformed_reply_still_says_that_the_frame_is_finished(line):
    line.open()
    line.say("a", "b")
    until(line.texts)
    line.reply(text=5, finished=1)
    until(lambda: len(line.texts()) == 2)
    assert line.texts() == ["a", "b"]


def test_data_under_two_keys_is_left_out_with_one_line_in_the_log(line, logged):
    line.open()
    line.reply(text="a", bytes=b"b")
    line.reply(text="c")
    assert line.received() == [(TEXT, b"c")]
    assert logged() == [
        "A message for reply.s1!c1 on /chat/tea/ was not understood: It has 'text' and 'bytes', so neither was "
        "sent: send a message for each."
    ]


def test_a_last_reply_without_a_known_key_is_logged_too(line, logged):
    line.open()
    line.say("a")
    until(line.texts)
    line.reply(txt="hi", finished=1)
    (said,) = logged()
    assert said.endswith("It has no key that a WebSocket knows (['txt']): write 'text'.")


# --- time


def test_a_ping_is_answered(line):
    line.open(frame(PING, b"you?"))
    assert line.received() == [(PONG, b"you?")]
    assert len(line.sent()) == 1


def test_a_quiet_connection_is_pinged_every_twenty_seconds(line):
    line.open()
    now = time.monotonic()
    line.connection.tick(now + 5)
    assert line.received() == []
    line.connection.tick(now + 21)
    assert line.received() == [(PING, b"")]
    line.connection.tick(now + 22)
    line.connection.tick(now + 44)
    assert line.received() == [(PING, b"")] * 2


def test_a_client_that_is_silent_for_a_minute_is_gone(line):
    line.open()
    line.connection.tick(time.monotonic() + 59)
    assert not line.connection.closed
    line.connection.tick(time.monotonic() + 61)
    assert line.connection.closed and line.codes() == [1006]


def test_a_pong_breaks_the_silence(line):
    line.open()
    line.connection._transport._heard_at -= 59
    line.client.sendall(frame(PONG))
    until(lambda: line.connection._transport._heard_at > time.monotonic() - 30)
    line.connection.tick(time.monotonic() + 3)
    assert not line.connection.closed


def test_a_client_that_we_do_not_read_is_not_silent(line):
    line.open(b"".join(frame(TEXT, b"x") for _ in range(INBOX + 1)))
    line.connection.tick(time.monotonic() + 61)
    assert not line.connection.closed


# --- slow readers


def clog(line, size, most):
    """Deliver frames to a client that reads nothing until it is dropped; return how many."""
    line._server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8_192)
    reply = {"bytes": b"x" * size}
    for count in range(1, most):
        line.reply(**reply)
        if line.connection.closed:
            return count
    raise AssertionError(f"{most} frames were taken.")


def test_sixty_four_frames_wait_for_a_slow_reader(line):
    line.open()
    delivered = clog(line, 1_000, 500)
    assert line.codes() == [1013]
    assert delivered - len(line.received()) == WebSocketLimits().waiting_frames + 1 and line.ended


def test_one_mebibyte_waits_for_a_slow_reader(line):
    line.open()
    delivered = clog(line, 100_000, 60)
    line.received()
    waiting = delivered * 100_010 - len(line._read)
    assert WebSocketLimits().waiting_bytes < waiting <= WebSocketLimits().waiting_bytes + 100_010
    assert line.codes() == [1013]


def test_what_waited_is_written_in_order_when_there_is_room(line):
    line.open()
    line._server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8_192)
    for number in range(50):
        line.reply(text=f"{number:05}" + "x" * 1_000)
    assert len(line.received()) < 50
    until(lambda: len(line.received()) == 50)
    assert [int(payload[:5]) for _, payload in line.received()] == list(range(50))
    assert not line.connection._transport._writer.active and not line.connection.closed


def test_what_was_written_does_not_count_any_more(line):
    line.open()
    line._server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8_192)
    for count in range(1, 6):  # 1.5 MB in all, 300 kB of it at once
        for _ in range(3):
            line.reply(bytes=b"x" * 100_000)
        until(lambda expected=3 * count: len(line.received()) == expected)
    assert not line.connection.closed and line.codes() == []


def test_a_slow_reader_has_twenty_seconds_to_take_something(line):
    line.open()
    line._server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8_192)
    for _ in range(30):
        line.reply(text="x" * 1_000)
    line.connection.tick(time.monotonic() + 19)
    assert not line.connection.closed
    line.connection.tick(time.monotonic() + 21)
    assert line.connection.closed and line.codes() == [1013]


def test_a_client_that_closes_while_it_reads_nothing_is_dropped_in_the_end(line):
    line.open()
    line._server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8_192)
    for _ in range(30):
        line.reply(text="x" * 1_000)
    line.client.sendall(close_frame(1000))
    until(line.codes)
    assert not line.connection.closed  # its answer waits behind what it does not read
    line.connection.tick(time.monotonic() + 21)
    assert line.connection.closed and line.codes() == [1000]


def test_an_idle_connection_has_no_greenlet(new_line):
    gc.collect()
    gc.freeze()  # so that only what is made from here on is looked at: the whole suite has millions of objects
    try:
        lines = [new_line().open() for _ in range(20)]
        for one in lines:
            one.say("a")
        until(lambda: all(one.texts() for one in lines))
        gc.collect()
        assert [one for one in gc.get_objects() if isinstance(one, gevent.Greenlet)] == []
    finally:
        gc.unfreeze()


# --- a consumer that wants its message later


def test_a_message_that_is_wanted_later_goes_again_and_none_overtakes_it(line, at_once):
    line.open()
    line.say("one", "two")
    until(lambda: line.texts() == ["one"])
    for tries in range(2, 5):
        line.reply(again=1)
        until(lambda: line.texts() == ["one"] * tries)  # noqa: B023
    line.reply(again=1, text="and says something")
    until(lambda: line.texts() == ["one"] * 5)
    line.finish()
    assert line.texts() == ["one"] * 5 + ["two"]
    assert line.received() == [(TEXT, b"and says something")]
    assert line.connection._retries is None


def test_word_of_it_that_comes_twice_or_late_counts_for_nothing(line, at_once):
    line.open()
    line.say("one", "two")
    until(line.texts)
    line.reply(again=1)
    line.reply(again=1)
    line.reply(again=7)
    until(lambda: len(line.texts()) == 2)
    line.finish()
    line.reply(again=1)
    gevent.sleep(0.01)
    assert line.texts() == ["one", "one", "two"]


def test_it_waits_longer_each_time(line, monkeypatch):
    waited = []
    monkeypatch.setattr(random, "uniform", lambda low, high: 1.0)
    monkeypatch.setattr(
        gevent, "spawn_later", lambda delay, call, *given: waited.append(delay) or call(*given)
    )
    line.open()
    line.say("one")
    until(line.texts)
    for _ in range(8):
        line.reply(again=1)
    assert waited == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def put_off_for_too_long(line, monkeypatch, order):
    """Let the consumer raise once more when its time is over."""
    line.reply(again=order)
    now = time.monotonic()
    patch_time(monkeypatch, connection, monotonic=lambda: now + 61)
    line.connection._is_postponed = False
    line.reply(again=order)
    monkeypatch.undo()


def test_a_handshake_that_is_put_off_for_too_long_is_refused(line, monkeypatch):
    line.connect()
    put_off_for_too_long(line, monkeypatch, 0)
    assert line.decision().status == 503


def test_a_frame_that_is_put_off_for_too_long_closes_the_connection(line, monkeypatch):
    line.open()
    line.say("one", "two")
    until(line.texts)
    put_off_for_too_long(line, monkeypatch, 1)
    assert line.closed_with() == 1013
    assert "two" not in line.texts()


def test_a_disconnect_that_is_put_off_for_too_long_ends_it(line, monkeypatch):
    line.open()
    line.client.close()
    until(line.codes)
    put_off_for_too_long(line, monkeypatch, 1)
    assert line.is_over()


# --- the session's key


def test_the_sessions_key_is_put_on_record_and_not_into_frames(line):
    cookie = (b"cookie", b"a=b; sessionid=abcdefgh12345678")
    request = REQUEST._replace(headers=[*REQUEST.headers, cookie], target="/?sessionid=forged-key")
    line.connection = Connection(line.relay, request)
    line.open()
    line.say("hi")
    until(line.texts)
    assert line.relay.operations[0] == Connect(line.connection.reply_channel, "s1", "/", "abcdefgh12345678")
    assert line.relay.housekeeper.has_sessions
    assert "abcdefgh" not in str(line.sent("websocket.receive"))


def test_without_a_session_nobody_is_looked_after(line):
    line.open()
    assert not line.relay.housekeeper.has_sessions


# --- clients that come back


def kept(line, position, **message):
    """Deliver a message of a history."""
    line.connection.deliver(Reply(message, position=position))


def test_a_new_client_has_an_id_before_any_message(new_line):
    line = new_line("").open()
    assert line.relay.behind == ["reply.s1!c1"] and line.connection.resume.is_behind
    kept(line, 9, text="hi")
    line.reply(text="plain")
    assert line.received() == [
        (TEXT, b"\0start 7"),
        (TEXT, b"\0id 9"),
        (TEXT, b"hi"),
        (TEXT, b"plain"),
    ]


def test_a_client_that_comes_back_is_told_of_a_gap(new_line):
    line = new_line("3").open()
    line.connection.tell_gap(5)
    kept(line, 6, bytes=b"\1")
    assert line.received() == [(TEXT, b"\0gap 5"), (TEXT, b"\0id 6"), (BINARY, b"\1")]


def test_nothing_is_read_for_it_before_its_consumer_and_its_socket(new_line):
    early, late = new_line("3").connect(), new_line("3").connect()
    early.reply(accept=True)
    early.start()
    late.reply(finished=0)
    assert early.relay.behind == late.relay.behind == []
    early.reply(finished=0)
    late.start()
    assert early.relay.behind == late.relay.behind == ["reply.s1!c1"]


def test_it_is_read_for_though_its_worker_died_after_the_acceptance(new_line):
    line = new_line("3").connect()
    line.reply(accept=True)
    line.start()
    line.lose("worker died", "websocket.connect")
    assert line.relay.behind == ["reply.s1!c1"]


def test_it_is_read_for_again_when_its_socket_has_taken_all(new_line):
    line, calls = new_line("3").open(), []
    line.connection.when_drained(lambda: calls.append("at once"))
    kept(line, 8, text="x" * 900_000)
    line.connection.when_drained(lambda: calls.append("later"))
    assert calls == ["at once"]
    until(lambda: line.received() and len(calls) == 2)
    assert calls == ["at once", "later"]


def test_a_text_that_looks_like_a_frame_of_ours_follows_an_id(new_line):
    """Or any member of a chat could make the pages of the others believe in a gap."""
    line = new_line("3").open()
    line.reply(text="\0gap 9")
    kept(line, 6, text="\0start 1")
    line.reply(bytes=b"\0")
    assert line.received() == [
        (TEXT, b"\0id 3"),
        (TEXT, b"\0gap 9"),
        (TEXT, b"\0id 6"),
        (TEXT, b"\0start 1"),
        (TEXT, b"\0id 3"),
        (BINARY, b"\0"),
    ]


def test_a_close_has_an_id_too(new_line):
    """Or a client that comes back would be closed again and again."""
    line = new_line("3").open()
    kept(line, 6, close=1012)
    assert line.received() == [(TEXT, b"\0start 6"), (CLOSE, (1012).to_bytes(2, "big"))]


def test_who_does_not_ask_gets_no_id(line):
    line.open()
    kept(line, 9, text="hi")
    assert line.received() == [(TEXT, b"hi")] and line.relay.behind == []
