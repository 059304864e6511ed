"""``--http direct``: views run in native threads of this process, without the layer.

A request holds one thread until its response is made and stored. The thread hands each part to the hub, and waits while
more than a window is neither taken by the client nor stored.
"""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from contextvars import copy_context
from functools import partial
from typing import Any

import gevent
from django.core.cache import caches
from gevent.threadpool import ThreadPool

from dbchannels.protocol import (
    BROKEN_OFF,
    CLOSED,
    CONSUMER_RAISED,
    ERROR,
    MORE_CONTENT,
    SERVER_STOPS,
    STALLED,
    WINDOW,
    Window,
    chunk,
    failure_reply,
    is_failure,
    lost,
    status_reply,
    with_length,
)
from dbchannels.server.connection_limits import FairQueue, Turn
from dbchannels.server.http.exchange import BrokenOff, ResponseBuffer

log = logging.getLogger("dbchannels.server")

PIECE = WINDOW // 2  # bytes: the client takes one piece while the next is stored
WAITING_PER_THREAD = 16  # requests of one address that may wait for a thread; beyond it they are answered 503

Message = dict[str, Any]
#: Runs the view of an ``http.request`` message: the messages of its response, the last without ``more_content``.
Views = Callable[[Message], Generator[Message, None, None]]
CallInHub = Callable[[Callable[[], None]], None]

LATE = "The site's view took longer than this server waits."


class DirectViews:
    """The threads that run views. Addresses take turns."""

    def __init__(self, views: Views, threads: int, call_in_hub: CallInHub, turns: FairQueue) -> None:
        self.views = views
        self.threads = threads
        self.call_in_hub = call_in_hub
        self.turns = turns
        turns.room = threads
        self.most_waiting = threads * WAITING_PER_THREAD
        self.pool = ThreadPool(threads)


class DirectExchange:
    """Runs the view of one request, and receives its response; used like `Exchange`."""

    reply_channel = flow_channel = ""
    is_made = False  # a thread makes the response until its end

    def __init__(self, direct: DirectViews, buffer: ResponseBuffer) -> None:
        self._direct = direct
        self._buffer = buffer  # for the hub
        self._turn: Turn | None = None
        self._reports: queue.SimpleQueue[Message] = queue.SimpleQueue()  # for the thread
        self._window = Window()  # for the thread
        self._left = False  # by the client

    # In the hub.

    def request(self, message: Message, timeout: float) -> Message:
        """Run the view. Return the first message of its response, a 503 when no thread was free, or a 504."""
        turns, client = self._direct.turns, message["client"][0]
        if turns.waiting(client) >= self._direct.most_waiting:
            return status_reply(503)
        # The pool may wait for a moment.
        start = partial(gevent.spawn_raw, self._direct.pool.spawn, self._run, message)
        self._turn = turn = turns.enter(client, start)
        try:
            with gevent.Timeout(timeout, False):
                first = self._buffer.get()
                if self._left:
                    raise BrokenOff
                return failure_reply(first) if is_failure(first) else first
        finally:
            if not turn.started:
                turn.leave()
        return status_reply(504, LATE) if turn.started else status_reply(503)

    def next_chunk(self, timeout: float) -> Message:
        """Return the next message, however long the view takes. Raises BrokenOff when there is none."""
        part = self._buffer.get() if not self._left else {}
        if self._left or is_failure(part):
            raise BrokenOff
        return part

    def report(self, report: Message) -> None:
        """Tell the thread how many bytes were taken, or that nobody wants more."""
        self._reports.put(report)

    def client_left(self) -> None:
        """End the wait for the view, and tell the thread."""
        self._left = True
        self.report({CLOSED: True})
        self._buffer.put({"left": True})  # ends the wait

    def give_up(self) -> None:
        """End the wait for a thread, or for the view: the server stops."""
        self._buffer.put(lost(SERVER_STOPS))

    def close(self) -> bool:
        """Wait for nothing more, and tell a thread that still makes the response. Nothing is left to be withdrawn."""
        self.report({CLOSED: True})
        self._buffer.close()
        return False

    # In the thread.

    def _run(self, message: Message) -> None:
        """Run the view in a context of its own: its language and time zone are gone for the thread's next request."""
        caches.all()  # made in the context of a request, they would be made anew for each
        copy_context().run(self._answer, message)

    def _answer(self, message: Message) -> None:
        """Put the messages of the response, the head with the first content: a view that raises before gets a 500."""
        head: Message = {}
        try:
            with closing(self._direct.views(message)) as parts:
                for part in parts:
                    if part.get(MORE_CONTENT) and not part.get("content"):
                        head |= part
                        continue
                    for piece in _cut(head | part):
                        self._put(piece)
                        self._window.sent += len(piece.get("content", b""))
                        if piece.get(MORE_CONTENT) and not self._may_go_on():
                            return
                    head = {}
        except BaseException:  # SystemExit too: the client waits for a response
            log.exception("The site's application raised an error.")
            self._put({ERROR: CONSUMER_RAISED})
        finally:
            assert self._turn is not None
            self._direct.call_in_hub(self._turn.leave)

    def _put(self, part: Message) -> None:
        self._direct.call_in_hub(partial(self._buffer.put, part))

    def _may_go_on(self) -> bool:
        """Wait for room. Return False when the client has left, or takes nothing."""
        while not self._window.is_open or not self._reports.empty():
            try:
                report = self._reports.get(timeout=STALLED)
            except queue.Empty:
                self._put({ERROR: BROKEN_OFF})
                return False
            if not self._window.read(report):
                return False
        return True


def _cut(part: Message) -> Iterator[Message]:
    """Yield a part in pieces of PIECE bytes at most; a response that is whole becomes one in chunks."""
    content = part.get("content", b"")
    if len(content) <= PIECE:
        yield part
        return
    if "headers" in part and not part.get(MORE_CONTENT):
        part = with_length(part, len(content))
    for start in range(0, len(content), PIECE):
        end = start + PIECE
        more = end < len(content) or bool(part.get(MORE_CONTENT))
        yield {**part, **chunk(content[start:end], more)}
        part = {MORE_CONTENT: part.get(MORE_CONTENT)}
