"""Frames: what the server writes, and what it accepts from a client (RFC 6455 section 5)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbchannels.server.websocket.framing import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Frame,
    FrameReader,
    ProtocolError,
    decode_close,
    encode_close,
    encode_frame,
    unmask,
)

KEY = bytes.fromhex("37fa213d")
SIZES = [0, 1, 2, 3, 4, 5, 124, 125, 126, 127, 128, 65535, 65536, 65537]


def masked(payload, key=KEY):
    return bytes(byte ^ key[index % 4] for index, byte in enumerate(payload))


def client_frame(opcode, payload=b"", *, first=None, form=None, size=None, mask_bit=0x80):
    """One frame as a client writes it; ``form`` is the number of bytes of its length (1, 2 or 8)."""
    size = len(payload) if size is None else size
    form = form or (1 if size < 126 else 2 if size < 65536 else 8)
    second = size if form == 1 else {2: 126, 8: 127}[form]
    length = b"" if form == 1 else size.to_bytes(form, "big")
    first = 0x80 | opcode if first is None else first
    return bytes((first, mask_bit | second)) + length + KEY + masked(payload)


def read(stream, max_payload=100_000, step=None):
    reader = FrameReader(max_payload)
    step = step or len(stream)
    return [
        frame for at in range(0, len(stream), step) for frame in completed(reader, stream[at : at + step])
    ]


def completed(reader, data):
    """The frames that these bytes complete."""
    reader.buffer += data
    return list(iter(reader.next_frame, None))


def assert_refused(stream, code, word, max_payload=100_000):
    """Refused whole and byte by byte, with the same code and sentence."""
    for step in (None, 1):
        with pytest.raises(ProtocolError, match=word) as caught:
            read(stream, max_payload, step)
        assert caught.value.code == code
        assert caught.value.reason == str(caught.value)
        assert len(encode_close(code, caught.value.reason)) == 4 + len(caught.value.reason)


# --- what the server writes


@pytest.mark.parametrize(
    ("size", "head"),
    [
        (0, "8200"),
        (1, "8201"),
        (125, "827d"),
        (126, "827e007e"),
        (127, "827e007f"),
        (128, "827e0080"),
        (65535, "827effff"),
        (65536, "827f0000000000010000"),
    ],
)
def test_a_server_frame_has_the_shortest_length_and_no_mask(size, head):
    assert encode_frame(BINARY, b"x" * size) == bytes.fromhex(head) + b"x" * size


def test_a_server_frame_equals_the_sample_of_the_rfc():
    assert encode_frame(TEXT, b"Hello") == bytes.fromhex("810548656c6c6f")  # section 5.7


# --- masks


@pytest.mark.parametrize("size", [*range(10), 125, 126, 127, 1000, 65537])
def test_unmask_is_xor_with_the_key_repeated(size):
    payload = bytes(index * 7 & 0xFF for index in range(size))
    assert unmask(KEY, payload) == masked(payload)
    assert unmask(KEY, bytearray(payload)) == masked(payload)


@pytest.mark.parametrize("key", [bytes(4), b"\xff" * 4, b"\x00\x00\x00\x01", b"\x80\x00\x00\x00"])
def test_unmask_keeps_zeros_at_both_ends(key):
    payload = b"\x00\x00a\x00b\x00\x00"
    assert unmask(key, payload) == masked(payload, key)


@given(st.binary(min_size=4, max_size=4), st.binary(max_size=300))
def test_unmasking_twice_changes_nothing(key, payload):
    assert unmask(key, unmask(key, payload)) == payload


# --- what a client may send


def test_a_client_frame_equals_the_sample_of_the_rfc():
    assert read(bytes.fromhex("818537fa213d7f9f4d5158")) == [Frame(TEXT, True, b"Hello")]


@pytest.mark.parametrize("size", SIZES)
def test_a_frame_of_each_form_of_length_is_read(size):
    payload = b"*" * size
    assert read(client_frame(BINARY, payload)) == [Frame(BINARY, True, payload)]
    assert read(client_frame(BINARY, payload), step=997) == [Frame(BINARY, True, payload)]


@pytest.mark.parametrize("step", [1, 2, 3, 5, 7, 11, 64])
def test_frames_are_read_from_pieces_of_any_size(step):
    sent = [Frame(TEXT, False, b"a" * 130), Frame(PING, True, b""), Frame(CONTINUATION, True, b"b")]
    stream = b"".join(client_frame(f.opcode, f.payload, first=f.fin << 7 | f.opcode) for f in sent)
    assert read(stream * 2, step=step) == sent * 2


@pytest.mark.parametrize("opcode", [TEXT, BINARY, PING, PONG, CLOSE])
def test_an_empty_frame_is_a_frame(opcode):
    assert read(client_frame(opcode), step=1) == [Frame(opcode, True, b"")]


@pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 11, 12, 13, 14, 15])
def test_a_reserved_opcode_is_refused(opcode):
    assert_refused(client_frame(opcode, b"x"), 1002, "reserved")


@pytest.mark.parametrize("bits", range(1, 8))
@pytest.mark.parametrize("opcode", [TEXT, PING])
def test_a_reserved_bit_is_refused(bits, opcode):
    assert_refused(client_frame(opcode, b"x", first=0x80 | bits << 4 | opcode), 1002, "reserved bit")


@pytest.mark.parametrize("opcode", [TEXT, BINARY, PING, PONG, CLOSE])
@pytest.mark.parametrize("size", [0, 100])
def test_an_unmasked_frame_is_refused(opcode, size):
    assert_refused(client_frame(opcode, b"x" * size, mask_bit=0), 1002, "masked")


@pytest.mark.parametrize("opcode", [PING, PONG, CLOSE])
def test_a_control_frame_without_fin_is_refused(opcode):
    assert_refused(client_frame(opcode, b"", first=opcode), 1002, "fragmented")


@pytest.mark.parametrize("opcode", [PING, PONG, CLOSE])
@pytest.mark.parametrize("size", [126, 65536])
def test_a_control_frame_of_more_than_125_bytes_is_refused(opcode, size):
    assert_refused(client_frame(opcode, b"x" * size), 1002, "125 bytes")


@pytest.mark.parametrize(("form", "size"), [(2, 0), (2, 125), (8, 0), (8, 125), (8, 126), (8, 65535)])
def test_a_length_that_is_not_in_its_shortest_form_is_refused(form, size):
    assert_refused(client_frame(TEXT, b"x" * size, form=form), 1002, "shortest")


@pytest.mark.parametrize("size", [1 << 63, (1 << 64) - 1])
def test_a_length_with_a_sign_is_refused(size):
    assert_refused(client_frame(TEXT, size=size), 1002, "64-bit")


def test_a_continuation_of_nothing_is_refused():
    assert_refused(client_frame(CONTINUATION, b"x"), 1002, "no message to continue")


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_message_within_a_message_is_refused(opcode):
    assert_refused(client_frame(TEXT, b"x", first=TEXT) + client_frame(opcode, b"y"), 1002, "began before")


@pytest.mark.parametrize(
    "stream",
    [b"\xc1\x85", b"\x83\x85", b"\x81\x05", b"\x09\x80", b"\x89\xfe", b"\x80\x80", b"\x81\xfe\x00\x01"],
    ids=["reserved bit", "opcode", "mask", "fragmented", "long ping", "continuation", "length"],
)
def test_the_first_bytes_that_cannot_be_right_are_enough_to_refuse(stream):
    assert_refused(stream, 1002, ".")


# --- limits


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("limit", [0, 1, 125, 126, 65535, 65536])
def test_a_payload_of_the_limit_passes_and_one_byte_more_does_not(opcode, limit):
    assert read(client_frame(opcode, b"x" * limit), limit) == [Frame(opcode, True, b"x" * limit)]
    assert_refused(client_frame(opcode, b"x" * (limit + 1))[:14], 1009, "too large", limit)


@pytest.mark.parametrize("size", [1001, 65536, 16 << 30, (1 << 63) - 1])
def test_a_declared_length_is_refused_before_any_payload_comes(size):
    header_without_key = client_frame(TEXT, size=size)[:-4]
    assert_refused(header_without_key, 1009, "too large", 1000)


def test_control_frames_pass_whatever_is_left_of_the_limit():
    assert read(client_frame(PING, b"x" * 125), 0) == [Frame(PING, True, b"x" * 125)]


def test_a_limit_lowered_between_two_frames_of_one_read_holds_for_the_second():
    reader = FrameReader(10)
    reader.buffer += client_frame(TEXT, b"x" * 10, first=TEXT) + client_frame(CONTINUATION, b"y")
    assert reader.next_frame().payload == b"x" * 10
    reader.max_payload -= 10
    with pytest.raises(ProtocolError, match="too large"):
        reader.next_frame()


# --- closes


@pytest.mark.parametrize(
    ("reason", "sent"),
    [
        ("", ""),
        ("x" * 123, "x" * 123),
        ("x" * 124, "x" * 123),
        ("é" * 62, "é" * 61),
        ("x" + "é" * 61, "x" + "é" * 61),
        ("€" * 42, "€" * 41),
        ("😀" * 31, "😀" * 30),
        ("half \ud800 pair", "half ? pair"),
    ],
)
def test_a_reason_is_cut_on_a_border_of_characters(reason, sent):
    payload = sent.encode()
    assert encode_close(1011, reason) == bytes((0x88, 2 + len(payload))) + b"\x03\xf3" + payload


@given(st.sampled_from([1000, 1011, 3000, 4999]), st.text(max_size=200))
def test_a_close_that_is_sent_can_be_read(code, reason):
    frame = encode_close(code, reason)
    assert len(frame) <= 127
    read_code, read_reason = decode_close(frame[2:])
    assert read_code == code
    assert reason.startswith(read_reason)
