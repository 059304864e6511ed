"""A spool as the file that a view in the server's own threads reads."""

from __future__ import annotations

import io
import random

import gevent
import pytest

from dbchannels.interface import spool as spool_module
from dbchannels.interface.spool import Spool, SpooledBody


@pytest.fixture
def spooled(monkeypatch):
    """Make spools of what came piece by piece; of few bytes some are in the message, in memory and in a file."""
    monkeypatch.setattr(spool_module, "FIRST", 100)
    monkeypatch.setattr(spool_module, "IN_MEMORY", 300)
    made = []

    def new(data):
        made.append(Spool())
        for start in range(0, len(data), 70):
            made[-1].write(data[start : start + 70])
        return made[-1]

    yield new
    for one in made:
        one.close()
    gevent.get_hub().threadpool.join()  # where the files are closed


def in_thread(function):
    """Call it where a view runs; return what it returned, or the OSError that it raised."""

    def call():
        try:
            return function()
        except OSError as error:
            return error

    return gevent.get_hub().threadpool.apply(call)


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 399, 400, 401, 5000])
@pytest.mark.parametrize("step", [1, 64, 8192, None])
def test_a_thread_reads_what_came(spooled, size, step):
    data = random.Random(size).randbytes(size)
    body = io.BufferedReader(SpooledBody(spooled(data)))
    read = in_thread(lambda: b"".join(iter(lambda: body.read(step), b"")))
    assert read == data
    assert in_thread(body.read) == b""


def test_it_reads_lines_as_django_asks(spooled):
    body = io.BufferedReader(SpooledBody(spooled(b"x" * 250 + b"\nlast")))
    assert in_thread(lambda: list(body)) == [b"x" * 250 + b"\n", b"last"]


@pytest.mark.parametrize("size", [300, 5000])
def test_of_a_client_that_left_the_rest_is_an_error_and_no_end(spooled, size):
    spool = spooled(bytes(size))
    body = SpooledBody(spool)
    assert in_thread(lambda: body.read(100)) == bytes(100)
    spool.close()
    error = in_thread(lambda: body.read(100))
    assert isinstance(error, OSError) and "The client went away" in str(error)
