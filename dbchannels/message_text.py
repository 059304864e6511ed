"""What people are shown of a message: Python's notation, with what is secret masked."""

from __future__ import annotations

from pprint import pformat
from typing import Any

import msgpack

from dbchannels import codec, names
from dbchannels.masking import mask_query

PRETTY = 65_536  # characters up to which a message is laid out in lines: a message of 1 MiB can take 10 s
SECRET = frozenset({"authorization", "cookie", "proxy-authorization", "session", "set-cookie", "x-csrftoken"})
#: Headers that hold an address, and with it perhaps a query string.
ADDRESS = frozenset({"location", "referer"})
BODY = frozenset({"body", "content"})
#: A dict with one of these is a request, a response, or a part of one.
HTTP = frozenset({"body_channel", "headers", "http_version", "more_content", "status"})
UNREADABLE = "This payload cannot be decoded: it was not encoded by this version of dbchannels."
DECODING_ERRORS = (ValueError, RecursionError, msgpack.UnpackException, AttributeError)  # the last: no dict


class Note(str):
    """Words in the place of a value: shown without quotes."""

    __repr__ = str.__str__


def _masked(value: object) -> object:
    data = value.encode() if isinstance(value, str) else value
    return Note(f"(masked, {len(data)} bytes)" if isinstance(data, bytes) else "(masked)")


def _address(value: object, prefix: str = "") -> object:
    """Return an address, or with the prefix ``?`` a query string, its secret values masked."""
    if not isinstance(value, (bytes, str)):
        return value
    text = value if isinstance(value, str) else value.decode("latin-1")
    shown = mask_query(prefix + text).removeprefix(prefix)
    return shown if isinstance(value, str) else shown.encode("latin-1")


def _lower(name: object) -> str:
    return (name.decode("latin-1") if isinstance(name, bytes) else str(name)).lower()


def readable(value: Any, http: bool = False) -> Any:
    """Return a copy of a message without its secrets: some headers, and the bodies of HTTP."""
    if isinstance(value, list):
        # A pair whose first item is the name of a secret header, wherever it stands.
        name = _lower(value[0]) if value and isinstance(value[0], (str, bytes)) else ""
        hide = _masked if name in SECRET else _address if name in ADDRESS else readable
        return [value[0], *map(hide, value[1:])] if name else [readable(item) for item in value]
    if not isinstance(value, dict):
        return value
    secret = SECRET | BODY if http or not HTTP.isdisjoint(value) else SECRET
    shown = {
        key: _masked(item) if item is not None and _lower(key) in secret else readable(item)
        for key, item in value.items()
    }
    if "query_string" in value:
        shown["query_string"] = _address(value["query_string"], "?")
    return shown


def message_text(channel: str, payload: bytes, pretty: bool = True) -> str:
    """Return an encoded message in Python's notation, its secrets masked; or why that is not possible."""
    try:
        message = codec.decode(payload)
        # The last part of a body may have ``content`` alone; ``binary`` beside it makes it a WebSocket's.
        shown = readable(message, http=message.get("binary") is None and names.is_protocol(channel))
        if not pretty:
            shown.pop("reply_channel", None)  # long, and of no use in a list
        text = repr(shown)
        return pformat(shown, width=100, sort_dicts=False) if pretty and len(text) <= PRETTY else text
    except DECODING_ERRORS:
        return UNREADABLE


def run_again(number: int) -> str:
    """Return what is said of a replay: ``3 dead letters run again.``"""
    return f"{number:,} dead letters run again." if number != 1 else "1 dead letter runs again."
