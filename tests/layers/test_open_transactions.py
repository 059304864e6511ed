"""A site's transaction stays open while connections end: no server waits for it, and nothing is left after it."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import pytest
from django.db import connections, transaction

from dbchannels.layers.operations import Connect, Disconnect
from dbchannels.models import Connection, Membership, Process
from dbchannels.testing.contract.case import DEADLINE, drain, in_thread, wait_until, waiting
from tests import kinds

on_postgresql = kinds.only("postgresql")


@contextmanager
def open_transaction(layer, call):
    """Do something in a transaction that is open until the block ends, and is rolled back then."""
    ready, done = threading.Event(), threading.Event()

    def hold():
        with transaction.atomic(using=layer.database):
            call()
            ready.set()
            assert done.wait(3 * DEADLINE)
            transaction.set_rollback(True, using=layer.database)
        connections.close_all()

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    assert ready.wait(DEADLINE)
    try:
        yield
    finally:
        done.set()
        thread.join(DEADLINE)
    assert not thread.is_alive()


def left(layer):
    """Return how many memberships and connections are on record."""
    return tuple(model.objects.using(layer.database).count() for model in (Membership, Connection))


#: What a consumer or a view does with a reply channel, and what is left of it at its end: memberships, connections.
CALLS = {
    "identify": (lambda layer, channel: layer.identify(channel, "7"), (0, 1)),
    "keep": (lambda layer, channel: layer.keep(channel, session=b"x"), (0, 1)),
    "discard": (lambda layer, channel: layer.group_discard("group", channel), (1, 0)),
    "clear": (lambda layer, channel: layer.group_clear("group"), (1, 0)),
    "add again": (lambda layer, channel: layer.group_add("group", channel), (1, 0)),
}


@kinds.only("postgresql", "polling")
@pytest.mark.parametrize(("call", "locked"), CALLS.values(), ids=CALLS)
def test_the_publisher_waits_for_no_transaction_and_nothing_is_left_after_it(layer, new_link, call, locked):
    publisher, housekeeper = new_link(layer), new_link(layer)
    publisher.apply([Connect("reply.s!a", "s", "/"), Connect("reply.s!b", "s", "/")])
    for group in ("group", "other"):
        layer.group_add(group, "reply.s!a")
    with open_transaction(layer, lambda: call(layer, "reply.s!a")):
        # The deadline of a statement would end one that waits, as LayerUnavailable.
        publisher.apply(
            [Disconnect("reply.s!a"), Disconnect("reply.s!b"), layer.make_send("http.request", {})]
        )
        assert (left(layer), waiting(layer, "http.request")) == (locked, 1)
        housekeeper.clean_up()
        assert left(layer) == locked
    housekeeper.clean_up()
    assert left(layer) == (0, 0)
    housekeeper.clean_up()
    assert layer.closed_connections.take() == set()


@on_postgresql
def test_who_joins_a_group_while_its_connection_ends_leaves_it_again(layer, new_link):
    link = new_link(layer)
    link.apply([Connect("reply.s!a", "s", "/")])
    layer.group_add("group", "reply.s!a")
    with link.session.transaction():
        link.apply([Disconnect("reply.s!a")])
        adding = in_thread(layer, lambda: layer.group_add("group", "reply.s!a"))
        blocked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%membership%'"
        wait_until(lambda: query(layer, blocked))
    adding.join(DEADLINE)
    assert left(layer) == (1, 0)
    link.clean_up()
    assert left(layer) == (0, 0)


def query(layer, statement):
    """Return the only value that a statement gives on Django's connection."""
    with connections[layer.database].cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone()[0]


@kinds.only("postgresql", "polling")
def test_a_dead_servers_connections_end_at_once_but_for_those_that_are_held(layer, layer_kind, new_link):
    server, other = new_link(layer), new_link(layer)
    server.register("s", Process.SERVER, "reply.s!")
    server.apply([Connect(f"reply.s!{local}", "s", "/") for local in "abc"])
    for local in "abc":
        layer.group_add("group", f"reply.s!{local}")

    def hold():
        layer.identify("reply.s!a", "7")
        layer.group_discard("group", "reply.s!b")

    def ended():
        return [message["reply_channel"] for message in drain(layer, "websocket.disconnect")]

    with open_transaction(layer, hold):
        other.clean_up_after("s")
        assert not server.renew("s")
        assert left(layer) == (1, 1)
        assert sorted(ended()) == ["reply.s!b", "reply.s!c"]
        if layer_kind == "postgresql":
            other.session.connected_at -= 3600  # so that it cleans up
        other.clean_up()
        assert (left(layer), ended()) == ((1, 1), [])
    wait_until(lambda: other.clean_up() or left(layer) == (0, 0))
    assert ended() == ["reply.s!a"]
    other.clean_up()
    assert not Process.objects.exists()


@on_postgresql
def test_a_cleanup_waits_for_no_membership_that_is_being_made_new(new_layer, new_link):
    short, layer = new_layer(group_expiry=0.001), new_layer()
    short.group_add("group", "own")
    wait_until(lambda: short.group_channels("group") == [])
    link = new_link(layer)
    with open_transaction(layer, lambda: layer.group_add("group", "own")):
        link.clean_up()
        assert left(layer) == (1, 0)
    link.clean_up()
    assert left(layer) == (0, 0)


@kinds.only("sqlite")
def test_on_sqlite_one_writer_follows_the_other(layer, new_link):
    """The whole file has one lock: the end of a connection waits, and is written when the transaction has ended."""
    link = new_link(layer)
    link.apply([Connect("reply.s!a", "s", "/")])
    layer.group_add("group", "reply.s!a")
    ending = threading.Event()

    def end():
        other = layer.link()
        ending.set()
        other.apply([Disconnect("reply.s!a")])

    with transaction.atomic(using="sqlite"):
        layer.identify("reply.s!a", "7")
        thread = in_thread(layer, end)
        assert ending.wait(DEADLINE)
        assert left(layer) == (1, 1)
    thread.join(3 * DEADLINE)
    assert left(layer) == (0, 0)
