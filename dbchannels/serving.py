"""``runchannels``: the interface server and its workers as one thing, from the first check to the last exit."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from collections.abc import Callable
from typing import Any, NamedTuple

import django
import gevent
from django.apps import apps
from django.conf import settings
from gevent.event import Event

import dbchannels
from dbchannels.conf import layer_settings
from dbchannels.doorbell import Doorbell
from dbchannels.exceptions import InvalidConfiguration
from dbchannels.interface.limits import Limits
from dbchannels.interface.options import Options
from dbchannels.interface.relay import Relay
from dbchannels.interface.server import InterfaceServer
from dbchannels.interface.static import DevelopmentFiles
from dbchannels.layers import channel_layers
from dbchannels.layers.base import BaseLayer
from dbchannels.management.websocket_options import websocket_limits
from dbchannels.supervisor import Supervisor, Task, manage_command
from dbchannels.waiting import check_timeout

log = logging.getLogger("dbchannels.server")

Write = Callable[[str], Any]


class Plan(NamedTuple):
    """What the command line asks for."""

    host: str
    port: int
    workers: int
    layer: str
    http_timeout: float
    graceful_timeout: float
    static: bool
    passed_on: tuple[str, ...]  # options of manage.py itself that the children need too
    websocket: Limits = Limits()

    @classmethod
    def of(cls, host: str, port: int, options: dict[str, Any]) -> Plan:
        """Fill in the defaults: as many workers as cores, and two at least, so that one is always kept free."""
        workers = options["workers"]
        if workers is None:
            workers = max(2, os.cpu_count() or 1)
        if workers < 0:
            raise InvalidConfiguration("--workers takes a number from 0.")
        passed_on = [f"--pythonpath={options['pythonpath']}"] if options.get("pythonpath") else []
        static = (
            settings.DEBUG and not options["nostatic"] and apps.is_installed("django.contrib.staticfiles")
        )
        return cls(
            host,
            port,
            workers,
            options["layer"],
            check_timeout("--http-timeout", options["http_timeout"]),
            check_timeout("--graceful-timeout", options["graceful_timeout"]),
            static,
            tuple(passed_on),
            websocket_limits(options),
        )


def run(plan: Plan, write: Write) -> None:
    """Serve until SIGTERM or Ctrl-C, then leave nothing running. Raises DBChannelsError before it has begun."""
    checks = start_checks(plan)
    bells = {"p": Doorbell.new(), "d": Doorbell.new()}
    try:
        layer = usable_layer(plan.layer)
        options = Options(
            plan.host,
            plan.port,
            allowed_hosts(),
            http_timeout=plan.http_timeout,
            handshake_timeout=min(plan.http_timeout, Options().handshake_timeout),
            drain_timeout=plan.graceful_timeout,
            websocket=plan.websocket,
        )
        server = InterfaceServer(lambda on_dead: Relay(layer, bells, on_dead), options)
        if plan.static:
            server.static_files = DevelopmentFiles()
        await_checks(checks, write)
    finally:
        if checks.poll() is None:
            checks.kill()
    supervisor = Supervisor(tasks(plan, bells), server.relay.bury, plan.graceful_timeout)
    stopped = stop_at_signals()
    server.start()
    supervisor.start()
    write(banner(plan, server, layer))
    stopped.wait()
    write("Stopping.")
    server.stop()
    gevent.get_hub().threadpool.apply(supervisor.stop)


def usable_layer(alias: str) -> BaseLayer:
    """Return the layer, checked; raises DBChannelsError with what to do."""
    layer = channel_layers[alias]
    if not layer.shared:
        raise InvalidConfiguration("This layer lives in one process: runchannels needs one on a database.")
    layer.check()
    return layer


def start_checks(plan: Plan) -> subprocess.Popen[str]:
    """Start ``manage.py check`` in a child: it imports the site's URLs and views, and this process must not."""
    # With the database, or the check that warns of SQLite's deferred transactions would not run.
    database = layer_settings(plan.layer).database
    command = [*manage_command(), "check", "--database", database, *plan.passed_on]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def await_checks(checks: subprocess.Popen[str], write: Write) -> None:
    """Show what the checks found; raises InvalidConfiguration when they found an error."""
    output = checks.communicate()[0].strip()
    if checks.returncode:
        raise InvalidConfiguration(f"{output}\nThe system check found errors: correct them, and start again.")
    if "no issues" not in output:
        write(output)


def allowed_hosts() -> tuple[str, ...]:
    """Return ALLOWED_HOSTS, or with DEBUG and none the local ones, as Django does."""
    if settings.DEBUG and not settings.ALLOWED_HOSTS:
        return (".localhost", "127.0.0.1", "[::1]")
    return tuple(settings.ALLOWED_HOSTS)


def tasks(plan: Plan, bells: dict[str, Doorbell]) -> list[Task]:
    """Return what each worker does. The first of several takes ``http.*`` and ``websocket.*`` alone.

    So long work on the site's own channels can never hold up every page.
    """
    common = ["--layer", plan.layer, "--graceful-timeout", str(plan.graceful_timeout), *plan.passed_on]
    general = Task(tuple(common), (bells["p"], bells["d"]))
    kept = Task((*common, "--only", "http.*", "--only", "websocket.*"), (bells["p"],))
    return [kept if number == 0 and plan.workers > 1 else general for number in range(plan.workers)]


def stop_at_signals() -> Event:
    """Return an event that SIGTERM and SIGINT set; a second one ends the process now."""
    stopped = Event()

    def stop() -> None:
        if stopped.is_set():
            os._exit(1)
        stopped.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, stop)
    return stopped


def banner(plan: Plan, server: InterfaceServer, layer: BaseLayer) -> str:
    """Return what Django's users expect to read: versions, settings, address, and how to stop."""
    host, port = server.address
    shown = f"[{host}]" if ":" in host else host
    workers = {0: "none here: start them with runworker", 1: "1 process"}
    kept = f"{plan.workers} processes, one kept for http.* and websocket.*"
    return "\n".join(
        [
            f"dbchannels {dbchannels.__version__}, Django {django.get_version()}, "
            f"settings {os.environ.get('DJANGO_SETTINGS_MODULE', '(configured)')!r}",
            f"Layer:   {layer.describe()}",
            f"Workers: {workers.get(plan.workers, kept)}",
            f"Serving http://{shown}:{port}/ and WebSockets on the same port; quit with CONTROL-C.",
        ]
    )
