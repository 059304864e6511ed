"""The relay's thread for what no message needs: it renews the lease, watches the site, and cleans up."""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Set
from contextlib import closing, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from dbchannels.exceptions import LayerUnavailable
from dbchannels.layers.health import UNREGISTER_TRIES
from dbchannels.layers.link import Link
from dbchannels.layers.operations import Send, several_sites
from dbchannels.models import Process
from dbchannels.protocol import EXPIRED, WORKER_DIED

if TYPE_CHECKING:
    from dbchannels.server.relay import Receiver, Relay

log = logging.getLogger("dbchannels.server")

TRIES = 5  # of a chore, once the server stops
LAST_CHORE = 0.5  # seconds at the end for what a killed worker held
CHECK_LOGINS = 60.0  # seconds between two looks at who is still logged in; see auth/logout.py
LAST_REPLIES = 0.5  # seconds in which the reader takes replies from just before a look at the tables
EMPTIED = "The database has lost the messages of %d client(s) in a crash or a failover; each is answered with an error."


class Housekeeper:
    """Does one chore after another, and looks at the site three times in a lease."""

    def __init__(self, relay: Relay, receivers: Mapping[str, Receiver]) -> None:
        self._relay = relay
        #: Workers on the database that take requests, and servers whose requests they answer.
        self.http_workers, self.servers = 0, 1
        #: For the metrics, if this is set: the newest sample of the site, and how many workers take each channel.
        self.watches_site = False
        self.site: tuple[str, Mapping[str, int]] = "", {}
        self.has_sessions = False  # whether a WebSocket has brought a session's cookie
        self._checked_at, self._several_sites = time.monotonic(), ""
        self._overload, self._emptied = Overload(), Emptied(receivers, relay.lose)
        self._chores: queue.SimpleQueue[Callable[[Link], Any] | None] = queue.SimpleQueue()

    def register(self) -> int:
        """Put the server on record; return the position of the newest message with a history.

        Raises LayerUnavailable.
        """
        self._link = self._relay.layer.link("housekeeper", listen=False)
        self._link.register(self._relay.name, Process.SERVER, self._relay.queue)
        return self._link.history_position()

    def run(self) -> None:
        """Work until ``stop`` is called, then end the server's record."""
        relay, link, started_at = self._relay, self._link, time.monotonic()
        lease = relay.layer.options["lease"]
        chore: Callable[[Link], Any] | None = self._look
        while chore is not None:
            try:
                relay.health.retry(partial(chore, link), relay.stopping, TRIES)
            except Exception:
                log.exception("A chore of this server failed and was left out.")
            # More often in the first seconds, in which the workers get ready and register.
            pause = lease / 3 if time.monotonic() - started_at > lease else min(1.0, lease / 3)
            try:
                chore = self._chores.get(timeout=pause * random.uniform(0.8, 1.0))
            except queue.Empty:
                chore = self._look
        try:
            relay.health.retry(lambda: link.unregister(relay.name), relay.stopping, UNREGISTER_TRIES)
        finally:
            link.close()

    def stop(self) -> None:
        """End after the chores that are left."""
        self._chores.put(None)

    def look_soon(self) -> None:
        """Look at the lease and at the site after the chores that are left."""
        self._chores.put(self._look)

    def leave_work_to(self, workers: Set[str], end: Callable[[], None]) -> None:
        """Call ``end``, in the hub, if workers of another process tree, by name, are on this layer.

        They do the rest of the work, so that this server's own workers can be ended.
        """

        def look(link: Link) -> None:
            if not workers.isdisjoint(link.workers()):
                self._relay.own_workers = set
                self._relay.choose_wakeups(())
                self._relay.hub.call(end)

        self._chores.put(look)

    def clean_up_after(self, worker: str) -> None:
        """Clean up after a worker that died."""
        relay = self._relay
        self._chores.put(lambda link: link.clean_up_after(worker))
        if relay.stopping.is_set() and not relay.unavailable:  # the thread has ended

            def clean_up_last() -> None:
                with (
                    closing(relay.layer.link("housekeeper", listen=False)) as link,
                    suppress(LayerUnavailable),
                ):
                    link.clean_up_after(worker)

            last = threading.Thread(target=clean_up_last, daemon=True)
            last.start()
            last.join(LAST_CHORE)

    def _look(self, link: Link) -> None:
        """Renew the lease, look at the workers and at what they leave, and clean up after dead processes."""
        relay = self._relay
        relay.renew(link)
        workers = link.workers()
        relay.choose_wakeups(workers)
        self._overload.look(link, workers)
        told, self._several_sites = self._several_sites, several_sites(workers)
        if self._several_sites and not told:
            log.warning("%s", self._several_sites)
        if self.watches_site:
            takers = Counter(channel for work in workers.values() for channel in work["takes"])
            self.site = link.newest_sample(), takers
        self._emptied.look(link, relay.name)
        now = time.monotonic()
        if self.has_sessions and now - self._checked_at > CHECK_LOGINS:
            self._checked_at = now
            link.apply([relay.make_send("websocket.logins", {"server": relay.name})])
        link.clean_up()
        self.http_workers, self.servers = link.count_live("http.request")


class Overload:
    """Logs once that messages of a channel wait because all workers that take it are busy, and what these run."""

    PATIENCE = 30.0  # seconds that the oldest message may wait until the line is logged
    NAMED = 10  # workers that a line names

    def __init__(self) -> None:
        # By channel: since when messages wait (time.monotonic), the greatest id then, and whether it was logged.
        self._waits: dict[str, tuple[float, int, bool]] = {}

    def look(self, link: Link, works: Mapping[str, Mapping[str, Any]]) -> None:
        """Look at the channels whose workers are all busy. ``works``: see ``Link.workers``."""
        idle = {channel for work in works.values() if not work["runs"] for channel in work["takes"]}
        busy = {channel for work in works.values() for channel in work["takes"]} - idle
        heads = link.heads(sorted(busy)) if busy else {}
        self._waits = {channel: wait for channel, wait in self._waits.items() if channel in heads}
        now = time.monotonic()
        for channel, (head, last) in heads.items():
            since, mark, logged = self._waits.get(channel, (now, last, False))
            if head > mark:  # all messages that waited then have been taken
                since, mark = now, last
            if now - since >= self.PATIENCE and not logged:
                logged = True
                runs = [
                    f"{name} runs {work['runs']} since {work['since']}"
                    for name, work in sorted(works.items())
                    if channel in work["takes"]
                ]
                log.warning(
                    "Messages on %s have waited for %.0f s, because every worker that takes them is busy: %s. "
                    "Start more workers, with --workers or runworker.",
                    channel,
                    now - since,
                    ", ".join([*runs[: self.NAMED], *(["..."] if runs[self.NAMED :] else [])]),
                )
            self._waits[channel] = since, mark, logged


class Emptied:
    """Finds the clients that would wait in vain after a crash of the database, or a failover, emptied UNLOGGED tables.

    Their messages neither wait nor are in flight. A message may be in the hands of a worker, which puts it on record
    again when it renews its lease. So the look at the tables comes after that. ``lose`` is the relay's.
    """

    def __init__(self, receivers: Mapping[str, Receiver], lose: Callable[[str, str, str], None]) -> None:
        self._receivers, self._lose = receivers, lose
        #: By reply channel: what was in the layer when the tables were empty.
        self._waiting: dict[str, Send] = {}
        self._look_at = 0.0  # time.monotonic()

    def look(self, link: Link, name: str) -> None:
        """Answer the clients of lost messages; called by the housekeeper. ``name`` is the server's."""
        now = time.monotonic()
        if link.emptied(name):
            self._look_at = now + link.layer.options["lease"] / 2  # workers renew their leases after a third
            self._waiting = self._in_layer()
        if not self._waiting or now < self._look_at:
            return
        waiting, self._waiting = self._waiting, {}
        unfinished = link.unfinished(list(waiting))
        time.sleep(LAST_REPLIES)
        current = self._in_layer()
        lost = [
            (one, send) for one, send in waiting.items() if current.get(one) is send and one not in unfinished
        ]
        if lost:
            log.warning(EMPTIED, len(lost))
        for one, send in lost:
            # A disconnect message is sent again.
            self._lose(one, EXPIRED if send.channel == "websocket.disconnect" else WORKER_DIED, send.channel)

    def _in_layer(self) -> dict[str, Send]:
        receivers = list(self._receivers.items())  # at once: the hub changes it
        return {one: send for one, receiver in receivers if (send := receiver.in_layer)}
