"""``--http direct``: views run in native threads of this process, without the layer.

A request holds one thread from its view's start to the end of its response. The thread hands each part to the hub and
waits while more than a window is on the way, so a client that is slow holds a thread and little memory.
"""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import gevent
from gevent.queue import SimpleQueue
from gevent.threadpool import ThreadPool

from dbchannels.interface import http
from dbchannels.interface.exchange import BrokenOff
from dbchannels.interface.turns import Turn, Turns

log = logging.getLogger("dbchannels.server")

WINDOW = 1_048_576  # bytes on the way from the view to the client
STALLED = 60.0  # seconds without the client taking anything: given up
WAITING_PER_THREAD = 16  # requests of one address that may wait for a thread; beyond it they are answered 503

Message = dict[str, Any]
#: Runs the view of an ``http.request`` message: the messages of its response, the last without ``more_content``.
Views = Callable[[Message], Generator[Message, None, None]]
CallInHub = Callable[[Callable[[], None]], None]

LATE = "The site's view took longer than this server waits."


class DirectViews:
    """The threads: as many requests run at once, and addresses take turns."""

    def __init__(self, views: Views, threads: int, call_in_hub: CallInHub, turns: Turns) -> None:
        self.views = views
        self.call_in_hub = call_in_hub
        self.turns = turns
        turns.room = threads
        self.most_waiting = threads * WAITING_PER_THREAD
        self._pool = ThreadPool(threads)

    def exchange(self) -> DirectExchange:
        """Return what one request is run by."""
        return DirectExchange(self)

    def run(self, function: Callable[[], None], ended: Callable[[], None]) -> None:
        """Run a function in a thread, and then ``ended`` in the hub; whoever calls has its turn."""
        gevent.spawn_raw(self._pool.spawn, self._run, function, ended)  # the pool may wait for a moment

    def _run(self, function: Callable[[], None], ended: Callable[[], None]) -> None:
        try:
            function()
        finally:
            self.call_in_hub(ended)


class DirectExchange:
    """One request between its client and its thread; called as `Exchange` is."""

    reply_channel = flow_channel = ""

    def __init__(self, direct: DirectViews) -> None:
        self._direct = direct
        self._turn: Turn | None = None
        self._parts: SimpleQueue = SimpleQueue()  # for the hub
        self._reports: queue.SimpleQueue[Message] = queue.SimpleQueue()  # for the thread
        self._sent = self._taken = 0  # bytes, in the thread

    # In the hub.

    def request(self, message: Message, timeout: float) -> Message:
        """Run the view; return the head of its response, 503 when no thread was free, or 504 when it took too long."""
        turns, client = self._direct.turns, message["client"][0]
        if turns.waiting(client) >= self._direct.most_waiting:
            return http.failure_message(503)
        self._turn = turn = turns.enter(client, partial(self._start, message))
        try:
            with gevent.Timeout(timeout, False):
                first: Message = self._parts.get()
                if "left" in first:
                    raise BrokenOff
                status = http.failure_status(first)
                return first if status is None else http.failure_message(status)
        finally:
            if not turn.started:
                turn.leave()
        return http.failure_message(504, LATE) if turn.started else http.failure_message(503)

    def _start(self, message: Message) -> None:
        self._direct.run(partial(self._run, message), self._ended)

    def _ended(self) -> None:
        assert self._turn is not None
        self._turn.leave()

    def next_chunk(self, timeout: float) -> Message:
        """Return the next part, however long the view takes; raises BrokenOff when there will be none."""
        part: Message = self._parts.get()
        if "left" in part or http.failure_status(part) is not None:
            raise BrokenOff
        return part

    def report(self, report: Message) -> None:
        """Tell the thread how far the client is: ``taken`` bytes in all, or that it is ``closed``."""
        self._reports.put(report)

    def client_left(self) -> None:
        """Wake who waits for the view, and tell the thread."""
        self.report({"closed": True})
        self._parts.put({"left": True})

    def give_up(self) -> None:
        """End the wait for a thread, or for what it makes: the server stops."""
        self._parts.put({"lost": "server stops"})

    def close(self) -> None:
        """Wait for nothing more; a thread that still makes parts is told so."""
        self.report({"closed": True})

    # In the thread.

    def _run(self, message: Message) -> None:
        parts = self._direct.views(message)
        try:
            self._pass_on(parts)
        except BaseException:  # SystemExit too: the client waits for an answer
            log.exception("The site's application raised an error.")
            self._put({"error": "application"})

    def _pass_on(self, parts: Generator[Message, None, None]) -> None:
        try:
            for part in parts:
                self._put(part)
                self._sent += len(part.get("content", b""))
                if part.get("more_content") and not self._may_go_on():
                    return
        finally:
            parts.close()

    def _put(self, part: Message) -> None:
        self._direct.call_in_hub(partial(self._parts.put, part))

    def _may_go_on(self) -> bool:
        """Wait for room; False when the client went away, or takes nothing."""
        while self._sent - self._taken > WINDOW or not self._reports.empty():
            try:
                report = self._reports.get(timeout=STALLED)
            except queue.Empty:
                self._put({"error": "stalled"})
                return False
            if report.get("closed"):
                return False
            self._taken = max(self._taken, report.get("taken", 0))
        return True
