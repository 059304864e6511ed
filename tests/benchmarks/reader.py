"""An idle reader, as a process of its own: ``python -m tests.benchmarks.reader ours|bare``.

It says ``ready`` when it is about to wait, and then for each message when it had it, in nanoseconds of the clock
that all processes share (CLOCK_MONOTONIC).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import django

READY = "ready"


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()
    from dbchannels.layers import channel_layers
    from tests.benchmarks.layer import BARE_CLAIM

    link = channel_layers["default"].link("benchmark")

    def bare() -> int:
        return len(link.session.execute([(BARE_CLAIM, {})]))

    def ours() -> int:
        return len(link.claim(["own0"], 10, "benchmark"))

    claim = ours if sys.argv[1] == "ours" else bare
    claim(), link.wait(0)
    while True:
        print(READY, flush=True)
        while not claim():
            link.wait(1.0)
        print(time.monotonic_ns(), flush=True)


@contextmanager
def reader(kind: str) -> Iterator[Callable[[], str]]:
    """Start a reader and yield a function that returns its next line; the reader ends with the block."""
    command = [sys.executable, "-m", "tests.benchmarks.reader", kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
