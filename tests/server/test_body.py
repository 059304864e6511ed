"""Request bodies in memory and in files, and the budget of all of them together."""

from __future__ import annotations

import io
import random

import gevent
import pytest

from dbchannels.layers.relay import OutboxFull
from dbchannels.protocol import body_ends
from dbchannels.server.http import body as body_module
from dbchannels.server.http.body import BodyBudget, BodyBuffer, BodyFile, BodyUpload
from dbchannels.server.http.messages import Refused


@pytest.fixture
def budget():
    return BodyBudget(1_000_000, 1_000_000)


@pytest.fixture
def buffered(monkeypatch, budget):
    """Make buffers of what came piece by piece; of few bytes some are in the message, in memory and in a file."""
    monkeypatch.setattr(body_module, "CHUNK", 100)
    monkeypatch.setattr(body_module, "IN_MEMORY", 300)
    made = []

    def new(data):
        made.append(BodyBuffer(budget))
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
def test_a_thread_reads_what_came(buffered, size, step):
    data = random.Random(size).randbytes(size)
    body = io.BufferedReader(BodyFile(buffered(data)))
    read = in_thread(lambda: b"".join(iter(lambda: body.read(step), b"")))
    assert read == data
    assert in_thread(body.read) == b""


def test_it_reads_lines_as_django_asks(buffered):
    body = io.BufferedReader(BodyFile(buffered(b"x" * 250 + b"\nlast")))
    assert in_thread(lambda: list(body)) == [b"x" * 250 + b"\n", b"last"]


@pytest.mark.parametrize("size", [300, 5000])
def test_of_a_client_that_left_the_rest_is_an_error_and_no_end(buffered, size):
    buffer = buffered(bytes(size))
    body = BodyFile(buffer)
    assert in_thread(lambda: body.read(100)) == bytes(100)
    buffer.close()
    error = in_thread(lambda: body.read(100))
    assert isinstance(error, OSError) and "The client went away" in str(error)


def test_the_first_part_is_held_once(buffered):
    """The message of a request that waits for its turn has it too."""
    buffer = buffered(b"x" * 99)
    assert buffer.first == b"x" * 99
    assert buffer.first is buffer.first
    assert buffer.read(0, 10) == b"x" * 10


# --- what all of them take together


def fill(buffer, size):
    """Write so much, as it comes."""
    for _ in range(size // 50):
        buffer.write(bytes(50))


@pytest.mark.parametrize("size", [50, 100, 350, 400, 5000])
def test_what_one_has_taken_is_given_back_at_its_end(buffered, budget, size):
    buffer = buffered(bytes(size))
    assert (1_000_000 - budget.memory) + (1_000_000 - budget.disk) == size
    assert 1_000_000 - budget.memory < 400  # the rest is in the file
    for _ in range(2):
        buffer.close()
        assert (budget.memory, budget.disk) == (1_000_000, 1_000_000)


@pytest.fixture
def new_buffer(monkeypatch):
    """Make buffers that share a budget; of few bytes some are in memory, and the rest in a file."""
    monkeypatch.setattr(body_module, "CHUNK", 100)
    monkeypatch.setattr(body_module, "IN_MEMORY", 300)
    made = []

    def new(budget, expected=0, address=""):
        made.append(BodyBuffer(budget, expected, address))
        return made[-1]

    yield new
    for one in made:
        one.close()
    gevent.get_hub().threadpool.join()


def test_beyond_the_memory_of_all_one_is_refused_and_the_others_are_whole(new_buffer):
    budget = BodyBudget(1_000, 0)
    first, second = new_buffer(budget), new_buffer(budget)
    fill(first, 100)
    fill(second, 100)
    third = new_buffer(budget)
    budget.keep(700)
    fill(third, 100)
    with pytest.raises(Refused) as raised:
        third.write(b"x")
    assert raised.value.status == 503
    third.close()
    fill(second, 0)
    assert (first.first, second.first) == (bytes(100), bytes(100))
    assert budget.memory == 100


def test_when_memory_is_tight_bodies_go_to_the_disk_earlier(new_buffer):
    budget = BodyBudget(1_000, 1_000)
    budget.keep(450)
    buffer = new_buffer(budget)
    fill(buffer, 350)
    assert budget.disk == 750  # without, all 350 would be in memory
    assert 1_000 - 450 - budget.memory == 100
    assert buffer.read(100, 250) == bytes(250)


def test_the_last_fourth_of_the_disk_is_for_bodies_that_have_begun(new_buffer):
    budget = BodyBudget(100_000, 2_000)
    first, second = new_buffer(budget), new_buffer(budget)
    fill(first, 400)
    fill(first, 1_300)  # 1,500 of it on the disk
    assert budget.disk == 500
    fill(second, 350)
    fill(first, 300)  # it still grows
    with pytest.raises(Refused):
        fill(second, 50)
    second.close()
    assert budget.disk == 200 and first.size == 2_000


def test_bodies_of_one_address_have_half_of_the_disk(new_buffer):
    budget = BodyBudget(100_000, 2_000)
    first = new_buffer(budget, address="192.0.2.1")
    fill(first, 1_000)  # 900 of it on the disk
    for expected in (400, 501):
        with pytest.raises(Refused):
            fill(new_buffer(budget, expected, "192.0.2.1"), expected)
    other = new_buffer(budget, address="192.0.2.2")
    fill(other, 500)
    assert (other.size, budget.disk) == (500, 800)
    first.close()
    fill(new_buffer(budget, 1_000, "192.0.2.1"), 1_000)


def test_addresses_that_take_all_they_can_get_leave_memory_for_others(new_buffer):
    budget = BodyBudget(10_000, 0)
    for hoarder in ("192.0.2.1", "192.0.2.2"):
        with pytest.raises(Refused):
            while True:
                new_buffer(budget, address=hoarder).write(b"x" * 10)
    assert budget.memory > 600
    one = new_buffer(budget, address="192.0.2.3")
    one.write(b"x" * 100)
    new_buffer(budget, address="").write(b"x" * 100)
    one.close()
    assert set(budget._kept) == {"192.0.2.1", "192.0.2.2", ""}


def test_one_that_says_its_length_is_refused_before_anything_is_read(new_buffer):
    budget = BodyBudget(100_000, 2_000)
    new_buffer(budget, 400)  # needs no file
    new_buffer(budget, 2_000)
    with pytest.raises(Refused) as raised:
        new_buffer(budget, 2_001)
    assert raised.value.status == 503 and (budget.memory, budget.disk) == (100_000, 2_000)


def test_a_file_that_cannot_be_written_gives_its_room_back(new_buffer, monkeypatch):
    def fail(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(body_module.tempfile, "TemporaryFile", fail)
    budget = BodyBudget(1_000, 1_000)
    buffer = new_buffer(budget)
    with pytest.raises(body_module.BodyStorageError):
        fill(buffer, 400)
    buffer.close()
    assert (budget.memory, budget.disk) == (1_000, 1_000)


def test_many_refusals_are_one_line_in_the_log(caplog):
    budget = BodyBudget(10, 10)
    refusals = (lambda: budget.keep(11), lambda: budget.store(11), lambda: budget.admit(11))
    for refuse in refusals * 50:
        with pytest.raises(Refused, match="There is no room for the body of this request now"):
            refuse()
    (line,) = caplog.messages
    assert line == (
        "Refused 1 bodies beyond --max-body-memory (10) and 0 beyond --max-spool (10), "
        "or beyond an address's half of it."
    )


class Relay:
    """What an upload sends; the outbox is full for the first messages."""

    def __init__(self, full):
        self.sent, self.full = [], full

    def make_send(self, channel, message):
        assert channel == "body"
        return message

    def send(self, message):
        if self.full:
            self.full -= 1
            raise OutboxFull
        self.sent.append(message)


@pytest.fixture
def uploaded(buffered, monkeypatch):
    """Upload a body whose first 100 bytes the worker has; return what was sent."""
    monkeypatch.setattr(body_module, "FULL_PAUSE", 0.0)
    body = buffered(DATA)

    def upload(full=0, **wanted):
        relay = Relay(full)
        made = BodyUpload(relay, "body", body)
        made.asked(wanted)
        made._sender.join(10)
        return relay.sent

    return upload


DATA = bytes(range(250)) * 2


def test_an_upload_waits_while_the_outbox_is_full_and_loses_nothing(uploaded):
    sent = uploaded(full=3, until=400)
    assert b"".join(one["content"] for one in sent) == DATA[100:400]
    assert [one["offset"] for one in sent] == [100, 200, 300]


def test_the_worker_is_told_of_an_upload_that_cannot_be_read(uploaded, monkeypatch, caplog):
    def fail(self, position, size):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(BodyBuffer, "read", fail)
    assert uploaded(until=400) == [body_ends()]
    assert "The body of a request could not be read from the disk (Input/output error)." in caplog.text


def test_a_worker_that_missed_the_end_of_an_upload_is_told_when_it_asks_again(buffered, monkeypatch):
    def fail(self, position, size):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(BodyBuffer, "read", fail)
    relay = Relay(full=1)
    upload = BodyUpload(relay, "body", buffered(DATA))
    for sent in ([], [body_ends()]):
        upload.asked({"until": 400})
        upload._sender.join(10)
        assert relay.sent == sent
