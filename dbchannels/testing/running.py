"""Running consumers in a test: what a worker does with one message, by the same code, in the test's own thread."""

from __future__ import annotations

from collections.abc import Callable

from dbchannels import names, signals
from dbchannels.layers.operations import Delivery
from dbchannels.routing.table import Routing, site_routing
from dbchannels.testing.layer import RecordingLayer
from dbchannels.worker.batch import Batch
from dbchannels.worker.executor import Consumption
from dbchannels.worker.worker import PROTOCOL_CHANNELS, Worker

NAME = "test"  # the worker's


class TestedConsumption(Consumption):
    """Keeps what a consumer raised, and the queries that the test counts."""

    error: BaseException | None = None
    quiet = True  # the error is the test's to see, and no log's

    def report(self, delivery: Delivery, error: BaseException, text: str) -> None:
        """Keep it."""
        self.error = error
        if not self.quiet:
            super().report(delivery, error, text)

    def tidy(self) -> None:
        """Leave the connections, with their logs of queries, as they are: they are the test's."""


class Runner:
    """Takes messages off a test's layer, one at a time, and runs their consumers."""

    def __init__(self, layer: RecordingLayer) -> None:
        self._layer = layer
        self._link = layer.link()
        self.ran: list[str] = []  # the channels of the last messages

    def run_next(self, wanted: Callable[[str], bool], raise_exception: bool) -> bool:
        """Run the consumer of the oldest message on a channel that has one; False when none waits.

        Raises what the consumer raised, after the message has met the same end as in a worker.
        """
        routing = site_routing(self._layer.alias)
        delivery = self._next(routing, wanted)
        if delivery is None:
            return False
        consumption = TestedConsumption(self._layer, routing, self._link)
        consumption.quiet = raise_exception
        batch = Batch()
        batch.fill([delivery])
        batch.start_next()
        batch.finished(consumption.consume(delivery, NAME))
        report = batch.report()
        self._link.finish(NAME, report)
        signals.tell_of_dead(Worker, report.failures)
        self.ran = [*self.ran[-9:], delivery.channel]
        if raise_exception and consumption.error is not None:
            raise consumption.error
        return True

    def waiting(self, delayed: bool = False) -> list[str]:
        """Return the channels that have consumers and a message that is due, or waits for its time."""
        return self._waiting(site_routing(self._layer.alias), delayed)

    def _waiting(self, routing: Routing, delayed: bool = False) -> list[str]:
        read = {*PROTOCOL_CHANNELS, *routing.channels()}
        return [channel for channel in self._layer.waiting(delayed) if channel in read]

    def _next(self, routing: Routing, wanted: Callable[[str], bool]) -> Delivery | None:
        """Take the oldest message; of its channel the one with the highest priority."""
        channel = next(filter(wanted, self._waiting(routing)), None)
        if channel is None:
            return None
        if names.is_protocol(channel):
            return self._link.receive_many([channel], 1)[0]
        return self._link.claim([channel], 1, NAME)[0]


def is_spoken(channel: str) -> bool:
    """Whether the interface server waits for the consumers of a channel."""
    return channel in PROTOCOL_CHANNELS
