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
from gevent.lock import Semaphore
from gevent.queue import SimpleQueue
from gevent.threadpool import ThreadPool

from dbchannels.interface import http
from dbchannels.interface.exchange import BrokenOff

log = logging.getLogger("dbchannels.server")

WINDOW = 1_048_576  # bytes on the way from the view to the client
STALLED = 60.0  # seconds without the client taking anything: given up
WAITING_PER_THREAD = 16  # requests that may wait for a thread; beyond it they are answered 503

Message = dict[str, Any]
#: Runs the view of an ``http.request`` message: the messages of its response, the last without ``more_content``.
Views = Callable[[Message], Generator[Message, None, None]]
CallInHub = Callable[[Callable[[], None]], None]

LATE = "The site's view took longer than this server waits."


class DirectViews:
    """The threads, and how many requests there may be."""

    def __init__(self, views: Views, threads: int, call_in_hub: CallInHub) -> None:
        self.views = views
        self.call_in_hub = call_in_hub
        self.free = Semaphore(threads)  # the pool itself would take one more, which then waits unseen
        self._pool = ThreadPool(threads)
        self._room = threads * (1 + WAITING_PER_THREAD)

    def exchange(self) -> DirectExchange:
        """Return what one request is run by."""
        return DirectExchange(self)

    def enter(self) -> bool:
        """Take a place; False when there is none. Whoever got one must ``leave``."""
        self._room -= 1
        if self._room >= 0:
            return True
        self._room += 1
        return False

    def leave(self) -> None:
        """Give the place back."""
        self._room += 1

    def run(self, function: Callable[[], None]) -> None:
        """Run a function in a thread; whoever calls has taken a free one, which its end gives back, and the place."""
        self._pool.spawn(self._run, function)

    def _run(self, function: Callable[[], None]) -> None:
        try:
            function()
        finally:
            self.call_in_hub(self._ended)

    def _ended(self) -> None:
        self.free.release()
        self.leave()


class DirectExchange:
    """One request between its client and its thread; called as `Exchange` is."""

    reply_channel = flow_channel = ""

    def __init__(self, direct: DirectViews) -> None:
        self._direct = direct
        self._parts: SimpleQueue = SimpleQueue()  # for the hub
        self._reports: queue.SimpleQueue[Message] = queue.SimpleQueue()  # for the thread
        self._sent = self._taken = 0  # bytes, in the thread
        self._waits = self._given_up = False  # for a free thread; and the server stops

    # In the hub.

    def request(self, message: Message, timeout: float) -> Message:
        """Run the view; return the head of its response, 503 when no thread was free, or 504 when it took too long."""
        if not self._direct.enter():
            return http.failure_message(503)
        started = False
        try:
            with gevent.Timeout(timeout, False):
                self._await_thread()
                if self._given_up:
                    return http.failure_message(503)
                self._direct.run(partial(self._run, message))
                started = True
                first: Message = self._parts.get()
                if "left" in first:
                    raise BrokenOff
                status = http.failure_status(first)
                return first if status is None else http.failure_message(status)
        finally:
            if not started:
                self._direct.leave()
        return http.failure_message(504, LATE) if started else http.failure_message(503)

    def _await_thread(self) -> None:
        self._waits = True
        try:
            self._direct.free.acquire()
        finally:
            self._waits = False

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
        """End the wait for a thread, or for what it makes: the server stops, and no thread is needed any more."""
        self._given_up = True
        if self._waits:
            self._direct.free.release()
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
