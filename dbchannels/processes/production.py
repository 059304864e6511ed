"""``runchannels``: the interface server and its workers as one thing, from the first check to the last exit."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress

import django
import gevent
from django.urls import set_script_prefix
from gevent.event import Event

import dbchannels
from dbchannels.exceptions import InvalidConfiguration
from dbchannels.layers import channel_layers
from dbchannels.layers.base import BaseLayer
from dbchannels.layers.health import await_layer
from dbchannels.processes.plan import Plan
from dbchannels.processes.site_checks import Write, await_checks, complaint, start_checks
from dbchannels.processes.stopping import Stopping, has_terminal, stop_at_signals
from dbchannels.processes.supervisor import Supervisor, Task
from dbchannels.protocol import DURABLE, HTTP, KINDS, WEBSOCKET
from dbchannels.server.http.direct import DirectViews
from dbchannels.server.http.response_buffer import SentFiles
from dbchannels.server.hub import GeventHub
from dbchannels.server.listeners import Address
from dbchannels.server.relay import Relay
from dbchannels.server.server import InterfaceServer
from dbchannels.server.static import DevelopmentFiles
from dbchannels.wakeup import Doorbell
from dbchannels.worker.application import ApplicationViews, site_application

log = logging.getLogger("dbchannels.server")

LAST_WORK = 3.0  # seconds beyond --graceful-timeout for the workers; with what follows it is less than four
LEAST_WORK = 1.5  # seconds at least for what workers run, when requests took all of that


def run(plan: Plan, write: Write) -> None:
    """Serve until SIGTERM or Ctrl-C, then leave nothing running. Raises DBChannelsError before it has begun."""
    layer = usable_layer(plan.layer, plan.wait_for_database)
    checks = start_checks(plan)
    bells = {kind: Doorbell.new() for kind in KINDS}
    try:
        server = make_server(plan, layer, bells)
        try:
            await_checks(checks, write)
            serve(plan, server, layer, bells, write)
        finally:
            server.close_listeners()
    finally:
        if checks.poll() is None:
            checks.kill()


def serve(
    plan: Plan, server: InterfaceServer, layer: BaseLayer, bells: dict[str, Doorbell], write: Write
) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    supervisor = supervise(tasks(plan, bells), server, plan.graceful_timeout)
    stopping = stop_at_signals(supervisor.kill)
    restart_at_hangup(plan, supervisor, stopping)
    if plan.workers:
        server.has_worker = supervisor.has_ready
    elif not plan.threads:  # views run in workers, which others start
        server.has_worker = lambda: server.relay.http_workers > 0
    server.start()
    supervisor.start()
    write(banner(plan, server, layer))
    stopping.wait()
    with suppress(OSError):  # the terminal may be gone
        write("Stopping.")
    ends_at = time.monotonic() + plan.graceful_timeout + LAST_WORK
    server.stop(stopping.restart)
    gevent.get_hub().threadpool.apply(supervisor.stop, (max(LEAST_WORK, ends_at - time.monotonic()),))


def supervise(work: list[Task], server: InterfaceServer, graceful_timeout: float) -> Supervisor:
    """Return what starts the workers; they ring for the relay, and it for them."""
    relay, sent = server.relay, server.requests.files
    doors = ((relay.queue, relay.door),)
    files = None if sent is None else (relay.queue, sent.sender.fileno())
    work = [one._replace(doors=doors, files=files) for one in work]
    supervisor = Supervisor(work, relay.clean_up_after, graceful_timeout)
    relay.own_workers = supervisor.ready_names
    return supervisor


def make_server(plan: Plan, layer: BaseLayer, bells: dict[str, Doorbell]) -> InterfaceServer:
    """Return the server, its addresses bound; raises AddressInUse."""
    server = InterfaceServer(lambda on_dead: Relay(layer, bells, on_dead, GeventHub()), plan.server)
    if plan.server.root_path:
        set_script_prefix(plan.server.root_path + "/")  # STATIC_URL without a slash before it begins there
    if plan.static:
        server.requests.static_files = DevelopmentFiles()
    if plan.threads:
        views = ApplicationViews(site_application())
        server.requests.direct = DirectViews(
            views, plan.threads, server.relay.call_in_hub, server.requests.turns
        )
    elif plan.workers and layer.shared:
        server.requests.files = SentFiles(server.relay, server.connection_limits)
    return server


def usable_layer(alias: str, wait: float = 0.0) -> BaseLayer:
    """Return the layer, checked, as soon as its database can be used; raises DBChannelsError with what to do."""
    layer = channel_layers[alias]
    if not layer.shared:
        raise InvalidConfiguration("This layer lives in one process: runchannels needs one on a database.")
    await_layer(layer, wait)
    return layer


def kinds_of(workers: int) -> list[str]:
    """Return what each worker takes: the KINDS of ``protocol``, in one string.

    With four or more one takes ``websocket.*`` only, one ``http.*`` too, the rest all. So background work can never
    hold up every page, and slow pages cannot hold up every WebSocket. Two or three workers have one for pages and
    WebSockets: with another one less, a single consumer would hold up all background work.
    """
    kept = [WEBSOCKET, HTTP + WEBSOCKET] if workers > 3 else [HTTP + WEBSOCKET] if workers > 1 else []
    return [*kept, *["".join(KINDS)] * (workers - len(kept))]


PATTERNS = {
    HTTP: ("--only", "http.*"),
    WEBSOCKET: ("--only", "websocket.*"),
    HTTP + WEBSOCKET: ("--only", "http.*", "--only", "websocket.*"),
    WEBSOCKET + DURABLE: ("--exclude", "http.*"),
    "".join(KINDS): (),
}


def tasks(plan: Plan, bells: dict[str, Doorbell], kinds: Sequence[str] | None = None) -> list[Task]:
    """Return what each worker does."""
    common = ("--layer", plan.layer, "--graceful-timeout", str(plan.graceful_timeout), *plan.passed_on)
    return [
        Task((*common, *PATTERNS[taken]), {kind: bells[kind] for kind in taken})
        for taken in (kinds_of(plan.workers) if kinds is None else kinds)
    ]


def restart_at_hangup(plan: Plan, supervisor: Supervisor, stopping: Stopping) -> None:
    """At SIGHUP have other workers take over, which run the new code; one that comes meanwhile is another round.

    The kernel sends it too when the terminal is closed that this was started from: then there is nobody to serve for.
    """
    asked, at_terminal = Event(), has_terminal()

    def restart() -> None:
        while True:
            asked.wait()
            asked.clear()
            gevent.get_hub().threadpool.apply(take_over, (plan, supervisor))

    def hang_up() -> None:
        (stopping if at_terminal and not has_terminal() else asked).set()

    gevent.signal_handler(signal.SIGHUP, hang_up)
    gevent.spawn(restart)


def take_over(plan: Plan, supervisor: Supervisor) -> None:
    """Check the new code in a child, then start the workers again; what is broken leaves the old ones at work."""
    checks = start_checks(plan)
    output = None
    while output is None:
        try:
            output = checks.communicate(timeout=0.2)[0]
        except subprocess.TimeoutExpired:
            if supervisor.stopping.is_set():
                checks.kill()
    if checks.returncode and not supervisor.stopping.is_set():
        log.error(
            "The new code is broken, so the old workers go on: correct it, and send SIGHUP again (%s).",
            complaint(output),
        )
    elif not checks.returncode:
        supervisor.restart()


def banner(plan: Plan, server: InterfaceServer, layer: BaseLayer) -> str:
    """Return what Django's users expect to read: versions, settings, address, and how to stop."""
    places, probe = " and ".join(map(url_of, server.addresses)), server.health_address
    workers = {0: "none here: start them with runworker", 1: "1 process"}
    for_frames = "one kept for websocket.*, " if plan.workers > 3 else ""
    kept = f"{plan.workers} processes, {for_frames}one kept for http.* and websocket.*"
    return "\n".join(
        [
            f"dbchannels {dbchannels.__version__}, Django {django.get_version()}, "
            f"settings {os.environ.get('DJANGO_SETTINGS_MODULE', '(configured)')!r}",
            f"Layer:   {layer.describe()}",
            f"Workers: {workers.get(plan.workers, kept)}",
            *([f"Views:   in this process, {plan.threads} threads"] if plan.threads else []),
            *([f"Probes:  /healthz and /readyz at {probe}"] if probe else []),
            f"Serving {places} and WebSockets on the same port; quit with CONTROL-C.",
        ]
    )


def url_of(address: Address) -> str:
    """Return an address as a browser takes it, or a Unix socket as curl does."""
    return str(address) if address.path else f"http://{address}/"
