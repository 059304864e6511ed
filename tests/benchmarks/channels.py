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
from tests.benchmarks.sockets import FRAME, SIZE, most, rounds
from tests.harness import HOST, until

SITE = "tests.benchmarks.channels_site"
OURS = "dbchannels"
UVICORN = ("uvicorn", "--log-level", "warning", "--lifespan", "off", "--ws-ping-interval", "600")
ROUNDS = 3


def figures(quick: bool) -> Iterator[str]:
    """Yield a row for each figure: the medians of each layer."""
    seconds, size = (1.0, 200) if quick else (4.0, 1_000)
    found: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        server = stack.enter_context(EmbeddedPostgres.start(settings={"fsync": "off"}))
        layers = available(server, stack)
        for number in range(ROUNDS):
            for name, (layer, database, apps) in layers.items():
                environment = site_environment(layer, database, apps)
                if not number:
                    subprocess.run(
                        [sys.executable, "-m", SITE, "migrate", "-v0"], env=environment, check=True
                    )
                with serving(environment, *UVICORN) as (port, _):
                    measured = measure(port, size, seconds)
                for figure, value in measured.items():
                    found.setdefault(figure, {}).setdefault(name, []).append(value)
    for figure, by_name in found.items():
        medians = {name: statistics.median(values) for name, values in by_name.items()}
        yield f"{figure:<40}" + "  ".join(f"{name} {value:,.2f}" for name, value in medians.items())


def available(server: EmbeddedPostgres, stack: ExitStack) -> dict[str, tuple[Any, Any, list[str]]]:
    """Return the layers whose packages are here: CHANNEL_LAYERS["default"], the database, and further apps."""
    has = importlib.util.find_spec
    entries = {}
    for name in ("ours", "theirs"):
        server.create(name)
        entries[name] = {**server.settings(), "NAME": name}
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
        entry = entries["theirs"]
        config = {key: entry.get(key, "") for key in ("ENGINE", "NAME", "USER", "PASSWORD", "HOST", "PORT")}
        config |= {"TIME_ZONE": None}
        layer = {"BACKEND": "channels_postgres.core.PostgresChannelLayer", "CONFIG": config}
        found["channels_postgres"] = (layer, entry, ["channels_postgres"])
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


def site_environment(layer: Any, database: Any, apps: Sequence[str] = ()) -> dict[str, str]:
    """Return the environment of the site's processes."""
    given = {
        "CHANNELS_LAYER": layer,
        "CHANNELS_DATABASES": {"default": database},
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
    found = {}
    for number in (1, 50):
        with closing(Crowd(port)) as crowd:
            clients = crowd.open(number, "/ws/")
            rounds(crowd, clients, FRAME, lambda data: len(data) >= SIZE, seconds / 2)
            crowd.rest()
            spent = rounds(crowd, clients, FRAME, lambda data: len(data) >= SIZE, seconds)
            crowd.rest()
        found[f"echo, {number} client{'s' * (number > 1)}, /s"] = len(spent) / seconds
        found[f"echo, {number} client{'s' * (number > 1)}, p50 in ms"] = 1000 * spent[len(spent) // 2]
    with closing(Crowd(port)) as crowd:
        members = crowd.open(size, "/ws/crowd")
        most(crowd, members, FRAME, seconds / 2)
        crowd.rest(2)
        found[f"broadcast to {size:,}, frames/s"] = most(crowd, members, FRAME, seconds)
        crowd.rest(2)
    return found
