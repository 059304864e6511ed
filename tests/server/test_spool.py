"""A spool as the file that a view in the server's own threads reads."""

from __future__ import annotations

import io
import random

import gevent
import pytest

from dbchannels.server.http import body as spool_module
from dbchannels.server.http.body import BodyBudget, BodyBuffer, BodyFile
from dbchannels.server.http.messages import Refused


@pytest.fixture
def storage():
    return BodyBudget(1_000_000, 1_000_000)


@pytest.fixture
def spooled(monkeypatch, storage):
    """Make spools of what came piece by piece; of few bytes some are in the message, in memory and in a file."""
    monkeypatch.setattr(spool_module, "CHUNK", 100)
    monkeypatch.setattr(spool_module, "IN_MEMORY", 300)
    made = []

    def new(data):
        made.append(BodyBuffer(storage))
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
    body = io.BufferedReader(BodyFile(spooled(data)))
    read = in_thread(lambda: b"".join(iter(lambda: body.read(step), b"")))
    assert read == data
    assert in_thread(body.read) == b""


def test_it_reads_lines_as_django_asks(spooled):
    body = io.BufferedReader(BodyFile(spooled(b"x" * 250 + b"\nlast")))
    assert in_thread(lambda: list(body)) == [b"x" * 250 + b"\n", b"last"]


@pytest.mark.parametrize("size", [300, 5000])
def test_of_a_client_that_left_the_rest_is_an_error_and_no_end(spooled, size):
    spool = spooled(bytes(size))
    body = BodyFile(spool)
    assert in_thread(lambda: body.read(100)) == bytes(100)
    spool.close()
    error = in_thread(lambda: body.read(100))
    assert isinstance(error, OSError) and "The client went away" in str(error)


# --- what all of them take together


def fill(spool, size):
    """Write so much, as it comes."""
    for _ in range(size // 50):
        spool.write(bytes(50))


@pytest.mark.parametrize("size", [50, 100, 350, 400, 5000])
def test_what_one_has_taken_is_given_back_at_its_end(spooled, storage, size):
    spool = spooled(bytes(size))
    assert (1_000_000 - storage.memory) + (1_000_000 - storage.disk) == size
    assert 1_000_000 - storage.memory < 400  # the rest is in the file
    for _ in range(2):
        spool.close()
        assert (storage.memory, storage.disk) == (1_000_000, 1_000_000)


@pytest.fixture
def new_spool(monkeypatch):
    """Make spools that share a storage; of few bytes some are in memory, and the rest in a file."""
    monkeypatch.setattr(spool_module, "CHUNK", 100)
    monkeypatch.setattr(spool_module, "IN_MEMORY", 300)
    made = []

    def new(storage, expected=0, address=""):
        made.append(BodyBuffer(storage, expected, address))
        return made[-1]

    yield new
    for one in made:
        one.close()
    gevent.get_hub().threadpool.join()


def test_beyond_the_memory_of_all_one_is_refused_and_the_others_are_whole(new_spool):
    storage = BodyBudget(1_000, 0)
    first, second = new_spool(storage), new_spool(storage)
    fill(first, 100)
    fill(second, 100)
    third = new_spool(storage)
    storage.keep(700)
    fill(third, 100)
    with pytest.raises(Refused) as raised:
        third.write(b"x")
    assert raised.value.status == 503
    third.close()
    fill(second, 0)
    assert (first.first, second.first) == (bytes(100), bytes(100))
    assert storage.memory == 100


def test_when_memory_is_tight_bodies_go_to_the_disk_earlier(new_spool):
    storage = BodyBudget(1_000, 1_000)
    storage.keep(450)
    spool = new_spool(storage)
    fill(spool, 350)
    assert storage.disk == 750  # without, all 350 would be in memory
    assert 1_000 - 450 - storage.memory == 100
    assert spool.read(100, 250) == bytes(250)


def test_the_last_fourth_of_the_disk_is_for_bodies_that_have_begun(new_spool):
    storage = BodyBudget(100_000, 2_000)
    first, second = new_spool(storage), new_spool(storage)
    fill(first, 400)
    fill(first, 1_300)  # 1,500 of it on the disk
    assert storage.disk == 500
    fill(second, 350)
    fill(first, 300)  # it still grows
    with pytest.raises(Refused):
        fill(second, 50)
    second.close()
    assert storage.disk == 200 and first.size == 2_000


def test_bodies_of_one_address_have_half_of_the_disk(new_spool):
    storage = BodyBudget(100_000, 2_000)
    first = new_spool(storage, address="192.0.2.1")
    fill(first, 1_000)  # 900 of it on the disk
    for expected in (400, 501):
        with pytest.raises(Refused):
            fill(new_spool(storage, expected, "192.0.2.1"), expected)
    other = new_spool(storage, address="192.0.2.2")
    fill(other, 500)
    assert (other.size, storage.disk) == (500, 800)
    first.close()
    fill(new_spool(storage, 1_000, "192.0.2.1"), 1_000)


def test_addresses_that_take_all_they_can_get_leave_memory_for_others(new_spool):
    storage = BodyBudget(10_000, 0)
    for hoarder in ("192.0.2.1", "192.0.2.2"):
        with pytest.raises(Refused):
            while True:
                new_spool(storage, address=hoarder).write(b"x" * 10)
    assert storage.memory > 600
    one = new_spool(storage, address="192.0.2.3")
    one.write(b"x" * 100)
    new_spool(storage, address="").write(b"x" * 100)
    one.close()
    assert set(storage._kept) == {"192.0.2.1", "192.0.2.2", ""}


def test_one_that_says_its_length_is_refused_before_anything_is_read(new_spool):
    storage = BodyBudget(100_000, 2_000)
    new_spool(storage, 400)  # needs no file
    new_spool(storage, 2_000)
    with pytest.raises(Refused) as raised:
        new_spool(storage, 2_001)
    assert raised.value.status == 503 and (storage.memory, storage.disk) == (100_000, 2_000)


def test_a_file_that_cannot_be_written_gives_its_room_back(new_spool, monkeypatch):
    def fail(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spool_module.tempfile, "TemporaryFile", fail)
    storage = BodyBudget(1_000, 1_000)
    spool = new_spool(storage)
    with pytest.raises(spool_module.BodyStorageError):
        fill(spool, 400)
    spool.close()
    assert (storage.memory, storage.disk) == (1_000, 1_000)


def test_many_refusals_are_one_line_in_the_log(caplog):
    storage = BodyBudget(10, 10)
    refusals = (lambda: storage.keep(11), lambda: storage.store(11), lambda: storage.admit(11))
    for refuse in refusals * 50:
        with pytest.raises(Refused, match="There is no room for the body of this request now"):
            refuse()
    (line,) = caplog.messages
    assert line == (
        "Refused 1 bodies beyond --max-body-memory (10) and 0 beyond --max-spool (10), "
        "or beyond an address's half of it."
    )
