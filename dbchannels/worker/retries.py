"""When a durable message whose consumer failed runs again; how often it may, a route's ``retries`` says."""

from __future__ import annotations

import logging
import random

from dbchannels.conf import TEN_YEARS
from dbchannels.routing.routes import Backoff

log = logging.getLogger("dbchannels.worker")

FIRST, FACTOR, LONGEST = 1.0, 5.0, 3600.0  # seconds, what each attempt multiplies them by, seconds
JITTER = 0.25  # of the delay, so that messages that failed together do not come back together


def backoff(attempt: int) -> float:
    """Return the seconds after which a failed message runs again by default: 1, 5, 25, 125 ..., an hour at most."""
    return min(LONGEST, FIRST * FACTOR ** min(attempt - 1, 6)) * random.uniform(1 - JITTER, 1 + JITTER)


def retry_delay(attempt: int, own: Backoff | None, consumer: str) -> float:
    """Return the seconds until the next attempt: by the consumer's own ``backoff``, if it gives a usable one."""
    if own is None:
        return backoff(attempt)
    try:
        seconds = float(own(attempt) if callable(own) else own)
    except Exception:
        log.exception("The backoff of %s raised; the default is used.", consumer)
        return backoff(attempt)
    return seconds if 0 <= seconds <= TEN_YEARS else backoff(attempt)
