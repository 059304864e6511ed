"""Whether a statement has taken messages whose answer never came: they are in the database as ours, and in no hands."""

from __future__ import annotations

import time

from dbchannels.exceptions import LayerUnavailable

LASTS = 30.0  # seconds: a statement may go on for a while after its session was given up, and end well


class Doubt:
    """``with doubt:`` around what takes messages; it is true for a while after an outage in there."""

    def __init__(self) -> None:
        self._until = 0.0  # time.monotonic()

    def __bool__(self) -> bool:
        return time.monotonic() < self._until

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, LayerUnavailable):
            self._until = time.monotonic() + LASTS
