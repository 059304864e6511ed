"""``runworker --probe-port``: health checks and metrics of a worker that has no server beside it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import gevent
from gevent.event import Event

from dbchannels.measures import Counted, ServerCounts, total
from dbchannels.server.health import HealthServer
from dbchannels.server.listeners import Address, SocketPermissions, listen
from dbchannels.server.metrics import Metrics
from dbchannels.worker.worker import Worker


class Measured:
    """What the metrics show of workers in this process, see ``metrics.Source``."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers, self.counts = workers, ServerCounts()

    def counted(self) -> tuple[Counted, Sequence[bytes]]:
        """Return what the workers have counted."""
        return total((one.measures.copy(), one.measures.events.copy()) for one in self._workers), ()

    def state(self) -> dict[str, float]:
        """Return how many of them take messages."""
        return {"workers_ready": sum(not one.why_not_ready() for one in self._workers)}

    def budgets(self) -> dict[str, tuple[int, int]]:
        """Return nothing: workers have no clients."""
        return {}

    def outages(self) -> int:
        """Return 0: the workers count them."""
        return 0

    def site(self) -> tuple[str, dict[str, int]]:
        """Return nothing: any server of the site shows its gauges."""
        return "", {}


class Probes:
    """Answers at an address while it is entered, in a thread with a hub of its own. Raises AddressInUse.

    The first worker says whether the process is ready.
    """

    def __init__(self, address: Address, workers: Sequence[Worker]) -> None:
        self._listener, self._workers = listen(address, SocketPermissions()), workers
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="probes", daemon=True)

    def __enter__(self) -> Address:
        self._thread.start()
        self._started.wait()
        return self._listener.address

    def __exit__(self, *error: object) -> None:
        """Stop answering, and end the thread: none may run Python code while the interpreter ends."""
        self._stop()
        self._thread.join()

    def _run(self) -> None:
        hub, stopping = gevent.get_hub(), Event()
        watcher: Any = hub.loop.async_()
        watcher.start(stopping.set)
        self._stop = watcher.send
        server = HealthServer(
            self._listener, self._workers[0].why_not_ready, Metrics(Measured(self._workers))
        )
        server.start()
        self._started.set()
        stopping.wait()
        server.stop()
        hub.destroy(destroy_loop=True)
