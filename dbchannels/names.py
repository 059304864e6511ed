"""Names of channels and groups: the rules, and the parts a name is made of.

A name has 1 to 100 ASCII letters, digits, ``-``, ``_`` and ``.``. A channel's name may hold one ``!`` (a
*process-specific* channel: what stands before it, and the ``!``, is the **queue** that one process reads; what
follows is the **local part**, which that process hands out itself) or one ``?`` (a *single-reader* channel).
"""

from __future__ import annotations

import re
import secrets

from dbchannels.exceptions import InvalidName

MAX_LENGTH = 100
MAX_USER_ID = 255
MOST_KNOWN = 10_000  # names that were checked already and are remembered
_CHANNEL = re.compile(r"\A[A-Za-z0-9_.-]+(?:[!?][A-Za-z0-9_.-]*)?\Z")
_GROUP = re.compile(r"\A[A-Za-z0-9_.-]+\Z")
_known: set[object] = set()
_CHARACTERS = "ASCII letters, digits, hyphens, underscores and dots"


def check_channel_name(name: object) -> str:
    """Return ``name`` when a channel can be called so; raise InvalidName with the broken rule otherwise."""
    if name.__class__ is str and name in _known:  # a regular expression for each of 100 messages takes 80 us
        return name
    checked = _check(name, _CHANNEL, "channel", " and at most one '?' or '!'")
    if len(_known) < MOST_KNOWN and not checked.partition("!")[2]:  # names of connections are not seen again
        _known.add(checked)
    return checked


def check_group_name(name: object) -> str:
    """Return ``name`` when a group can be called so; raise InvalidName with the broken rule otherwise."""
    return _check(name, _GROUP, "group", "")


def check_receivable(name: object) -> str:
    """As check_channel_name, for a reader: the local part of a process-specific channel is not its to give."""
    queue, local = split(check_channel_name(name))
    if local:
        raise InvalidName(
            f"Receive from {queue}, not from {name}: what follows the '!' belongs to the process that reads."
        )
    return queue


def _check(name: object, pattern: re.Pattern[str], kind: str, also: str) -> str:
    if not isinstance(name, str):
        raise InvalidName(f"The name of a {kind} is a str, not {type(name).__name__}: {_shown(name)}.")
    if len(name) > MAX_LENGTH:
        raise InvalidName(
            f"The name of a {kind} has at most {MAX_LENGTH} characters, and this one has {len(name)}: "
            f"{_shown(name)}."
        )
    if not pattern.match(name):
        raise InvalidName(f"The name of a {kind} is made of {_CHARACTERS}{also}: {_shown(name)} is not.")
    return name


def _shown(name: object) -> str:
    text = ascii(name)
    return text if len(text) <= 60 else text[:57] + "..."


def split(name: str) -> tuple[str, str]:
    """Split a channel's name into its queue and its local part: ``("reply.A!", "B")`` for ``reply.A!B``."""
    head, mark, local = name.partition("!")
    return (head + mark, local)


def is_protocol(name: str) -> bool:
    """Whether messages on this channel are protocol messages: at most once, in order, and soon expired.

    So are ``http.*``, ``websocket.*`` and all channels with a ``!`` or ``?``. Every other channel is durable.
    """
    return "!" in name or "?" in name or name.startswith(("http.", "websocket."))


def random_part() -> str:
    """Return 22 characters that nobody can guess: 128 bits from the system's generator, base64url."""
    return secrets.token_urlsafe(16)


def new_name(pattern: object) -> str:
    """Return a name that does not exist yet; ``pattern`` ends in ``?`` or ``!``."""
    name = check_channel_name(pattern)
    if not name.endswith(("?", "!")):
        raise InvalidName(f"The pattern of a new channel ends in '?' or '!', as in {_shown(name + '?')}.")
    return check_channel_name(name + random_part())


def check_user_id(user_id: object) -> str:
    """Return the text of a user's primary key, "" for nobody known; raises InvalidName."""
    if isinstance(user_id, str) and len(user_id) <= MAX_USER_ID and user_id.isprintable():
        return user_id
    raise InvalidName(
        f"A user's id is a str of at most {MAX_USER_ID} characters that can be printed, not {user_id!a:.60}: "
        "give the text of the user's primary key."
    )
