"""ChannelLiveServerTestCase and its processes: the real server on the test's database."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from unittest import mock
from urllib.request import urlopen

import pytest
from django.contrib.auth.models import Group as Model
from django.db import connection, connections, transaction
from django.test import override_settings

from dbchannels import Group
from dbchannels.exceptions import InvalidConfiguration
from dbchannels.models import Connection, Process
from dbchannels.testing import ChannelLiveServerTestCase
from dbchannels.testing.live import LiveServer, databases, overridden_settings
from tests.harness import Socket, children, close_all, is_running, until
from tests.testing.site import ROUTING


@override_settings(
    DBCHANNELS={"default": ROUTING["default"]},
    ROOT_URLCONF="tests.testing.urls",
    ALLOWED_HOSTS=["127.0.0.1"],
)
class Live(ChannelLiveServerTestCase):
    """The tests share processes, and nothing else."""

    names: set[str] = set()  # noqa: RUF012  (of the processes on record, as each test finds them)

    def setUp(self):
        self.addCleanup(close_all)
        until(lambda: Process.objects.count() == 1 + self.workers, "all processes are on record")
        assert not Model.objects.exists()
        assert not Connection.objects.exists()
        names = set(Process.objects.values_list("name", flat=True))
        assert self.names in (set(), names)
        type(self).names = names

    def get(self, path):
        """Return what a GET is answered with."""
        with urlopen(self.live_server_url + path, timeout=30) as answer:
            return answer.read().decode()

    def ws(self, room="a"):
        """Open a WebSocket, its greeting received."""
        assert self.live_server_ws_url.replace("ws://", "http://") == self.live_server_url
        socket = Socket(int(self.live_server_url.rpartition(":")[2]), f"/room/{room}/", {}).handshake()
        assert socket.receive() is not None
        return socket

    def test_what_a_test_saves_is_there_and_what_the_server_saves_too(self):
        Model.objects.create(name="of the test")
        socket = self.ws()
        socket.send("hello")
        assert socket.receive() == "hello"
        assert self.get("/rows/") == "of the test,hello 5"

    def test_what_a_test_sends_reaches_the_browser(self):
        socket = self.ws()
        Group("room-a").send({"text": "from the test"})
        assert socket.receive() == "from the test"

    def test_after_a_test_its_sockets_are_closed_and_its_rows_gone(self):
        """Whatever the order of the tests: setUp looks at what is left of each."""
        socket = self.ws()
        socket.send("row")
        assert socket.receive() == "row"
        self._fixture_teardown()
        assert socket.closed() == 1001
        assert Process.objects.count() == 1 + self.workers

    @pytest.mark.postgresql
    def test_a_deadlock_with_a_process_of_the_server_does_not_fail_the_test(self):
        locked = threading.Event()

        def lock_tables():
            with closing(connection), transaction.atomic(), connection.cursor() as cursor:
                cursor.execute("SET LOCAL deadlock_timeout = '1min'")  # so the other one is told
                cursor.execute("LOCK TABLE auth_group")
                locked.set()
                waits = "SELECT FROM pg_locks WHERE NOT granted AND relation = 'auth_group'::regclass"
                until(lambda: cursor.execute(waits) or cursor.rowcount, "the clean-up waits for the table")
                cursor.execute("LOCK TABLE dbchannels_process")

        with (
            ThreadPoolExecutor(1) as pool,
            mock.patch.object(
                Live, "_empty_tables", autospec=True, side_effect=Live._empty_tables
            ) as attempts,
        ):
            other = pool.submit(lock_tables)
            locked.wait(10)
            self._fixture_teardown()
            other.result()
        assert attempts.call_count == 2
        assert Process.objects.count() == 1 + self.workers

    def test_a_consumer_may_print_as_much_as_it_likes(self):
        socket = Socket(int(self.live_server_url.rpartition(":")[2]), "/talk/", {}).handshake()
        socket.send("go on")
        assert socket.receive() == "done"

    def test_static_files_are_served(self):
        assert "django" in self.get("/static/admin/css/base.css").lower()

    def test_the_host_is_allowed(self):
        assert self.get("/send/") == "AnonymousUser"


def test_a_database_in_memory_is_refused_with_what_to_do():
    connection = mock.Mock(vendor="sqlite")
    connection.is_in_memory_db.return_value = True
    with (
        mock.patch("dbchannels.testing.live.connections", {"default": connection}),
        pytest.raises(
            InvalidConfiguration, match=r"set DATABASES\['default'\]\['TEST'\] = .*, or use PostgreSQL"
        ),
    ):
        databases()


def test_overridden_settings_go_along_and_what_cannot_is_refused():
    with override_settings(OWN={"a": Path("/x")}), override_settings(OTHER=(1,)):
        found = overridden_settings()
    assert (found["OWN"], found["OTHER"], found["DEBUG"]) == ({"a": "/x"}, [1], False)
    with (
        override_settings(OWN=object()),
        pytest.raises(InvalidConfiguration, match="The setting OWN was overridden"),
    ):
        overridden_settings()


@pytest.mark.usefixtures("tables")
def test_a_server_that_cannot_start_says_why():
    with (
        override_settings(ROOT_URLCONF="tests.testing.missing"),
        pytest.raises(
            InvalidConfiguration,
            match=r"(?s)did not start\. It said:.*No module named 'tests.testing.missing'",
        ),
    ):
        LiveServer("localhost", 0, 1)


LONELY = """
import os, signal, sys, django
django.setup()
from dbchannels.testing.live import LiveServer
from tests.harness import children, until
server = LiveServer("localhost", 0, 1)
until(lambda: len(children(server._process.pid)) == 1, "a worker")
print(server._process.pid, *children(server._process.pid), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.usefixtures("tables")
def test_the_processes_end_with_the_test_run_however_that_ends():
    done = subprocess.run(
        [sys.executable, "-c", LONELY],
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings", "PYTHONPATH": os.getcwd()},
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    until(lambda: not any(map(is_running, pids)), "all processes have ended")
    assert children(os.getpid()) is not None and connections
