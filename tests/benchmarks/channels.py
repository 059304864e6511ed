"""Channels' consumers under uvicorn: our channel layer beside channels_redis (core and pub/sub) and channels_postgres.

The packages come by ``pip install channels uvicorn[standard] channels_redis channels_postgres psycopg[binary,pool]``,
and the other server by ``apt-get install redis-server``; a layer whose package is missing is left out.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any

from examples.embedded_postgres import EmbeddedPostgres
from tests.benchmarks.crowd import Crowd
from tests.benchmarks.measure import beside_others
from tests.benchmarks.sockets import FRAME, SIZE, most, rounds
from tests.harness import HOST, until

SITE = "tests.benchmarks.channels_site"
OURS = "dbchannels"
UVICORN = (
    *("uvicorn", "--log-level", "warning", "--lifespan", "off", "--ws-ping-interval", "600"),
    *("--timeout-graceful-shutdown", "1"),
)
ECHO_ONE, ECHO_50, BROADCAST = "echo, 1 client, p50 in ms", "echo, 50 clients, /s", "broadcast, frames/s"
#: What ours is to reach beside the best of the others, and whether more is better.
TARGETS = {ECHO_ONE: (1.0, False), ECHO_50: (1.5, True), BROADCAST: (1.2, True)}


def figures(quick: bool) -> Iterator[str]:
    """Yield the lines of the table: the medians of each layer."""
    times, seconds, size = (1, 1.0, 200) if quick else (3, 3.0, 1_000)
    found: dict[str, list[dict[str, float]]] = {}
    with ExitStack() as stack:
        server = stack.enter_context(EmbeddedPostgres.start(settings={"fsync": "off"}))
        layers = available(server, stack)
        for number in range(times):
            for name, (layer, databases, apps) in layers.items():
                environment = site_environment(layer, databases, apps)
                if not number:
                    migrate = [sys.executable, "-m", SITE, "migrate", "-v0", "--skip-checks"]
                    subprocess.run(migrate, env=environment, check=True)
                with serving(environment, *UVICORN) as (port, _):
                    found.setdefault(name, []).append(measure(port, size, seconds))
    yield from beside_others(f"broadcasts to {size:,}", found, TARGETS)


def available(server: EmbeddedPostgres, stack: ExitStack) -> dict[str, tuple[Any, Any, list[str]]]:
    """Return the layers whose packages are here: CHANNEL_LAYERS["default"], DATABASES, and further apps."""
    has = importlib.util.find_spec
    entries = {}
    for name in ("ours", "theirs"):
        server.create(name)
        entries[name] = {"default": {**server.settings(), "NAME": name}}
    found = {OURS: ({"BACKEND": "dbchannels.layers.channels.ChannelLayer"}, entries["ours"], [])}
    if has("channels_redis") and shutil.which("redis-server"):
        # Otherwise 100 handshakes at once find too few connections, or time out.
        host = {"max_connections": 10_000, "socket_connect_timeout": 60, "socket_timeout": None}
        config = {"hosts": [{"address": stack.enter_context(redis()), **host}]}
        for name, module in (
            ("redis core", "core.RedisChannelLayer"),
            ("redis pub/sub", "pubsub.RedisPubSubChannelLayer"),
        ):
            found[name] = ({"BACKEND": f"channels_redis.{module}", "CONFIG": config}, entries["ours"], [])
    if has("channels_postgres"):
        entry = entries["theirs"]["default"]
        config = {key: entry.get(key, "") for key in ("ENGINE", "NAME", "USER", "PASSWORD", "HOST", "PORT")}
        config |= {"TIME_ZONE": None}
        layer = {"BACKEND": "channels_postgres.core.PostgresChannelLayer", "CONFIG": config}
        # Its clean-up uses the alias of its name.
        databases = {"default": entry, "channels_postgres": entry}
        found["channels_postgres"] = (layer, databases, ["channels_postgres"])
    return found


@contextmanager
def redis() -> Iterator[str]:
    """Start a Redis that keeps nothing on disk; yield its address."""
    with tempfile.TemporaryDirectory(prefix="dbchannels-redis-") as folder:
        path = f"{folder}/redis.sock"
        command = ["redis-server", "--port", "0", "--unixsocket", path, "--save", ""]
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL) as process:
            try:
                until(lambda: os.path.exists(path), "Redis listens")
                yield f"unix://{path}"
            finally:
                process.terminate()


def site_environment(layer: Any, databases: Any, apps: Sequence[str] = ()) -> dict[str, str]:
    """Return the environment of the site's processes."""
    given = {
        "CHANNELS_LAYER": layer,
        "CHANNELS_DATABASES": databases,
        "CHANNELS_APPS": list(apps),
    }
    return {**os.environ, **{name: json.dumps(value, default=str) for name, value in given.items()}}


@contextmanager
def serving(environment: dict[str, str], *server: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Serve the site by uvicorn or daphne; yield the port and the process."""
    with socket.create_server((HOST, 0), backlog=2048) as listener:
        options = ["--fd", str(listener.fileno())]
        command = [sys.executable, "-m", *server, *options, f"{SITE}:application"]
        with subprocess.Popen(command, env=environment, pass_fds=[listener.fileno()]) as process:
            try:
                yield listener.getsockname()[1], process
            finally:
                process.terminate()


def measure(port: int, size: int, seconds: float) -> dict[str, float]:
    """Return the figures of a served site."""
    echoes = {}
    for number in (1, 50):
        with closing(Crowd(port)) as crowd:
            clients = crowd.open(number, "/ws/")
            for each in (seconds / 2, seconds):
                echoes[number] = rounds(crowd, clients, FRAME, lambda data: len(data) >= SIZE, each)
                crowd.rest(0.2)
    with closing(Crowd(port)) as crowd:
        members = crowd.open(size, "/ws/crowd")
        most(crowd, members, FRAME, seconds / 2)
        crowd.rest(1.0)
        frames = most(crowd, members, FRAME, seconds)
    # Without a single answer the layer has lost the messages.
    p50 = 1000 * statistics.median(echoes[1]) if echoes[1] else float("inf")
    return {ECHO_ONE: p50, ECHO_50: len(echoes[50]) / seconds, BROADCAST: frames}
