"""Every layer does the same: what is done at random to the memory layer and to another has the same results."""

from __future__ import annotations

import pytest
from hypothesis import Phase
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from dbchannels import codec
from dbchannels.conf import OPTIONS, LayerSettings
from dbchannels.exceptions import DBChannelsError
from dbchannels.layers.memory import MemoryLayer
from dbchannels.layers.operations import BatchResult, Connect, Disconnect, Failure
from tests.profiles import examples

GIVEN = {"channel_capacity": {"http.few": 2, "few": 2, "reply.few!": 1}}
DURABLE = ("own", "other", "few")
PROTOCOL = ("http.request", "http.few", "body?x")
REPLIES = ("reply.a!b", "reply.few!b")  # one member to a queue: layers that store one row for many count that
QUEUES = ("reply.a!", "reply.few!")
CHANNELS = (*DURABLE, *PROTOCOL, *REPLIES)
ROOMY = ("own", "other", "http.request", "body?x", "reply.a!b")
GROUPS = ("group", "room")
WORKERS = ("w1", "w2")
LATER = 3600  # seconds: not while the test runs

channels = st.sampled_from(CHANNELS)
durable = st.sampled_from(DURABLE)
groups = st.sampled_from(GROUPS)
workers = st.sampled_from(WORKERS)
numbers = st.integers(0, 10)


def comparable(deliveries):
    """Return what two layers' deliveries have in common: all but the ids."""
    return [
        (one.channel, codec.decode(one.payload), one.recipients, one.durable, one.attempt)
        for one in deliveries
    ]


class Pair(RuleBasedStateMachine):
    """Two layers, and for each a link. A claim is a pair of deliveries, one of each layer."""

    layers = ()
    links = ()

    def __init__(self):
        super().__init__()
        self.number = 0
        self.claims = []  # (worker, deliveries)
        self.in_flight = {worker: [(), ()] for worker in WORKERS}

    @initialize()
    def empty(self):
        self.both(lambda layer: layer.flush())

    def message(self):
        self.number += 1
        return {"number": self.number}

    def both(self, call, of=None):
        """Do the same on both sides; the results, or the errors, are the same."""
        results = []
        for side in self.layers if of is None else of:
            try:
                results.append(call(side))
            except DBChannelsError as error:
                results.append((type(error), str(error)))
        assert results[0] == results[1]
        return results[0]

    def at_links(self, call):
        """Do the same on both links, and return what each gives; the deliveries are the same."""
        found = [call(link) for link in self.links]
        assert comparable(found[0]) == comparable(found[1])
        return found

    # Sending.

    @rule(channel=channels)
    def send(self, channel):
        message = self.message()
        self.both(lambda layer: layer.send(channel, message))

    @rule(
        channel=durable, priority=st.integers(-1, 1), key=st.sampled_from(["", "a", "b"]), later=st.booleans()
    )
    def send_durable(self, channel, priority, key, later):
        message, delay = self.message(), LATER if later else 0
        self.both(lambda layer: layer.send(channel, message, priority=priority, unique=key, delay=delay))

    @rule(several=st.lists(st.sampled_from(ROOMY), max_size=4), last=st.sampled_from(CHANNELS))
    def send_many(self, several, last):
        messages = [(channel, self.message()) for channel in [*several, last]]
        self.both(lambda layer: layer.send_many(messages))

    @rule(several=st.lists(st.sampled_from([*PROTOCOL, *REPLIES]), max_size=3, unique=True))
    def apply(self, several):
        messages = [(channel, self.message()) for channel in several]

        def apply(link):
            sends = [link.layer.make_send(channel, message) for channel, message in messages]
            return [one.channel for one in link.apply(sends)]

        self.both(apply, self.links)

    @rule(bad=st.sampled_from([("two words", {}), ("own", {"value": object()}), ("http.request", {1: 2})]))
    def send_what_is_refused(self, bad):
        self.both(lambda layer: layer.send_many([("own", {}), bad]))

    @rule(mark=st.sampled_from(["body?", "reply.new!"]))
    def new_channel(self, mark):
        names = [layer.new_channel(mark) for layer in self.layers]
        queue = names[0].partition("!")[0] + "!" if "!" in mark else names[0]
        assert names[0] != names[1]
        self.both(lambda layer: layer.send(names[0], {}))
        assert self.both(lambda layer: layer.receive([queue])) == (names[0], {})

    # Receiving.

    @rule(channel=st.sampled_from([*DURABLE, *PROTOCOL, *QUEUES]))
    def receive(self, channel):
        self.both(lambda layer: layer.receive([channel]))

    @rule(channel=st.sampled_from([*PROTOCOL, *QUEUES]), limit=st.integers(1, 3), worker=workers)
    def receive_in_flight(self, channel, limit, worker):
        found = self.at_links(lambda link: link.receive_many([channel], limit, worker))
        if found[0]:  # what was held before is not, from now on
            self.in_flight[worker] = found

    @rule(worker=workers, returned=st.booleans())
    def finish_what_is_held(self, worker, returned):
        in_flight, self.in_flight[worker] = self.in_flight[worker], [(), ()]
        for link, one in zip(self.links, in_flight, strict=True):
            link.finish(worker, BatchResult(returned=one if returned else ()))

    @rule(channel=durable, limit=st.integers(1, 3), worker=workers, at_most=st.none() | st.integers(1, 3))
    def claim(self, channel, limit, worker, at_most):
        limits = {} if at_most is None else {channel: at_most}
        found = self.at_links(lambda link: link.claim([channel], limit, worker, limits))
        self.claims += [(worker, pair) for pair in zip(*found, strict=True)]

    # Ends of claims, the right ones and those that come too late or from others.

    @precondition(lambda self: self.claims)
    @rule(index=numbers, worker=workers, how=st.sampled_from(["done", "again", "later", "dead", "returned"]))
    def finish(self, index, worker, how):
        _, pair = self.claims[index % len(self.claims)]
        for link, one in zip(self.links, pair, strict=True):
            link.finish(
                worker,
                self.report(how, one)._replace(in_flight=self.in_flight[worker][self.links.index(link)]),
            )

    @staticmethod
    def report(how, delivery):
        if how == "done":
            return BatchResult(acknowledged=[delivery])
        if how == "returned":
            return BatchResult(returned=[delivery])
        seconds = {"again": 0.0, "later": float(LATER), "dead": None}[how]
        return BatchResult(failures=[Failure(delivery, "traceback", seconds)])

    @precondition(lambda self: self.claims)
    @rule(index=numbers, worker=workers)
    def acknowledge(self, index, worker):
        _, pair = self.claims[index % len(self.claims)]
        ended = [layer.acknowledge(worker, one) for layer, one in zip(self.layers, pair, strict=True)]
        assert ended[0] == ended[1]

    @rule(index=numbers)
    def replay(self, index):
        letters = [layer.dead_letter_ids() for layer in self.layers]
        assert len(letters[0]) == len(letters[1])
        moved = [
            layer.replay(ids[: index % (len(ids) + 1)])
            for layer, ids in zip(self.layers, letters, strict=True)
        ]
        assert moved[0] == moved[1] == index % (len(letters[0]) + 1)

    # Groups and connections.

    @rule(group=groups, channel=channels)
    def add(self, group, channel):
        self.both(lambda layer: layer.group_add(group, channel))

    @rule(group=groups, channel=channels)
    def discard(self, group, channel):
        self.both(lambda layer: layer.group_discard(group, channel))

    @rule(group=groups)
    def clear(self, group):
        self.both(lambda layer: layer.group_clear(group))

    @rule(group=groups)
    def broadcast(self, group):
        message = self.message()
        self.both(lambda layer: layer.send_group(group, message))

    @rule(channel=st.sampled_from(REPLIES), opens=st.booleans())
    def connect(self, channel, opens):
        operation = Connect(channel, "s", "/", "key-of-one"[: len(channel)]) if opens else Disconnect(channel)
        self.both(lambda link: link.apply([operation]), self.links)

    @rule(channel=channels, user=st.sampled_from(["", "7", "12"]))
    def identify(self, channel, user):
        self.both(lambda layer: layer.identify(channel, user))

    @rule(
        channel=channels, session=st.sampled_from([None, b"", b"x"]), login=st.sampled_from([None, "+7", "-"])
    )
    def keep(self, channel, session, login):
        self.both(lambda layer: layer.keep(channel, session=session, login=login))

    @rule(
        logins=st.lists(st.sampled_from(["", "+7", "-"])),
        after=st.sampled_from(["", *REPLIES]),
        watched=st.booleans(),
    )
    def look_at_connections(self, logins, after, watched):
        self.both(lambda layer: layer.connections(after, 2, watched=watched, server=["s"], login=logins))

    @rule()
    def flush(self):
        self.both(lambda layer: layer.flush())

    # What can be seen of it.

    @rule(group=groups)
    def look_at_a_group(self, group):
        self.both(lambda layer: sorted(layer.group_channels(group)))
        self.both(lambda layer: (layer.group_count(group), layer.group_users(group)))

    @rule(channel=st.sampled_from([*DURABLE, *PROTOCOL, *QUEUES]))
    def look_at_a_channel(self, channel):
        self.both(lambda layer: counts(layer.channel_statistics(channel)))

    def teardown(self):
        """Both have the same left, and give it in the same order."""
        try:
            self.both(lambda layer: counts(layer.global_statistics()))
            self.both(lambda layer: len(layer.dead_letter_ids()))
            for group in GROUPS:
                self.look_at_a_group(group)
            for channel in DURABLE:
                self.at_links(lambda link, channel=channel: link.claim([channel], 100, "last"))
            for channel in (*PROTOCOL, *QUEUES):
                self.at_links(lambda link, channel=channel: link.receive_many([channel], 100))
        finally:
            for link in self.links:
                link.apply([Disconnect(channel) for channel in REPLIES])
                for worker in WORKERS:
                    link.finish(worker, BatchResult())


def counts(statistics):
    """Return what is counted, and whether something is old: ages differ by what the databases take."""
    return (
        statistics["messages_pending"],
        statistics["messages_in_flight"],
        statistics["messages_max_age"] > 0,
    )


@pytest.mark.parametrize(
    ("layer_kind", "number"),
    [
        ("sqlite", 25),
        pytest.param("postgresql", 30, marks=pytest.mark.postgresql),
        pytest.param("polling", 10, marks=pytest.mark.postgresql),
    ],
)
def test_another_layer_does_what_the_memory_layer_does(new_layer, new_link, number):
    memory = MemoryLayer(LayerSettings("default", None, "default", None, {**OPTIONS, **GIVEN}))
    layers = (memory, new_layer(**GIVEN))
    links = tuple(new_link(layer) for layer in layers)
    run_state_machine_as_test(
        type("Machine", (Pair,), {"layers": layers, "links": links}),
        settings=examples(
            number,
            stateful_step_count=30,
            phases=[Phase.generate],  # to make a failing example short takes minutes on a database
        ),
    )
