"""What a worker has taken and not yet finished, and the counters of what came of its messages."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence

from dbchannels.layers.operations import BatchResult, Delivery, Failure, Operation, Result
from dbchannels.measures import (
    BOUNDS,
    BUCKETS,
    DEAD,
    DONE,
    FAILED,
    MOST,
    OTHERS,
    RAN,
    SIZE,
    STARTED,
    WAITED,
    Counts,
)


class BatchSizer:
    """How many messages to take at once: about 20 ms of work, so that nobody waits behind a batch for long.

    Messages of 2 ms are taken ten at a time, requests whose views take 30 ms one by one.
    """

    SPAN = 0.02  # seconds of work in a batch
    MOST = 20

    def __init__(self) -> None:
        self._mean = self.SPAN  # seconds for one message; the first ones are taken singly
        self.limit = 1  # how many to take now

    def ran(self, seconds: float) -> None:
        """Learn from one message; the last ten or so count."""
        self._mean += (seconds - self._mean) * 0.1
        self.limit = max(1, min(self.MOST, int(self.SPAN / max(self._mean, 1e-6))))


class Measures:
    """The counters of one worker since its start. They are changed by one thread at a time, and copied by any."""

    def __init__(self) -> None:
        self.counts: Counts = {}
        #: What happened to the process, by the name of the event.
        self.events: dict[str, int] = {}

    def started(self, channel: str, waited: float) -> None:
        """Count a message whose consumer starts, ``waited`` seconds after it was sent or became due."""
        numbers = self.counts.get(channel) or self._new(channel)
        numbers[STARTED] += 1
        numbers[WAITED] += waited
        numbers[6 + bisect_left(BOUNDS, waited)] += 1

    def ended(self, channel: str, outcome: int, ran: float) -> None:
        """Count the end of a message after ``ran`` seconds; ``outcome`` is DONE, FAILED or DEAD."""
        numbers = self.counts.get(channel) or self._new(channel)
        numbers[outcome] += 1
        numbers[RAN] += ran
        numbers[6 + BUCKETS + bisect_left(BOUNDS, ran)] += 1

    def _new(self, channel: str) -> list[float]:
        name = channel if len(self.counts) < MOST else OTHERS
        return self.counts.setdefault(name, [0] * SIZE)

    def count(self, event: str) -> None:
        """Count something that happened to the process."""
        self.events[event] = self.events.get(event, 0) + 1

    def copy(self) -> Counts:
        """Return the counters as they are now."""
        return {channel: numbers.copy() for channel, numbers in list(self.counts.items())}


class Batch:
    """Shared by the worker, which goes through it, and its watchdog, which hands back what waits too long."""

    def __init__(self) -> None:
        self.sizer = BatchSizer()
        self.measures = Measures()
        self.waiting: deque[Delivery] = deque()  # not started
        self._lock = threading.Lock()
        self._running: Delivery | None = None
        self._started_at = 0.0  # time.monotonic(), while one runs
        self._abandoned = False  # nothing starts any more
        self._forget()

    def _forget(self) -> None:
        self._operations: list[Operation] = []
        self._acknowledged: list[Delivery] = []
        self._failures: list[Failure] = []
        self._boundaries: list[tuple[Delivery, int]] = []

    def fill(self, deliveries: Sequence[Delivery]) -> None:
        """Add messages that were taken."""
        with self._lock:
            self.waiting.extend(deliveries)

    def start_next(self) -> Delivery | None:
        """Return the next message, which runs from now on; None when all are done or handed back."""
        with self._lock:
            self._running = self.waiting.popleft() if self.waiting and not self._abandoned else None
            self._started_at = time.monotonic()
            if self._running is not None:
                self.measures.started(self._running.channel, self._running.waited)
            return self._running

    def finished(self, result: Result) -> None:
        """Note what the running message's consumer did; nothing if the message was given up."""
        self.sizer.ran(time.monotonic() - self._started_at)
        with self._lock:
            self._end(result)

    def time_out(self, delivery: Delivery, result: Result) -> bool:
        """Note the end of a consumer that hangs, after which no other starts; False if it has ended before."""
        with self._lock:
            if self._running is not delivery:
                return False
            self._end(result)
            self._abandoned = True
            return True

    def _end(self, result: Result) -> None:
        delivery, self._running = self._running, None
        if self._abandoned or delivery is None:
            return
        failure = result.failure
        is_dead = failure is not None and failure.retry_in is None
        outcome = DEAD if is_dead else FAILED if failure is not None or result.raised else DONE
        self.measures.ended(delivery.channel, outcome, time.monotonic() - self._started_at)
        self._operations += result.operations
        if failure is not None:
            self._failures.append(failure)
        elif delivery.id is not None and result.acknowledge:
            if delivery.is_task:
                delivery = delivery._replace(return_value=result.return_value)
            self._acknowledged.append(delivery)
        self._boundaries.append((delivery, len(self._operations)))

    def running(self) -> tuple[Delivery | None, float]:
        """Return the message that runs, and for how many seconds it has run."""
        with self._lock:
            return self._running, time.monotonic() - self._started_at if self._running else 0.0

    def holds_up(self) -> bool:
        """Whether the message that runs holds up others, or results that are not written yet."""
        return bool(self.waiting or self._boundaries)

    def report(self, hand_back: bool = False) -> BatchResult:
        """Return what is to be written, once; with ``hand_back`` the messages that have not started go back."""
        with self._lock:
            returned = list(self.waiting) if hand_back else []
            if hand_back:
                self.waiting.clear()
            in_flight = [*([self._running] if self._running else []), *self.waiting]
            result = self._result(returned, in_flight)
            self._forget()
            return result

    def abandon(self) -> BatchResult:
        """Return what is to be written when the process ends now, and start nothing else.

        A durable message that runs goes back, as if it had not run.
        """
        with self._lock:
            self._abandoned = True
            running = [self._running] if self._running else []
            returned = [*(one for one in running if one.durable), *self.waiting]
            self.waiting.clear()
            return self._result(returned, [one for one in running if not one.durable])

    def _result(self, returned: list[Delivery], in_flight: list[Delivery]) -> BatchResult:
        ended = self._operations, self._acknowledged, self._failures
        return BatchResult(*ended, returned, in_flight, self._boundaries)

    def clear(self) -> None:
        """Forget everything: the worker was declared dead, and other workers have its messages."""
        with self._lock:
            self.waiting.clear()
            self._forget()
