"""The site's channels in a test: swapped in by ``use_channels``, asserted on, drained."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from django.conf import settings

from dbchannels import conf, names, signals
from dbchannels.channel import Channel, Group
from dbchannels.exceptions import InvalidConfiguration
from dbchannels.layers import channel_layers
from dbchannels.layers.operations import Delivery
from dbchannels.routing.table import site_routing
from dbchannels.server.http.messages import Refused, Request
from dbchannels.testing.layer import RecordingLayer
from dbchannels.testing.sent import Record, SentMessage, SentMessages, Wanted
from dbchannels.testing.server import Server
from dbchannels.testing.sockets import ClientSocket
from dbchannels.testing.transactions import State
from dbchannels.worker.batch import Batch
from dbchannels.worker.executor import Executor
from dbchannels.worker.worker import PROTOCOL_CHANNELS, Worker

WORKER = "test"
_current: list[Channels] = []


class Channels:
    """What is sent stays in memory; consumers run in the test's own thread, when the test says so."""

    def __init__(self, aliases: list[str]) -> None:
        self._records: list[Record] = []
        self.layers = {alias: RecordingLayer(conf.layer_settings(alias), self._records) for alias in aliases}
        self.layer = self.layers["default"]
        self._runners = [Runner(layer) for layer in self.layers.values()]
        self.server = Server(self.layer)

    # Looking at what was sent.

    @contextmanager
    def captureMessages(self) -> Iterator[SentMessages]:
        """Collect what is sent in the block: a sequence of SentMessage, without what was rolled back."""
        messages = SentMessages(self._records)
        try:
            yield messages
        finally:
            messages.end()

    def assertSent(self, channel: Channel | Group | str, /, **fields: Any) -> SentMessage:
        """Return the first message that the test's site has sent to a channel, or a group, with these fields.

        Fails when there is none, and shows what was sent instead. Other fields may be anything.
        """
        wanted = Wanted(channel, fields)
        found = wanted.find(self._sent())
        if found is None:
            raise AssertionError(wanted.missing(self._records))
        return found

    def assertNotSent(self, channel: Channel | Group | str, /, **fields: Any) -> None:
        """Fail when such a message was sent."""
        wanted = Wanted(channel, fields)
        found = wanted.find(self._sent())
        if found is not None:
            raise AssertionError(f"A message was sent to {wanted}: {found}")

    def _sent(self) -> SentMessages:
        messages = SentMessages(self._records)
        messages._start = 0
        return messages

    # Running consumers.

    def drain(self, *, delayed: bool = False, limit: int = 1000, raise_exception: bool = True) -> int:
        """Run the consumers of what waits, the oldest first, until nothing does; return how many messages ran.

        Raises what a consumer raises, unless told not to: the message is tried again later then, or is a dead letter,
        as with a worker. With ``delayed`` time passes until nothing waits for its time either. Fails after ``limit``
        messages when there are still some.
        """
        count = 0
        while True:
            self.server.deliver()
            if not any(runner.run_next(raise_exception) for runner in self._runners):
                if not (delayed and self._skip()):
                    return count
                continue
            count += 1
            if count >= limit and (left := self.waiting(delayed)):
                raise AssertionError(self._endless(limit, left))

    def _skip(self) -> bool:
        """Let time pass until the next message is due; False when none waits for its time."""
        clocks: list[Server | RecordingLayer] = [self.server, *self.layers.values()]
        left = [due for one in clocks if (due := one.next_due()) is not None]
        if left:
            self.advance(min(left))
        return bool(left)

    def waiting(self, delayed: bool = False) -> list[str]:
        """Return the channels on which messages with consumers are due, or wait for their time."""
        return [channel for runner in self._runners for channel in runner.waiting(delayed)]

    def _endless(self, limit: int, left: list[str]) -> str:
        last = ", ".join(channel for runner in self._runners for channel in runner.ran)
        return (
            f"{limit} messages ran and more wait on {', '.join(left)}: mend the consumer that sends to its own "
            f"channel, or give drain() a higher limit. The last ones: {last}."
        )

    def advance(self, time: timedelta | float) -> None:
        """Let time pass for the layer, a timedelta or seconds: delayed messages get due. No consumer runs yet."""
        seconds = time.total_seconds() if isinstance(time, timedelta) else float(time)
        for layer in self.layers.values():
            layer.advance(seconds)

    def run(self, raise_exception: bool = True) -> None:
        """Run the consumers that sockets wait for, and give the sockets what was sent to them."""
        self.server.deliver()
        while any(runner.run_next(raise_exception, PROTOCOL_CHANNELS) for runner in self._runners):
            self.server.deliver()

    # Sockets.

    def connect(self, request: Request, raise_exception: bool = True) -> ClientSocket:
        """Make a handshake and run its connect consumer."""

        def run() -> None:
            self.run(raise_exception)

        socket = ClientSocket(request, run, self.explain)
        try:
            socket.accept(*self.server.connect(request, run))
        except Refused as refused:
            socket.refuse(refused.status, str(refused), refused.headers)
        return socket

    def explain(self) -> list[str]:
        """Return why something may not have arrived."""
        sentences = []
        if any(record.state is State.OPEN for record in self._records):
            sentences.append("An atomic() block is open, and what was sent in it waits for its end.")
        if waiting := self.waiting():
            sentences.append(f"Messages wait on {', '.join(waiting)}: call drain().")
        return sentences


class TestedExecutor(Executor):
    """Keeps what a consumer raised, and the queries that the test counts."""

    error: BaseException | None = None
    quiet = True  # the error is the test's to see, and no log's

    def report(self, delivery: Delivery, error: BaseException, text: str) -> None:
        """Keep it."""
        self.error = error
        if not self.quiet:
            super().report(delivery, error, text)

    tidy = staticmethod(lambda: None)  # the connections, with their logs of queries, are the test's


class Runner:
    """Takes messages off a test's layer, one at a time, and runs their consumers as a worker does."""

    def __init__(self, layer: RecordingLayer) -> None:
        self._layer = layer
        self._link = layer.link()
        self.ran: list[str] = []  # the channels of the last messages

    def waiting(self, delayed: bool = False) -> list[str]:
        """Return the channels that have consumers and a message that is due, or, with ``delayed``, any message."""
        read = {*PROTOCOL_CHANNELS, *site_routing(self._layer.alias).channels()}
        return [channel for channel in self._layer.waiting(delayed) if channel in read]

    def run_next(self, raise_exception: bool, only: Collection[str] = ()) -> bool:
        """Run the consumer of the oldest message, on the ``only`` channels or on all; False when none waits.

        Of its channel the message with the highest priority is taken. What the consumer raises is raised here, after
        the message has met the same end as in a worker.
        """
        channel = next((one for one in self.waiting() if not only or one in only), None)
        if channel is None:
            return False
        if names.is_protocol(channel):
            (delivery,) = self._link.receive_many([channel], 1)
        else:
            (delivery,) = self._link.claim([channel], 1, WORKER)
        executor = TestedExecutor(self._layer, site_routing(self._layer.alias), self._link)
        executor.quiet = raise_exception
        batch = Batch()
        batch.fill([delivery])
        batch.start_next()
        batch.finished(executor.execute(delivery, WORKER))
        report = batch.report()
        self._link.finish(WORKER, report)
        signals.send_dead(Worker, report.failures)
        self.ran = [*self.ran[-9:], channel]
        if raise_exception and executor.error is not None:
            raise executor.error
        return True


@contextmanager
def use_channels() -> Iterator[Channels]:
    """Put empty layers in the place of all of the site's while the block runs, or the function that it decorates."""
    channels = Channels(list(dict.fromkeys(["default", *getattr(settings, "DBCHANNELS", {})])))
    with channel_layers.swapped(channels.layers):
        _current.append(channels)
        try:
            yield channels
        finally:
            _current.remove(channels)


def in_use() -> bool:
    """Whether a test's channels are in place of the site's."""
    return bool(_current)


def current_channels() -> Channels:
    """Return what the innermost ``use_channels`` has put in place; raises InvalidConfiguration when there is none."""
    if not _current:
        raise InvalidConfiguration(
            "No test's channels are in use: take ChannelTestCase, the fixture channels, or `with use_channels():`."
        )
    return _current[-1]
