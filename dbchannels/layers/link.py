"""A reader's own way into a layer: one for a worker, and one for each thread of the interface server."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from dbchannels.layers.operations import BatchResult, Delivery, Kept, Missed, Operation, Send
from dbchannels.wakeup import wait_readable

if TYPE_CHECKING:
    from dbchannels.layers.base import BaseLayer
    from dbchannels.wakeup import WakeupPipe


class Link:
    """Receive, claim, finish and wait. Every method may raise LayerUnavailable; call it again after a while.

    This class calls the layer for everything, which is right for layers in memory. Layers on a database have a link
    with a connection of its own.
    """

    #: Whether the link's transactions are separate from those that Django has open in the calling thread.
    apart = True

    def __init__(self, layer: BaseLayer) -> None:
        self.layer = layer
        #: Pipes of readers in this process tree, by the kinds of messages that wake them, see ``wait``. Readers that
        #: the layer wakes by these pipes need no other wakeup.
        self.local_wakeups: Mapping[str, WakeupPipe] = {}

    # Taking.

    def receive_many(self, queues: Sequence[str], limit: int, worker: str = "") -> list[Delivery]:
        """Receive up to ``limit`` messages, oldest first, at most once.

        With a ``worker``, the same statement records that this worker has them in flight.
        """
        return self.layer.pop(queues, limit)

    def claim(
        self, channels: Sequence[str], limit: int, worker: str, at_most: Mapping[str, int] | None = None
    ) -> list[Delivery]:
        """Claim up to ``limit`` due messages of durable channels, in the order of the channels; count the attempt.

        ``at_most`` limits the workers on a channel: nothing is claimed of it if that many other workers hold messages.
        """
        return self.layer.claim(channels, limit, worker, at_most)

    def cancelled_by(self, worker: str, delivery: Delivery) -> str:
        """Return who has cancelled a message that this worker runs; "" if nobody has."""
        return ""

    def awaits_claims(self, channels: Sequence[str]) -> bool:
        """Whether messages of these channels are claimed by a process whose lease is over: ``clean_up`` frees them.

        A layer may have to wait with that for a while after it has connected.
        """
        return False

    def next_due(self) -> float | None:
        """Return in how many seconds the next delayed message is due; None if no reader has to wake for one."""
        return None

    def wait(self, timeout: float, *others: int) -> set[str]:
        """Wait until a message may have come, one of the descriptors can be read, or ``timeout`` seconds are over.

        Return the kinds of messages that have come, if the layer knows them: the queue of a reply channel, ``h`` for
        ``http.*``, ``w`` for ``websocket.*`` and ``d`` for durable messages.
        """
        wait_readable(others, min(timeout, self.layer.poll_interval()))
        return set()

    # Giving.

    def apply(self, operations: Sequence[Operation]) -> list[Send]:
        """Write operations in order, in a transaction of their own; return the sends to full channels.

        Only those of the last unbroken run of sends, all to protocol channels or all to durable ones, must be
        returned. Others may be dropped silently.
        """
        return self.layer.write(operations, drop=True)

    def exchange(
        self, operations: Sequence[Operation], queues: Sequence[str], limit: int
    ) -> tuple[list[Send], list[Delivery]]:
        """Write operations as ``apply`` does, and receive from the queues: in one round trip, where that can be."""
        return self.apply(operations), self.receive_many(queues, limit)

    def apply_as(self, name: str, operations: Sequence[Operation]) -> list[Send]:
        """Write operations as ``apply`` does, if the process with this name is registered at the commit.

        Raises DeclaredDead otherwise. So the clean-up after the process finds everything that was written this way.
        """
        return self.apply(operations)

    def finish(self, worker: str, done: BatchResult) -> list[Send]:
        """Write what consumers did, and the ends of their messages, in one transaction.

        Return the sends to full channels, as ``apply`` does. A lost claim changes nothing and is no error: another
        worker has the message now. Claims that are given back are received before messages that were sent later;
        protocol messages that are given back are sent anew.

        This implementation calls the layer's methods one after another, which is right where no call can fail.
        """
        for delivery in done.acknowledged:
            self.layer.acknowledge(worker, delivery)
        for failure in done.failures:
            self.layer.fail(worker, failure)
        for delivery in done.returned:
            if delivery.durable:
                self.layer.release(worker, delivery)
        popped = [delivery for delivery in done.returned if not delivery.durable]
        return self.apply([*done.operations, *self.layer.resends(popped)])

    # The histories of groups. Only servers read them, for the connections that they have.

    def history_position(self) -> int:
        """Return the position of the newest message in any history, which may get it now; 0 if there was none."""
        return 0

    def read_history(self, queue: str, after: int, limit: int) -> list[Kept]:
        """Give positions to what was committed since, and return up to ``limit`` messages after a position, in order.

        ``queue`` is the server's reply queue. A message to a group without a member there may come without its payload.
        """
        return []

    def missed(self, queue: str, after: Mapping[str, int], limit: int, size: int) -> dict[str, Missed]:
        """Return what channels of a server have missed, by the local part of their names.

        ``after`` has the position up to which each of them has everything. A position that was never given, such as -1,
        counts as one before all that is kept. At most ``limit`` messages are returned for each, and after the first no
        more than ``size`` bytes in all. The groups are those in which the channel is now.
        """
        return {}

    # Periodic messages.

    def next_time(self, channel: str, every: str) -> tuple[datetime | None, datetime]:
        """Return when a periodic message is due next, None if it is not recorded, and the layer's own time."""
        raise NotImplementedError

    def move_time(
        self, channel: str, every: str, due: datetime | None, following: datetime, sends: Sequence[Send]
    ) -> bool:
        """Set that moment and send, in one transaction. Return False, and do nothing, if it is no longer ``due``."""
        raise NotImplementedError

    def keep_times(self, entries: Sequence[tuple[str, str]]) -> datetime:
        """Record that a live worker has these periodic messages, (channel, every). Return the layer's own time.

        This method and the next are for layers that record when periodic messages are due.
        """
        return datetime.now(timezone.utc)

    def drop_times(self, before: datetime) -> None:
        """Delete the records of periodic messages that no live worker has had since ``before``."""

    # Liveness.

    def register(self, name: str, kind: str, queue: str = "") -> None:
        """Record this process as alive; ``queue`` is a server's reply queue, or what a worker reads."""

    def renew(self, name: str) -> bool:
        """Renew the lease. Return False if the process was declared dead and must register again."""
        return True

    def record_work(self, name: str, work: str) -> None:
        """Record what a worker takes and runs, as ``Worker`` writes it."""

    def workers(self) -> dict[str, dict[str, Any]]:
        """Return the work of all registered workers, by name, see ``operations.read_work``."""
        return {}

    def heads(self, channels: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Return, for channels with due messages, the id of the next one and the greatest id of the channel's table.

        Ids grow with time: if the next id is no greater than an earlier greatest id, that message has waited since.
        """
        return {}

    def emptied(self, name: str) -> bool:
        """Whether the database has lost all protocol messages since the last call, by a crash or in a failover.

        ``name`` is this process's; the first call after its registration returns False.
        """
        return False

    def unfinished(self, reply_channels: Sequence[str]) -> set[str]:
        """Return the reply channels that a protocol message has which waits or is in flight."""
        return set(reply_channels)

    def unregister(self, name: str) -> None:
        """Remove the record of this process, and clean up after it."""
        self.clean_up_after(name)

    def clean_up_after(self, name: str) -> None:
        """Clean up after a process that has died: reply to its clients, give back its claims."""

    def clean_up(self) -> None:
        """Delete what has expired, and clean up after processes whose lease is over."""

    def count_live(self, queue: str) -> tuple[int, int]:
        """Return how many workers that read this queue, and how many servers, are alive."""
        return 1, 1

    # Measuring, see ``samples``. The base class keeps no samples.

    def clock(self) -> float:
        """Return the layer's own time, in seconds since 1970."""
        return time.time()

    def write_sample(self, moment: int, source: str, data: str) -> bool:
        """Write what a worker, or with "" the site, measured until a moment of the layer's clock.

        Return False, and write nothing, if there is a sample of this source and moment already.
        """
        return False

    def gauges(self) -> dict[str, Any] | None:
        """Count what is in the tables; None: it took too long.

        ``channels`` has a list for each channel, see ``samples.GAUGES``; ``sockets``, ``servers`` and ``workers`` are
        numbers. Of a protocol channel the first and the fourth number are known. Reply queues are left out. Beyond the
        ``measures.MOST`` channels with most messages, channels count as ``measures.OTHERS``.
        """
        return {}

    def complete_sample(self, moment: int, data: str) -> None:
        """Fill in the site's sample of a moment, and delete the samples that are older than ``samples.KEPT``."""

    def newest_sample(self) -> str:
        """Return the newest of the site's samples that is complete, "" if there is none."""
        return ""

    def close(self) -> None:
        """Close the link's connection."""
