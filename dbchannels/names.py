"""The rules for names of channels and groups, and the parts of a name.

A name has 1 to 100 ASCII letters, digits, ``-``, ``_`` and ``.``. A channel's name may contain one ``?`` (a
*single-reader* channel) or one ``!`` (a *process-specific* channel). In ``reply.A!B``, ``reply.A!`` is the **queue**
that one process reads, and ``B`` is the **local part**, which that process assigns itself.
"""

from __future__ import annotations

import re
import secrets

from dbchannels.exceptions import InvalidName, safe_repr

MAX_LENGTH = 100
MAX_USER_ID = 255
MAX_LOGIN = MAX_USER_ID + 1  # a sign goes in front, see layers/operations.py
#: The channels of a WebSocket's life, in order.
WEBSOCKET = ("websocket.connect", "websocket.receive", "websocket.event", "websocket.disconnect")
#: The key, in a WSGI environ, of what the layer and Django's handler tell each other; see worker.views.RequestContext.
REQUEST_CONTEXT = "dbchannels.request"
RANDOM_LENGTH = 22  # characters of what random_part gives
MOST_KNOWN = 10_000  # checked names that are remembered
_CHANNEL = re.compile(r"\A[A-Za-z0-9_.-]+(?:[!?][A-Za-z0-9_.-]*)?\Z")
_GROUP = re.compile(r"\A[A-Za-z0-9_.-]+\Z")
_ORDINARY = re.compile(r"\A[A-Za-z0-9_.-]\Z")
_known: set[object] = set()


def check_channel_name(name: object) -> str:
    """Return ``name`` if it is valid for a channel; raise InvalidName with the broken rule otherwise."""
    if name.__class__ is str and name in _known:  # a regular expression for each of 100 messages takes 80 us
        return name
    checked = _check(name, _CHANNEL, "channel")
    if len(_known) < MOST_KNOWN and not checked.partition("!")[2]:  # names of connections do not come back
        _known.add(checked)
    return checked


def check_group_name(name: object) -> str:
    """Return ``name`` if it is valid for a group; raise InvalidName with the broken rule otherwise."""
    return _check(name, _GROUP, "group")


def check_receivable(name: object) -> str:
    """Return ``name`` if a reader can receive from it: a valid channel name without a local part."""
    queue, local = split(check_channel_name(name))
    if local:
        raise InvalidName(
            f"Receive from {queue}, not from {name}: the part after the '!' is assigned by the reading process."
        )
    return queue


def _check(name: object, pattern: re.Pattern[str], kind: str) -> str:
    if not isinstance(name, str):
        raise InvalidName(
            f"The name of a {kind} must be a str, not {type(name).__name__}: {safe_repr(name)}."
        )
    if len(name) > MAX_LENGTH:
        raise InvalidName(
            f"The name of a {kind} has at most {MAX_LENGTH} characters, and this one has {len(name)}: "
            f"shorten {safe_repr(name)}."
        )
    if pattern.match(name):
        return name
    if not name:
        raise InvalidName(f"The name of a {kind} is empty: give it 1 to {MAX_LENGTH} characters.")
    for position, character in enumerate(name, 1):
        if not _ORDINARY.match(character) and character not in "!?":
            raise InvalidName(
                f"The name of a {kind} contains {safe_repr(character)} as character {position}: write "
                f"{safe_repr(name)} with ASCII letters, digits, hyphens, underscores and dots."
            )
    if kind == "group":
        rule, advice = "no '!' and no '?', which are for channels", "remove it from"
    elif name[0] in "!?":
        rule, advice = f"no {name[0]!r} at its beginning", "put a name in front of it in"
    else:
        rule, advice = "at most one '!' or one '?'", "remove all but one from"
    raise InvalidName(f"The name of a {kind} has {rule}: {advice} {safe_repr(name)}.")


def event_handler(event: object) -> str:
    """Return the name of the method for an event, ``chat_message`` for ``chat.message``; "" if there can be none."""
    method = event.replace(".", "_") if isinstance(event, str) else ""
    return method if method.isidentifier() and not method.startswith("_") else ""


def split(name: str) -> tuple[str, str]:
    """Split a channel's name into its queue and its local part: ``("reply.A!", "B")`` for ``reply.A!B``."""
    head, mark, local = name.partition("!")
    return (head + mark, local)


def is_protocol(name: str) -> bool:
    """Whether messages on this channel are protocol messages: delivered at most once, in order, and soon expired.

    These are ``http.*``, ``websocket.*`` and all channels with a ``!`` or ``?``. Every other channel is durable.
    """
    return "!" in name or "?" in name or name.startswith(("http.", "websocket."))


def random_part() -> str:
    """Return 22 characters that nobody can guess: 128 random bits in base64url."""
    return secrets.token_urlsafe(16)


def new_name(pattern: object) -> str:
    """Return a new name; ``pattern`` ends in ``?`` or ``!``."""
    name = check_channel_name(pattern)
    if not name.endswith(("?", "!")):
        head, mark, _ = name.replace("?", "!").partition("!")
        wrong = f"ends with its {name[len(head)]!r}, and nothing follows it" if mark else "ends in '?' or '!'"
        raise InvalidName(
            f"The pattern of a new channel {wrong}: write {safe_repr(name[: len(head) + 1] if mark else name + '?')}."
        )
    if len(name) > MAX_LENGTH - RANDOM_LENGTH:
        raise InvalidName(
            f"The pattern of a new channel has at most {MAX_LENGTH - RANDOM_LENGTH} characters, as {RANDOM_LENGTH} are "
            f"added, and this one has {len(name)}: shorten {safe_repr(name)}."
        )
    return name + random_part()


def check_user_id(user_id: object) -> str:
    """Return ``user_id`` if it is the text of a primary key, or "" for no user; raises InvalidName otherwise."""
    if not isinstance(user_id, str):
        raise InvalidName(
            f"A user's id must be a str, not {safe_repr(user_id)}: give the text of the user's primary key."
        )
    if len(user_id) > MAX_USER_ID:
        raise InvalidName(
            f"A user's id has at most {MAX_USER_ID} characters, and this one has {len(user_id)}: give the primary key, "
            f"not {safe_repr(user_id)}."
        )
    if not user_id.isprintable():
        raise InvalidName(
            f"A user's id can be printed, and {safe_repr(user_id)} cannot: give a primary key without control "
            "characters."
        )
    return user_id


def worker_names(name: str, threads: int) -> list[str]:
    """Return the names of the workers in one process, one for each thread."""
    return [name, *(f"{name}.{number}" for number in range(2, threads + 1))]
