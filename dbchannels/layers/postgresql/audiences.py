"""The audiences that a reader remembers: who the members are that a broadcast's row names by their hash."""

from __future__ import annotations

import logging

log = logging.getLogger("dbchannels")

MOST = 64  # audiences; the keys go out with each pop, at 40 bytes
MOST_PARTS = 100_000  # recipients of all of them together, at some 80 bytes


class Audiences:
    """By key the recipients. A key is a hash of them, so what is remembered stays right whatever happens.

    The dict is replaced and never changed, so that a thread that took ``known`` finds all of it again.
    """

    def __init__(self) -> None:
        self.known: dict[str, tuple[str, ...]] = {}

    def parts(self, known: dict[str, tuple[str, ...]], key: str, text: str | None) -> tuple[str, ...] | None:
        """Return the recipients of a row; None where its audience is gone, which leaves nobody to give it to.

        ``known`` is what the statement was told, ``text`` the recipients that it gave for any other key.
        """
        if key in known:
            return known[key]
        if text is None:
            log.warning("A broadcast was left out: its audience has been deleted.")
            return None
        parts = tuple(text.split())
        self._remember(key, parts)
        return parts

    def _remember(self, key: str, parts: tuple[str, ...]) -> None:
        remembered = {**self.known, key: parts}
        while len(remembered) > MOST or sum(map(len, remembered.values())) > MOST_PARTS:
            del remembered[next(iter(remembered))]  # the oldest
        self.known = remembered
