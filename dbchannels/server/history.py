"""The histories of groups in the server: live delivery by position, and clients that come back for what they missed.

All messages with a history go through the relay's reader, in the order of their positions. A client that comes back is
*behind*: it gets none of them live, until the reader has read all that it missed up to the position of the server. As
both happen in one thread, and reach the hub in order, the client then gets each later message, and none twice.

Addresses take turns: whoever opens a thousand sockets with an old last id delays its own catching up. The hub has
delivered what was read for one batch of clients before the next batch is read.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from dbchannels import names
from dbchannels.layers.link import Link
from dbchannels.layers.operations import Kept, Missed
from dbchannels.server.connection_limits import FairQueue, Turn

if TYPE_CHECKING:
    from dbchannels.server.relay import Receiver

LIVE = 500  # messages that are read at once for all clients
MISSED = 32  # messages that are read at once for a client that is behind: a WebSocket lets 64 frames wait
MISSED_BYTES = 262_144  # of them, unless one alone is larger: a WebSocket lets 1 MiB wait
CLIENTS = 5  # of one address that are behind and read for at once; four times as many of all addresses
UNKNOWN = -1  # in place of a last id that no server has given
LONGEST_ID = 18  # digits: a position is a bigint


def read_id(text: str) -> int:
    """Return the position that a client gives as its last id."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= LONGEST_ID else UNKNOWN


class Resume:
    """How far a client has come that wants to miss nothing."""

    def __init__(self, last_id: str, now: int) -> None:
        """``last_id`` is the client's, "" if it has none yet; then it begins at ``now``, the server's position."""
        self.is_new = not last_id
        #: The position of the last message that was delivered, and the gap of which the client was told last.
        self.after = now if self.is_new else read_id(last_id)
        self.gap = UNKNOWN
        self.is_behind = True

    @property
    def told(self) -> int:
        """The last id that the client was told."""
        return max(self.after, self.gap, 0)

    def takes(self, position: int) -> bool:
        """Whether the client needs a message that is delivered live; then it counts as delivered."""
        if self.is_behind or position <= self.after:
            return False
        self.after = position
        return True


class Behind:
    """A client whose turn it is to catch up, and where it is."""

    def __init__(self, reply_channel: str, address: str, after: int) -> None:
        self.reply_channel, self.address, self.after = reply_channel, address, after
        self.turn: Turn | None = None


class HistoryReader:
    """Reads for the hub. ``catch_up`` is called in the hub, ``read`` in the relay's reader."""

    def __init__(
        self,
        receivers: dict[str, Receiver],
        call: Callable[[Callable[[], None]], None],
        deliver: Callable[[bytes, int, Sequence[str]], None],
        wake: Callable[[], None],
    ) -> None:
        """``call`` runs a function in the hub, ``deliver`` delivers a payload there, ``wake`` wakes the reader."""
        self._receivers, self._call, self._deliver, self._wake = receivers, call, deliver, wake
        self.position = 0  # of the last message that was delivered live, in the hub
        self._read = 0  # the same, in the reader
        #: time.monotonic() of the next look, and the clients that are behind and have their turn.
        self.read_at = 0.0
        self.behind: deque[Behind] = deque()
        self._turns = FairQueue(CLIENTS)

    def begin(self, position: int) -> None:
        """Begin after a position, before the reader runs."""
        self.position = self._read = position

    def catch_up(self, reply_channel: str, address: str) -> None:
        """Read what a client has missed, when it is its address's turn. Call it when its groups are on record."""
        receiver = self._receivers.get(reply_channel)
        if receiver is not None and receiver.resume is not None:
            one = Behind(reply_channel, address, receiver.resume.after)
            one.turn = self._turns.enter(address, partial(self._begin_turn, one))

    def _begin_turn(self, one: Behind) -> None:
        self.behind.append(one)
        self._wake()

    def _end_turns(self, ended: Sequence[Behind]) -> None:
        for one in ended:
            if one.turn is not None:
                one.turn.leave()

    def read_soon(self) -> None:
        """Read at the next call of ``read``: something new was committed."""
        self.read_at = 0.0

    def read(self, link: Link, queue: str, interval: float) -> bool:
        """Deliver what is new, and a batch to clients that are behind; return whether more may be new.

        Without ``read_soon`` it looks for new messages every ``interval`` seconds: a wakeup may get lost.
        """
        is_full = False
        if (now := time.monotonic()) >= self.read_at:
            found = link.read_history(queue, self._read, LIVE)
            if found:
                self._read = found[-1].position
                self._call(partial(self._deliver_live, queue, found))
            is_full = len(found) == LIVE
            self.read_at = 0.0 if is_full else now + interval
        if self.behind:
            self._read_missed(link)
        return is_full

    def _deliver_live(self, queue: str, found: Sequence[Kept]) -> None:
        for position, payload, recipients in found:
            channels = [queue + one for one in recipients if self._takes(queue + one, position)]
            if channels:
                self._deliver(payload, position, channels)
            self.position = position

    def _takes(self, reply_channel: str, position: int) -> bool:
        receiver = self._receivers.get(reply_channel)
        return receiver is None or receiver.resume is None or receiver.resume.takes(position)

    def _read_missed(self, link: Link) -> None:
        first = list(self.behind)
        here = {one.reply_channel: one for one in first if one.reply_channel in self._receivers}
        for queue in {names.split(channel)[0] for channel in here}:  # a server that was declared dead has two
            after = {
                names.split(channel)[1]: one.after
                for channel, one in here.items()
                if channel.startswith(queue)
            }
            for recipient, missed in link.missed(queue, after, MISSED, MISSED_BYTES).items():
                self._call(partial(self._deliver_missed, here[queue + recipient], missed))
        for _ in first:  # not before: if the database is away, they are read later
            self.behind.popleft()
        self._call(partial(self._end_turns, first))

    def _deliver_missed(self, one: Behind, missed: Missed) -> None:
        """Deliver what was found after a position, unless that was delivered before an outage.

        A gap in one group does not hide the messages that others had before it. They get its id, because the client
        would be told of the gap again if it came back with theirs.
        """
        reply_channel = one.reply_channel
        receiver = self._receivers.get(reply_channel)
        if receiver is None or receiver.resume is None or receiver.resume.after != one.after:
            return
        resume = receiver.resume
        if missed.gap is not None and missed.gap > resume.gap:
            resume.gap = missed.gap
            receiver.tell_gap(missed.gap)
        for position, payload in missed.messages:
            resume.after = position
            self._deliver(payload, max(position, resume.gap), [reply_channel])
        if missed.complete:
            resume.is_behind = False
            resume.after = resume.after if missed.messages or missed.gap is None else missed.gap
        else:
            receiver.when_drained(partial(self._call, partial(self.catch_up, reply_channel, one.address)))
