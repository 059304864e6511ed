"""How one message is delivered on a durable channel: when, before which others, and how often it may wait."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.utils import timezone

from dbchannels import names
from dbchannels.exceptions import InvalidMessage

LONGEST_DELAY = 10 * 365 * 86_400.0  # seconds
PRIORITIES = range(-32_768, 32_768)  # PostgreSQL's smallint


def delivery_options(
    channel: str,
    delay: float | timedelta = 0,
    deliver_at: datetime | None = None,
    priority: int = 0,
    unique: str = "",
) -> dict[str, Any]:
    """Check the options of a send, and return them as ``operations.Send`` has them.

    ``delay``: a timedelta or seconds, 0 to ten years. ``deliver_at``: the moment in place of a delay. ``priority``:
    the highest is taken first, 0 is usual. ``unique``: it is not queued while a message with this key waits on the
    channel; the key is free again as soon as that one starts to run. Raises InvalidMessage with one sentence.
    """
    options = {
        "delay": _delay_seconds(delay),
        "due_at": _moment(deliver_at),
        "priority": _priority(priority),
        "unique": _unique(unique),
    }
    if any(options.values()) and names.is_protocol(channel):
        raise InvalidMessage(
            f"Messages on {channel} are taken as they come, without delay, priority or unique key: send to a "
            "channel of your own, whose consumer sends it on."
        )
    if options["delay"] and deliver_at is not None:
        raise InvalidMessage("A message has a delay or a moment, not both: leave out delay or deliver_at.")
    return options


def _delay_seconds(delay: object) -> float:
    """Return a delay in seconds; a database would refuse NaN or 1e300 only when a worker writes a whole batch."""
    if isinstance(delay, timedelta):
        delay = delay.total_seconds()
    if isinstance(delay, (int, float)) and 0 <= delay <= LONGEST_DELAY:
        return float(delay)
    raise InvalidMessage(
        f"A delay is a timedelta or a number of seconds from 0 to ten years, not {delay!r:.40}: correct it."
    )


def _moment(deliver_at: object) -> datetime | None:
    if deliver_at is None:
        return None
    if not isinstance(deliver_at, datetime):
        raise InvalidMessage(f"The moment deliver_at is a datetime, not {deliver_at!r:.40}: correct it.")
    moment = timezone.make_aware(deliver_at) if timezone.is_naive(deliver_at) else deliver_at
    if moment > timezone.now() + timedelta(seconds=LONGEST_DELAY):
        raise InvalidMessage(
            f"The moment deliver_at is within ten years, not {deliver_at!s:.40}: correct it."
        )
    return moment


def _priority(priority: object) -> int:
    if isinstance(priority, int) and not isinstance(priority, bool) and priority in PRIORITIES:
        return priority
    raise InvalidMessage(f"A priority is an int from -32768 to 32767, not {priority!r:.40}: correct it.")


def _unique(unique: object) -> str:
    if isinstance(unique, str) and len(unique) <= names.MAX_LENGTH and unique.isprintable():
        return unique
    raise InvalidMessage(
        f"A unique key is a str of at most {names.MAX_LENGTH} characters that can be printed, not {unique!a:.60}: "
        "take a shorter one, such as a hash."
    )
