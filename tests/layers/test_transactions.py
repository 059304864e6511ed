"""A send is part of the caller's transaction, and a consumer's sends wait for its end without being overtaken."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import pytest
from django.db import transaction

from dbchannels.exceptions import InvalidMessage
from dbchannels.layers.base import after_commit
from dbchannels.layers.operations import Connect
from dbchannels.testing.contract.case import drain, waiting
from dbchannels.testing.contract.operating import make_dead_letters
from tests import kinds

pytestmark = kinds.on_all_databases


def atomic(layer):
    """Open a transaction on the layer's database."""
    return transaction.atomic(using=layer.database)


def sent(layer):
    """Return the letters that wait on the channel ``body?x``, in order."""
    return "".join(message["letter"] for message in drain(layer, "body?x"))


def send(layer, letters):
    """Send the letters one by one."""
    for letter in letters:
        layer.send("body?x", {"letter": letter})


class Wrong(Exception):
    """What a consumer raises."""


# Without a buffer: views, commands, the shell.


@pytest.mark.parametrize("channel", ["own", "http.request", "body?x", "reply.a!b"])
def test_a_rollback_unsends(layer, channel):
    layer.group_add("group", channel)
    with pytest.raises(Wrong), atomic(layer):
        layer.send(channel, {})
        layer.send_many([(channel, {}), (channel, {})])
        layer.send_group("group", {})
        layer.group_discard("group", channel)
        layer.group_add("other", channel)
        raise Wrong
    assert layer.global_statistics()["messages_pending"] == 0
    assert layer.group_channels("group") == [channel]
    assert layer.group_channels("other") == []


def test_a_commit_sends_once_and_in_order(layer):
    with atomic(layer):
        send(layer, "abc")
        layer.send_many([("body?x", {"letter": "d"}), ("own", {}), ("body?x", {"letter": "e"})])
    assert sent(layer) == "abcde"
    assert waiting(layer, "own") == 1


def test_a_savepoint_takes_its_own_with_it(layer):
    with atomic(layer):
        send(layer, "a")
        with pytest.raises(Wrong), atomic(layer):
            send(layer, "x")
            raise Wrong
        with atomic(layer):
            send(layer, "b")
        send(layer, "c")
    assert sent(layer) == "abc"


def test_full_is_no_reason_to_roll_back(new_layer):
    layer = new_layer(capacity=1)
    with atomic(layer):
        send(layer, "a")
        with pytest.raises(layer.ChannelFull):
            send(layer, "b")
        with pytest.raises(layer.ChannelFull):
            layer.send_many([("own", {}), ("body?x", {"letter": "c"})])
    assert sent(layer) == "a"
    assert waiting(layer, "own") == 0


# With a buffer: inside a consumer.


def test_a_buffer_writes_nothing_by_itself(layer):
    with layer.buffered() as buffer:
        send(layer, "abc")
        layer.group_add("group", "own")
        assert waiting(layer, "body?x") == 0
        assert layer.group_channels("group") == []
    assert sent(layer) == ""
    layer.write(buffer.pending())
    assert sent(layer) == "abc"
    assert layer.group_channels("group") == ["own"]


def test_an_immediate_send_does_not_wait(layer):
    with layer.buffered() as buffer:
        send(layer, "b")
        layer.send("body?x", {"letter": "a"}, immediately=True)
        layer.send_many([("body?x", {"letter": "!"})], immediately=True)
        assert waiting(layer, "body?x") == 2
    layer.write(buffer.pending())
    assert sent(layer) == "a!b"


def test_the_buffer_ends_with_the_consumer(layer):
    with pytest.raises(Wrong), layer.buffered():
        send(layer, "x")
        raise Wrong
    send(layer, "a")
    assert sent(layer) == "a"


def test_a_transaction_takes_along_what_was_buffered(layer):
    with layer.buffered() as buffer:
        send(layer, "ab")
        with atomic(layer):
            send(layer, "c")
        assert waiting(layer, "body?x") == 3
        send(layer, "d")
        with atomic(layer):
            send(layer, "e")
            send(layer, "f")
        send(layer, "g")
    layer.write(buffer.pending())
    assert sent(layer) == "abcdefg"


def test_a_rollback_gives_the_buffer_back_and_no_more(layer):
    with layer.buffered() as buffer:
        send(layer, "ab")
        with pytest.raises(Wrong), atomic(layer):
            send(layer, "x")
            raise Wrong
        send(layer, "c")
    layer.write(buffer.pending())
    assert sent(layer) == "abc"


def test_the_rollback_of_a_savepoint_gives_the_buffer_back(layer):
    with layer.buffered() as buffer:
        send(layer, "a")
        with atomic(layer):
            with pytest.raises(Wrong), atomic(layer):
                send(layer, "x")
                raise Wrong
            send(layer, "b")
        send(layer, "c")
    layer.write(buffer.pending())
    assert sent(layer) == "abc"


def test_the_rollback_of_a_savepoint_keeps_what_was_written_before_it(layer):
    with layer.buffered() as buffer:
        send(layer, "a")
        with atomic(layer):
            send(layer, "b")
            with pytest.raises(Wrong), atomic(layer):
                send(layer, "x")
                raise Wrong
        send(layer, "c")
    layer.write(buffer.pending())
    assert sent(layer) == "abc"


def test_the_rollback_of_all_undoes_a_released_savepoint(layer):
    with layer.buffered() as buffer:
        send(layer, "a")
        with pytest.raises(Wrong), atomic(layer):
            with atomic(layer):
                send(layer, "x")
            raise Wrong
        send(layer, "b")
    layer.write(buffer.pending())
    assert sent(layer) == "ab"


def test_a_refused_send_in_a_transaction_leaves_the_buffer_whole(new_layer):
    layer = new_layer(channel_capacity={"http.full": 1})
    layer.send("http.full", {})
    with layer.buffered() as buffer:
        send(layer, "ab")
        with atomic(layer), pytest.raises(layer.ChannelFull):
            layer.send("http.full", {})
        send(layer, "c")
    layer.write(buffer.pending())
    assert sent(layer) == "abc"


def test_what_on_commit_sends_is_buffered_too(layer):
    with layer.buffered() as buffer:
        with atomic(layer):
            transaction.on_commit(lambda: send(layer, "b"), using=layer.database)
            send(layer, "a")
        assert sent(layer) == "a"
    layer.write(buffer.pending())
    assert sent(layer) == "b"


def test_who_it_is_takes_part_in_the_transaction(layer, new_link):
    new_link(layer).apply([Connect("reply.a!b", "server", "/")])
    layer.group_add("group", "reply.a!b")
    with pytest.raises(Wrong), atomic(layer):
        layer.identify("reply.a!b", "7")
        raise Wrong
    assert layer.group_users("group") == []
    with layer.buffered() as buffer:
        layer.identify("reply.a!b", "7")
        assert layer.group_users("group") == []
    layer.write(buffer.pending())
    assert layer.group_users("group") == ["7"]


def test_a_replay_that_is_rolled_back_has_moved_nothing(layer, new_link):
    make_dead_letters(new_link(layer), 1)
    with pytest.raises(Wrong), atomic(layer):
        assert layer.replay(layer.dead_letter_ids()) == 1
        raise Wrong
    assert (len(layer.dead_letter_ids()), waiting(layer, "own")) == (1, 0)


# A transaction on another database than the layer's.


def elsewhere(layer):
    """Open a transaction on the other database."""
    return transaction.atomic(using="sqlite" if layer.database == "default" else "default")


def test_what_is_sent_waits_for_the_other_databases_commit(layer):
    layer.group_add("group", "reply.a!b")
    with elsewhere(layer):
        send(layer, "ab")
        layer.send_many([("body?x", {"letter": "c"})])
        layer.send_group("group", {})
        layer.group_discard("group", "reply.a!b")
        layer.group_add("other", "own")
        assert layer.global_statistics()["messages_pending"] == 0
    assert sent(layer) == "abc"
    assert waiting(layer, "reply.a!") == 1
    assert (layer.group_channels("group"), layer.group_channels("other")) == ([], ["own"])


def test_a_rollback_of_the_other_database_unsends(layer):
    with pytest.raises(Wrong), elsewhere(layer):
        send(layer, "x")
        layer.send("body?x", {"letter": "x"}, immediately=True)
        layer.group_add("group", "own")
        raise Wrong
    assert sent(layer) == ""
    assert layer.group_channels("group") == []


def test_a_savepoint_of_the_other_database_takes_its_own_with_it(layer):
    with elsewhere(layer):
        send(layer, "a")
        with pytest.raises(Wrong), elsewhere(layer):
            send(layer, "x")
            raise Wrong
        with elsewhere(layer):
            send(layer, "b")
        send(layer, "c")
        assert waiting(layer, "body?x") == 0
    assert sent(layer) == "abc"


def test_the_layers_own_transaction_goes_before_the_others(layer):
    with elsewhere(layer):
        with atomic(layer):
            send(layer, "a")
        assert waiting(layer, "body?x") == 1
    with atomic(layer), elsewhere(layer):
        send(layer, "b")
    assert sent(layer) == "ab"


def test_a_consumers_sends_wait_for_both_the_commit_and_its_end(layer):
    with layer.buffered() as buffer:
        send(layer, "a")
        with elsewhere(layer):
            send(layer, "b")
        with pytest.raises(Wrong), elsewhere(layer):
            send(layer, "x")
            raise Wrong
        send(layer, "c")
        assert waiting(layer, "body?x") == 0
    layer.write(buffer.pending())
    assert sent(layer) == "abc"


def test_an_immediate_send_waits_for_the_other_commit_and_for_nothing_else(layer):
    with layer.buffered() as buffer:
        send(layer, "b")
        with elsewhere(layer):
            layer.send("body?x", {"letter": "a"}, immediately=True)
            assert waiting(layer, "body?x") == 0
        assert waiting(layer, "body?x") == 1
    layer.write(buffer.pending())
    assert sent(layer) == "ab"


def test_full_after_the_other_commit_is_told_and_the_commit_stands(new_layer):
    layer = new_layer(capacity=1)
    committed = []
    with pytest.raises(layer.ChannelFull), elsewhere(layer):
        transaction.on_commit(lambda: committed.append(True), using="sqlite")
        transaction.on_commit(lambda: committed.append(True), using="default")
        layer.send_many([("body?x", {"letter": "a"})])
        layer.send_many([("own", {}), ("body?x", {"letter": "b"})])
    assert sent(layer) == "a"
    assert waiting(layer, "own") == 0
    assert committed


def test_what_is_wrong_with_a_message_is_said_before_the_other_commit(layer):
    with elsewhere(layer), pytest.raises(InvalidMessage):
        layer.send("own", {"object": object()})
    assert waiting(layer, "own") == 0


def test_two_other_transactions_must_both_commit(layer):
    written, expected = [], []
    for outer, inner in (("default", "sqlite"), ("sqlite", "default")):
        for number, wrong in enumerate((None, inner, outer)):
            with suppress(Wrong), transaction.atomic(using=outer):
                with suppress(Wrong), transaction.atomic(using=inner):
                    after_commit(["default", "sqlite"], partial(written.append, number))
                    if wrong == inner:
                        raise Wrong
                assert written == expected
                if wrong == outer:
                    raise Wrong
            expected += [] if wrong else [number]
    assert written == [0, 0]
