"""A test case for browsers: the real server and its workers, on the test's database."""

from __future__ import annotations

import time
from typing import ClassVar

from django.db import transaction
from django.test import TransactionTestCase

from dbchannels import Channel, conf
from dbchannels.models import Connection, InFlight, Process
from dbchannels.protocol import GOING_AWAY
from dbchannels.testing.live_server import LiveServer

QUIET_WITHIN = 5.0  # seconds after a test, for its sockets to close and its consumers to end
PAUSE = 0.02  # seconds between two looks


class ChannelLiveServerTestCase(TransactionTestCase):
    """``runchannels`` with its workers for the tests of a class, with static files, at ``live_server_url``.

    What a test saves is there for the server at once, as in any TransactionTestCase. After each test its sockets are
    closed (1001) and all tables emptied. The processes end with the class, or with the test's own process.
    """

    host: ClassVar[str] = "localhost"
    port: ClassVar[int] = 0
    workers: ClassVar[int] = 2
    live_server: ClassVar[LiveServer]
    live_server_url: ClassVar[str]  # "http://localhost:49321"
    live_server_ws_url: ClassVar[str]  # "ws://localhost:49321"

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.live_server = LiveServer(cls.host, cls.port, cls.workers)
        cls.addClassCleanup(cls.live_server.stop)
        cls.live_server_url = cls.live_server.url
        cls.live_server_ws_url = cls.live_server.ws_url

    def _fixture_teardown(self) -> None:
        """As the base's, in one transaction that leaves the server's processes on record."""
        database = conf.layer_settings().database
        self._quieten(database)
        with transaction.atomic(using=database):
            processes = Process.objects.using(database)
            # Written first: on SQLite a transaction that reads, and writes later, fails when others wrote meanwhile.
            processes.filter(name="").delete()
            rows = list(processes.values())
            super()._fixture_teardown()  # type: ignore[misc]
            processes.bulk_create(Process(**row) for row in rows)

    def _quieten(self, database: str) -> None:
        """Close the sockets, and wait until their consumers have run."""
        connections, in_flight = Connection.objects.using(database), InFlight.objects.using(database)
        opened = list(connections.values_list("reply_channel", flat=True))
        for channel in opened:
            Channel(channel).send({"close": GOING_AWAY})
        ends_at = time.monotonic() + QUIET_WITHIN
        while time.monotonic() < ends_at and (
            connections.filter(reply_channel__in=opened).exists() or in_flight.exclude(messages="").exists()
        ):
            time.sleep(PAUSE)
