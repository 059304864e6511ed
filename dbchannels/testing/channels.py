"""The channels of a test, which replace the site's: ``use_channels``, what was sent, and running consumers."""

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
from dbchannels.layers.tasks import report_ended
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
    """Messages stay in memory; consumers run in the test's own thread, when the test asks for it."""

    def __init__(self, aliases: list[str]) -> None:
        self._records: list[Record] = []
        self.layers = {alias: RecordingLayer(conf.layer_settings(alias), self._records) for alias in aliases}
        self.layer = self.layers["default"]
        self._runners = [Runner(layer) for layer in self.layers.values()]
        self.server = Server(self.layer)

    # Looking at what was sent.

    @contextmanager
    def captureMessages(self) -> Iterator[SentMessages]:
        """Collect the messages that are sent in the block, as SentMessage, without what was rolled back."""
        messages = SentMessages(self._records)
        try:
            yield messages
        finally:
            messages.end()

    def assertSent(self, channel: Channel | Group | str, /, **fields: Any) -> SentMessage:
        """Return the first message sent to a channel or group with these fields, whatever its other fields are.

        If there is none, the failure shows what was sent instead.
        """
        wanted = Wanted(channel, fields)
        found = wanted.find(self._sent())
        if found is None:
            raise AssertionError(wanted.missing(self._records))
        return found

    def assertNotSent(self, channel: Channel | Group | str, /, **fields: Any) -> None:
        """Fail if such a message was sent."""
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
        """Run the consumers of waiting messages, the oldest first, until none waits; return how many ran.

        What a consumer raises is raised here, after the message was scheduled for a retry or became a dead letter, as
        in a worker; with ``raise_exception=False`` it is logged. With ``delayed=True`` the clock moves forward until no
        delayed message is left either. Fails if messages are left after ``limit``.
        """
        count = 0
        while True:
            self.server.deliver()
            if not any(runner.run_next(raise_exception) for runner in self._runners):
                clocks: list[Server | RecordingLayer] = [self.server, *self.layers.values()]
                waits = [due for one in clocks if (due := one.next_due()) is not None]
                if not (delayed and waits):
                    return count
                self.advance(min(waits))
                continue
            count += 1
            if count >= limit and (left := self.waiting(delayed)):
                last = ", ".join(channel for runner in self._runners for channel in runner.ran)
                raise AssertionError(
                    f"{limit} messages ran and more wait on {', '.join(left)}: correct the consumer that sends to its "
                    f"own channel, or give drain() a higher limit. The last ones: {last}."
                )

    def waiting(self, delayed: bool = False) -> list[str]:
        """Return the channels that have consumers and messages that are due, or, with ``delayed``, any messages."""
        return [channel for runner in self._runners for channel in runner.waiting(delayed)]

    def advance(self, time: timedelta | float) -> None:
        """Move the layer's clock forward, by a timedelta or seconds: delayed messages become due. No consumer runs."""
        seconds = time.total_seconds() if isinstance(time, timedelta) else float(time)
        for layer in self.layers.values():
            layer.advance(seconds)

    def run(self, raise_exception: bool = True) -> None:
        """Run the consumers of ``websocket.*`` and ``http.*``, and deliver what was sent to sockets."""
        self.server.deliver()
        while any(runner.run_next(raise_exception, PROTOCOL_CHANNELS) for runner in self._runners):
            self.server.deliver()

    # Sockets.

    def connect(self, request: Request, raise_exception: bool = True) -> ClientSocket:
        """Open a WebSocket: make the handshake and run its connect consumer."""

        def run() -> None:
            self.run(raise_exception)

        socket = ClientSocket(request, run, self.explain)
        try:
            socket.accept(*self.server.connect(request, run))
        except Refused as refused:
            socket.refuse(refused.status, str(refused), refused.headers)
        return socket

    def explain(self) -> list[str]:
        """Return sentences on why something may not have arrived."""
        sentences = []
        if any(record.state is State.OPEN for record in self._records):
            sentences.append("An atomic() block is open, and what was sent in it waits for its end.")
        if waiting := self.waiting():
            sentences.append(f"Messages wait on {', '.join(waiting)}: call drain().")
        return sentences


class TestedExecutor(Executor):
    """Stores what a consumer raised, and leaves the queries that the test counts."""

    error: BaseException | None = None
    quiet = True  # the test sees the error, so it is not logged

    def report(self, delivery: Delivery, error: BaseException, text: str) -> None:
        """Store the error."""
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

        The message with the highest priority on that channel is taken. What the consumer raises is raised here, after
        the message was scheduled for a retry or became a dead letter, as in a worker.
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
        report_ended(report)
        self.ran = [*self.ran[-9:], channel]
        if raise_exception and executor.error is not None:
            raise executor.error
        return True


@contextmanager
def use_channels() -> Iterator[Channels]:
    """Replace all layers of the site by empty ones in a block, or in a decorated function."""
    channels = Channels(list(dict.fromkeys(["default", *getattr(settings, "DBCHANNELS", {})])))
    with channel_layers.swapped(channels.layers):
        _current.append(channels)
        try:
            yield channels
        finally:
            _current.remove(channels)


def in_use() -> bool:
    """Whether a test's channels replace the site's."""
    return bool(_current)


def current_channels() -> Channels:
    """Return the channels of the innermost ``use_channels``; raise InvalidConfiguration if there is none."""
    if not _current:
        raise InvalidConfiguration(
            "This test has no channels: use ChannelTestCase, the fixture channels, or `with use_channels():`."
        )
    return _current[-1]
