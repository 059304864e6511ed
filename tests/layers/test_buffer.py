"""The buffer by itself, with transactions that are only said to be rolled back."""

from __future__ import annotations

from dbchannels.layers.base import Buffer
from dbchannels.layers.operations import GroupAdd


def operation(name):
    """Return an operation that can be told from others."""
    return GroupAdd(name, "own")


A, B, C = operation("a"), operation("b"), operation("c")


def test_what_is_appended_is_pending_in_order():
    buffer = Buffer()
    buffer.append([A])
    buffer.append([B, C])
    assert buffer.pending() == [A, B, C]


def test_what_was_written_is_not_pending():
    buffer = Buffer()
    buffer.append([A])
    buffer.written(lambda: False)
    buffer.append([C])
    assert buffer.pending() == [C]


def test_what_was_rolled_back_is_pending_again_without_what_was_sent_inside():
    gone = []
    buffer = Buffer()
    buffer.append([A])
    buffer.written(lambda: bool(gone))
    buffer.append([C])
    gone.append(True)
    assert buffer.pending() == [A, C]


def test_only_the_writes_that_stand_count():
    buffer = Buffer()
    buffer.append([A])
    buffer.written(lambda: False)
    buffer.append([B])
    buffer.written(lambda: True)
    buffer.append([C])
    assert buffer.pending() == [B, C]
