"""The tally of a group: whatever changes memberships, and however many do at once, it adds up to what they are."""

from __future__ import annotations

import random
import threading

import pytest
from django.db import connection, connections, transaction

from dbchannels.layers.operations import Disconnect, GroupAdd
from dbchannels.models import Membership, Process, Tally
from tests import kinds

pytestmark = kinds.only("postgresql")

ACTUAL = """
SELECT "group", channel, count(*), count(expires_at),
       sum(hashtextextended(recipient, 0)::numeric * 18446744073709551616 + hashtextextended(recipient, 1))
FROM dbchannels_membership
GROUP BY "group", channel ORDER BY "group", channel
"""
TOLD = """
SELECT "group", channel, sum(members), sum(expiring), sum(digest) FROM dbchannels_tally
GROUP BY "group", channel HAVING sum(members) <> 0 OR sum(expiring) <> 0 OR sum(digest) <> 0 ORDER BY "group", channel
"""


@pytest.fixture
def link(layer, new_link):
    """A link of the live server a."""
    link = new_link(layer)
    link.register("a", Process.SERVER, "reply.a!")
    return link


def rows(statement):
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall()


def adds_up():
    """Whether the tally says what the memberships are; they must not be none."""
    actual = rows(ACTUAL)
    assert actual
    return rows(TOLD) == actual


def fill(link, count=10, group="group"):
    link.apply([GroupAdd(group, f"reply.a!{number:022}") for number in range(count)])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda layer, link: None, id="add"),
        pytest.param(lambda layer, link: fill(link), id="add again"),
        pytest.param(lambda layer, link: layer.group_discard("group", f"reply.a!{3:022}"), id="discard"),
        pytest.param(
            lambda layer, link: layer.group_discard("group", "reply.a!stranger"), id="discard a stranger"
        ),
        pytest.param(lambda layer, link: layer.group_clear("group"), id="clear"),
        pytest.param(lambda layer, link: link.apply([Disconnect(f"reply.a!{3:022}")]), id="disconnect"),
        pytest.param(
            lambda layer, link: Membership.objects.filter(group="group")[0].delete(), id="the admin"
        ),
        pytest.param(
            lambda layer, link: Membership.objects.filter(group="group").update(group="third"), id="renamed"
        ),
        pytest.param(
            lambda layer, link: Membership.objects.update(expires_at="2001-01-01T00:00Z"), id="ended"
        ),
        pytest.param(lambda layer, link: link.unregister("a"), id="server ends"),
    ],
)
def test_whatever_changes_a_group_is_in_its_tally(layer, link, change):
    fill(link)
    fill(link, group="other")
    layer.group_add("group", "reply.nobody!x")
    change(layer, link)
    link.register("b", Process.SERVER, "reply.b!")
    layer.group_add("last", "reply.b!x")
    assert adds_up()
    link.clean_up()
    assert adds_up()
    assert Tally.objects.count() == len(rows(ACTUAL))


def test_truncate_empties_it(link):
    fill(link)
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE dbchannels_membership")
    assert not Tally.objects.exists()


def test_a_rollback_leaves_nothing_in_it(layer, link):
    fill(link)
    with transaction.atomic():
        layer.group_discard("group", f"reply.a!{3:022}")
        transaction.set_rollback(True)
    assert adds_up()


def test_an_open_transaction_holds_up_no_other_add_and_no_merge(layer, link, new_link):
    fill(link)
    other = new_link(layer)
    with transaction.atomic():
        layer.group_add("group", "reply.a!mine")
        other.apply([GroupAdd("group", "reply.a!theirs")])  # would wait for ever, or for its 10 s
        other.clean_up()
    assert adds_up()
    assert len(layer.group_channels("group")) == 12


def test_many_that_change_and_merge_at_once(layer, new_link, link):
    problems = []

    def run(number):
        try:
            own, choose = new_link(layer), random.Random(number)
            for _ in range(60):
                name = f"reply.a!{choose.randrange(20):022}"
                what = choose.randrange(4)
                if what == 0:
                    own.clean_up()
                elif what == 1:
                    layer.group_discard("group", name)
                elif what == 2:
                    with transaction.atomic():
                        layer.group_add("group", name)
                        transaction.set_rollback(choose.random() < 0.5)
                else:
                    layer.group_add("group", name)
        except Exception as error:
            problems.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    layer.group_add("group", "reply.a!last")
    assert adds_up()
    for _ in range(2):
        link.clean_up()
        assert adds_up()
    assert not Tally.objects.filter(merged=False).exists()


def rows_of_a_merge():
    """Let rows into the tally that no trigger inserts, until the transaction ends."""
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL dbchannels.merges = on")


def test_a_wrong_tally_makes_no_broadcast_wrong(layer, link):
    fill(link, 100)
    parts = [f"{number:022}" for number in range(100)]
    for members, expiring, digest in ((5, 0, 0), (0, 3, 7), (-50, 0, 1)):
        wrong = {"members": members, "expiring": expiring, "digest": digest}
        with transaction.atomic():
            rows_of_a_merge()
            Tally.objects.create(group="group", channel="reply.a!", merged=False, **wrong)
            gone = {"members": 1, "expiring": 0, "digest": 1}
            Tally.objects.create(group="group", channel="reply.gone!", merged=True, **gone)
        for _ in range(3):
            layer.send_group("group", {})
        assert [sorted(one.recipients) for one in link.receive_many(["reply.a!"], 10)] == [parts] * 3
    assert link.receive_many(["reply.gone!"], 10) == []
