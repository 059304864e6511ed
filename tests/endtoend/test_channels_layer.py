"""The chat of Channels' tutorial under daphne on our channel layer: real sockets, and whatever may end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import psycopg2
import pytest
from websockets.sync.client import connect

from examples.embedded_postgres import EmbeddedPostgres
from tests.benchmarks.channels import SITE, serving, site_environment
from tests.harness import HOST, until

pytest.importorskip("daphne")
pytestmark = pytest.mark.postgresql

LAYER = {"BACKEND": "dbchannels.layers.channels.ChannelLayer"}
MEMBERS = "SELECT count(*) FROM dbchannels_membership WHERE \"group\" = 'chat_garden'"
SHOUT = """
from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
async_to_sync(get_channel_layer().send)("shouts", {"type": "shout", "message": "hello"})
"""
DAPHNE = ("daphne", "-v", "0")


class Site:
    """A PostgreSQL of its own, and the environment of the site's processes."""

    def __init__(self, server, lease):
        self.server = server
        self.environment = site_environment(LAYER, {"default": server.settings()}, [])
        self.environment["CHANNELS_OPTIONS"] = f'{{"lease": {lease}}}'
        subprocess.run([sys.executable, "-m", SITE, "migrate", "-v0"], env=self.environment, check=True)

    def members(self):
        """Return how many channels are in the room."""
        with psycopg2.connect(self.server.url) as connection, connection.cursor() as cursor:
            cursor.execute(MEMBERS)
            (number,) = cursor.fetchone()
        connection.close()
        return number


@pytest.fixture
def site() -> Iterator[Site]:
    with EmbeddedPostgres.start() as server:
        yield Site(server, lease=2)


def open_socket(stack: ExitStack, port: int, path: str):
    """Open a socket as soon as the server answers."""
    return stack.enter_context(
        until(lambda: try_to_connect(f"ws://{HOST}:{port}{path}"), "the server answers", every=0.2)
    )


def try_to_connect(url):
    try:
        return connect(url, open_timeout=20)
    except OSError:
        return None


def talk(*sockets):
    """Let each say a line; all have to read each of them, in order."""
    for number, one in enumerate(sockets):
        one.send(f"line {number}")
        assert [other.recv(20) for other in sockets] == [f"line {number}"] * len(sockets)


def test_the_chat_of_two_servers_and_a_worker_through_whatever_ends(site):
    with ExitStack() as stack:
        (first, dies), (second, _) = (
            stack.enter_context(serving(site.environment, *DAPHNE)) for _ in range(2)
        )
        anna, ben, cleo = (
            open_socket(stack, port, path)
            for port, path in ((first, "/ws/garden"), (second, "/ws/garden"), (second, "/threaded/garden"))
        )
        talk(anna, ben, cleo)
        with site.server.outage():
            assert site.environment
        talk(anna, ben, cleo)
        assert site.members() == 3
        os.kill(dies.pid, signal.SIGKILL)
        until(lambda: site.members() == 2, "the dead server's members are gone")
        talk(ben, cleo)
        cleo.close()
        until(lambda: site.members() == 1, "a member that left is gone")
        worker = [sys.executable, "-m", SITE, "runworker", "shouts"]
        with subprocess.Popen(worker, env=site.environment, stderr=subprocess.DEVNULL) as process:
            subprocess.run(
                [sys.executable, "-m", SITE, "shell", "-v0", "-c", SHOUT], env=site.environment, check=True
            )
            assert ben.recv(30) == "HELLO"
            process.terminate()
