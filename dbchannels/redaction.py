"""What people are shown of the texts of strangers, in logs and in the admin: without secrets, and harmless.

* A value is secret by its name: of a header, a parameter of an address, a form field, a key of a message. A name is
  secret if one of its words is in SECRET_WORDS: ``user_pass``, ``accessToken``, ``X-Api-Key``, ``token[]`` and
  ``x%5Ftoken`` are, ``passenger`` is not.
* A log call has a constant text, and takes everything else as its arguments: ``log.warning("Refused %s.", origin)``.
  A filter on each logger of dbchannels escapes the arguments, so no client can begin a line or steer a terminal.
  Several lines, such as a traceback, are passed as ``Lines(text)``, which indents them.

Texts are split, never searched for: the cost grows no faster than the text.
"""

from __future__ import annotations

import logging
import math
import re
import time
import traceback
from collections import Counter
from collections.abc import Hashable
from typing import Any
from urllib.parse import unquote_plus

import msgpack

from dbchannels import codec, names
from dbchannels.protocol import MORE_CONTENT

_WORDS = (
    "accesstoken apikey assertion auth authorization authtoken bearer code cookie credential credentials csrf "
    "csrfmiddlewaretoken csrftoken cvc cvv hmac idtoken jsessionid jwt key oauth otp pass passcode passphrase passwd "
    "password passwords phpsessid pin pw pwd refreshtoken saml secret secrets session sessionid sessionkey sig "
    "signature ticket token totp xsrf xsrftoken"
)
SECRET_WORDS = frozenset(_WORDS.split())
#: Secret as a whole: scripts of browsers can set no other header of a WebSocket's, so tokens are put there.
SECRET_NAMES = frozenset({"sec-websocket-protocol"})
LONGEST_NAME = 200  # characters of a name that are read for words
NESTED = 3  # times that an address inside of an address is decoded

PRETTY = 65_536  # characters up to which a message is laid out in lines
LOG_EVERY = 10.0  # seconds between two lines of a RateLimitedLog
WIDTH = 100  # characters of a line into which a dict or a list is put as a whole
BODY = frozenset({"body", "content"})
#: A dict with one of these is a request, a response, or a part of one.
HTTP = frozenset({"body_channel", "headers", "http_version", MORE_CONTENT, "status"})
UNREADABLE = "This payload cannot be decoded: it was not encoded by this version of dbchannels."
DECODING_ERRORS = (ValueError, RecursionError, msgpack.UnpackException, AttributeError)  # the last: no dict

# A run of capitals, all of them or up to the last that begins a word: "API", "API" of "APIKey". Or a word.
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_SEPARATOR = re.compile(r"([?&;#\s])")


def is_secret(name: str) -> bool:
    """Whether a value with this name is shown to nobody."""
    name = unquote_plus(name[:LONGEST_NAME])
    return name.lower() in SECRET_NAMES or any(word.lower() in SECRET_WORDS for word in _WORD.findall(name))


def mask_query(text: str, nested: int = NESTED) -> str:
    """Return a text with ``***`` in the place of each secret value of a query string in it: ``/a?token=***&b=c``.

    An address in a parameter has a query string too: ``/login?next=/a%3Ftoken%3Dx`` becomes ``/login?next=***``.
    """
    if "=" not in text and "%3" not in text:
        return text
    pieces = _SEPARATOR.split(text)  # the odd ones are separators
    in_secret = False  # this piece belongs to a secret value
    for index in range(2, len(pieces), 2):
        separator, piece = pieces[index - 1], pieces[index]
        if separator.isspace() and (piece.startswith("HTTP/") or not in_secret):  # the end of a request line
            in_secret = False
        elif in_secret and separator not in "&;":
            pieces[index - 1] = pieces[index] = ""
        else:
            name, equals, value = piece.partition("=")
            in_secret = bool(equals) and is_secret(name)
            inner = f"?{unquote_plus(piece)}" if nested and "%" in piece else ""
            if (in_secret and value) or mask_query(inner, nested - 1) != inner:
                pieces[index] = f"{name}=***" if equals else "***"
    return "".join(pieces)


# Logs.


class RateLimitedLog:
    """One warning for many events: the first event is logged at once, later ones together, ``every`` so many seconds.

    The sentence takes the number of events of each of the ``kinds``, then the values that came with the last event.
    """

    def __init__(
        self, log: logging.Logger, sentence: str, *kinds: Hashable, every: float = LOG_EVERY
    ) -> None:
        self._log, self._sentence, self._kinds, self._every = log, sentence, kinds, every
        self._counts: Counter[Hashable] = Counter()
        self._values: tuple[object, ...] = ()
        self._logged_at = -math.inf

    def count(self, kind: Hashable = None, *values: object, number: int = 1) -> None:
        """Count events, and log them if it is time; with ``number`` 0 only log what was counted before."""
        if number:
            self._counts[kind] += number
            self._values = values
        if time.monotonic() - self._logged_at >= self._every:
            self.flush()

    def flush(self) -> None:
        """Log the events that were not logged yet."""
        if self._counts:
            numbers = [self._counts[kind] for kind in self._kinds]
            self._log.warning(self._sentence, *numbers, *self._values)
            self._logged_at = time.monotonic()
            self._counts.clear()


class Lines(str):
    """A text of several lines, for a log: shown as such, and indented, so that none can pass for the log's own."""


def escaped(text: str, most: int = 1_000) -> str:
    """Return a text as one line, cut: what does not print is escaped as in Python, ``\\x1b``, ``\\n``."""
    shown = text[: most + 1]
    if not shown.isprintable():
        shown = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in shown)
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."


def escaped_lines(text: str) -> str:
    """Return the lines of a text, each escaped; those after the first are indented."""
    return "\n    ".join(escaped(line) for line in text.rstrip("\n").split("\n"))


def _shown(argument: object) -> object:
    if isinstance(argument, Lines):
        return escaped_lines(argument)
    return argument if isinstance(argument, (int, float)) else escaped(str(argument))


class Escape(logging.Filter):
    """Escapes the arguments of each record, and its traceback where logging's own formatter writes it."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True: every record is logged."""
        if isinstance(record.args, tuple):
            record.args = tuple(map(_shown, record.args))
        if record.exc_info and record.exc_info[0]:
            record.exc_text = "    " + escaped_lines("".join(traceback.format_exception(*record.exc_info)))
        return True


_ESCAPE = Escape()


def escape_logs() -> None:
    """Have all that dbchannels logs escaped."""
    for name in ("access", "handler", "layer", "logins", "routing", "server", "supervisor", "worker"):
        logging.getLogger(f"dbchannels.{name}").addFilter(_ESCAPE)  # once, however often
    logging.getLogger("dbchannels").addFilter(_ESCAPE)


# Messages.


class Note(str):
    """Words in the place of a value: shown without quotes."""

    __repr__ = str.__str__


def _masked(value: object) -> object:
    data = value.encode() if isinstance(value, str) else value
    return Note(f"(masked, {len(data)} bytes)" if isinstance(data, bytes) else "(masked)")


def _address(value: object, prefix: str = "") -> object:
    """Return a header's value, or with the prefix ``?`` a query string, without the secrets of addresses in it."""
    if not isinstance(value, (bytes, str)):
        return readable(value)
    text = value if isinstance(value, str) else value.decode("latin-1")
    shown = mask_query(prefix + text).removeprefix(prefix)
    return shown if isinstance(value, str) else shown.encode("latin-1")


def readable(value: Any, http: bool = False) -> Any:
    """Return a copy of a message without its secrets: what is secret by its name, and the bodies of HTTP."""
    if isinstance(value, list):
        if not value or not isinstance(value[0], (str, bytes)):
            return [readable(item) for item in value]
        # A header, or what looks like one, wherever it stands.
        name = value[0] if isinstance(value[0], str) else value[0].decode("latin-1")
        return [value[0], *map(_masked if is_secret(name) else _address, value[1:])]
    if not isinstance(value, dict):
        return value
    bodies = BODY if http or not HTTP.isdisjoint(value) else frozenset()
    shown: dict[Any, Any] = {}
    for key, item in value.items():
        # A number is none that a client proves itself by, but for PINs.
        secret = key in bodies or (is_secret(key) and (key == "pin" or not isinstance(item, (int, float))))
        shown[key] = _masked(item) if secret and item is not None else readable(item)
    if "query_string" in value:
        shown["query_string"] = _address(value["query_string"], "?")
    return shown


def _laid_out(value: Any, indent: str) -> str:
    """Return a value in lines. (pprint indents by the length of keys, so that one of 8 kB makes 64 MB of a text.)"""
    flat = repr(value)
    if not value or not isinstance(value, (dict, list)) or len(indent) + len(flat) <= WIDTH:
        return flat
    inner = indent + "    "
    if isinstance(value, list):
        items, ends = [_laid_out(item, inner) for item in value], "[]"
    else:
        items, ends = [f"{key!r}: {_laid_out(item, inner)}" for key, item in value.items()], "{}"
    return f"{ends[0]}\n" + "".join(f"{inner}{item},\n" for item in items) + indent + ends[1]


def message_text(channel: str, payload: bytes, pretty: bool = True) -> str:
    """Return an encoded message in Python's notation, its secrets masked; or why that is not possible."""
    try:
        message = codec.decode(payload)
        # The last part of a body may have ``content`` alone; ``binary`` beside it makes it a WebSocket's.
        shown = readable(message, http=message.get("binary") is None and names.is_protocol(channel))
        if not pretty:
            shown.pop("reply_channel", None)  # long, and of no use in a list
        text = repr(shown)
        return _laid_out(shown, "") if pretty and len(text) <= PRETTY else text
    except DECODING_ERRORS:
        return UNREADABLE
