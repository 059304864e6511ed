"""The frames between the page and the consumers: one JSON object in each text frame.

The page sends ``{"type": "say", "text": TEXT}``; the name is in the address, ``?name=NAME``. It receives::

    {"type": "welcome", "you": PERSON, "here": [PERSON, ...], "lines": [LINE, ...]}   first
    {"type": "joined", "person": PERSON}
    {"type": "left", "person": PERSON}
    {"type": "said", "line": LINE, "by": ID}                                          the id of a PERSON
    {"type": "error", "code": CODE, "text": SENTENCE}                                 CODE is a key of ERRORS

PERSON is ``{"id", "name"}``, LINE is ``{"id", "name", "text", "at"}`` with ``at`` in ISO 8601.
"""

from __future__ import annotations

import json
import unicodedata
from urllib.parse import parse_qs

from chat.models import NAME_LIMIT, TEXT_LIMIT

NOT_ADMITTED = 4400  # close code: reconnecting does not help (RFC 6455, section 7.4.2: 4000 to 4999 are free)
FRAME_LIMIT = 12 * TEXT_LIMIT + 100  # characters: JSON may write one above U+FFFF as twelve, \ud83d\ude00

ERRORS = {
    "bad-name": f"Choose a name of 1 to {NAME_LIMIT} visible characters.",
    "not-text": "Send text frames, not binary ones.",
    "not-json": 'Send a JSON object, such as {"type": "say", "text": "hello"}.',
    "bad-type": 'Send an object whose "type" is "say".',
    "bad-text": 'Send an object whose "text" is a string that is not blank.',
    "too-long": f"Send at most {TEXT_LIMIT} characters at a time.",
}


class BadFrame(Exception):
    """A frame cannot be used; the argument is a key of ERRORS."""

    @property
    def code(self) -> str:
        """The key of ERRORS."""
        return self.args[0]


def read_name(query_string: bytes) -> str:
    """Return the name in ``name=...``, on one line and without invisible characters. Raises BadFrame."""
    values = parse_qs(query_string.decode("utf-8", "replace")).get("name", [""])
    name = " ".join("".join(one if one.isprintable() else " " for one in values[0]).split())
    if not 1 <= len(name) <= NAME_LIMIT:
        raise BadFrame("bad-name")
    return name


def read_say(raw: str | None) -> str:
    """Return the text of a ``say`` without characters that cannot be stored; ``raw`` is None for a binary frame."""
    text = _read(raw).get("text")
    if not isinstance(text, str):
        raise BadFrame("bad-text")
    # PostgreSQL stores no NUL, and UTF-8 cannot encode half of a surrogate pair.
    kept = [one for one in text if one in "\n\t" or unicodedata.category(one) not in ("Cc", "Cs")]
    text = "".join(kept).strip()
    if not text:
        raise BadFrame("bad-text")
    if len(text) > TEXT_LIMIT:
        raise BadFrame("too-long")
    return text


def _read(raw: str | None) -> dict:
    if raw is None:
        raise BadFrame("not-text")
    if len(raw) > FRAME_LIMIT:
        raise BadFrame("too-long")
    try:
        frame = json.loads(raw)
    except (ValueError, RecursionError):
        raise BadFrame("not-json") from None
    if not isinstance(frame, dict):
        raise BadFrame("not-json")
    if frame.get("type") != "say":
        raise BadFrame("bad-type")
    return frame


def welcome(you, here, lines) -> str:
    """The first frame: the newcomer, all people in the room, and the latest lines, oldest first."""
    return _frame(
        "welcome", you=_person(you), here=[_person(one) for one in here], lines=[_line(one) for one in lines]
    )


def joined(presence) -> str:
    """Somebody has joined."""
    return _frame("joined", person=_person(presence))


def left(presence) -> str:
    """Somebody has left."""
    return _frame("left", person=_person(presence))


def said(line, speaker) -> str:
    """Somebody said something."""
    return _frame("said", line=_line(line), by=speaker.pk)


def error(bad: BadFrame) -> str:
    """A frame could not be used, and why."""
    return _frame("error", code=bad.code, text=ERRORS[bad.code])


def _frame(kind: str, **fields) -> str:
    return json.dumps({"type": kind, **fields}, ensure_ascii=False)


def _person(presence) -> dict:
    return {"id": presence.pk, "name": presence.name}


def _line(line) -> dict:
    return {"id": line.pk, "name": line.name, "text": line.text, "at": line.said_at.isoformat()}
