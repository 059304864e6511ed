"""What has come of a response and its client has not taken: in memory, in files, and within its budget."""

from __future__ import annotations

import random
import time
from queue import Empty

import gevent
import pytest

from dbchannels.server.http import exchange, response_buffer
from dbchannels.server.http.exchange import ResponseBuffer
from dbchannels.server.http.response_buffer import ResponseBudget, Segment, StoredResponseBuffer
from tests.server.test_server import until

END = {"content": b"", "more_content": False}
MEMORY, DISK = 100_000, 40_000


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Sizes in which a test thinks: some hundred bytes."""
    for name, value in {
        "IN_MEMORY": 300,
        "WINDOW": 1_000,
        "CHUNK": 170,
        "WRITE": 1_000,
        "SEGMENT": 2_000,
    }.items():
        monkeypatch.setattr(response_buffer, name, value)
    monkeypatch.setattr(response_buffer, "PATIENCE", 0.001)
    monkeypatch.setattr(exchange, "REPORT_EVERY", 500)


@pytest.fixture
def budget():
    made = ResponseBudget(MEMORY, DISK, lambda: made.may_be_waiting)
    made.may_be_waiting = 0
    return made


@pytest.fixture
def new(budget):
    """Make buffers, begun; what they report is in their ``reports``."""
    made = []

    def new(length=None, address="192.0.2.1", begun=True, **options):
        buffer = StoredResponseBuffer(budget, address)
        buffer.reports = []
        buffer.begins = begun and buffer.begin(buffer.reports.append, length, **options)
        made.append(buffer)
        return buffer

    yield new
    for one in made:
        one.close()
    gevent.get_hub().threadpool.join()
    assert (budget.memory, budget.disk, budget.waiting) == (MEMORY, DISK, 0)
    assert not budget._by_address


def chunk(content):
    return {"content": content, "more_content": True}


def fill(buffer, size, of=100):
    """Put so many bytes, and wait until no more of them are stored."""
    for _ in range(size // of):
        buffer.put(chunk(bytes(of)))
    until(lambda: buffer._storer is None or buffer._waits)


def taken(buffer):
    """Take all until the end."""
    data = b""
    while (message := buffer.get(5.0)).get("more_content"):
        data += message["content"]
    return data + message.get("content", b"")


@pytest.mark.parametrize("size", [0, 1, 299, 300, 301, 1_999, 9_000])
@pytest.mark.parametrize("pause", [0, 3, 17])
def test_what_comes_is_taken_in_its_order(new, budget, size, pause):
    """Whatever is in memory, on its way to a file or in one when the client takes it."""
    data, buffer = random.Random(size).randbytes(size), new()

    def come():
        for number, start in enumerate(range(0, size, 77)):
            buffer.put(chunk(data[start : start + 77]))
            if pause and number % pause == 0:
                gevent.sleep(0.002)
        buffer.put(END)

    coming = gevent.spawn(come)
    assert taken(buffer) == data
    coming.join()
    assert (budget.disk, budget.memory) == (DISK, MEMORY)


def test_a_client_that_keeps_up_has_no_file(new, monkeypatch):
    monkeypatch.setattr(response_buffer, "PATIENCE", 0.05)
    buffer = new()
    for _ in range(50):
        for _ in range(5):
            buffer.put(chunk(bytes(100)))
        for _ in range(5):
            buffer.get(1.0)
        gevent.sleep(0)
    assert not buffer._segments and buffer._on_disk == 0


def test_what_a_client_does_not_take_goes_to_files_and_their_room_comes_back_one_by_one(new, budget):
    buffer = new()
    fill(buffer, 6_000)
    assert buffer.waiting <= 300 and buffer._on_disk == 6_000 - buffer.waiting and len(buffer._segments) == 3
    assert buffer.reports[-1]["taken"] >= 5_000
    while buffer._segments[0].taken < buffer._segments[0].size:
        buffer.get(1.0)
    buffer.get(1.0)
    assert DISK - budget.disk == buffer._on_disk <= 4_000
    buffer.put(END)
    assert len(taken(buffer)) > 3_000


def test_when_memory_is_tight_all_goes_to_files(new, budget):
    budget.memory -= 60_000
    buffer = new()
    fill(buffer, 200)
    assert (buffer.waiting, buffer._on_disk) == (0, 200)
    budget.memory += 60_000


def test_a_client_that_leaves_gives_everything_back_even_while_it_is_written(new, budget, monkeypatch):
    write = Segment.write
    monkeypatch.setattr(Segment, "write", lambda *given: time.sleep(0.05) or write(*given))
    buffer = new()
    for _ in range(50):
        buffer.put(chunk(bytes(100)))
    until(lambda: buffer._is_writing)
    buffer.close()
    until(lambda: buffer._storer is None)
    buffer.put(chunk(b"late"))
    assert (budget.memory, budget.disk, list(buffer._messages)) == (MEMORY, DISK, [])


# Shares.


def test_one_response_has_a_fourth_and_one_address_half(new, budget):
    budget.may_be_waiting = 10
    first, second, third = new(), new(), new()
    for one in (first, second):
        fill(one, 12_000)
        assert one._on_disk == DISK // 4 and one._waits  # the worker waits
    assert third.begins
    fill(third, 2_000)
    assert third._on_disk == 0 and third._waits  # its address has its half
    for other in (new(address="192.0.2.2"), new(address="")):
        fill(other, 12_000)
        assert other._on_disk == DISK // 4
    assert budget.disk == 0


def test_who_waits_goes_on_as_its_client_takes(new, budget):
    budget.may_be_waiting = 1
    buffer = new()
    fill(buffer, 13_000)
    stored = buffer.freed
    assert stored == 10_000 and buffer._waits
    for _ in range(13):
        buffer.get(1.0)
    until(lambda: buffer.reports[-1]["taken"] > stored)
    buffer.put(END)
    assert budget.waiting == 0  # all of it is made
    taken(buffer)


def test_who_waits_hears_now_and_then_that_the_client_is_there(new, budget, monkeypatch):
    monkeypatch.setattr(response_buffer, "TELL_EVERY", 0.01)
    budget.may_be_waiting = 1
    buffer = new()
    fill(buffer, 13_000)
    until(lambda: buffer.reports[-3:] == [{"taken": 10_000}] * 3)


def test_one_too_many_is_broken_off_and_told(new, budget, caplog):
    budget.may_be_waiting = 1
    first, second = new(), new()
    fill(first, 12_000)
    fill(second, 12_000)
    assert first._waits and second.reports[-1] == {"closed": True}
    assert second.get(1.0) == {"error": "broken off"}
    assert second._on_disk == 0 and DISK - budget.disk == 10_000
    assert "Answered 0 large responses with 503 and broke off 1" in caplog.text


def test_without_room_a_large_one_begins_only_where_a_worker_may_wait(new, budget):
    budget.may_be_waiting = 1
    budget.take("", disk=DISK)
    assert new(1_000).begins  # comes without a report
    assert not new(1_001, begun=True).begins or budget.waiting == 1
    assert [new(length).begins for length in (None, 5_000)] == [False, False]
    budget.take("", disk=-DISK)


def test_one_that_does_not_say_its_length_begins_while_a_share_is_free(new, budget):
    assert new().begins
    budget.take("", disk=3 * DISK // 4)
    assert new().begins
    budget.take("", disk=1)
    assert [new(length).begins for length in (None, 5_000)] == [False, True]
    budget.take("", disk=-3 * DISK // 4 - 1)


def test_one_that_is_larger_than_its_share_counts_as_waiting_from_its_beginning(new, budget):
    budget.may_be_waiting = 1
    first = new(DISK // 4 + 1)
    assert first.begins and first._waits
    assert not new(DISK // 4 + 1).begins and new(DISK // 4).begins


def test_where_none_may_wait_a_fast_client_still_has_what_is_larger(new, budget):
    buffer = new(DISK)
    assert buffer.begins and not buffer._waits
    for _ in range(20):
        for _ in range(20):
            buffer.put(chunk(bytes(100)))
        for _ in range(20):
            buffer.get(1.0)
    assert budget.disk == DISK - buffer._reserved


def test_one_that_says_its_length_has_its_room_to_the_end(new, budget):
    """However many begin meanwhile."""
    buffers = [new(9_000) for _ in range(3)]
    assert [one.begins for one in buffers] == [True, True, False]
    fill(buffers[0], 9_000)
    fill(buffers[1], 9_000)
    buffers[1].put(END)
    assert [one._on_disk >= 8_700 for one in buffers] == [True, True, False]
    assert DISK - budget.disk == 2 * 9_000
    assert len(taken(buffers[1])) == 9_000
    assert DISK - budget.disk == 9_000


def test_without_memory_nothing_large_begins(new, budget):
    budget.memory -= MEMORY
    assert [new(length).begins for length in (1, 5_000, None)] == [False] * 3
    budget.memory += MEMORY


def test_what_no_worker_makes_begins_without_room_and_keeps_none_waiting(new, budget):
    """A browser whose stream of events is refused never asks again."""
    budget.may_be_waiting = 1
    budget.take("", disk=DISK)
    buffer = new(is_made=True)
    assert buffer.begins
    fill(buffer, 2_000)
    assert not buffer._waits and new(1_001).begins  # a worker may still wait for another
    buffer.put(END)
    assert taken(buffer) == bytes(2_000)
    budget.take("", disk=-DISK)


def test_tiny_events_count_by_what_they_take(new, budget):
    buffer = new(is_made=True)
    fill(buffer, 20, of=1)
    assert buffer._on_disk == 20
    buffer.put(END)
    assert taken(buffer) == bytes(20)


@pytest.mark.parametrize("first", [chunk(bytes(100)), {"taken": True}], ids=["content", "a mark"])
def test_what_no_worker_makes_ends_when_there_is_no_room_and_little_memory(new, budget, first):
    budget.may_be_waiting = 1
    budget.take("", memory=MEMORY, disk=DISK)
    buffer = new(is_made=True)
    buffer.put(first)
    fill(buffer, 500)
    assert buffer.get(1.0) == {"error": "broken off"}
    budget.take("", memory=-MEMORY, disk=-DISK)


@pytest.mark.parametrize("failing", ["new_file", "pwrite"])
def test_a_disk_that_fails_is_one_without_room(new, budget, monkeypatch, caplog, failing):
    def fail(*_):
        raise OSError(28, "No space left on device")

    where = response_buffer if failing == "new_file" else response_buffer.os
    monkeypatch.setattr(where, failing, fail)
    budget.may_be_waiting = 1
    first, second = new(), new()
    fill(first, 2_000)
    fill(second, 2_000)
    assert first._waits and budget.disk == DISK
    assert second.get(1.0) == {"error": "broken off"} and second.reports == [{"closed": True}]
    first.put(END)
    assert taken(first) == bytes(2_000)
    assert caplog.text.count("could not be stored (No space left on device)") == 2


@pytest.mark.parametrize("kind", ["memory", "files"])
def test_messages_that_are_no_chunks_keep_their_place(new, kind):
    buffer = new()
    fill(buffer, 1_000 if kind == "files" else 200)
    for one in ({"later": True}, chunk(b"behind"), {"lost": "worker died"}):
        buffer.put(one)
    found = []
    while not found or "lost" not in found[-1]:
        found.append(buffer.get(1.0))
    assert found[-3:] == [{"later": True}, chunk(b"behind"), {"lost": "worker died"}]
    with pytest.raises(Empty):
        buffer.get(0.001)


def test_of_threads_all_is_in_memory():
    """Under another server's threads: reports hold whoever makes it to a window."""
    import queue

    buffer, reports = ResponseBuffer(queue.SimpleQueue()), []
    assert buffer.begin(reports.append, None)
    for _ in range(4):
        buffer.put(chunk(bytes(200_000)))
    assert [len(buffer.get(1.0)["content"]) for _ in range(4)] == [200_000] * 4
    assert (buffer.waiting, [one["taken"] for one in reports]) == (0, [200_000, 400_000, 600_000])
