"""What stays in the process is delivered by the event loop that sends it: no thread wakes up, and no row is written.

The loop asks the database each time who the members are: others may add and discard them. The question changes nothing.
Whatever comes between, such as a member elsewhere or a lost session, the publisher writes the messages. Until they are
delivered or written, what the loop sends waits for the next question. What other event loops send meanwhile is written:
a loop that is blocked keeps none of them waiting.

The same question says whether a message waits in the queues of this process, and nothing is delivered while somebody
pops. So all that was committed before a message was sent is in an inbox when that message comes there.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from dbchannels import names
from dbchannels.exceptions import LayerUnavailable
from dbchannels.layers.operations import Send, SendGroup
from dbchannels.layers.relay import OUTBOX

if TYPE_CHECKING:
    from dbchannels.layers.channels.relay import ChannelsRelay
    from dbchannels.layers.postgresql.members import Members, MembersSession

log = logging.getLogger("dbchannels.layer")

AT_ONCE = 100  # messages in one question, whose text the socket's buffer has to take at once

Futures = Sequence[asyncio.Future[None]]
Sent = tuple[Send | SendGroup, asyncio.Future[None]]


class LocalDelivery:
    """Delivers what one event loop at a time sends: the one that asks, until nothing more waits."""

    def __init__(self, relay: ChannelsRelay, members: MembersSession) -> None:
        self._relay, self._members = relay, members
        self._lock = threading.Lock()
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None  # whose question is under way
        self._asked: list[Sent] = []
        self._waiting: list[Sent] = []
        self._descriptor = -1  # that the loop waits for; -1: none

    def open(self) -> None:
        """Open the session, if that is to be done; called by the housekeeper now and then."""
        with self._lock:
            self._free()
        if not self._closed:
            self._members.open()

    def take(self, operation: Send | SendGroup, future: asyncio.Future[None]) -> bool:
        """Deliver a message, or have it written, and set the future; False if the publisher has to do it."""
        loop = future.get_loop()
        with self._lock:
            self._free()
            if self._closed or self._loop not in (None, loop):
                return False
            if len(self._waiting) > OUTBOX:
                future.set_exception(self._relay.outbox_full())
                return True
            is_first, self._loop = self._loop is None, loop
            self._waiting.append((operation, future))
        if is_first:
            self._ask(loop)
        return True

    def close(self) -> None:
        """Have everything written, and close the session; called by another thread."""
        self._closed = True
        with self._lock:
            loop, self._loop = self._loop, None
            self._put_all()
        if loop is not None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._look, loop)
                return
        self._members.close()

    def _ask(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            if self._loop is not loop:  # released
                return
            self._asked, self._waiting = self._waiting[:AT_ONCE], self._waiting[AT_ONCE:]
            if not self._asked:
                self._loop = None
                return
            operations = [one for one, _ in self._asked]
        queues = list(self._relay.queues.values())
        sends = [one for one in operations if isinstance(one, Send)]
        if not self._members.ready or any(names.split(one.channel)[0] not in queues for one in sends):
            self._hand_over(loop)
            return
        try:
            groups = {one.group for one in operations if isinstance(one, SendGroup)}
            self._wait(loop, self._members.ask(groups, queues))
        except Exception as error:
            self._failed(loop, error)

    def _wait(self, loop: asyncio.AbstractEventLoop, descriptor: int) -> None:
        self._descriptor = descriptor
        loop.add_reader(descriptor, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Look for the answer, or close the session.

        The loop forgets the descriptor first: once it is closed, its number may be another file's.
        """
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            loop.remove_reader(descriptor)
        if self._closed:
            self._members.close()
            return
        try:
            found, members = self._members.answer()
            if not found:
                self._wait(loop, descriptor)
            elif self._deliver(members, loop):
                self._ask(loop)
            else:
                self._hand_over(loop)
        except Exception as error:
            self._failed(loop, error)

    def _deliver(self, members: Members, loop: asyncio.AbstractEventLoop) -> bool:
        """Deliver what was asked for; return whether that is right."""
        relay = self._relay
        if members is None or relay.popping.locked():
            return False
        with self._lock:
            asked = self._asked
            if any(isinstance(one, SendGroup) and one.group not in members for one, _ in asked):
                return False
            self._asked = []
        woken = relay.deliver(
            ([one.channel] if isinstance(one, Send) else members[one.group], one.payload, 0.0)
            for one, _ in asked
        )
        finish([*woken, *(future for _, future in asked)], here=loop)
        return True

    def _failed(self, loop: asyncio.AbstractEventLoop, error: Exception) -> None:
        if self._members.ready:  # the session may be open again otherwise
            self._members.close()
        self._hand_over(loop)
        if not isinstance(error, LayerUnavailable):
            log.error("The members of groups could not be read; messages are written.", exc_info=error)

    def _hand_over(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give everything to the publisher, and go on when all of it is written: it may end in another order."""
        with self._lock:
            futures = self._put_all()
        left = len(futures)

        def written(_: asyncio.Future[None]) -> None:
            nonlocal left
            left -= 1
            if not left:
                self._ask(loop)

        for future in futures:
            future.add_done_callback(written)

    def _free(self) -> None:
        """Let other event loops ask if the one that asks was closed meanwhile; called with the lock."""
        if self._loop is not None and self._loop.is_closed():
            self._members.close()
            self._put_all()
            self._loop, self._descriptor = None, -1

    def _put_all(self) -> Futures:
        sent, self._asked, self._waiting = [*self._asked, *self._waiting], [], []
        for operation, future in sent:
            self._relay.put(operation, future)
        return [future for _, future in sent]


def finish(
    futures: Futures,
    raised: Mapping[asyncio.Future[None], Exception] | None = None,
    here: asyncio.AbstractEventLoop | None = None,
) -> None:
    """Set the results of futures, or their errors, from any thread: each event loop is woken once.

    ``here`` is the event loop that calls.

    A broadcast has a future for each member. With a tuple for each its sender took twice as long.
    """

    def set_all(of_loop: Futures) -> None:
        for future in of_loop:
            if future.done():
                continue
            if raised and future in raised:
                future.set_exception(raised[future])
            else:
                future.set_result(None)

    by_loop = defaultdict(list)
    for future in futures:
        by_loop[future.get_loop()].append(future)
    for loop, of_loop in by_loop.items():
        if loop is here:
            set_all(of_loop)
            continue
        with suppress(RuntimeError):  # it is closed
            loop.call_soon_threadsafe(set_all, of_loop)
