"""A WebSocket without its socket, in the groups of the Autobahn test suite.

Every stream of a client is fed twice, whole and cut into single bytes; the events and the answer must be the same.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbchannels.server.websocket.framing import (
    BINARY,
    CLOSE,
    CONTINUATION,
    MAX_PONGS,
    PING,
    PONG,
    TEXT,
    Closed,
    WebSocket,
    encode_frame,
)
from tests.profiles import examples

KEY = bytes.fromhex("37fa213d")
MIB = 1024 * 1024


def new_socket(**limits):
    return WebSocket(**{"max_message_size": MIB, "max_fragments": 4096, "max_pings": 1000, **limits})


def client(opcode, payload=b"", fin=True, key=KEY):
    """One frame as a client writes it."""
    size, first = len(payload), fin << 7 | opcode
    if size < 126:
        head = bytes((first, 0x80 | size))
    elif size < 65536:
        head = bytes((first, 0xFE)) + size.to_bytes(2, "big")
    else:
        head = bytes((first, 0xFF)) + size.to_bytes(8, "big")
    whole = size // 4 + 1
    mask = int.from_bytes((key * whole)[:size], "big")
    return head + key + (int.from_bytes(payload, "big") ^ mask).to_bytes(size, "big")


def fragments(opcode, *payloads):
    last = len(payloads) - 1
    return [
        client(CONTINUATION if index else opcode, payload, fin=index == last)
        for index, payload in enumerate(payloads)
    ]


def close_payload(code, reason=b""):
    return code.to_bytes(2, "big") + reason


def written(output):
    """The frames that the server wrote, as (opcode, payload); each has FIN, no reserved bit and no mask."""
    frames = []
    while output:
        assert output[0] & 0xF0 == 0x80
        assert output[1] < 126  # control frames only, and never masked
        end = 2 + output[1]
        assert len(output) >= end
        frames.append((output[0] & 0x0F, output[2:end]))
        output = output[end:]
    return frames


def events_of(socket, data):
    """All that these bytes complete."""
    return [event for event in socket.receive(data) if event is not None]


def feed(socket, stream, step=None):
    step = step or max(len(stream), 1)
    events, output = [], b""
    for at in range(0, len(stream), step):
        events += events_of(socket, stream[at : at + step])
        output += socket.take_output()
    return events, output


def assert_conversation(stream, events, answer=(), step=1, **limits):
    """The stream gives these events and this answer, however it is cut."""
    for pieces in (None, step):
        socket = new_socket(**limits)
        got, output = feed(socket, stream, pieces)
        assert got == events
        assert written(output) == list(answer)
        assert socket.state == ("closed" if events and isinstance(events[-1], Closed) else "open")
        assert socket.take_output() == b""


def assert_fails(stream, code, before=(), answer=(), **limits):
    """The connection is failed: one Closed, one Close frame, both with the code and the same reason."""
    for pieces in (None, 1):
        socket = new_socket(**limits)
        events, output = feed(socket, stream, pieces)
        *earlier, (opcode, payload) = written(output)
        assert events[:-1] == list(before)
        assert earlier == list(answer)
        assert (opcode, payload[:2]) == (CLOSE, close_payload(code))
        assert events[-1] == Closed(code, payload[2:].decode(), abrupt=True)
        assert socket.state == "closed"
        assert events_of(socket, client(TEXT, b"late")) == []


# --- 1: framing

SIZES = [0, 125, 126, 127, 128, 65535, 65536]


@pytest.mark.parametrize("size", SIZES)
def test_text_of_each_size(size):
    assert_conversation(client(TEXT, b"*" * size), ["*" * size], step=1 if size < 1000 else 997)


@pytest.mark.parametrize("size", SIZES)
def test_binary_of_each_size(size):
    payload = b"\xfe" * size
    assert_conversation(client(BINARY, payload), [payload], step=1 if size < 1000 else 997)


@pytest.mark.parametrize("size", SIZES)
def test_what_the_server_sends_has_the_same_payload(size):
    head = 2 if size < 126 else 4 if size < 65536 else 10
    text, data = encode_frame(TEXT, b"*" * size), encode_frame(BINARY, b"\xfe" * size)
    assert (text[0], text[head:]) == (0x81, b"*" * size)
    assert (data[0], data[head:]) == (0x82, b"\xfe" * size)


# --- 2: pings and pongs


@pytest.mark.parametrize("payload", [b"", b"Hello", b"\x00\xff\xfe\xfd", b"\xfe" * 125])
def test_a_ping_is_answered_with_its_payload(payload):
    assert_conversation(client(PING, payload), [], [(PONG, payload)])


@pytest.mark.parametrize("payload", [b"", b"unasked", b"\xfe" * 125])
def test_a_pong_is_not_answered(payload):
    assert_conversation(client(PONG, payload), [])


def test_ten_pings_get_ten_pongs_in_order():
    payloads = [b"payload-%d" % number for number in range(10)]
    stream = b"".join(client(PING, payload) for payload in payloads)
    assert_conversation(stream, [], [(PONG, p) for p in payloads])


def test_of_a_flood_of_pings_in_one_read_the_latest_are_answered():
    socket = new_socket()
    assert events_of(socket, b"".join(client(PING, b"%d" % number) for number in range(1000))) == []
    latest = [(PONG, b"%d" % number) for number in range(1000 - MAX_PONGS, 1000)]
    assert written(socket.take_output()) == latest


def test_a_ping_of_126_bytes_fails():
    assert_fails(client(PING, b"\xfe" * 126), 1002)


def test_our_ping_is_put_in_the_output_once():
    socket = new_socket()
    socket.ping()
    assert written(socket.take_output()) == [(PING, b"")]
    assert socket.take_output() == b""
    assert events_of(socket, client(PONG)) == []


# --- 3 and 4: reserved bits and opcodes


@pytest.mark.parametrize("bits", range(1, 8))
def test_a_reserved_bit_fails_and_what_came_before_counts(bits):
    bad = bytearray(client(TEXT, b"bad"))
    bad[0] |= bits << 4
    stream = client(TEXT, b"good") + client(PING, b"p") + bytes(bad) + client(PING, b"q")
    assert_fails(stream, 1002, ["good"], [(PONG, b"p")])


@pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 11, 12, 13, 14, 15])
def test_a_reserved_opcode_fails_and_what_came_before_counts(opcode):
    stream = client(TEXT, b"good") + client(opcode, b"bad") + client(TEXT, b"after")
    assert_fails(stream, 1002, ["good"])


def test_an_unmasked_frame_fails():
    assert_fails(b"\x81\x02hi", 1002)


# --- 5: fragmentation


@pytest.mark.parametrize("opcode", [PING, PONG, CLOSE])
def test_a_fragmented_control_frame_fails(opcode):
    assert_fails(client(opcode, b"", fin=False) + client(CONTINUATION, b""), 1002)


@pytest.mark.parametrize("parts", [2, 3, 10, 100])
def test_a_message_in_fragments_is_one_message(parts):
    payloads = [b"%d," % number for number in range(parts)]
    whole = b"".join(payloads)
    assert_conversation(b"".join(fragments(TEXT, *payloads)), [whole.decode()])
    assert_conversation(b"".join(fragments(BINARY, *payloads)), [whole])


@pytest.mark.parametrize("payloads", [(b"", b""), (b"", b"", b""), (b"", b"a", b""), (b"a", b"", b"b")])
def test_empty_fragments_count_as_nothing(payloads):
    whole = b"".join(payloads)
    assert_conversation(b"".join(fragments(TEXT, *payloads)), [whole.decode()])


def test_pings_between_fragments_are_answered():
    first, second, third = fragments(TEXT, b"a", b"b", b"c")
    stream = first + client(PING, b"1") + second + client(PONG, b"2") + client(PING, b"") + third
    assert_conversation(stream, ["abc"], [(PONG, b"1"), (PONG, b"")])


def test_a_message_after_a_fragmented_one_begins_anew():
    stream = b"".join(fragments(TEXT, b"a", b"b") + fragments(BINARY, b"c", b"d") + [client(TEXT, b"e")])
    assert_conversation(stream, ["ab", b"cd", "e"])


@pytest.mark.parametrize("fin", [True, False])
def test_a_continuation_of_nothing_fails(fin):
    assert_fails(client(CONTINUATION, b"x", fin=fin) + client(TEXT, b"y"), 1002)


def test_a_continuation_after_the_last_fragment_fails():
    assert_fails(b"".join(fragments(TEXT, b"a", b"b")) + client(CONTINUATION, b"c"), 1002, ["ab"])


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_message_within_a_message_fails(opcode):
    assert_fails(client(TEXT, b"a", fin=False) + client(opcode, b"b"), 1002)


# --- 6: UTF-8

VALID = [
    "",
    "Hello-µ@ßöäüàá-UTF-8!!",
    "κόσμε",
    "\x00",
    "\x7f",
    "\x80",
    "\u07ff",
    "\u0800",
    "\ud7ff",
    "\ue000",
    "\ufeff",
    "\ufffd",
    "\uffff",
    "\ufdd0",
    "\U00010000",
    "\U0001f600",
    "\U0010ffff",
    "mixed \x00é€😀 end",
]
# Each with the number of bytes after which it is given up: where it is beyond cure (RFC 3629 section 4), but
# half of a surrogate pair one byte later, for Python's decoder looks at all its three bytes.
INVALID = [
    (b"\x80", 1),  # a continuation first
    (b"\xbf", 1),
    (b"a\x80b", 2),
    (b"\xc0\xaf", 1),  # overlong: what two bytes less could say
    (b"\xc1\xbf", 1),
    (b"\xe0\x80\xaf", 2),
    (b"\xe0\x9f\xbf", 2),
    (b"\xf0\x80\x80\xaf", 2),
    (b"\xf0\x8f\xbf\xbf", 2),
    (b"\xf8\x88\x80\x80\x80", 1),  # five and six bytes
    (b"\xfc\x84\x80\x80\x80\x80", 1),
    (b"\xed\xa0\x80", 3),  # halves of surrogate pairs
    (b"\xed\xbf\xbf", 3),
    (b"\xed\xa0\x80\xed\xb0\x80", 3),
    (b"\xf4\x90\x80\x80", 2),  # above U+10FFFF
    (b"\xf7\xbf\xbf\xbf", 1),
    (b"\xfe", 1),
    (b"\xff", 1),
    (b"\xc3a", 2),  # a sequence cut short
    (b"\xe2\x82a", 3),
    (b"\xf0\x9f\x98a", 4),
    (b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited", 14),
]


@pytest.mark.parametrize("text", VALID, ids=ascii)
def test_a_text_may_be_cut_between_any_two_bytes(text):
    payload = text.encode()
    assert_conversation(client(TEXT, payload), [text])
    for cut in range(len(payload) + 1):
        assert_conversation(b"".join(fragments(TEXT, payload[:cut], payload[cut:])), [text])
    single = fragments(TEXT, *(payload[at : at + 1] for at in range(len(payload))), b"")
    assert_conversation(b"".join(single), [text])


@pytest.mark.parametrize(("payload", "_beyond"), INVALID)
def test_a_text_that_is_not_utf8_fails_however_it_is_cut(payload, _beyond):
    assert_fails(client(TEXT, payload), 1007)
    for cut in range(len(payload) + 1):
        assert_fails(b"".join(fragments(TEXT, payload[:cut], payload[cut:])), 1007)


@pytest.mark.parametrize(("payload", "beyond"), INVALID)
def test_a_text_fails_with_the_first_fragment_that_cannot_be_cured(payload, beyond):
    assert_conversation(client(TEXT, payload[: beyond - 1], fin=False), [])
    assert_fails(client(TEXT, payload[:beyond], fin=False), 1007)
    unfinished = client(TEXT, payload[: beyond - 1], fin=False)
    assert_fails(unfinished + client(CONTINUATION, payload[beyond - 1 : beyond], fin=False), 1007)


@pytest.mark.parametrize("payload", [b"\xc3", b"\xe2", b"\xe2\x82", b"\xf0", b"\xf0\x9f", b"\xf0\x9f\x98"])
def test_a_text_that_ends_within_a_character_fails_at_its_end(payload):
    assert_fails(client(TEXT, payload), 1007)
    assert_conversation(client(TEXT, payload, fin=False), [])
    assert_fails(b"".join(fragments(TEXT, payload, b"")), 1007)


def test_binary_may_hold_anything():
    payload = b"".join(payload for payload, _ in INVALID)
    assert_conversation(client(BINARY, payload), [payload])


def test_half_a_character_does_not_leak_into_the_next_message():
    assert_fails(client(TEXT, b"\xe2\x82") + client(TEXT, b"\xac"), 1007)


# --- 7: closing


@pytest.mark.parametrize("code", [*range(1000, 1004), *range(1007, 1015), 3000, 3999, 4000, 4401, 4999])
def test_a_valid_code_is_reported_and_echoed(code):
    payload = close_payload(code)
    assert_conversation(client(CLOSE, payload), [Closed(code, "")], [(CLOSE, payload)])


@pytest.mark.parametrize(
    "code", [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 9999, 65535]
)
def test_a_code_that_may_not_be_sent_fails(code):
    assert_fails(client(CLOSE, close_payload(code)), 1002)


def test_a_close_without_a_body_is_1005_and_echoed_without_a_body():
    assert_conversation(client(CLOSE), [Closed(1005, "")], [(CLOSE, b"")])


def test_a_close_with_half_a_code_fails():
    assert_fails(client(CLOSE, b"\x03"), 1002)


@pytest.mark.parametrize("reason", ["", "bye", "κόσμε 😀", "x" * 123, "\x00"], ids=ascii)
def test_a_reason_is_reported_and_echoed(reason):
    payload = close_payload(1000, reason.encode())
    assert_conversation(client(CLOSE, payload), [Closed(1000, reason)], [(CLOSE, payload)])


@pytest.mark.parametrize("reason", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"ok\xf4\x90\x80\x80"])
def test_a_reason_that_is_not_utf8_fails(reason):
    assert_fails(client(CLOSE, close_payload(1000, reason)), 1007)


def test_a_close_of_126_bytes_fails():
    assert_fails(client(CLOSE, close_payload(1000, b"x" * 124)), 1002)


@pytest.mark.parametrize(
    "late", [client(TEXT, b"late"), client(PING), client(CLOSE, b"\x03\xe8"), b"\xff\xff garbage"]
)
def test_what_follows_a_close_is_ignored(late):
    stream = client(TEXT, b"a") + client(CLOSE, b"\x03\xe8") + late
    assert_conversation(stream, ["a", Closed(1000)], [(CLOSE, b"\x03\xe8")])


def test_a_close_within_a_message_ends_the_connection():
    stream = client(TEXT, b"a", fin=False) + client(CLOSE, b"\x03\xe9")
    assert_conversation(stream, [Closed(1001)], [(CLOSE, b"\x03\xe9")])


def test_after_the_end_of_the_stream_nothing_is_kept_or_written():
    socket = new_socket()
    events_of(socket, client(TEXT, b"half of it")[:7])
    assert socket.held
    socket.receive_end()
    assert (socket.state, socket.held, socket.take_output()) == ("closed", 0, b"")


def test_our_close_waits_for_the_clients():
    socket = new_socket()
    socket.close(1001, "restart")
    assert socket.state == "closing"
    assert written(socket.take_output()) == [(CLOSE, b"\x03\xe9restart")]
    assert events_of(socket, client(CLOSE, b"\x03\xe9")) == [Closed(1001)]
    assert socket.state == "closed"
    assert socket.take_output() == b""


@pytest.mark.parametrize(("echo", "code"), [(b"", 1005), (b"\x03\xe8", 1000), (b"\x0f\xa0", 4000)])
def test_after_our_close_the_code_is_the_one_of_the_clients_close(echo, code):
    socket = new_socket()
    socket.close(4401)
    assert events_of(socket, client(CLOSE, echo)) == [Closed(code)]


def test_after_our_close_data_is_dropped_and_pings_are_answered():
    socket = new_socket()
    socket.close()
    first, second = fragments(TEXT, b"\xff", b"\xff")
    stream = client(TEXT, b"a") + first + client(PING, b"p") + second + client(BINARY, b"b")
    assert events_of(socket, stream) == []
    assert written(socket.take_output()) == [(PONG, b"p"), (CLOSE, b"\x03\xe8")]
    assert events_of(socket, client(CLOSE, b"\x03\xe8")) == [Closed(1000)]


def test_after_our_close_the_rest_of_a_message_is_dropped():
    socket = new_socket(max_message_size=10)
    assert events_of(socket, client(TEXT, b"123456", fin=False)) == []
    socket.close()
    assert events_of(socket, client(CONTINUATION, b"78901234") + client(CLOSE, b"\x03\xe8")) == [Closed(1000)]


def test_after_our_close_an_error_ends_the_connection_without_a_second_close():
    socket = new_socket()
    socket.close()
    socket.take_output()
    assert [event.code for event in events_of(socket, client(3))] == [1002]
    assert socket.state == "closed"
    assert socket.take_output() == b""


@pytest.mark.parametrize("first", ["ours", "theirs", "error", "end"])
def test_nothing_is_put_in_the_output_after_a_close(first):
    socket = new_socket()
    if first == "ours":
        socket.close()
    elif first == "end":
        socket.receive_end()
    else:
        events_of(socket, client(CLOSE) if first == "theirs" else client(3))
    socket.take_output()
    socket.close(1011)
    socket.ping()
    assert socket.take_output() == b""


def test_a_close_is_the_last_frame_of_the_output():
    socket = new_socket()
    socket.ping()
    events_of(socket, client(PING, b"theirs") + client(CLOSE, b"\x03\xe8"))
    opcodes = [opcode for opcode, _ in written(socket.take_output())]
    assert sorted(opcodes[:-1]) == [PING, PONG]
    assert opcodes[-1] == CLOSE


# --- 9: limits


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_mebibyte_passes_and_a_byte_more_fails(opcode):
    payload = b"x" * MIB
    expected = payload.decode() if opcode == TEXT else payload
    assert_conversation(client(opcode, payload), [expected], step=65536)
    assert_fails(client(opcode, payload + b"x")[:14], 1009)


@pytest.mark.parametrize("parts", [(100,), (50, 50), (99, 1), (100, 0), (0, 0, 100), (1,) * 100])
def test_the_size_of_a_message_is_the_sum_of_its_fragments(parts):
    payloads = [b"x" * size for size in parts]
    assert_conversation(b"".join(fragments(TEXT, *payloads)), ["x" * 100], max_message_size=100)
    too_large = fragments(TEXT, *payloads, b"x")
    # The header of the last fragment is enough: its payload is never waited for.
    assert_fails(b"".join(too_large[:-1]) + too_large[-1][:2], 1009, max_message_size=100)


def test_the_limit_is_in_bytes_of_utf8():
    assert_conversation(client(TEXT, "é".encode() * 5), ["é" * 5], max_message_size=10)
    assert_fails(client(TEXT, "é".encode() * 5 + b"x"), 1009, max_message_size=10)


def test_each_message_has_the_whole_limit_again():
    stream = b"".join([*fragments(TEXT, b"123", b"45"), client(TEXT, b"67890"), client(TEXT, b"12345")])
    assert_conversation(stream, ["12345", "67890", "12345"], max_message_size=5)


def test_pings_do_not_count_against_the_message():
    first, second = fragments(TEXT, b"12345", b"")
    stream = first + client(PING, b"x" * 100) + second
    assert_conversation(stream, ["12345"], [(PONG, b"x" * 100)], max_message_size=5)


def test_4096_fragments_pass_and_one_more_fails():
    socket = new_socket()
    payloads = [b"x"] * 4096
    assert events_of(socket, b"".join(fragments(BINARY, *payloads))) == [b"x" * 4096]
    (failed,) = events_of(socket, b"".join(fragments(BINARY, *payloads, b"x")))
    assert failed.code == 1009


def test_four_megabytes_in_fragments_of_64_bytes_fail_within_the_first_quarter_mebibyte():
    socket = new_socket()
    fragment = client(CONTINUATION, b"x" * 64, fin=False)
    taken, events = 64, events_of(socket, client(TEXT, b"x" * 64, fin=False))
    while not events and taken < 4_000_000:
        events, taken = events_of(socket, fragment), taken + 64
    assert [event.code for event in events] == [1009]
    assert taken == 4097 * 64


def test_empty_fragments_without_end_fail():
    stream = client(TEXT, b"", fin=False) + client(CONTINUATION, b"", fin=False) * 10
    assert_fails(stream, 1009, max_fragments=10)


def test_a_thousand_frames_in_one_read_are_a_thousand_messages():
    stream = b"".join(client(TEXT, b"%d" % number) for number in range(1000))
    assert_conversation(stream, [str(number) for number in range(1000)])


# --- anything at all


@st.composite
def conversations(draw):
    """A client's stream of messages in random fragments with pings between, and the events and pongs it must give."""
    stream, events, pongs = [], [], []
    key = st.binary(min_size=4, max_size=4)
    for message in draw(st.lists(st.one_of(st.text(max_size=300), st.binary(max_size=300)), max_size=5)):
        payload = message.encode() if isinstance(message, str) else message
        cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=5)))
        bounds = list(zip([0, *cuts], [*cuts, len(payload)], strict=True))
        for index, (start, end) in enumerate(bounds):
            opcode = CONTINUATION if index else TEXT if isinstance(message, str) else BINARY
            stream.append(client(opcode, payload[start:end], index == len(bounds) - 1, draw(key)))
            if index < len(bounds) - 1 and draw(st.booleans()):
                ping = draw(st.binary(max_size=125))
                stream.append(client(PING, ping, key=draw(key)))
                pongs.append((PONG, ping))
        events.append(message)
    return b"".join(stream), events, pongs


@examples(100)
@given(conversations(), st.lists(st.integers(1, 50), min_size=1, max_size=20))
def test_any_messages_come_back_the_same_however_they_are_cut(conversation, steps):
    stream, expected, pongs = conversation
    socket, events, output = new_socket(), [], b""
    at = turn = 0
    while at < len(stream):
        step = steps[turn % len(steps)]
        events += events_of(socket, stream[at : at + step])
        output += socket.take_output()
        at, turn = at + step, turn + 1
    assert events == expected
    assert written(output) == pongs


frames_at_random = st.builds(
    lambda first, second, rest: bytes((first, second)) + rest,
    st.integers(0, 255),
    st.integers(0, 255),
    st.binary(max_size=40),
)
plausible = st.builds(
    client,
    st.sampled_from([CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG]),
    st.binary(max_size=40),
    st.booleans(),
)


@examples(200)
@given(st.lists(st.one_of(st.binary(max_size=60), frames_at_random, plausible), max_size=12), st.booleans())
def test_garbage_ends_the_connection_at_most_once_and_never_raises(pieces, closing):
    socket, events, output = new_socket(max_message_size=100, max_fragments=5), [], b""
    if closing:
        socket.close()
    for piece in pieces:
        events += events_of(socket, piece)
        output += socket.take_output()
    socket.receive_end()
    assert not any(isinstance(event, Closed) for event in events[:-1])
    assert socket.state == "closed"
    assert events_of(socket, b"\x81\x80\x00\x00\x00\x00") == []
    closes = [index for index, (opcode, _) in enumerate(written(output)) if opcode == CLOSE]
    assert len(closes) <= 1
    assert closing or not closes or closes == [len(written(output)) - 1]
