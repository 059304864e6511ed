"""The servers of these tests live in the test run's own process, which goes on after them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

import pytest


@pytest.fixture(autouse=True)
def _close_pipes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close the pipes that a test has made: those of a relay end with its process, which is the test run here."""
    make, made = os.pipe, dict[int, int]()  # the inode by the descriptor

    def pipe() -> tuple[int, int]:
        ends = make()
        made.update({end: os.fstat(end).st_ino for end in ends})
        return ends

    monkeypatch.setattr(os, "pipe", pipe)
    yield
    for end, inode in made.items():
        with suppress(OSError):  # it is closed
            if os.fstat(end).st_ino == inode:
                os.close(end)
