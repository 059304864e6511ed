"""After how much work another process takes the place of a worker."""

from __future__ import annotations

import logging
import math
import os
import random
import resource
import sys

log = logging.getLogger("dbchannels.worker")


class Limits:
    """How many messages a worker runs, and how many bytes of memory it may have after one; None: any number.

    Each worker takes up to a tenth less, so that workers that were started together are not replaced together.
    """

    def __init__(self, messages: int | None = None, memory: int | None = None) -> None:
        share = random.uniform(0.9, 1.0)
        self._messages = math.inf if messages is None else math.ceil(messages * share)
        self._memory = math.inf if memory is None else memory * share
        if memory is not None and (used := resident_memory()) > self._memory:
            log.warning(
                "This worker has %.0f MiB of memory before its first message, but --max-memory is %.0f MiB. So it is "
                "replaced after each message: raise --max-memory.",
                used / 2**20,
                memory / 2**20,
            )

    def reached(self, messages: int) -> str:
        """Return which limit a worker that has run so many messages has reached, for the log; "" for none."""
        if messages >= self._messages:
            return f"has run {messages:,} messages (--max-messages)"
        if self._memory < math.inf and (used := resident_memory()) > self._memory:
            return f"has {used / 2**20:,.0f} MiB of memory (--max-memory)"
        return ""


def resident_memory() -> int:
    """Return how many bytes of memory this process has; without Linux's /proc the most that it ever had."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
