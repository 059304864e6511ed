"""permessage-deflate without sockets: what is agreed on, what is written, and what a client's bytes give."""

from __future__ import annotations

import random
import socket as sockets
import zlib

import gevent
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbchannels.server.budget import MemoryBudget, Share
from dbchannels.server.http.messages import Refused
from dbchannels.server.options import ServerConfig, WebSocketLimits
from dbchannels.server.websocket import framing as protocol_module
from dbchannels.server.websocket.framing import (
    LEAST,
    Closed,
    PartialMessage,
    ProtocolError,
    decode_frame,
    encode_frame,
)
from dbchannels.server.websocket.handshake import negotiate
from dbchannels.server.websocket.messages import Outgoing
from dbchannels.server.websocket.transport import Transport
from tests.profiles import examples
from tests.server.test_framing import client, events_of, frames_at_random, new_socket, plausible

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
RSV1, RSV2, RSV3 = 0x40, 0x20, 0x10
MEBIBYTE = 1_048_576
ANSWER = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
JSON = b'{"user": "anna", "text": "A cup of tea, and another cup of tea."}' * 20


def agree(*values):
    """Return what is agreed on when a client sends these headers."""
    return negotiate([(b"sec-websocket-extensions", value.encode("latin-1")) for value in values])


def agreed(text="permessage-deflate"):
    """Return what is agreed on with a client that offers this."""
    found = agree(text)
    assert found is not None
    return found


def deflated(data, bits=15, level=6):
    """Return a message as a client compresses it."""
    stream = zlib.compressobj(level, zlib.DEFLATED, -bits)
    return (stream.compress(data) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4]


def inflated(content, bits=15):
    """Return a compressed message's content, by a window of so many bits."""
    stream = zlib.decompressobj(-bits)
    return stream.decompress(content + b"\x00\x00\xff\xff")


def with_bits(frame, bits):
    """Return a frame with reserved bits."""
    return bytes([frame[0] | bits]) + frame[1:]


def compressed(opcode, data, *, cuts=(), content=None):
    """Return a client's message compressed as a whole, and cut into frames."""
    content = deflated(data) if content is None else content
    bounds = list(zip([0, *cuts], [*cuts, len(content)], strict=True))
    frames = [
        client(CONTINUATION if index else opcode, content[start:end], index == len(bounds) - 1)
        for index, (start, end) in enumerate(bounds)
    ]
    return b"".join([with_bits(frames[0], RSV1), *frames[1:]])


def receive(stream, step=None, **limits):
    """Return the events that a client's bytes give, and what is answered."""
    socket = new_socket(compression=True, **limits)
    step = step or max(len(stream), 1)
    events = [
        event for at in range(0, len(stream), step) for event in events_of(socket, stream[at : at + step])
    ]
    return events, socket.take_output()


def fails_with(stream, **limits):
    """Return the code with which the connection is failed, however the bytes are cut."""
    codes = set()
    for step in (None, 1):
        events, output = receive(stream, step, **limits)
        assert isinstance(events[-1], Closed)
        assert output[-4 - len(events[-1].reason) :][:1] == bytes([0x80 | CLOSE])
        codes.add(events[-1].code)
    (code,) = codes
    return code


# --- what is agreed on


@pytest.mark.parametrize(
    ("offer", "answer"),
    [
        ("permessage-deflate", ANSWER),
        ("permessage-deflate; client_max_window_bits", ANSWER),
        ("permessage-deflate; client_max_window_bits=8", ANSWER),
        ("permessage-deflate; client_max_window_bits=15", ANSWER),
        ("permessage-deflate; server_no_context_takeover", ANSWER),
        ("permessage-deflate; client_no_context_takeover", ANSWER),
        ("permessage-deflate;server_no_context_takeover;client_no_context_takeover", ANSWER),
        ("permessage-deflate; server_max_window_bits=9", f"{ANSWER}; server_max_window_bits=9"),
        ("permessage-deflate; server_max_window_bits=15", f"{ANSWER}; server_max_window_bits=15"),
        ('permessage-deflate; server_max_window_bits="12"', f"{ANSWER}; server_max_window_bits=12"),
        ("permessage-deflate ;\tserver_max_window_bits = 10", f"{ANSWER}; server_max_window_bits=10"),
        ("x-webkit-deflate-frame, permessage-deflate", ANSWER),
        (", permessage-deflate,,", ANSWER),
    ],
)
def test_an_offer_that_can_be_met(offer, answer):
    assert agreed(offer).header == answer


@pytest.mark.parametrize(
    "offer",
    [
        "",
        "permessage-bzip2",
        "Permessage-Deflate2",
        "permessage-deflate; unknown",
        "permessage-deflate; unknown=1",
        "permessage-deflate; server_no_context_takeover=1",
        "permessage-deflate; client_no_context_takeover=true",
        "permessage-deflate; server_max_window_bits",
        "permessage-deflate; server_max_window_bits=7",
        "permessage-deflate; server_max_window_bits=8",  # the RFC allows it, zlib does not make it
        "permessage-deflate; server_max_window_bits=16",
        "permessage-deflate; server_max_window_bits=010",
        "permessage-deflate; server_max_window_bits=1e1",
        "permessage-deflate; client_max_window_bits=7",
        "permessage-deflate; client_max_window_bits=16",
        "permessage-deflate; client_max_window_bits=09",
        "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
        "permessage-deflate; server_max_window_bits=9; server_max_window_bits=10",
    ],
)
def test_an_offer_that_cannot_be_met_is_passed_over(offer):
    assert agree(offer) is None
    assert agreed(f"{offer}, permessage-deflate; server_max_window_bits=11").header.endswith("=11")


def test_the_first_offer_that_can_be_met_counts():
    first, second = "permessage-deflate; server_max_window_bits=10", "permessage-deflate"
    assert agreed(f"{first}, {second}").header.endswith("server_max_window_bits=10")
    assert agreed(f"{second}, {first}").header == ANSWER
    found = agree("x-other", first, second)
    assert found is not None and found.header.endswith("server_max_window_bits=10")


def test_without_an_offer_nothing_is_agreed_on():
    assert negotiate([(b"host", b"permessage-deflate")]) is None


@pytest.mark.parametrize(
    "value",
    [
        ";",
        "permessage-deflate;",
        "permessage-deflate; =1",
        "permessage-deflate; server_max_window_bits=",
        'permessage-deflate; server_max_window_bits="9',
        'permessage-deflate; server_max_window_bits=""',
        "permessage-deflate; a b",
        "permessage deflate",
        "permessage-deflate; server_max_window_bits=9=9",
        "permessage-deflate\x80",
        "permessage-deflate" + " " * 10_000 + "x",
    ],
)
def test_what_is_no_list_of_extensions_is_refused(value):
    with pytest.raises(Refused) as raised:
        agree(value)
    assert raised.value.status == 400


def test_all_sockets_of_the_same_parameters_share_one_object():
    assert agree("permessage-deflate") is agree("permessage-deflate; client_max_window_bits")
    assert agree("permessage-deflate; server_max_window_bits=9") is not agree("permessage-deflate")


# --- what the server writes


def message_of(frame, bits=15):
    """Return (opcode, content, whether it was compressed) of a server's frame."""
    opcode, payload = decode_frame(bytes([frame[0] & ~RSV1]) + frame[1:])
    return opcode, inflated(payload, bits) if frame[0] & RSV1 else payload, bool(frame[0] & RSV1)


@pytest.mark.parametrize("size", [LEAST, 200, 65_535, 65_536, MEBIBYTE])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_message_is_compressed_and_can_be_read(size, opcode):
    data = (JSON * (size // len(JSON) + 1))[:size]
    frame = agreed().frame(encode_frame(opcode, data))
    assert message_of(frame) == (opcode, data, True)
    assert len(frame) < size


@pytest.mark.parametrize("bits", range(9, 16))
def test_the_window_is_no_wider_than_was_agreed_on(bits):
    data = random.Random(1).randbytes(700) * 100  # it repeats itself at 700 bytes, which 2**9 do not reach
    frame = agreed(f"permessage-deflate; server_max_window_bits={bits}").frame(encode_frame(BINARY, data))
    assert message_of(frame, bits) == (BINARY, data, True)
    assert (len(frame) < 20_000) is (bits > 9)


@pytest.mark.parametrize(
    "data",
    [b"", b"x", JSON[: LEAST - 4], random.Random(1).randbytes(LEAST), random.Random(1).randbytes(70_000)],
)
def test_what_would_not_become_smaller_is_left_alone(data):
    frame = encode_frame(BINARY, data)
    assert agreed().frame(frame) == frame


def test_each_message_is_compressed_by_itself():
    one = agreed()
    other = one.frame(encode_frame(TEXT, b"another message" * 20))
    first, second = (one.frame(encode_frame(TEXT, bytes(JSON))) for _ in range(2))
    assert first == second != other


class Peer:
    """A transport that compresses, and the other end of its socket."""

    def __init__(self, deflate):
        self.far, near = sockets.socketpair()
        near.setblocking(False)
        share = Share(MemoryBudget(ServerConfig.max_websocket_memory, WebSocketLimits().max_memory))
        self.transport = Transport(near, lambda event: None, WebSocketLimits(), share, deflate)
        self.transport.read()

    def close(self):
        self.transport.drop()
        self.far.close()


@pytest.fixture
def new_peer():
    made = []

    def new(deflate):
        made.append(Peer(deflate))
        return made[-1]

    yield new
    for peer in made:
        peer.close()


def test_a_broadcast_is_compressed_once_for_all_members_of_the_same_parameters(new_peer, monkeypatch):
    calls = []
    make = zlib.compressobj
    monkeypatch.setattr(protocol_module.zlib, "compressobj", lambda *given: calls.append(1) or make(*given))
    offers = ["permessage-deflate", "permessage-deflate; server_max_window_bits=10"]
    peers = [new_peer(agreed(offer)) for offer in offers for _ in range(50)]
    plain = new_peer(None)
    for number in range(3):
        frame = encode_frame(TEXT, b"%d %b" % (number, JSON))
        for peer in [*peers, plain]:
            peer.transport.send(Outgoing(None, frame, None, "", None, []))
    assert len(calls) == 3 * len(offers)
    for peer in peers:
        assert peer.far.recv(100_000)[0] == 0x80 | RSV1 | TEXT
    assert plain.far.recv(100_000).startswith(encode_frame(TEXT, b"0 %b" % JSON))


def test_control_frames_are_never_compressed(new_peer):
    peer = new_peer(agreed())
    peer.transport._protocol.ping()
    peer.transport._flush_protocol()
    peer.transport.close(1000, "x" * 120)
    data = peer.far.recv(1_000)
    assert data[:4] == bytes([0x80 | PING, 0, 0x80 | CLOSE, 122])


def test_a_socket_that_compresses_keeps_nothing_more_than_one_that_does_not(new_peer):
    one, other = new_peer(agreed()), new_peer(agreed())
    for peer in (one, other):
        peer.transport.send(Outgoing(None, encode_frame(TEXT, JSON), None, "", None, []))
        peer.transport.received(compressed(TEXT, JSON))
    assert one.transport._deflate is other.transport._deflate
    with gevent.Timeout(10):  # under load the rest of a message is read in a later turn of the hub
        while one.transport._protocol.partial is not None:
            gevent.sleep(0)  # the inflater goes with the message


# --- what the client sends


def hexed(text):
    """Return a client's frames from a server's in hexadecimal, as the RFC has them."""
    frames, data = b"", bytes.fromhex(text)
    while data:
        payload = data[2 : 2 + data[1]]
        frames += with_bits(client(data[0] & 15, payload, bool(data[0] & 0x80)), data[0] & 0x70)
        data = data[2 + data[1] :]
    return frames


@pytest.mark.parametrize(
    "frames",
    [
        "c1 07 f2 48 cd c9 c9 07 00",
        "41 03 f2 48 cd 80 04 c9 c9 07 00",
        "c1 0b 00 05 00 fa ff 48 65 6c 6c 6f 00",
        "c1 08 f3 48 cd c9 c9 07 00 00",
        "c1 0d f2 48 05 00 00 00 ff ff ca c9 c9 07 00",
        "41 08 f3 48 cd c9 c9 07 00 00 80 00",
        "41 07 f3 48 cd c9 c9 07 00 80 01 00",
        "81 05 48 65 6c 6c 6f",
    ],
    ids=["7.2.3.1", "in fragments", "7.2.3.3", "7.2.3.4", "7.2.3.5", "empty end", "padding apart", "plain"],
)
def test_the_examples_of_the_rfc(frames):
    assert receive(hexed(frames))[0] == ["Hello"]
    assert receive(hexed(frames), step=1)[0] == ["Hello"]


def test_a_window_that_is_kept_is_not_what_was_agreed_on():
    """Section 7.2.3.2: the second message refers to the first."""
    events, _ = receive(hexed("c1 07 f2 48 cd c9 c9 07 00 c1 05 f2 00 11 00 00"))
    assert events[0] == "Hello"
    assert isinstance(events[1], Closed) and events[1].code == 1007


@pytest.mark.parametrize("content", ["00", "02 00", "03 00 00", "01 00 00 ff ff 00"])
def test_an_empty_message(content):
    assert receive(compressed(TEXT, b"", content=bytes.fromhex(content)))[0] == [""]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "03 00",
        "ff",
        "f2 48 cd c9 c9 07",
        "f2 48 cd",
        "06",
        "00 05 00 fa ff 48 65",
        "00 05 00 fa fe 48 65 6c 6c 6f 00",
        "f3 48 cd c9 c9 07 00 f2 48 cd c9 c9 07 00",
        "f3 48 cd c9 c9 07 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00",
        "f3 48 cd c9 c9 07 00 ff",
    ],
)
def test_what_cannot_be_inflated_is_1007(content):
    assert fails_with(compressed(BINARY, b"", content=bytes.fromhex(content))) == 1007


def test_a_text_is_utf8_when_it_is_inflated():
    text = "tea \N{TEACUP WITHOUT HANDLE} " * 100
    assert receive(compressed(TEXT, text.encode(), cuts=(1, 2, 3, 10)))[0] == [text]
    assert fails_with(compressed(TEXT, b"tea \xff " * 100)) == 1007


def test_pings_between_the_fragments_are_not_compressed():
    content = deflated(JSON)
    stream = with_bits(client(TEXT, content[:5], False), RSV1) + client(PING, b"p") + client(0, content[5:])
    assert receive(stream)[0] == [JSON.decode()]


@pytest.mark.parametrize(
    "frame",
    [
        with_bits(client(PING, b"p"), RSV1),
        with_bits(client(PONG, b"p"), RSV1),
        with_bits(client(CLOSE, b"\x03\xe8"), RSV1),
        with_bits(client(TEXT, b"x"), RSV2),
        with_bits(client(TEXT, b"x"), RSV3),
        with_bits(client(TEXT, b"x"), RSV1 | RSV2),
        client(TEXT, b"x", False) + with_bits(client(CONTINUATION, b"x"), RSV1),
        with_bits(client(TEXT, b"\x00", False), RSV1) + with_bits(client(CONTINUATION, b"x"), RSV1),
    ],
)
def test_a_reserved_bit_where_it_does_not_belong_is_1002(frame):
    assert fails_with(frame) == 1002


def test_without_an_agreement_a_compressed_message_is_1002():
    events = events_of(new_socket(), compressed(TEXT, JSON))
    assert [event.code for event in events] == [1002]


# --- limits


@pytest.mark.parametrize("data", [bytes(1000), random.Random(1).randbytes(1000)], ids=["zeros", "random"])
@pytest.mark.parametrize("cuts", [(), (1, 2, 3)], ids=["whole", "in fragments"])
@pytest.mark.parametrize("level", [0, 9])
def test_the_limit_is_that_of_the_inflated_message(data, cuts, level):
    stream = compressed(BINARY, b"", content=deflated(data, level=level), cuts=cuts)
    assert receive(stream, max_message_size=1000)[0] == [data]
    assert receive(stream + stream, max_message_size=1000)[0] == [data] * 2
    assert fails_with(stream, max_message_size=999) == 1009


def test_a_plain_message_beside_compressed_ones_has_the_plain_limit():
    stream = compressed(BINARY, bytes(1000)) + client(BINARY, bytes(1000))
    assert receive(stream, max_message_size=1000)[0] == [bytes(1000)] * 2
    events, _ = receive(stream + client(BINARY, bytes(1001))[:8], max_message_size=1000)
    assert events[-1].code == 1009  # by its header


def test_the_header_of_a_compressed_frame_that_can_never_be_right_is_refused_at_once():
    frame = with_bits(client(BINARY, bytes(3000)), RSV1)
    events, _ = receive(frame[:8], max_message_size=1000)
    assert [event.code for event in events] == [1009]


class Counting:
    """A stream of zlib that counts what it has made."""

    made = 0

    def __init__(self, *given):
        self._stream = zlib.decompressobj(*given)

    def decompress(self, *given):
        content = self._stream.decompress(*given)
        Counting.made += len(content)
        return content

    def __getattr__(self, name):
        return getattr(self._stream, name)


@pytest.fixture(scope="module")
def bomb():
    """64 MiB in 64 KiB."""
    return deflated(bytes(64 * MEBIBYTE))


@pytest.mark.parametrize("cuts", [(), range(10, 60_000, 10_000)], ids=["whole", "in fragments"])
def test_a_bomb_is_refused_and_never_inflated(monkeypatch, bomb, cuts):
    bomb = compressed(BINARY, b"", content=bomb, cuts=cuts)
    monkeypatch.setattr(Counting, "made", 0)
    monkeypatch.setattr(protocol_module, "zlib", type("Z", (), {**vars(zlib), "decompressobj": Counting}))
    assert [event.code for event in receive(bomb)[0]] == [1009]
    assert Counting.made <= MEBIBYTE + 1


def test_a_bomb_of_many_last_blocks_is_no_work():
    assert fails_with(compressed(BINARY, b"", content=b"\x03\x00" * 5_000)) == 1007


def test_fragments_of_a_compressed_message_are_counted():
    content = deflated(JSON)
    stream = compressed(TEXT, b"", content=content, cuts=range(1, 5))
    assert receive(stream, max_fragments=5)[0] == [JSON.decode()]
    assert fails_with(stream, max_fragments=4) == 1009


def test_after_our_close_what_is_compressed_is_dropped():
    socket = new_socket(compression=True)
    socket.close(1001)
    bomb = compressed(BINARY, bytes(MEBIBYTE * 4))
    assert events_of(socket, bomb + client(CLOSE, b"\x03\xe9")) == [Closed(1001)]


# --- anything at all


@examples(150)
@given(
    st.one_of(st.text(max_size=2_000), st.binary(max_size=2_000)),
    st.integers(1, 50),
    st.lists(st.integers(0, 3_000), max_size=6),
    st.integers(1, 500),
    st.sampled_from([*range(9, 16)]),
    st.integers(0, 9),
)
def test_any_message_comes_back_the_same_however_it_is_compressed_and_cut(
    data, times, cuts, step, bits, level
):
    data = data * times
    payload = data.encode() if isinstance(data, str) else data
    opcode = TEXT if isinstance(data, str) else BINARY
    content = deflated(payload, bits, level)
    cuts = sorted(min(cut, len(content)) for cut in cuts)
    events, _ = receive(compressed(opcode, b"", content=content, cuts=cuts), step)
    assert events == [data]
    frame = agreed(f"permessage-deflate; server_max_window_bits={bits}").frame(encode_frame(opcode, payload))
    assert message_of(frame, bits)[:2] == (opcode, payload)


@examples(200)
@given(st.lists(st.binary(max_size=100), max_size=8), st.integers(0, 2_000))
def test_garbage_is_inflated_or_refused(pieces, limit):
    message = PartialMessage(BINARY, True, limit)
    try:
        for index, piece in enumerate(pieces):
            for _ in message.add(piece, index == len(pieces) - 1):
                assert len(message.content) <= limit
    except ProtocolError as error:
        code = error.code
    else:
        code = 0
    assert code in (0, 1007, 1009)


compressed_frames = st.builds(
    lambda opcode, payload, fin: with_bits(client(opcode, payload, fin), RSV1),
    st.sampled_from([TEXT, BINARY]),
    st.one_of(st.binary(max_size=40), st.binary(max_size=300).map(deflated)),
    st.booleans(),
)


@examples(200)
@given(st.lists(st.one_of(compressed_frames, frames_at_random, plausible), max_size=12), st.booleans())
def test_garbage_ends_the_connection_at_most_once_and_never_raises(pieces, closing):
    socket, events = new_socket(max_message_size=100, max_fragments=5, compression=True), []
    if closing:
        socket.close()
    for piece in pieces:
        events += events_of(socket, piece)
        socket.take_output()
    assert not any(isinstance(event, Closed) for event in events[:-1])
    messages = [event for event in events if not isinstance(event, Closed)]
    sizes = [len(one.encode() if isinstance(one, str) else one) for one in messages]
    assert max(sizes, default=0) <= 100
