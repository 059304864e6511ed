"""Every rule of names, values, sizes and options has a sentence of its own, and nothing is written after any."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple

from dbchannels import Channel, Group
from dbchannels.exceptions import InvalidConfiguration, InvalidMessage, InvalidName, MessageTooLarge
from dbchannels.routing.table import route
from dbchannels.testing.contract.case import raises, waiting
from tests.harness import TABLES

FAR = datetime(2199, 1, 1, tzinfo=timezone.utc)


class Rule(NamedTuple):
    """One rule: what breaks it, and words that stand in its sentence and in no other's."""

    error: type[Exception]
    words: str
    call: Any  # takes a layer


def name(words: str, bad: Any) -> Rule:
    """A rule of the names of channels."""
    return Rule(InvalidName, words, lambda layer: layer.send(bad, {"number": 1}))


def group(words: str, bad: Any) -> Rule:
    """A rule of the names of groups."""
    return Rule(InvalidName, words, lambda layer: layer.group_add(bad, "own"))


def pattern(words: str, bad: Any) -> Rule:
    """A rule of what ``new_channel`` takes."""
    return Rule(InvalidName, words, lambda layer: layer.new_channel(bad))


def user(words: str, bad: Any) -> Rule:
    """A rule of users' ids."""
    return Rule(InvalidName, words, lambda layer: layer.identify("reply.a!b", bad))


def value(words: str, bad: Any) -> Rule:
    """A rule of what a message holds."""
    return Rule(
        InvalidMessage, words, lambda layer: layer.send_many([("own", {}), ("own", {"deep": [{"k": bad}]})])
    )


def sent(words: str, channel: str = "own", **options: Any) -> Rule:
    """A rule of the options of a send."""
    return Rule(InvalidMessage, words, lambda layer: Channel(channel, **options).send({"number": 1}))


def consumer(words: str, channel: str = "own", **options: Any) -> Rule:
    """A rule of a consumer's options."""
    return Rule(InvalidConfiguration, words, lambda layer: route(channel, print, **options))


def nested(levels: int) -> Any:
    """Return lists in lists."""
    found: Any = 0
    for _ in range(levels):
        found = [found]
    return found


class Row:
    """As a model's."""

    pk = 7


class Rude:
    """Says nothing of itself."""

    def __repr__(self) -> str:
        raise RuntimeError


RULES = {
    # Names.
    "a name is text": name("The name of a channel must be a str, not int: 7.", 7),
    "a name without a repr": name("must be a str, not Rude: <Rude>.", Rude()),
    "a name of 5,000 digits": name("must be a str, not int: <int>.", 10**5000),
    "an empty name": name("The name of a channel is empty: give it 1 to 100 characters.", ""),
    "a long name": name(
        "The name of a channel has at most 100 characters, and this one has 101: shorten", "n" * 101
    ),
    "a character": name(
        "The name of a channel contains ' ' as character 4: write 'two words' with ASCII letters", "two words"
    ),
    "a line's end": name(r"contains '\n' as character 10: write 'reply.a!b\n'", "reply.a!b\n"),
    "a letter beyond ASCII": name(r"contains '\xe9' as character 7: write 'reply!\xe9'", "reply!\u00e9"),
    "two marks": name("has at most one '!' or one '?': remove all but one from 'a!b?c'", "a!b?c"),
    "a mark in front": name("has no '!' at its beginning: put a name in front of it in '!b'", "!b"),
    "a group's name is text": group("The name of a group must be a str, not NoneType: None.", None),
    "an empty group": group("The name of a group is empty", ""),
    "a long group": group("The name of a group has at most 100 characters", "n" * 101),
    "a character in a group": group("The name of a group contains '/' as character 2: write 'a/b'", "a/b"),
    "a mark in a group": group("The name of a group has no '!' and no '?'", "reply.a!b"),
    "a local part to read": Rule(
        InvalidName,
        "Receive from reply.a!, not from reply.a!b",
        lambda layer: layer.receive(["own", "reply.a!b"]),
    ),
    "a pattern without a mark": pattern("ends in '?' or '!': write 'body?'", "body"),
    "a pattern that goes on": pattern(
        "ends with its '!', and nothing follows it: write 'reply.a!'", "reply.a!b"
    ),
    "a pattern without room": pattern(
        "has at most 78 characters, as 22 are added, and this one has 79", "n" * 78 + "!"
    ),
    "a reply channel": Rule(
        InvalidName,
        "contains ':' as character 2: write 'a:b'",
        lambda layer: layer.send("own", {"reply_channel": "a:b"}),
    ),
    "a user's id is text": user("A user's id must be a str, not 7: give the text", 7),
    "a long user's id": user("A user's id has at most 255 characters, and this one has 256", "x" * 256),
    "a user's id in print": user(r"A user's id can be printed, and '7\x00' cannot", "7\0"),
    # Values.
    "a message is a dict": Rule(
        InvalidMessage, "A message must be a dict, not a list", lambda layer: layer.send("own", [])
    ),
    "a broadcast is a dict": Rule(
        InvalidMessage, "A message must be a dict, not a str", lambda layer: layer.send_group("group", "text")
    ),
    "a dict or keywords": Rule(
        InvalidMessage, "Send a dict or keywords, not both", lambda layer: Group("group").send({"a": 1}, b=2)
    ),
    "64 bits": value(
        "message['deep'][0]['k'] does not fit into 64 bits with a sign: send it as a str.", -(2**63) - 1
    ),
    "half a pair": value("message['deep'][0]['k'] contains half of a surrogate pair", "\ud83d"),
    "half a pair in a key": value(
        "A key of message['deep'][0]['k'] is half of a surrogate pair", {"\udc80": 1}
    ),
    "keys are text": value(
        "A key of message['deep'][0]['k'] is an int: keys must be str, so send str(7).", {7: 1}
    ),
    "depth": value("is nested deeper than 64 levels: flatten it.", nested(64)),
    "a set": value("contains a set: send sorted(...) or list(...) instead.", {1}),
    "a row": value("contains a Row: send its primary key and load it in the consumer.", Row()),
    "a date": value("contains a datetime: send its isoformat() instead.", FAR),
    "another type": value("contains a complex: send bytes, str, int, float, bool, None, lists or dicts", 1j),
    "a size": Rule(
        MessageTooLarge,
        "bytes and the limit is 1048576: store the data in a model or a file",
        lambda layer: layer.send_many([("own", {}), ("own", {"text": "x" * 1_048_577})]),
    ),
    # Options of a send.
    "a delay is a number": sent("A delay must be a timedelta or a number of seconds, not '5'", delay="5"),
    "a delay is no NaN": sent("a number of seconds, not nan: write delay=5", delay=float("nan")),
    "a delay goes forward": sent("A delay must not be negative, unlike -1", delay=-1),
    "a delay ends": sent("A delay must be at most ten years, not", delay=timedelta(days=3651)),
    "a moment is a datetime": sent("deliver_at must be a datetime, not 7", deliver_at=7),
    "a moment is near": sent("deliver_at must be within ten years, not 2199-01-01", deliver_at=FAR),
    "one of both": sent("A message has a delay or a moment, not both", delay=1, deliver_at=datetime.now()),
    "a priority is a number": sent("A priority must be a whole number, not True", priority=True),
    "a priority has a range": sent("A priority must be from -32768 to 32767, not 32768", priority=32_768),
    "a key is text": sent("A unique key must be a str, not 7: write unique=str(...).", unique=7),
    "a key is short": sent("A unique key must have at most 100 characters, not 101", unique="x" * 101),
    "a key in print": sent("A unique key must consist of printable characters, unlike", unique="\0"),
    "no option there": sent("Messages on http.request have no delay", "http.request", unique="a"),
    "no moment there": sent(
        "Messages on body?x have no delay, priority or unique key", "body?x", deliver_at=datetime(2015, 6, 26)
    ),
    # A consumer's options.
    "retries are whole": consumer("A route on own has retries = '5': write a whole number", retries="5"),
    "retries have a range": consumer("has retries = -1: write a whole number from 0 to 32000", retries=-1),
    "retries end": consumer("has retries = 32001: write", retries=32_001),
    "concurrency is whole": consumer("has concurrency = 1.5: write a whole number from 1", concurrency=1.5),
    "concurrency has a range": consumer("A route on own has concurrency = 0: write", concurrency=0),
    "a back-off": consumer("has backoff = 'soon': write seconds, such as 60", backoff="soon"),
    "a back-off has a range": consumer("has backoff = -1: write seconds", backoff=-1),
    "atomic": consumer("A route on own has atomic = 1: write True or False.", atomic=1),
    "a time-out": consumer("has soft_timeout = '1': write seconds, such as 30", soft_timeout="1"),
    "a time-out's range": consumer("has soft_timeout = inf: write", soft_timeout=float("inf")),
    "a hard time-out": consumer("has hard_timeout = nan: write seconds", hard_timeout=float("nan")),
    "a hard time-out's range": consumer("A route on own has hard_timeout = -1: write", hard_timeout=-1),
    "every": consumer("The every of a route on own must be a timedelta, or five fields", every=60),
    "every has a range": consumer(
        "The every of a route on own must be from a second to ten years", every=timedelta(0)
    ),
    "every is a line": consumer("is not a crontab line that ever runs: 'hourly'; write five", every="hourly"),
    "every is short": consumer(
        "may have at most 255 characters, and this one has", every=",".join(["1"] * 130) + " * * * *"
    ),
    "no retries there": consumer(
        "Messages on websocket.receive are delivered at most once", "websocket.receive", retries=1
    ),
}


def sentence_of(rule: Rule, layer: Any) -> str:
    """Break the rule; return what is said."""
    with raises(rule.error) as refused:
        rule.call(layer)
    return refused.sentence


def rows(layer: Any) -> int:
    """Return how many rows the layer's database has in our tables, or how much the memory holds."""
    if layer.transactional:
        from django.db import connections

        with connections[layer.database].cursor() as cursor:
            counts = []
            for table in TABLES:
                if table.startswith("dbchannels"):
                    cursor.execute(f"SELECT count(*) FROM {table}")
                    counts.append(cursor.fetchone()[0])
            return sum(counts)
    found = [waiting(layer, channel) for channel in ("own", "http.request", "body?x", "reply.a!")]
    return int(sum(found)) + len(layer.group_channels("group"))


def test_each_rule_has_a_sentence_and_nothing_is_written(layer):
    for rule_name, rule in RULES.items():
        assert rule.words in sentence_of(rule, layer), rule_name
        assert rows(layer) == 0, rule_name
        with layer.buffered() as buffer, raises(rule.error):
            rule.call(layer)
        assert buffer.pending() == [], rule_name


def test_no_two_rules_share_a_sentence():
    from dbchannels.conf import OPTIONS, SHORT_BACKENDS, LayerSettings
    from dbchannels.layers import channel_layers, make_layer

    layer = make_layer(LayerSettings("default", SHORT_BACKENDS["memory"], "default", None, OPTIONS))
    channel_layers["default"] = layer
    sentences = {rule_name: sentence_of(rule, layer) for rule_name, rule in RULES.items()}
    channel_layers.clear()
    for rule_name, rule in RULES.items():
        assert [other for other, sentence in sentences.items() if rule.words in sentence] == [rule_name]
        assert len(sentences[rule_name]) < 300
