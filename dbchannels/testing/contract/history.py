"""The layer contract: the histories of groups, as the servers read them for their connections."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django.db import transaction

from dbchannels import codec
from dbchannels.exceptions import InvalidMessage
from dbchannels.layers.base import BaseLayer
from dbchannels.layers.link import Link
from dbchannels.layers.operations import Missed
from dbchannels.testing.contract.case import DEADLINE, SOON, LayerCase, drain, in_thread, raises, wait_until

MANY, MUCH = 100, 1_048_576  # messages and bytes: more than these tests send


def numbers(pairs: Iterable[tuple[int, bytes]]) -> list[Any]:
    """Return what the messages of (position, payload) pairs have under "number"."""
    return [codec.decode(payload)["number"] for _, payload in pairs]


class HistoryContract(LayerCase):
    """What is kept, in which order it is read, and what a client that comes back gets."""

    def server(self, layer: BaseLayer, name: str = "a") -> Link:
        """Return the link of a live server with the queue ``reply.kept-NAME!``."""
        link = self.link(layer)
        link.register(f"history-{name}", "server", f"reply.kept-{name}!")
        return link

    def layer_and_server(self, **options: Any) -> tuple[BaseLayer, Link]:
        """Return a new, empty layer and the link of a live server to it."""
        layer = self.layer(**options)
        return layer, self.server(layer)

    def join(self, layer: BaseLayer, group: str, channel: str = "reply.kept-a!x") -> None:
        """Add a channel to a group as its client's connect consumer does."""
        with layer.opening(channel):
            layer.group_add(group, channel, immediately=True)

    def say(self, layer: BaseLayer, *said: int, group: str = "group", history: Any = MANY) -> None:
        """Send numbers to a group with a history."""
        for number in said:
            layer.send_group(group, {"number": number}, history=history)

    def read(self, link: Link, after: int, queue: str = "reply.kept-a!") -> list[tuple[Any, tuple[str, ...]]]:
        """Return (number, recipients) of what is new for a server."""
        found = link.read_history(queue, after, MANY)
        assert sorted(one.position for one in found) == [one.position for one in found]
        return [(codec.decode(one.payload)["number"], one.recipients) for one in found if one.recipients]

    def missed(
        self, link: Link, after: int, recipient: str = "x", limit: int = MANY, size: int = MUCH
    ) -> Missed:
        """Return what one channel of the server a has missed."""
        link.read_history("reply.kept-a!", 0, MANY)  # gives the positions
        return link.missed("reply.kept-a!", {recipient: after}, limit, size)[recipient]

    def test_servers_read_what_is_kept_and_other_members_get_messages(self) -> None:
        layer = self.layer()
        link, other = self.server(layer), self.server(layer, "b")
        link.register("history-others", "channels", "specific.kept!")  # reads no history
        start = link.history_position()
        for member in (
            "reply.kept-a!x",
            "reply.kept-a!y",
            "reply.kept-b!z",
            "reply.foreign!x",
            "specific.kept!x",
            "own",
        ):
            layer.group_add("group", member)
        self.say(layer, 1, 2)
        self.say(layer, 3, group="empty")
        for queue in ("own", "reply.foreign!", "specific.kept!"):
            assert drain(layer, queue) == [{"number": 1}, {"number": 2}]
        assert drain(layer, "reply.kept-a!", "reply.kept-b!") == []
        for reader, queue, members in ((link, "reply.kept-a!", ["x", "y"]), (other, "reply.kept-b!", ["z"])):
            read = self.read(reader, start, queue)
            assert [(number, sorted(names)) for number, names in read] == [(1, members), (2, members)]

    def test_a_send_without_a_history_is_not_kept(self) -> None:
        layer, link = self.layer_and_server()
        layer.group_add("group", "reply.kept-a!x")
        layer.send_group("group", {"number": 1})
        assert drain(layer, "reply.kept-a!") == [{"number": 1}]
        assert link.read_history("reply.kept-a!", 0, MANY) == []

    def test_a_reader_goes_on_where_it_stopped(self) -> None:
        layer, link = self.layer_and_server()
        layer.group_add("group", "reply.kept-a!x")
        self.say(layer, 1, 2, 3)
        first = link.read_history("reply.kept-a!", 0, 2)
        self.say(layer, 4)
        rest = link.read_history("reply.kept-a!", first[-1].position, MANY)
        assert [codec.decode(one.payload)["number"] for one in [*first, *rest]] == [1, 2, 3, 4]
        assert link.history_position() == rest[-1].position
        assert link.read_history("reply.kept-a!", rest[-1].position, MANY) == []

    def test_a_channel_that_comes_back_gets_what_its_groups_have_had(self) -> None:
        layer, link = self.layer_and_server()
        start = link.history_position()
        self.say(layer, 1, 2)
        self.say(layer, 3, group="second")
        self.say(layer, 4, group="strangers")
        self.say(layer, 5)
        for group in ("group", "second"):
            self.join(layer, group)
        self.join(layer, "strangers", "reply.kept-a!y")
        whole = self.missed(link, start)
        assert (numbers(whole.messages), whole.gap, whole.complete) == ([1, 2, 3, 5], None, True)
        seen = whole.messages[1][0]
        assert numbers(self.missed(link, seen).messages) == [3, 5]
        assert self.missed(link, whole.messages[-1][0]) == Missed([], None, True)
        assert numbers(self.missed(link, start, "y").messages) == [4]
        assert self.missed(link, start, "nobody") == Missed([], None, True)

    def test_a_group_that_a_channel_joins_later_counts_from_then_on(self) -> None:
        layer, link = self.layer_and_server()
        start = link.history_position()
        self.join(layer, "group")
        self.say(layer, 1)
        self.say(layer, 2, 3, group="later")
        assert numbers(self.missed(link, start).messages) == [1]
        with layer.opening("reply.kept-a!y"):  # another client's consumer
            layer.group_add("later", "reply.kept-a!x", immediately=True)
        self.say(layer, 4, group="later")
        self.say(layer, 5)
        self.missed(link, start)
        for group in ("group", "later"):  # it is there already
            layer.group_add(group, "reply.kept-a!x")
        self.join(layer, "later", "reply.kept-a!y")
        found = self.missed(link, start)
        assert (numbers(found.messages), found.gap, found.complete) == ([1, 4, 5], None, True)
        assert numbers(self.missed(link, -1).messages) == [1, 4, 5]
        assert numbers(self.missed(link, found.messages[1][0]).messages) == [5]
        assert numbers(self.missed(link, start, "y").messages) == [2, 3, 4]
        layer.group_discard("group", "reply.kept-a!x")
        layer.group_add("group", "reply.kept-a!x")
        assert numbers(self.missed(link, start).messages) == [4]

    def test_what_is_gone_of_a_group_before_a_channel_joins_it_is_no_gap(self) -> None:
        layer, link = self.layer_and_server(expiry=SOON)
        start = link.history_position()
        self.join(layer, "later", "reply.kept-a!y")

        def is_gap(recipient: str) -> bool:
            link.clean_up()
            return self.missed(link, start, recipient).gap is not None

        self.say(layer, 1, 2, group="later", history=1)
        wait_until(lambda: is_gap("y"))
        layer.group_add("later", "reply.kept-a!x")
        assert self.missed(link, start) == Missed([], None, True)
        self.say(layer, 3, 4, group="later", history=1)
        wait_until(lambda: is_gap("x"))
        assert numbers(self.missed(link, start).messages) == [4]

    def test_what_was_missed_comes_in_batches(self) -> None:
        layer, link = self.layer_and_server()
        layer.group_add("group", "reply.kept-a!x")
        start = link.history_position()
        self.say(layer, 1, 2, 3)
        first = self.missed(link, start, limit=2)
        assert (numbers(first.messages), first.complete) == ([1, 2], False)
        rest = self.missed(link, first.messages[-1][0], limit=2)
        assert (numbers(rest.messages), rest.complete) == ([3], True)
        # A batch ends before the message that makes it too large, unless that is its first.
        (_, payload), *_ = first.messages
        for size, count in ((1, 1), (len(payload), 1), (2 * len(payload) - 1, 1), (2 * len(payload), 2)):
            found = self.missed(link, start, size=size)
            assert (numbers(found.messages), found.complete) == ([1, 2][:count], False), size
        whole = self.missed(link, start, limit=3)
        assert (numbers(whole.messages), whole.complete) == ([1, 2, 3], True)

    def test_a_position_that_was_never_given_is_one_before_everything(self) -> None:
        layer, link = self.layer_and_server()
        layer.group_add("group", "reply.kept-a!x")
        self.say(layer, 1, 2)
        self.missed(link, 0)
        for bad in (-1, link.history_position() + 10**9, 10**18 - 1):
            found = self.missed(link, bad)
            assert (numbers(found.messages), found.gap, found.complete) == ([1, 2], 0, True), bad

    def test_the_newest_are_kept_and_a_gap_is_told(self) -> None:
        layer, link = self.layer_and_server(expiry=SOON)
        layer.group_add("group", "reply.kept-a!x")
        layer.group_add("other", "reply.kept-a!y")
        start = link.history_position()
        self.say(layer, 1, 2, 3, 4, 5, history=2)
        self.say(layer, 6, 7, 8, group="other")
        before = self.missed(link, start)
        assert numbers(before.messages) == [1, 2, 3, 4, 5]  # nothing was trimmed yet

        def trimmed() -> bool:
            link.clean_up()
            return len(self.missed(link, start).messages) == 2

        wait_until(trimmed)
        found = self.missed(link, start)
        assert (numbers(found.messages), found.gap) == ([4, 5], before.messages[2][0])
        for seen, gap in ((1, before.messages[2][0]), (2, None), (3, None)):
            assert self.missed(link, before.messages[seen][0]).gap == gap
        others = self.missed(link, start, "y")
        assert (numbers(others.messages), others.gap) == ([6, 7, 8], None)

    def test_what_is_too_old_goes_and_nothing_before_its_time(self) -> None:
        layer, link = self.layer_and_server(expiry=SOON)
        layer.group_add("group", "reply.kept-a!x")
        layer.group_add("long", "reply.kept-a!x")
        start = link.history_position()
        self.say(layer, 1, 2, history=timedelta(seconds=SOON))
        self.say(layer, 3, group="long", history=timedelta(hours=1))

        def trimmed() -> bool:
            link.clean_up()
            return numbers(self.missed(link, start).messages) == [3]

        wait_until(trimmed)
        assert self.missed(link, start).gap is not None

    def test_a_message_is_kept_as_long_as_a_server_may_take_to_read_it(self) -> None:
        layer, link = self.layer_and_server(expiry=60.0)
        layer.group_add("group", "reply.kept-a!x")
        self.say(layer, 1, 2, history=1)
        self.say(layer, 3, history=timedelta(microseconds=1))
        link.read_history("reply.kept-a!", 0, MANY)
        link.clean_up()
        assert numbers(self.missed(link, -1).messages) == [1, 2, 3]

    def test_a_group_that_nobody_sends_to_is_forgotten(self) -> None:
        layer, link = self.layer_and_server(expiry=SOON, history_expiry=SOON)
        layer.group_add("group", "reply.kept-a!x")
        start = link.history_position()
        self.say(layer, 1)
        self.missed(link, start)
        last = link.history_position()

        def forgotten() -> bool:
            link.clean_up()
            return self.missed(link, start).messages == []

        wait_until(forgotten)
        wait_until(lambda: link.clean_up() or self.missed(link, start, "nobody").gap == last)
        assert link.history_position() == last
        assert self.missed(link, last) == Missed([], None, True)

    def test_what_nobody_reads_is_trimmed_too(self) -> None:
        layer, link = self.layer_and_link(expiry=SOON)  # no server
        self.say(layer, 1, 2, history=1)

        def trimmed() -> bool:
            link.clean_up()
            self.join(layer, "group")
            found = link.missed("reply.kept-a!", {"x": -1}, MANY, MUCH)["x"]
            return numbers(found.messages) == [2]

        wait_until(trimmed)

    def test_a_server_begins_after_everything_that_was_committed(self) -> None:
        layer, link = self.layer_and_server()
        self.say(layer, 1, 2)
        assert link.read_history("reply.kept-a!", link.history_position(), MANY) == []

    def test_no_position_is_given_twice(self) -> None:
        layer, link = self.layer_and_server()
        self.say(layer, 1, 2)
        (first, second) = link.read_history("reply.kept-a!", 0, MANY)
        layer.flush()
        self.say(layer, 3)
        (third,) = link.read_history("reply.kept-a!", 0, MANY)
        assert first.position < second.position < third.position

    def test_a_history_that_cannot_be_is_refused(self) -> None:
        layer = self.layer()
        for bad in (0, -1, True, 1.5, "100", 2**31, timedelta(0), timedelta(days=-1), timedelta(days=4000)):
            with raises(InvalidMessage):
                self.say(layer, 1, history=bad)
        with raises(InvalidMessage):
            layer.send_group("group", {"type": "an.event"}, history=1)
        with raises(layer.MessageTooLarge):
            layer.send_group("group", {"text": "x" * (2**20 + 1)}, history=1)
        assert self.server(layer).read_history("reply.kept-a!", 0, MANY) == []

    # In transactions.

    def test_what_is_rolled_back_is_not_kept(self) -> None:
        layer, link = self.layer_and_server()
        layer.group_add("group", "reply.kept-a!x")
        if layer.transactional:
            try:
                with transaction.atomic(using=layer.database):
                    self.say(layer, 1)
                    raise KeyError
            except KeyError:
                pass
        self.say(layer, 2)
        assert self.read(link, 0) == [(2, ("x",))]

    def test_servers_that_read_at_once_give_each_position_once(self) -> None:
        layer = self.layer()
        found: dict[str, list[int]] = {}

        def read(name: str) -> None:
            link = self.server(layer, name)
            got: list[int] = []
            while len(got) < 30:
                after = got[-1] if got else 0
                got += [one.position for one in link.read_history(f"reply.kept-{name}!", after, MANY)]
            found[name] = got

        readers = [in_thread(layer, lambda name=name: read(name)) for name in "abc"]  # type: ignore[misc]
        senders = [in_thread(layer, lambda: self.say(layer, *range(10))) for _ in range(3)]
        for thread in (*senders, *readers):
            thread.join(DEADLINE)
        assert found["a"] == found["b"] == found["c"] == sorted(set(found["a"]))
