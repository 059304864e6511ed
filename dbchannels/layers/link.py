"""One reader's own way into a layer: the worker's, and each thread's of the interface server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from dbchannels.layers.operations import BatchResult, Delivery, Operation, Send, resends
from dbchannels.wakeup import wait_readable

if TYPE_CHECKING:
    from dbchannels.layers.base import BaseLayer
    from dbchannels.wakeup import WakeupPipe


class Link:
    """Receive, claim, finish and wait. Every method may raise LayerUnavailable; call it again after a while.

    This one asks the layer for everything, which serves where the layer lives in the process; layers on a
    database bring a link with a connection of its own.
    """

    #: Whether it reads while the calling thread has one of Django's transactions open, and apart from it.
    apart = True

    def __init__(self, layer: BaseLayer) -> None:
        self.layer = layer
        #: Pipes of readers that a writer wakes itself, by what a wakeup for them says; see ``wait``. A layer
        #: that tells its readers of what was written in another way may leave them out there.
        self.local_wakeups: Mapping[str, WakeupPipe] = {}

    # Taking.

    def receive_many(self, queues: Sequence[str], limit: int, worker: str = "") -> list[Delivery]:
        """Take up to ``limit`` messages, oldest first, at most once.

        With a ``worker``, the same statement records that this worker has them in flight.
        """
        return self.layer.pop(queues, limit)

    def claim(
        self, channels: Sequence[str], limit: int, worker: str, at_most: Mapping[str, int] | None = None
    ) -> list[Delivery]:
        """Claim up to ``limit`` due messages of durable channels, of the first channel that has some first.

        The attempt is counted. Of a channel in ``at_most`` only while fewer other workers than that hold some of it.
        """
        return self.layer.claim(channels, limit, worker, at_most)

    def next_due(self) -> float | None:
        """Return in how many seconds the next delayed message is due; None: no reader has to wake for one."""
        return None

    def wait(self, timeout: float, *others: int) -> set[str]:
        """Return when something may have come or one of the descriptors can be read, or after ``timeout`` s.

        What is returned says for whom it came, where the layer knows: a queue, ``h`` and ``w`` for workers that
        take ``http.*`` and ``websocket.*``, ``d`` for those that take durable messages.
        """
        wait_readable(others, min(timeout, self.layer.poll_interval()))
        return set()

    # Giving.

    def apply(self, operations: Sequence[Operation]) -> list[Send]:
        """Write operations in order in one transaction of its own; return the sends that found a channel full.

        Only those of the last unbroken run of sends, all of protocol messages or all of durable ones, need be returned;
        the others are dropped in silence.
        """
        return self.layer.write(operations, drop=True)

    def apply_as(self, name: str, operations: Sequence[Operation]) -> list[Send]:
        """Write operations as ``apply`` does, if the process with this name is on record when they are committed.

        Raises DeclaredDead otherwise. What cleans up after a process finds everything that was written in this way.
        """
        return self.apply(operations)

    def finish(self, worker: str, done: BatchResult) -> list[Send]:
        """Write what consumers did, and what became of their messages, in one transaction.

        The sends come back that found a channel full, as ``apply`` returns them.

        Of a claim that was lost nothing is written, and no error is raised: another worker has the message now.
        What is returned is received again before what was sent later; what is popped goes back like a new send.

        This one makes one call of the layer after the other, which serves where no call can fail.
        """
        for delivery in done.acknowledged:
            self.layer.acknowledge(worker, delivery)
        for failure in done.failures:
            self.layer.fail(worker, failure)
        for delivery in done.returned:
            if delivery.durable:
                self.layer.release(worker, delivery)
        popped = [delivery for delivery in done.returned if not delivery.durable]
        return self.apply([*done.operations, *resends(popped, self.layer.options["expiry"])])

    # Periodic messages.

    def next_time(self, channel: str, every: str) -> tuple[datetime | None, datetime]:
        """Return when a periodic message is due next, None when it is not on record; and the layer's own time."""
        raise NotImplementedError

    def move_time(
        self, channel: str, every: str, due: datetime | None, following: datetime, sends: Sequence[Send]
    ) -> bool:
        """Move that moment on and send, in one transaction; False, and nothing, when it is not ``due`` any more."""
        raise NotImplementedError

    def keep_times(self, entries: Sequence[tuple[str, str]]) -> datetime:
        """Note that a live worker has these periodic messages, (channel, every); return the layer's own time.

        This one and the next serve a layer that keeps nothing of periodic messages, or keeps it for ever.
        """
        return datetime.now(timezone.utc)

    def drop_times(self, before: datetime) -> None:
        """Delete the periodic messages that no live worker has had since ``before``."""

    # Liveness.

    def register(self, name: str, kind: str, queue: str = "") -> None:
        """Put this process on record as alive; ``queue`` is a server's reply queue, or what a worker reads."""

    def renew(self, name: str) -> bool:
        """Renew the lease; False when the process was declared dead and must register again."""
        return True

    def tell_work(self, name: str, work: str) -> None:
        """Put on record what a worker takes and runs, as ``Worker`` writes it."""

    def workers(self) -> dict[str, str]:
        """Return the workers on record, wherever they run: by name, what each has told of its work."""
        return {}

    def heads(self, channels: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Return of channels with messages that wait and are due the id of the next one, and the greatest id there is.

        Ids grow with time, so a head that is no greater than an id of earlier has waited since then.
        """
        return {}

    def unregister(self, name: str) -> None:
        """Take this process off the record, and clean up after it."""
        self.clean_up_after(name)

    def clean_up_after(self, name: str) -> None:
        """Clean up after a process that its parent saw die: tell its clients, give back its claims."""

    def clean_up(self) -> None:
        """Drop what has expired, and clean up after processes that nobody saw die."""

    def count_live(self, queue: str) -> tuple[int, int]:
        """Return how many workers that were registered with this queue, and how many servers, are alive."""
        return 1, 1

    def close(self) -> None:
        """Let the connection go."""
