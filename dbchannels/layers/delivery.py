"""The options of a message on a durable channel: when it is delivered, before which others, and once for each key."""

from __future__ import annotations

from datetime import datetime, timedelta
from datetime import timezone as datetime_timezone
from typing import Any

from django.utils import timezone

from dbchannels import names
from dbchannels.exceptions import InvalidMessage, safe_repr

LONGEST_DELAY = 10 * 365 * 86_400.0  # seconds
PRIORITIES = range(-32_768, 32_768)  # PostgreSQL's smallint


def delivery_options(
    channel: str,
    delay: float | timedelta = 0,
    deliver_at: datetime | None = None,
    priority: int = 0,
    unique: str = "",
) -> dict[str, Any]:
    """Check the options of a send, and return them as fields of ``operations.Send``.

    * ``delay``: a timedelta or a number of seconds, up to ten years
    * ``deliver_at``: the moment, in place of a delay
    * ``priority``: messages with the highest one are taken first; 0 is the default
    * ``unique``: a key. While a message with this key waits on the channel, no second one is queued; the key is free
      again as soon as the message starts to run.

    Raises InvalidMessage.
    """
    options = {
        "delay": _delay_seconds(delay),
        "due_at": _moment(deliver_at),
        "priority": _priority(priority),
        "unique": _unique(unique),
    }
    if (any(options.values()) or deliver_at is not None) and names.is_protocol(channel):
        raise InvalidMessage(
            f"Messages on {channel} have no delay, priority or unique key: send to a channel of your own, whose "
            "consumer sends the message on."
        )
    if options["delay"] and deliver_at is not None:
        raise InvalidMessage("A message has a delay or a moment, not both: leave out delay or deliver_at.")
    return options


def _delay_seconds(delay: object) -> float:
    """Return a delay in seconds; a database would refuse NaN or 1e300 only when a worker writes a whole batch."""
    if isinstance(delay, timedelta):
        delay = delay.total_seconds()
    if not isinstance(delay, (int, float)) or delay != delay:  # NaN
        raise InvalidMessage(
            f"A delay must be a timedelta or a number of seconds, not {safe_repr(delay, 40)}: write delay=5 or "
            "delay=timedelta(...)."
        )
    if delay < 0:
        raise InvalidMessage(
            f"A delay must not be negative, unlike {safe_repr(delay, 40)}: leave it out to send the message now."
        )
    if delay > LONGEST_DELAY:
        raise InvalidMessage(
            f"A delay must be at most ten years, not {safe_repr(delay, 40)} s: send the message later."
        )
    return float(delay)


def _moment(deliver_at: object) -> datetime | None:
    """Return the moment; None for a past one, so that no date of another age reaches a database."""
    if deliver_at is None:
        return None
    if not isinstance(deliver_at, datetime):
        raise InvalidMessage(
            f"deliver_at must be a datetime, not {safe_repr(deliver_at, 40)}: write deliver_at=datetime(...)."
        )
    moment = deliver_at
    if timezone.is_naive(deliver_at):  # as in a model's field, it is the site's local time
        moment = timezone.make_aware(deliver_at, timezone.get_default_timezone())
    # Not timezone.now(), which is naive with USE_TZ = False.
    seconds = (moment - datetime.now(datetime_timezone.utc)).total_seconds()
    if seconds > LONGEST_DELAY:
        raise InvalidMessage(
            f"deliver_at must be within ten years, not {deliver_at!s:.40}: send the message later."
        )
    return moment if seconds > 0 else None


def _priority(priority: object) -> int:
    if not isinstance(priority, int) or isinstance(priority, bool):
        raise InvalidMessage(
            f"A priority must be a whole number, not {safe_repr(priority, 40)}: write priority=5, for example."
        )
    if priority not in PRIORITIES:
        raise InvalidMessage(
            f"A priority must be from {PRIORITIES[0]} to {PRIORITIES[-1]}, not {safe_repr(priority, 40)}."
        )
    return priority


def _unique(unique: object) -> str:
    if not isinstance(unique, str):
        raise InvalidMessage(f"A unique key must be a str, not {safe_repr(unique)}: write unique=str(...).")
    if len(unique) > names.MAX_LENGTH:
        raise InvalidMessage(
            f"A unique key must have at most {names.MAX_LENGTH} characters, not {len(unique)}: use a shorter one, such "
            "as a hash."
        )
    if not unique.isprintable():
        raise InvalidMessage(
            f"A unique key must consist of printable characters, unlike {safe_repr(unique)}: remove the others."
        )
    return unique
