"""The line of the log when messages wait because every worker that takes them is busy."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from dbchannels.layers.link import Link

log = logging.getLogger("dbchannels.server")


class Overload:
    """Logs once that messages of a channel wait because all workers that take it are busy, and what these run."""

    PATIENCE = 30.0  # seconds that the oldest message may wait until the line is logged
    NAMED = 10  # workers that a line names

    def __init__(self) -> None:
        # By channel: since when messages wait (time.monotonic), the greatest id then, and whether it was logged.
        self._waits: dict[str, tuple[float, int, bool]] = {}

    def look(self, link: Link, works: Mapping[str, Mapping[str, Any]]) -> None:
        """Look at the channels whose workers are all busy. ``works``: see ``Link.workers``."""
        idle = {channel for work in works.values() if not work["runs"] for channel in work["takes"]}
        busy = {channel for work in works.values() for channel in work["takes"]} - idle
        heads = link.heads(sorted(busy)) if busy else {}
        self._waits = {channel: wait for channel, wait in self._waits.items() if channel in heads}
        now = time.monotonic()
        for channel, (head, last) in heads.items():
            since, mark, logged = self._waits.get(channel, (now, last, False))
            if head > mark:  # all messages that waited then have been taken
                since, mark = now, last
            if now - since >= self.PATIENCE and not logged:
                logged = True
                runs = [
                    f"{name} runs {work['runs']} since {work['since']}"
                    for name, work in sorted(works.items())
                    if channel in work["takes"]
                ]
                log.warning(
                    "Messages on %s have waited for %.0f s, because every worker that takes them is busy: %s. "
                    "Start more workers, with --workers or runworker.",
                    channel,
                    now - since,
                    ", ".join([*runs[: self.NAMED], *(["..."] if runs[self.NAMED :] else [])]),
                )
            self._waits[channel] = since, mark, logged
