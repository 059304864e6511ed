"""What came of a batch, message by message, and together again."""

from __future__ import annotations

from dbchannels.layers.operations import BatchResult, Delivery, Failure, GroupAdd, GroupClear, merged, parts


def test_parts_are_what_came_of_each_message():
    one, other = Delivery("own", b"", id=1, attempt=1), Delivery("http.request", b"", (), "reply.s!a")
    back = Delivery("own", b"", id=2, attempt=1)
    first, second = [GroupAdd("a", "b"), GroupAdd("c", "d")], [GroupClear("a")]
    done = BatchResult([*first, *second], [one], [], returned=[back], in_flight=[other])
    done = done._replace(boundaries=[(one, 2), (other, 3)])
    found = list(parts(done))
    assert found == [
        BatchResult(returned=[back]),
        BatchResult(first, [one], [], boundaries=[(one, 2)]),
        BatchResult(second, [], [], boundaries=[(other, 1)]),
    ]
    assert merged(found) == done._replace(in_flight=(), boundaries=())
    unknown = BatchResult(first, [one])
    assert list(parts(unknown)) == [unknown]


def test_the_failure_of_a_message_is_its_part():
    one, other = Delivery("own", b"", id=1, attempt=1), Delivery("own", b"", id=2, attempt=1)
    failure = Failure(other, "traceback", None)
    done = BatchResult([], [one], [failure], boundaries=[(one, 0), (other, 0)])
    assert [(part.acknowledged, part.failures) for part in parts(done)] == [([one], []), ([], [failure])]


def test_of_no_batch_there_is_one_part():
    assert list(parts(BatchResult())) == [BatchResult()]
