"""RFC 6455 through the whole way, in the groups of the Autobahn test suite: what comes back, and the exact close code.

The cases of a socket's protocol by itself, some hundreds, are in ``tests/server/test_framing.py``.
"""

from __future__ import annotations

import pytest

from tests.harness import BINARY, CLOSE, TEXT, Served, client_frame

CONTINUATION, PING, PONG = 0, 9, 10
BYE = client_frame(CLOSE, b"\x03\xe8")


def part(opcode: int, payload: bytes) -> bytes:
    """Return a frame that is not the last of its message."""
    frame = client_frame(opcode, payload)
    return bytes([frame[0] & 0x7F]) + frame[1:]


def closing(code: int, reason: bytes = b"") -> bytes:
    """Return a client's Close."""
    return client_frame(CLOSE, code.to_bytes(2, "big") + reason)


def with_bits(bits: int) -> bytes:
    """Return a text with reserved bits."""
    frame = client_frame(TEXT, b"bad")
    return bytes([frame[0] | bits << 4]) + frame[1:]


HELLO = client_frame(TEXT, b"hello")
KOSME = "\N{GREEK SMALL LETTER KAPPA}\N{PILE OF POO}".encode()

#: The name, what the client sends first and last, which messages come back before the last, and the server's code.
CASES = [
    # 1: framing
    *[
        (f"1.1 text of {size}", client_frame(TEXT, b"*" * size), BYE, ["*" * size], 1000)
        for size in (0, 125, 126, 65_536)
    ],
    *[
        (f"1.2 binary of {size}", client_frame(BINARY, b"\xfe" * size), BYE, [b"\xfe" * size], 1000)
        for size in (0, 127, 65_535)
    ],
    # 2: pings and pongs
    ("2.5 ping of 126 bytes", b"", client_frame(PING, b"x" * 126), [], 1002),
    ("2.7 pong unasked", client_frame(PONG, b"unasked") + HELLO, BYE, ["hello"], 1000),
    ("2.10 ten pings", client_frame(PING, b"x") * 10 + HELLO, BYE, ["hello"], 1000),
    # 3: reserved bits
    *[(f"3 reserved bits {bits}", HELLO, with_bits(bits), ["hello"], 1002) for bits in (1, 2, 4, 7)],
    # 4: reserved opcodes
    *[(f"4 opcode {opcode}", HELLO, client_frame(opcode, b""), ["hello"], 1002) for opcode in (3, 7, 11, 15)],
    ("4 no mask", HELLO, b"\x81\x02hi", ["hello"], 1002),
    # 5: fragments
    ("5.1 fragmented ping", b"", part(PING, b""), [], 1002),
    ("5.3 two fragments", part(TEXT, b"hel") + client_frame(CONTINUATION, b"lo"), BYE, ["hello"], 1000),
    (
        "5.6 a ping between",
        part(TEXT, b"hel") + client_frame(PING, b"p") + client_frame(CONTINUATION, b"lo"),
        BYE,
        ["hello"],
        1000,
    ),
    ("5.9 nothing to continue", b"", client_frame(CONTINUATION, b"x") + HELLO, [], 1002),
    ("5.18 a message within a message", b"", part(TEXT, b"a") + HELLO, [], 1002),
    (
        "5.19 empty fragments",
        part(BINARY, b"") + part(CONTINUATION, b"") + client_frame(CONTINUATION, b""),
        BYE,
        [b""],
        1000,
    ),
    # 6: UTF-8
    ("6.2 valid", client_frame(TEXT, KOSME), BYE, [KOSME.decode()], 1000),
    (
        "6.2 cut in a character",
        part(TEXT, KOSME[:3]) + client_frame(CONTINUATION, KOSME[3:]),
        BYE,
        [KOSME.decode()],
        1000,
    ),
    *[
        (f"6 {bad!r}", HELLO, client_frame(TEXT, bad), ["hello"], 1007)
        for bad in (b"\x80", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80")
    ],
    ("6.4 fails with its first fragment", HELLO, part(TEXT, b"\xce\xba\xf4\x90"), ["hello"], 1007),
    ("6.6 ends in a character", b"", client_frame(TEXT, b"\xe2\x82"), [], 1007),
    # 7: closing
    ("7.1 frames behind the close", HELLO, BYE + HELLO + client_frame(PING, b"late"), ["hello"], 1000),
    ("7.3.1 no code", b"", client_frame(CLOSE, b""), [], 1005),
    ("7.3.2 half a code", b"", client_frame(CLOSE, b"\x03"), [], 1002),
    ("7.3.5 a reason of 123 bytes", b"", closing(1000, b"x" * 123), [], 1000),
    ("7.3.6 a reason of 124 bytes", b"", closing(1000, b"x" * 124), [], 1002),
    ("7.5 a reason that is not UTF-8", b"", closing(1000, b"\xce\xba\xed\xa0\x80"), [], 1007),
    *[
        (f"7.7 code {code}", b"", closing(code), [], code)
        for code in (1000, 1003, 1007, 1011, 1014, 3000, 4999)
    ],
    *[
        (f"7.9 code {code}", b"", closing(code), [], 1002)
        for code in (0, 999, 1004, 1005, 1006, 1015, 2999, 5000, 65_535)
    ],
    # 9: limits
    ("9 one MiB", client_frame(BINARY, bytes(1_048_000)), BYE, [bytes(1_048_000)], 1000),
    ("9 more than one MiB", HELLO, client_frame(BINARY, bytes(1_048_577))[:14], ["hello"], 1009),
    ("9 more than 4,096 fragments", b"", part(TEXT, b"") + part(CONTINUATION, b"") * 4096, [], 1009),
    # 10: many
    ("10 a hundred messages", HELLO * 100, BYE, ["hello"] * 100, 1000),
]


@pytest.mark.parametrize(
    ("good", "last", "messages", "code"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_a_client_gets_what_it_must_and_the_right_code(
    served: Served, good: bytes, last: bytes, messages: list[str | bytes], code: int
) -> None:
    one = served.socket("/echo/")
    one.raw.sendall(good)
    # First, for a worker sends them: none needs to come any more when the connection has failed.
    assert [one.receive() for _ in messages] == messages
    one.raw.sendall(last)
    assert (one.receive(), one.close_code) == (None, code)
