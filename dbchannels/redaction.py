"""Mask secrets and escape control characters in texts from clients, for logs and for the admin.

* A value is secret because of its name: of a header, a URL parameter, a form field, a key of a message. A name is
  secret if one of its words is in SECRET_WORDS: ``user_pass``, ``accessToken``, ``X-Api-Key``, ``token[]`` and
  ``x%5Ftoken`` are secret, ``passenger`` is not.
* A log call has a constant text and passes everything else as arguments: ``log.warning("Refused %s.", origin)``. A
  filter on each logger of dbchannels escapes the arguments, so that no client can start a line or control a terminal.
  Pass several lines, such as a traceback, as ``Lines(text)``, which indents them.

Texts are split, not searched, so that the time grows linearly with the text.
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
    "accesskey accesstoken apikey assertion auth authorization authtoken bearer code cookie credential credentials "
    "csrf csrfmiddlewaretoken csrftoken cvc cvv hmac idtoken jsessionid jwt key mfa oauth otp pass passcode passphrase "
    "passwd password passwords phpsessid pin privatekey pw pwd refreshtoken saml secret secretkey secrets sessid "
    "session sessionid sessionkey sid sig signature ticket token totp xsrf xsrftoken"
)
SECRET_WORDS = frozenset(_WORDS.split())
#: Secret headers: browsers' scripts can set no other header of a WebSocket, so sites put tokens into it.
SECRET_NAMES = frozenset({"sec-websocket-protocol"})
LONGEST_NAME = 200  # characters of a name in which words are looked for
NESTED = 3  # levels of addresses inside addresses that are decoded

PRETTY = 65_536  # characters up to which a message is laid out in lines
LOG_EVERY = 10.0  # seconds between two lines of a RateLimitedLog
WIDTH = 100  # characters up to which a dict or a list stays on one line
BODY = frozenset({"body", "content"})
#: A dict with one of these keys is a request, a response, or a part of one.
HTTP = frozenset({"body_channel", "headers", "http_version", MORE_CONTENT, "status"})
UNREADABLE = "This payload cannot be decoded: it was not encoded by this version of dbchannels."
DECODING_ERRORS = (
    ValueError,
    RecursionError,
    msgpack.UnpackException,
    AttributeError,
)  # AttributeError: not a dict

# A word, or a run of capitals, without the last if that begins a word: "API" in "API" and in "APIKey".
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_SEPARATOR = re.compile(r"([?&;#\s])")


def is_secret(name: str) -> bool:
    """Whether a value with this name is a secret."""
    name = unquote_plus(name[:LONGEST_NAME])
    return name.lower() in SECRET_NAMES or any(word.lower() in SECRET_WORDS for word in _WORD.findall(name))


def mask_query(text: str, nested: int = NESTED) -> str:
    """Return a text with ``***`` for each secret value of the query strings in it: ``/a?token=***&b=c``.

    An address in a parameter may have a query string too: ``/login?next=/a%3Ftoken%3Dx`` becomes ``/login?next=***``.
    """
    if "=" not in text and "%3" not in text:
        return text
    pieces = _SEPARATOR.split(text)  # every second one is a separator
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
    """One warning for many events: the first event is logged at once, later ones together, once in ``every`` seconds.

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
        counts, self._counts = self._counts, Counter()  # at once: another thread may flush too
        if counts:
            self._logged_at = time.monotonic()
            self._log.warning(self._sentence, *(counts[kind] for kind in self._kinds), *self._values)


class Lines(str):
    """Several lines for a log, which are indented, so that they cannot look like lines of the log itself."""


def escaped(text: str, most: int = 1_000) -> str:
    """Return a text as one shortened line, with unprintable characters escaped as in Python: ``\\x1b``, ``\\n``."""
    shown = text[: most + 1]
    if not shown.isprintable():
        shown = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in shown)
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."


def log_field(text: str, most: int) -> str:
    """Return what a client sent, in latin-1, as a quoted field of a log line: masked, escaped and cut, in ASCII."""
    # What is cut off here costs nothing; what masking leaves out may bring more of the rest into the line.
    masked = mask_query(text[: 2 * most]).replace("\\", "\\\\").replace('"', "\\x22")
    return escaped(masked.encode("ascii", "backslashreplace").decode("ascii"), most)


def escaped_lines(text: str) -> str:
    """Return the lines of a text, escaped, and indented from the second on."""
    return "\n    ".join(escaped(line) for line in text.rstrip("\n").split("\n"))


def _escaped_argument(argument: object) -> object:
    if isinstance(argument, Lines):
        return escaped_lines(argument)
    return argument if isinstance(argument, (int, float)) else escaped(str(argument))


class Escape(logging.Filter):
    """Escape the arguments and the traceback of each record."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True: every record is logged."""
        if isinstance(record.args, tuple):
            record.args = tuple(map(_escaped_argument, record.args))
        if record.exc_info and record.exc_info[0]:
            record.exc_text = "    " + escaped_lines("".join(traceback.format_exception(*record.exc_info)))
        return True


_ESCAPE = Escape()


def escape_logs() -> None:
    """Add the filter to all loggers of dbchannels."""
    for name in ("access", "layer", "logins", "routing", "server", "supervisor", "worker"):
        logging.getLogger(f"dbchannels.{name}").addFilter(_ESCAPE)
    logging.getLogger("dbchannels").addFilter(_ESCAPE)


# Messages.


class Note(str):
    """A note in place of a value, without quotes in its repr."""

    __repr__ = str.__str__


def _masked(value: object) -> object:
    data = value.encode() if isinstance(value, str) else value
    return Note(f"(masked, {len(data)} bytes)" if isinstance(data, bytes) else "(masked)")


def _address(value: object, prefix: str = "", levels: int = codec.MAX_DEPTH) -> object:
    """Return the value of a header, or a query string (prefix ``?``), with the secrets of addresses masked."""
    if not isinstance(value, (bytes, str)):
        return readable(value, levels=levels)
    text = value if isinstance(value, str) else value.decode("latin-1")
    shown = mask_query(prefix + text).removeprefix(prefix)
    return shown if isinstance(value, str) else shown.encode("latin-1")


def readable(value: Any, http: bool = False, levels: int = codec.MAX_DEPTH) -> Any:
    """Return a copy of a message with secret values and HTTP bodies masked.

    Raises ValueError for a message that is nested deeper than the encoder allows: how deep Python itself goes differs
    between its versions, and each level is another indent on each line.
    """
    if isinstance(value, (list, dict)):
        if levels == 0:
            raise ValueError(f"It is nested deeper than {codec.MAX_DEPTH} levels.")
        levels -= 1
    if isinstance(value, list):
        if not value or not isinstance(value[0], (str, bytes)):
            return [readable(item, levels=levels) for item in value]
        # A header, or a list that looks like one, anywhere in the message.
        name = value[0] if isinstance(value[0], str) else value[0].decode("latin-1")
        if is_secret(name):
            return [value[0], *map(_masked, value[1:])]
        return [value[0], *(_address(item, levels=levels) for item in value[1:])]
    if not isinstance(value, dict):
        return value
    bodies = BODY if http or not HTTP.isdisjoint(value) else frozenset()
    shown: dict[Any, Any] = {}
    for key, item in value.items():
        # Numbers are no secrets, except PINs.
        secret = key in bodies or (is_secret(key) and (key == "pin" or not isinstance(item, (int, float))))
        shown[key] = _masked(item) if secret and item is not None else readable(item, levels=levels)
    if "query_string" in value:
        shown["query_string"] = _address(value["query_string"], "?")
    return shown


def _laid_out(value: Any, indent: str) -> str:
    """Return a value in lines. (pprint indents by the length of keys: a key of 8 kB would make 64 MB.)"""
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
    """Return an encoded message as Python text with its secrets masked, or a sentence if it cannot be decoded."""
    try:
        message = codec.decode(payload)
        # The last part of an HTTP body may have ``content`` alone; a WebSocket frame has ``binary`` as well.
        shown = readable(message, http=message.get("binary") is None and names.is_protocol(channel))
        if not pretty:
            shown.pop("reply_channel", None)  # long, and useless in a list
        text = repr(shown)
        return _laid_out(shown, "") if pretty and len(text) <= PRETTY else text
    except DECODING_ERRORS:
        return UNREADABLE
