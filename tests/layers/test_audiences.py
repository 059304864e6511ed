"""A broadcast to many members of one server: they are written once, and are exactly those of the sender's snapshot."""

from __future__ import annotations

import threading

import pytest
from django.db import connection, connections, transaction

from dbchannels.layers.operations import GroupAdd
from dbchannels.models import Audience, Membership, Process, ProtocolMessage
from dbchannels.testing.contract.case import DEADLINE
from tests import kinds

pytestmark = kinds.only("postgresql")

MANY, FEW = 100, 10


@pytest.fixture
def reader(layer, new_link):
    """A reader of the queue of a server a, which lives as a server b does; more readers by ``new_link``."""
    link = new_link(layer)
    for name in "ab":
        link.register(name, Process.SERVER, f"reply.{name}!")
    return link


def fill(link, count=MANY, queue="reply.a!", group="group", start=0):
    """Put so many members of a server into a group; return their recipients."""
    parts = [f"{number:022}" for number in range(start, start + count)]
    link.apply([GroupAdd(group, queue + part) for part in parts])
    return parts


def receivers(link, queue="reply.a!"):
    """Take what waits; return for each message whom it goes to."""
    return [sorted(one.recipients) for one in link.receive_many([queue], 1000)]


def written():
    """Return the recipients of each audience, in order; "" of what was seen once."""
    return list(Audience.objects.order_by("id").values_list("recipients", flat=True))


def stored():
    """Return (bytes of recipients, whether it names an audience) of each message that waits."""
    rows = ProtocolMessage.objects.order_by("id").values_list("recipients", "audience")
    return [(len(parts), key is not None) for parts, key in rows]


def broadcast(layer, times, group="group"):
    for number in range(times):
        layer.send_group(group, {"number": number})


def test_sends_to_an_unchanged_group_share_one_audience(layer, reader):
    parts = fill(reader)
    broadcast(layer, 5)
    whole = MANY * 23 - 1
    assert stored() == [(whole, False)] + [(0, True)] * 4
    assert [len(text) for text in written()] == [0, whole]
    assert receivers(reader) == [parts] * 5


def test_few_members_stay_in_the_row(layer, reader):
    parts = fill(reader, FEW)
    broadcast(layer, 3)
    assert written() == []
    assert receivers(reader) == [parts] * 3


def test_an_add_or_a_discard_between_two_sends_makes_another_audience(layer, reader):
    parts = fill(reader)
    broadcast(layer, 2)
    layer.group_discard("group", "reply.a!" + parts[7])
    broadcast(layer, 2)
    layer.group_add("group", "reply.a!new")
    broadcast(layer, 2)
    fewer = parts[:7] + parts[8:]
    assert receivers(reader) == [parts] * 2 + [fewer] * 2 + [[*fewer, "new"]] * 2
    assert len(set(Audience.objects.values_list("key", flat=True))) == 3


def test_one_that_goes_and_one_that_comes_are_not_taken_for_each_other(layer, reader):
    parts = fill(reader)
    broadcast(layer, 3)
    layer.group_discard("group", "reply.a!" + parts[-1])
    layer.group_add("group", "reply.a!" + "9" * 22)
    broadcast(layer, 3)
    assert receivers(reader) == [parts] * 3 + [[*parts[:-1], "9" * 22]] * 3


def test_a_group_that_always_changes_writes_no_audience(layer, reader):
    fill(reader)
    for number in range(5):
        layer.group_add("group", f"reply.a!{number}")
        layer.send_group("group", {})
    assert written() == [""] * 5
    assert [len(one) for one in receivers(reader)] == [MANY + number + 1 for number in range(5)]


def test_a_membership_that_has_ended_is_in_no_audience(layer, reader):
    parts = fill(reader)
    broadcast(layer, 3)
    Membership.objects.filter(recipient=parts[0]).update(expires_at="2001-01-01T00:00:00Z")
    broadcast(layer, 3)
    assert receivers(reader) == [parts] * 3 + [parts[1:]] * 3


def test_each_server_has_its_own_members(layer, reader):
    mine, others = fill(reader), fill(reader, queue="reply.b!", start=50)
    broadcast(layer, 4)
    assert receivers(reader) == [mine] * 4
    assert receivers(reader, "reply.b!") == [others] * 4


def test_a_new_reader_finds_an_audience_that_was_made_before(layer, reader, new_link):
    parts = fill(reader)
    broadcast(layer, 3)
    assert receivers(reader) == [parts] * 3
    broadcast(layer, 1)
    assert receivers(new_link(layer)) == [parts]


def test_after_a_crash_no_reader_takes_an_audience_for_another(layer, reader):
    parts = fill(reader)
    broadcast(layer, 3)
    assert receivers(reader) == [parts] * 3
    with connection.cursor() as cursor:  # what the recovery of the database does to UNLOGGED tables
        cursor.execute("TRUNCATE dbchannels_audience, dbchannels_protocolmessage RESTART IDENTITY")
    layer.group_clear("group")
    others = fill(reader, start=500)
    broadcast(layer, 3)
    assert Audience.objects.order_by("id").first().id == 1
    assert receivers(reader) == [others] * 3


def test_a_message_whose_audience_was_deleted_goes_to_nobody(layer, reader, caplog):
    fill(reader)
    broadcast(layer, 2)
    Audience.objects.all().delete()
    layer.send("reply.a!x", {})
    assert [len(one) for one in receivers(reader)] == [MANY, 1]
    assert "its audience has been deleted" in caplog.text


def test_nothing_remains_of_a_transaction_that_is_rolled_back(layer, reader):
    parts = fill(reader)
    with transaction.atomic():
        broadcast(layer, 3)
        transaction.set_rollback(True)
    assert written() == stored() == []
    broadcast(layer, 2)
    assert receivers(reader) == [parts] * 2


def test_a_sender_in_a_transaction_makes_no_other_wait(layer, reader):
    parts = fill(reader)
    broadcast(layer, 1)  # the next one writes the audience
    done = threading.Event()

    def send():
        broadcast(layer, 2)
        connections.close_all()
        done.set()

    with transaction.atomic():
        broadcast(layer, 2)
        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        assert done.wait(DEADLINE), "The second sender was made to wait."
    thread.join(DEADLINE)
    assert receivers(reader) == [parts] * 5


def test_an_audience_outlives_the_messages_that_name_it(layer, reader):
    fill(reader)
    broadcast(layer, 3)
    last = ProtocolMessage.objects.latest("expires_at").expires_at
    assert all((one.expires_at - last).total_seconds() > 60 for one in Audience.objects.all())
    # Reused only for so long that this stays true: an old one is none.
    Audience.objects.update(expires_at=last)
    broadcast(layer, 1)
    assert [len(text) > 0 for text in written()] == [False, True, False]


def test_a_cleanup_drops_audiences_that_ended(layer, reader):
    fill(reader)
    broadcast(layer, 2)
    reader.clean_up()
    assert len(written()) == 2
    Audience.objects.update(expires_at="2001-01-01T00:00:00Z")
    reader.clean_up()
    assert written() == []


def test_members_without_a_live_server_need_none(layer, reader):
    parts = fill(reader, queue="reply.c!")
    broadcast(layer, 3)
    assert receivers(reader, "reply.c!") == [parts] * 3
    assert written() == []


def test_flush_empties_it(layer, reader):
    fill(reader)
    broadcast(layer, 2)
    layer.flush()
    assert written() == stored() == []


def test_ten_thousand_members(layer, reader):
    parts = fill(reader, 10_000)
    broadcast(layer, 3)
    assert receivers(reader) == [parts] * 3
    assert [len(text) for text in written()] == [0, 10_000 * 23 - 1]


def test_a_broadcast_to_whom_it_knows_reads_no_member(layer, reader):
    """Counted by PostgreSQL itself, since the plans are inside of a function."""
    fill(reader)
    broadcast(layer, 10)  # so that the session keeps the plans of a time when the tables were small
    reader.receive_many(["reply.a!"], 100)
    reader.clean_up()
    with connection.cursor() as cursor:
        cursor.execute(
            'INSERT INTO dbchannels_membership ("group", channel, recipient)'
            " SELECT 'other' || g % 1000, 'reply.b!', g FROM generate_series(1, 50000) AS g"
        )
        cursor.execute(
            "INSERT INTO dbchannels_protocolmessage (channel, recipients, reply_channel, payload, expires_at)"
            " SELECT 'reply.' || g || '!', '', '', '', now() + interval '1 h' FROM generate_series(1, 50000) AS g"
        )
    with transaction.atomic(), connection.cursor() as cursor:
        before = reads(cursor)  # of this session what it has not reported yet is counted too
        broadcast(layer, 10)
        counted = {name: number - before[name] for name, number in reads(cursor).items()}
    assert {name: number for name, number in counted.items() if name[1] == "seq_scan" and number} == {}
    assert counted["dbchannels_membership", "idx_tup_fetch"] == 0
    assert counted["dbchannels_tally", "idx_tup_fetch"] == 10
    assert counted["dbchannels_protocolmessage", "idx_tup_fetch"] <= 10 * 2


def reads(cursor):
    """Return the sequential scans, and the rows found by an index, of each table that a broadcast uses."""
    cursor.execute(
        "SELECT relname, seq_scan, idx_tup_fetch FROM pg_stat_xact_user_tables"
        " WHERE relname = ANY(ARRAY['dbchannels_membership', 'dbchannels_protocolmessage', 'dbchannels_audience',"
        " 'dbchannels_tally'])"
    )
    return {
        (name, kind): number
        for name, scans, rows in cursor.fetchall()
        for kind, number in (("seq_scan", scans), ("idx_tup_fetch", rows))
    }
