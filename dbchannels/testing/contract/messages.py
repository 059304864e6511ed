"""The layer contract, first part: the names and the messages that a layer accepts and refuses."""

from __future__ import annotations

import datetime
import decimal
import enum
from typing import Any

from dbchannels.exceptions import InvalidMessage, InvalidName
from dbchannels.testing.contract.case import LayerCase, drain, raises, waiting

CHANNELS = ("a", "A-z_0.9", "http.request", "http.request.body?x", "reply.a!b", "-", "9", "n" * 100)
NO_CHANNELS = (
    "",
    "n" * 101,
    "two words",
    "newline\n",
    "reply.a!b\n",
    "nul\0",
    "\u0663\u0664",  # Arabic digits
    "na\u00efve",
    "reply!\u00e9",
    "a!b!c",
    "a!b?c",
    "a?b?c",
    "!b",
    "?b",
    "a/b",
    "a:b",
    "a'b",
    "a%sb",
    "a*",
    None,
    7,
    b"bytes",
    ["list"],
)


class Color(enum.IntEnum):
    """Integers under another name."""

    RED = 3


#: What each must be received as, type and all.
VALUES: dict[str, Any] = {
    "text": "plain",
    "empty text": "",
    "NUL in text": "a\0b",
    "four bytes": "\U0001f40d",
    "control characters": "\x01\x7f\x85\u2028",
    "bytes": bytes(range(256)),
    "empty bytes": b"",
    "bytes that look like text": b"plain",
    "zero": 0,
    "least": -(2**63),
    "greatest": 2**63 - 1,
    "float": 0.1,
    "whole float": 1.0,
    "negative zero": -0.0,
    "infinity": float("inf"),
    "not a number": float("nan"),
    "true": True,
    "false": False,
    "none": None,
    "list": [1, "a", b"a", None, [[]]],
    "dict": {"": {"k\0": [{}]}},
    "empty list": [],
    "empty dict": {},
}

#: What is refused, with a word that the sentence must hold.
REFUSED: dict[str, tuple[Any, str]] = {
    "beyond 64 bits": (2**63, "64 bits"),
    "below 64 bits": (-(2**63) - 1, "64 bits"),
    "half a surrogate pair": ("\ud83d", "surrogate"),
    "surrogate in a key": ({"\udc80": 1}, "surrogate"),
    "set": ({1}, "list"),
    "date": (datetime.date(2015, 1, 1), "isoformat"),
    "decimal": (decimal.Decimal("1.5"), "Decimal"),
    "complex": (1j, "complex"),
    "object": (object(), "object"),
    "bytearray": (bytearray(b"x"), "bytearray"),
    "key that is no text": ({1: "one"}, "key"),
    "key that is bytes": ({b"k": "one"}, "key"),
}


class MessageContract(LayerCase):
    """Names and types."""

    def test_good_names_are_taken(self) -> None:
        layer = self.layer()
        for name in CHANNELS:
            layer.send(name, {"to": name})
            queue = name.partition("!")[0] + "!" if "!" in name else name
            assert layer.receive([queue]) == (name, {"to": name})

    def test_bad_names_are_refused(self) -> None:
        layer = self.layer()
        for name in NO_CHANNELS:
            for call in (
                lambda name: layer.send(name, {}),
                lambda name: layer.receive([name]),
                lambda name: layer.group_add("group", name),
                lambda name: layer.group_discard("group", name),
                lambda name: layer.send("channel", {"reply_channel": name or "a b"}),
                layer.channel_statistics,
            ):
                with raises(InvalidName):
                    call(name)
        assert layer.global_statistics()["messages_pending"] == 0
        assert layer.group_channels("group") == []

    def test_bad_names_of_groups_are_refused(self) -> None:
        layer = self.layer()
        for name in (*NO_CHANNELS, "a!b", "a!", "a?b", "a?"):
            for call in (
                lambda name: layer.send_group(name, {}),
                lambda name: layer.group_add(name, "channel"),
                lambda name: layer.group_discard(name, "channel"),
                layer.group_channels,
                layer.group_count,
                layer.group_users,
                layer.group_clear,
            ):
                with raises(InvalidName):
                    call(name)

    def test_a_local_part_cannot_be_received_from(self) -> None:
        layer = self.layer()
        layer.send("reply.a!b", {})
        with raises(InvalidName) as refused:
            layer.receive(["reply.a!b"])
        assert "reply.a!," in refused.sentence
        assert layer.receive(["reply.a!"]) == ("reply.a!b", {})

    def test_new_channels_have_new_names(self) -> None:
        layer = self.layer()
        for pattern in ("http.request.body?", "reply.a!"):
            names = {layer.new_channel(pattern) for _ in range(100)}
            assert len(names) == 100
            # 128 bits in base64 are 22 characters.
            assert all(name.startswith(pattern) and len(name) >= len(pattern) + 22 for name in names)

    def test_new_channels_need_a_pattern(self) -> None:
        layer = self.layer()
        for pattern in ("http.request.body", "reply.a!b", "a?b", "", "a!?", "?", "!", "a!\n"):
            with raises(InvalidName):
                layer.new_channel(pattern)

    def test_every_type_arrives_as_it_was(self) -> None:
        layer = self.layer()
        for name, value in VALUES.items():
            layer.send("types", {"value": value})
            assert exact(layer.receive(["types"])[1]) == exact({"value": value}), name

    def test_every_type_arrives_through_a_group(self) -> None:
        layer = self.layer()
        layer.group_add("group", "types")
        layer.send_group("group", VALUES)
        assert exact(layer.receive(["types"])[1]) == exact(VALUES)

    def test_relatives_of_a_type_arrive_as_that_type(self) -> None:
        layer = self.layer()
        layer.send("types", {"tuple": (1, (2,)), "enumeration": Color.RED})
        assert exact(layer.receive(["types"])[1]) == exact({"tuple": [1, [2]], "enumeration": 3})

    def test_other_types_are_refused_with_a_sentence(self) -> None:
        layer = self.layer()
        for name, (value, word) in REFUSED.items():
            for message in ({"value": value}, {"deep": [{"value": (value,)}]}):
                with raises(InvalidMessage) as refused:
                    layer.send("types", message)
                assert word in refused.sentence, name
                with raises(InvalidMessage):
                    layer.send_group("group", message)
        assert waiting(layer, "types") == 0

    def test_a_message_is_a_dict(self) -> None:
        layer = self.layer()
        for message in ("text", b"bytes", 7, None, ["list"], {"set"}):
            with raises(InvalidMessage) as refused:
                layer.send("types", message)  # type: ignore[arg-type]
            assert "dict" in refused.sentence

    def test_a_message_that_contains_itself_is_refused(self) -> None:
        layer = self.layer()
        message: dict[str, Any] = {}
        message["again"] = [message]
        with raises(InvalidMessage):
            layer.send("types", message)

    def test_changes_after_sending_change_nothing(self) -> None:
        layer = self.layer()
        message: dict[str, Any] = {"list": [1], "text": "before"}
        with layer.buffered() as buffer:
            layer.send("types", message)
            message["list"].append(2)
            message["text"] = "after"
        layer.write(buffer.pending())
        assert layer.receive(["types"])[1] == {"list": [1], "text": "before"}

    def test_a_message_may_have_the_limit_and_no_more(self) -> None:
        layer = self.layer(max_message_size=1000)
        fits = {"text": "x" * 1000}
        for channel in ("own", "reply.a!b"):
            layer.group_add("group", channel)
            layer.send(channel, fits)
        large = {"text": fits["text"] + "x"}
        for call in (
            lambda: layer.send("own", large),
            lambda: layer.send("reply.a!b", large),
            lambda: layer.send_group("group", large),
            lambda: layer.send_many([("own", {}), ("own", large)]),
        ):
            with raises(layer.MessageTooLarge) as refused:
                call()
            assert "1001" in refused.sentence and "1000" in refused.sentence
        assert drain(layer, "own") == [fits]
        assert drain(layer, "reply.a!") == [fits]

    def test_a_megabyte_is_carried(self) -> None:
        layer = self.layer()
        layer.send("large", {"text": "x" * 1_000_000})
        assert layer.receive(["large"]) == ("large", {"text": "x" * 1_000_000})


def exact(value: Any) -> Any:
    """Return a value in a form where ``1 == 1.0 == True`` does not hold, and NaN equals NaN."""
    if isinstance(value, dict):
        return {key: exact(one) for key, one in value.items()}
    if isinstance(value, list):
        return [exact(one) for one in value]
    return type(value), repr(value)
