"""Messages as bytes, in msgpack, checked when they are encoded.

msgpack carries all that the contract asks for (NUL in text, NaN, four-byte characters, bytes beside text), some of
which PostgreSQL's ``text`` and ``jsonb`` refuse, and unlike pickle it never runs code when it is decoded. The format is
described in https://github.com/msgpack/msgpack/blob/master/spec.md.
"""

from __future__ import annotations

import threading
from typing import Any

import msgpack
from django.utils.functional import Promise

from dbchannels.exceptions import InvalidMessage, MessageTooLarge, NewerFormat, UnreadableMessage, safe_repr

#: The newest format that this release reads. Format 1 is a bare msgpack map; a later one begins with a byte that
#: msgpack never uses, and its number. Each process has on record what it reads (``Process.reads``). A release with a
#: format 2 must write format 1 while a live process reads no other: a test in tests/worker/test_formats.py demands it.
FORMAT = 1
_LATER = 0xC1
MAX_DEPTH = 64
ENVELOPE = 65_536  # bytes of a message beside the data it carries: names, a path, keys
_CARRIED = ("text", "bytes", "content")
_INT64_END = 2**63
_PLAIN = frozenset({str, bytes, float, bool, type(None)})


def encode(message: object, limit: int | None = None) -> bytes:
    """Encode a message: a dict with str keys whose values are bytes, str, int, float, bool, None, lists and dicts.

    A tuple counts as a list. Raises InvalidMessage for other values, and MessageTooLarge if ``text``, ``bytes`` or
    ``content`` has more than ``limit`` bytes, or the whole message ENVELOPE more than that.
    """
    if not isinstance(message, dict):
        raise InvalidMessage(
            f"A message must be a dict, not {_kind(message)}: send {{'value': ...}} instead."
        )
    if not _is_plain(message):
        _check(message, "message", MAX_DEPTH)
    try:
        payload = encode_trusted(message)
    except UnicodeEncodeError:
        _check(message, "message", MAX_DEPTH)  # says where
        raise
    if limit is not None and len(payload) > limit:
        # The data of a client that is allowed always fits, however long the path and the names beside it are.
        for value in map(message.get, _CARRIED):
            carried = (
                len(value.encode() if isinstance(value, str) else value)
                if isinstance(value, (str, bytes))
                else 0
            )
            if carried > limit:
                raise MessageTooLarge(carried, limit)
        if len(payload) > limit + ENVELOPE:
            raise MessageTooLarge(len(payload), limit + ENVELOPE)
    return payload


def with_field(payload: bytes, key: str, value: int) -> bytes | None:
    """Return an encoded message with one more field, which overrides another with that key.

    The first byte of a small map holds its length, so nothing is decoded. Return None for an empty or a larger map.
    """
    if not 0x81 <= payload[0] < 0x8F:
        return None
    return bytes((payload[0] + 1,)) + payload[1:] + encode_trusted(key) + encode_trusted(value)


def decode(payload: bytes | memoryview) -> dict[str, Any]:
    """Decode a message; raises UnreadableMessage, or NewerFormat if a later release can decode it."""
    if len(payload) > 1 and payload[0] == _LATER and payload[1] > FORMAT:
        raise NewerFormat(payload[1], FORMAT)
    try:
        # The limit of 64 levels is for encoding; msgpack's decoder has its own limit of 1,024.
        message = msgpack.unpackb(payload, raw=False, strict_map_key=True)
    except Exception as error:  # msgpack's own errors, ValueError, TypeError
        raise UnreadableMessage(str(error) or type(error).__name__) from None
    if not isinstance(message, dict):
        raise UnreadableMessage(f"it is {_kind(message)}, not a dict")
    return message


def _is_plain(message: dict[Any, Any]) -> bool:
    """Whether a message is flat and has values of the usual types, as most have: 0.6 us instead of 4 for the walk."""
    for key, value in message.items():
        kind = type(value)
        if type(key) is not str or not (
            kind in _PLAIN or (kind is int and -_INT64_END <= value < _INT64_END)
        ):
            return False
    return True


class _Packers(threading.local):
    """A packer for each thread: threads cannot share one, and making one takes longer than packing a message."""

    def __init__(self) -> None:
        self.pack = msgpack.Packer().pack


_packers = _Packers()


def encode_trusted(message: dict[str, Any] | str | int) -> bytes:
    """Encode a message of dbchannels' own without checking its values (the server's hot path)."""
    return _packers.pack(message)  # type: ignore[no-any-return]


def _check(value: object, where: str, depth: int) -> None:
    if value is None or isinstance(value, (bool, float, bytes)):
        return
    if isinstance(value, (list, tuple, dict)):
        if depth == 0:
            raise InvalidMessage(f"{where} is nested deeper than {MAX_DEPTH} levels: flatten it.")
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(value, dict):
                if not isinstance(key, str):
                    advice = f"keys must be str, so send str({safe_repr(key, 40)})."
                    raise InvalidMessage(f"A key of {where} is {_kind(key)}: {advice}")
                _check_text(key, f"A key of {where} is")
            _check(item, f"{where}[{safe_repr(key, 40)}]", depth - 1)
    elif isinstance(value, str):
        _check_text(value, f"{where} contains")
    elif isinstance(value, int):
        # Not `in range(...)`, which walks through 2**64 numbers for an IntEnum.
        if not -_INT64_END <= value < _INT64_END:
            raise InvalidMessage(f"{where} does not fit into 64 bits with a sign: send it as a str.")
    else:
        raise InvalidMessage(f"{where} contains {_kind(value)}{_advice(value)}")


def _check_text(text: str, subject: str) -> None:
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidMessage(
            f"{subject} half of a surrogate pair, which UTF-8 cannot encode: send whole characters, or "
            "the raw data as bytes."
        ) from None


def _kind(value: object) -> str:
    if isinstance(value, Promise):
        return "a lazy text"
    name = type(value).__name__
    return ("an " if name[:1].lower() in "aeio" else "a ") + name


def _advice(value: object) -> str:
    if isinstance(value, Promise):
        return ": send str(...) of it, its text in the active language."
    if isinstance(value, (set, frozenset)):
        return ": send sorted(...) or list(...) instead."
    if hasattr(value, "pk"):
        return ": send its primary key and load it in the consumer."
    if hasattr(value, "isoformat"):
        return ": send its isoformat() instead."
    return ": send bytes, str, int, float, bool, None, lists or dicts of these, for example str(...)."
