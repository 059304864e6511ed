"""The layer contract, third part: groups."""

from __future__ import annotations

from dbchannels.exceptions import InvalidName
from dbchannels.layers.operations import Connect, Disconnect
from dbchannels.testing.contract.case import SOON, LayerCase, drain, raises, wait_until, waiting


class GroupContract(LayerCase):
    """The members of a group, for how long they stay, and what they receive."""

    def test_every_member_receives_a_message_once(self) -> None:
        layer = self.layer()
        members = ["own", "http.request", "body?x", "reply.a!b", "reply.a!c", "reply.b!b"]
        for member in members:
            layer.group_add("group", member)
        layer.group_add("other", "stranger")
        layer.send_group("group", {"text": "hi"})
        queues = ["own", "http.request", "body?x", "reply.a!", "reply.b!", "stranger"]
        received = [layer.receive(queues) for _ in range(7)]
        assert sorted(received[:6]) == sorted((member, {"text": "hi"}) for member in members)
        assert received[6] == (None, None)

    def test_a_broadcast_comes_in_order_with_the_rest(self) -> None:
        layer = self.layer()
        for local in ("b", "c"):
            layer.group_add("group", f"reply.a!{local}")
        layer.send("reply.a!b", {"number": 1})
        layer.send_group("group", {"number": 2})
        layer.send("reply.a!c", {"number": 3})
        received = [layer.receive(["reply.a!"]) for _ in range(4)]
        assert [message["number"] for _, message in received if message] == [1, 2, 2, 3]
        assert {channel for channel, _ in received[1:3]} == {"reply.a!b", "reply.a!c"}

    def test_added_twice_is_there_once(self) -> None:
        layer = self.layer()
        for _ in range(3):
            layer.group_add("group", "reply.a!b")
            layer.group_add("group", "own")
        assert sorted(layer.group_channels("group")) == ["own", "reply.a!b"]
        layer.send_group("group", {})
        assert drain(layer, "reply.a!") == drain(layer, "own") == [{}]

    def test_discarded_is_gone_and_absent_is_no_error(self) -> None:
        layer = self.layer()
        layer.group_discard("group", "own")
        for channel in ("own", "reply.a!b", "reply.a!c"):
            layer.group_add("group", channel)
        layer.group_discard("group", "reply.a!b")
        layer.group_discard("group", "stranger")
        layer.group_discard("other", "own")
        assert sorted(layer.group_channels("group")) == ["own", "reply.a!c"]

    def test_an_empty_group_swallows_a_message(self) -> None:
        layer = self.layer()
        layer.send_group("group", {})
        assert layer.group_channels("group") == []
        assert layer.global_statistics()["messages_pending"] == 0

    def test_later_members_do_not_receive_earlier_messages(self) -> None:
        layer = self.layer()
        layer.send_group("group", {})
        layer.group_add("group", "reply.a!b")
        assert layer.receive(["reply.a!"]) == (None, None)

    def test_a_membership_ends(self) -> None:
        layer = self.layer(group_expiry=SOON)
        layer.group_add("group", "reply.a!b")
        layer.group_add("group", "own")
        wait_until(lambda: layer.group_channels("group") == [])
        layer.send_group("group", {})
        assert layer.global_statistics()["messages_pending"] == 0

    def test_adding_again_makes_a_membership_new(self) -> None:
        layer = self.layer(group_expiry=0.3)
        layer.group_add("group", "own")
        layer.group_add("group", "other")

        def other_ended() -> bool:
            layer.group_add("group", "own")
            return "other" not in layer.group_channels("group")

        wait_until(other_ended)
        layer.group_add("group", "own")
        assert layer.group_channels("group") == ["own"]

    def test_a_full_member_goes_without(self) -> None:
        layer = self.layer(capacity=1)
        for member in ("http.full", "reply.full!a", "reply.roomy!a"):
            layer.group_add("group", member)
        layer.send("http.full", {"number": 1})
        layer.send("reply.full!b", {"number": 1})
        layer.send_group("group", {"number": 2})
        assert drain(layer, "http.full") == drain(layer, "reply.full!") == [{"number": 1}]
        assert drain(layer, "reply.roomy!") == [{"number": 2}]

    def test_a_member_that_is_full_by_its_own_capacity_goes_without(self) -> None:
        layer = self.layer(
            channel_capacity={"http.few": 1, "reply.full*": 1, "reply.roomy*": None, "mail": 1}
        )
        for member in ("http.few", "reply.full!a", "reply.roomy!a", "mail"):
            layer.group_add("group", member)
        for _ in range(3):
            layer.send_group("group", {})
        counts = {name: waiting(layer, name) for name in ("http.few", "reply.full!", "reply.roomy!", "mail")}
        assert counts == {"http.few": 1, "reply.full!": 1, "reply.roomy!": 3, "mail": 1}

    def test_a_member_that_does_not_read_leaves_its_groups(self) -> None:
        layer, link = self.layer_and_link(expiry=SOON)
        for member in ("reply.silent!a", "reply.silent!b", "own"):
            layer.group_add("group", member)
        layer.group_add("other", "reply.silent!a")
        layer.group_add("other", "reply.idle!a")
        layer.send("reply.silent!a", {})

        def left() -> bool:
            link.clean_up()
            return "reply.silent!a" not in layer.group_channels("group")

        wait_until(left)
        assert sorted(layer.group_channels("group")) == ["own", "reply.silent!b"]
        assert layer.group_channels("other") == ["reply.idle!a"]

    def test_a_broadcast_that_nobody_reads_empties_the_group(self) -> None:
        layer, link = self.layer_and_link(expiry=SOON)
        for local in "abc":
            layer.group_add("group", f"reply.silent!{local}")
        layer.send_group("group", {})

        def empty() -> bool:
            link.clean_up()
            return layer.group_channels("group") == []

        wait_until(empty)

    def test_too_large_is_refused_also_by_an_empty_group(self) -> None:
        layer = self.layer(max_message_size=100)
        with raises(layer.MessageTooLarge):
            layer.send_group("group", {"text": "x" * 101})

    def test_a_group_can_be_counted_and_cleared(self) -> None:
        layer = self.layer()
        for channel in ("own", "reply.a!b", "reply.a!c", "reply.a!c"):
            layer.group_add("group", channel)
        layer.group_add("other", "own")
        assert layer.group_count("group") == 3
        layer.group_clear("group")
        assert (layer.group_count("group"), layer.group_channels("group")) == (0, [])
        assert layer.group_channels("other") == ["own"]
        layer.group_clear("group")

    # Presence.

    def test_the_users_of_a_group_are_those_of_its_connections(self) -> None:
        layer, link = self.layer_and_link()
        users = {"a": "7", "b": "7", "c": "12", "d": "", "e": "99"}
        link.apply([Connect(f"reply.users!{local}", "server", "/") for local in users])
        for local, user in users.items():
            layer.identify(f"reply.users!{local}", user)
        for local in "abcdx":
            layer.group_add("group", f"reply.users!{local}")
        layer.group_add("other", "reply.users!e")
        layer.group_add("group", "own")
        assert layer.group_users("group") == ["12", "7"]
        layer.group_discard("group", "reply.users!a")
        assert layer.group_users("group") == ["12", "7"]
        link.apply([Disconnect("reply.users!b")])
        assert layer.group_users("group") == ["12"]
        layer.identify("reply.users!c", "")
        assert layer.group_users("group") == layer.group_users("empty") == []
        link.apply([Disconnect(f"reply.users!{local}") for local in users])

    def test_nobody_is_known_where_no_connection_is_recorded(self) -> None:
        layer, link = self.layer_and_link()
        layer.group_add("group", "reply.late!a")
        layer.identify("reply.late!a", "7")
        layer.identify("own", "7")
        link.apply([Connect("reply.late!a", "server", "/")])
        assert layer.group_users("group") == []
        layer.identify("reply.late!a", "7")
        link.apply([Connect("reply.late!a", "server", "/")])  # written again after an outage
        assert layer.group_users("group") == ["7"]
        link.apply([Disconnect("reply.late!a")])

    def test_a_membership_that_has_ended_is_nobodys_presence(self) -> None:
        layer, link = self.layer_and_link(group_expiry=SOON)
        link.apply([Connect("reply.ended!a", "server", "/")])
        layer.identify("reply.ended!a", "7")
        layer.group_add("group", "reply.ended!a")
        wait_until(lambda: layer.group_users("group") == [])
        link.apply([Disconnect("reply.ended!a")])

    def test_a_users_id_that_is_none_is_refused(self) -> None:
        layer = self.layer()
        for bad in (7, None, b"7", "7\0", "\udc80", "line\n", "x" * 256):
            with raises(InvalidName):
                layer.identify("reply.a!b", bad)  # type: ignore[arg-type]
