"""``runchannels``: starts, reloads and stops the interface server and its workers."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import django
import gevent
from django.db import connections
from django.urls import set_script_prefix
from gevent.event import Event

import dbchannels
from dbchannels.conf import layer_settings
from dbchannels.exceptions import InvalidConfiguration
from dbchannels.layers import channel_layers
from dbchannels.layers.base import BaseLayer
from dbchannels.layers.health import await_layer
from dbchannels.processes.handover import (
    READY_WITHIN,
    ControlSocket,
    Predecessor,
    TakeoverFailed,
    await_ready,
)
from dbchannels.processes.supervisor import Supervisor, Task, has_terminal, manage_command
from dbchannels.processes.systemd import Service
from dbchannels.protocol import DURABLE, HTTP, KINDS, WEBSOCKET
from dbchannels.server.http.direct import DirectViews
from dbchannels.server.http.dispatch import DevelopmentFiles
from dbchannels.server.http.response_buffer import SentFiles
from dbchannels.server.listeners import Inherited, SocketPermissions, listen
from dbchannels.server.options import LaunchConfig
from dbchannels.server.server import InterfaceServer
from dbchannels.wakeup import WakeupPipe, wait_readable
from dbchannels.worker.views import ApplicationViews, site_application

log = logging.getLogger("dbchannels.server")

LAST_WORK = 3.0  # seconds beyond --graceful-timeout for the workers; with what follows it is less than four
LEAST_WORK = 1.5  # seconds that the workers have at least, when the requests took all of --graceful-timeout

Write = Callable[[str], Any]  # shows a text on the terminal


def run(config: LaunchConfig, write: Write, waiting: int | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C, and end all processes. Raises DBChannelsError if the start fails.

    ``waiting`` is the descriptor of a pipe to a process that waits until this one has taken over.
    """
    service = Service()
    inherited = service.listeners()
    if inherited.site and config.server.addresses:
        raise InvalidConfiguration(
            "The service manager passed sockets (LISTEN_FDS), and the command line names addresses: leave out either."
        )
    layer = usable_layer(config.layer, config.wait_for_database)
    checks = start_checks(config)
    try:
        predecessor = None
        if config.takeover and config.control:
            predecessor = Predecessor.find(config.control.path, identity(config.layer))
        if predecessor is None and waiting is not None:  # nobody would watch over this one
            raise TakeoverFailed("There is no server to take over from: start one without --detach.")
        if predecessor is not None:
            if inherited != Inherited():
                raise TakeoverFailed(
                    "This server has sockets of its own (LISTEN_FDS), so it can take over none."
                )
            inherited, service.watchdog = predecessor.listeners, service.watchdog or predecessor.watchdog
        wakeups = {kind: WakeupPipe.new() for kind in KINDS}
        server = make_server(config, layer, wakeups, inherited)
        try:
            await_checks(checks, write)
            supervisor = supervise(tasks(config, wakeups), server, config.server.graceful_timeout)
            Running(config, server, supervisor, service, write).serve(layer, predecessor, waiting)
        finally:
            server.close_listeners()
    finally:
        if checks.poll() is None:
            checks.kill()


class Running:
    """A server with its workers, from its start to its end."""

    def __init__(
        self,
        config: LaunchConfig,
        server: InterfaceServer,
        supervisor: Supervisor,
        service: Service,
        write: Write,
    ) -> None:
        self.config, self.server, self.supervisor, self.service = config, server, supervisor, service
        self.write = write
        self.stopping = stop_at_signals(supervisor.stop_now)
        self.control: ControlSocket | None = None
        self._workers_end: Any = None  # the result of their end, while this server still drains
        if config.workers:
            server.has_worker = supervisor.has_ready
        elif not config.threads:  # views run in workers that others start
            server.has_worker = lambda: server.relay.housekeeper.http_workers > 0

    def serve(self, layer: BaseLayer, predecessor: Predecessor | None, waiting: int | None) -> None:
        """Start, serve, and end."""
        server, service = self.server, self.service
        if self.config.control is not None:
            control = (
                predecessor.control if predecessor else listen(self.config.control, SocketPermissions(0o600))
            )
            site = identity(self.config.layer)
            self.control = ControlSocket(
                control, lambda: server.listeners, site, service.watchdog, self.taken
            )
        restart_at_hangup(self.config, self.supervisor, self.stopping, service)
        server.start(accept=predecessor is None)
        self.supervisor.start()
        try:
            if predecessor is not None:
                self.take_over(predecessor, waiting)
            if self.control is not None:
                self.control.start()
            with suppress(OSError):  # the terminal may be gone
                self.write(banner(self.config, server, layer))
            gevent.spawn(self.tell_ready)
            self.stopping.wait()
            if self.stopping.taken:
                server.drain(lambda: self.stopping.signalled)
            else:
                service.tell("STOPPING=1", "STATUS=Finishing requests and consumers")
            with suppress(OSError):  # the terminal may be gone
                self.write("Stopping.")
        finally:
            self.end()

    def take_over(self, predecessor: Predecessor, waiting: int | None) -> None:
        """Take over when all is ready. Raises TakeoverFailed."""

        def why_not() -> str:
            predecessor.check()
            if waiting is not None and waiting in wait_readable([waiting], 0):
                raise TakeoverFailed(
                    "The command that started this server has ended, so the running server goes on."
                )
            if ending := self.supervisor.unready_end:
                raise TakeoverFailed(
                    f"Of the new workers, {ending}, so the running server goes on: correct the code."
                )
            return self.server.why_not_ready()

        why = await_ready(why_not, self.stopping.is_set, READY_WITHIN)
        if self.stopping.is_set():
            why = "it was told to stop"
        if why:
            raise TakeoverFailed(f"This server did not get ready ({why}), so the running one goes on.")
        # Before the running server can end: systemd would take its end for that of the service.
        self.service.tell(f"MAINPID={os.getpid()}")
        try:
            predecessor.take_over(self.server.listeners, self.supervisor.ready_names())
        except TakeoverFailed:
            self.service.tell(f"MAINPID={predecessor.pid}")
            raise
        self.server.accept()
        if waiting is not None:
            with suppress(OSError):  # it has ended since
                os.write(waiting, b"!")
            os.close(waiting)
        log.info("This server has taken over from process %d.", predecessor.pid)

    def tell_ready(self) -> None:
        """Tell the service manager that requests are answered; with workers elsewhere, these may wait for this."""
        if self.config.workers:
            await_ready(self.server.why_not_ready, self.stopping.is_set)
        if not self.stopping.is_set():
            self.service.tell("READY=1", "STATUS=Serving")
            self.service.feed_watchdog()

    def taken(self, workers: set[str]) -> None:
        """Let another server accept from now on; its workers, by name, do what this one still has to do."""
        log.info("Another server has taken over; this one finishes what it has, and ends.")
        self.service.leave()
        self.server.hand_over()
        if self.control is not None:
            self.control.close()
        self.server.relay.housekeeper.leave_work_to(workers, self.end_workers)
        self.stopping.taken = self.stopping.restart = True
        self.stopping.set()

    def end_workers(self) -> None:
        """End the workers, without waiting for it."""
        self._workers_end = gevent.get_hub().threadpool.spawn(self.supervisor.stop)

    def end(self) -> None:
        """Finish what is under way, and end the workers."""
        ends_at = time.monotonic() + self.config.server.graceful_timeout + LAST_WORK
        if self.control is not None:
            self.control.close()
        self.server.stop(self.stopping.restart)
        if self._workers_end is not None and not self.stopping.signalled:
            self._workers_end.get()
        else:
            left = max(LEAST_WORK, ends_at - time.monotonic())
            gevent.get_hub().threadpool.apply(self.supervisor.stop, (left,))


# The parts, for runserver too.


def identity(alias: str) -> list[str]:
    """Return what two servers of one project have in common: the settings, and the name of the layer's database."""
    name = str(connections[layer_settings(alias).database].settings_dict["NAME"])
    return [os.environ.get("DJANGO_SETTINGS_MODULE", ""), name]


def usable_layer(alias: str, wait: float = 0.0) -> BaseLayer:
    """Return the layer, checked, once its database can be used. Raises DBChannelsError."""
    layer = channel_layers[alias]
    if not layer.shared:
        raise InvalidConfiguration("This layer lives in one process: runchannels needs one on a database.")
    await_layer(layer, wait)
    return layer


def make_server(
    config: LaunchConfig,
    layer: BaseLayer,
    wakeups: dict[str, WakeupPipe],
    inherited: Inherited = Inherited(),  # noqa: B008
) -> InterfaceServer:
    """Return the server, listening at its addresses; raises AddressInUse."""
    server = InterfaceServer(layer, wakeups, config.server, inherited)
    if config.server.root_path:
        set_script_prefix(config.server.root_path + "/")  # of a STATIC_URL without a slash at its beginning
    if config.static:
        server.requests.static_files = DevelopmentFiles()
    if config.threads:
        views = ApplicationViews(site_application())
        server.requests.direct = DirectViews(
            views, config.threads, server.relay.hub.call, server.requests.turns
        )
    elif config.workers and layer.shared:
        server.requests.files = SentFiles(server.relay, server.connection_limits)
    return server


def kinds_of(workers: int) -> list[str]:
    """Return what each worker takes: the KINDS of ``protocol``, in one string.

    With four or more, one takes ``websocket.*`` only, one takes ``http.*`` too, and the others take all. So background
    work cannot hold up all pages, and slow pages cannot hold up all WebSockets. Two or three workers keep one for pages
    and WebSockets: if they kept two, a single consumer could hold up all background work.
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


def tasks(
    config: LaunchConfig, wakeups: dict[str, WakeupPipe], kinds: Sequence[str] | None = None
) -> list[Task]:
    """Return the task of each worker."""
    timeout = str(config.server.graceful_timeout)
    limits = {"--max-messages": config.max_messages, "--max-memory": config.max_memory}
    given = [f"{name}={limit}" for name, limit in limits.items() if limit is not None]
    common = ("--layer", config.layer, "--graceful-timeout", timeout, *given, *config.passed_on)
    return [
        Task((*common, *PATTERNS[taken]), {kind: wakeups[kind] for kind in taken})
        for taken in (kinds_of(config.workers) if kinds is None else kinds)
    ]


def supervise(work: list[Task], server: InterfaceServer, graceful_timeout: float) -> Supervisor:
    """Return the supervisor of the workers; they wake the relay, and it wakes them, without the database."""
    relay, sent = server.relay, server.requests.files
    local_wakeups = ((relay.queue, relay.reply_wakeup),)
    files = None if sent is None else (relay.queue, sent.sender.fileno())
    work = [one._replace(local_wakeups=local_wakeups, files=files) for one in work]
    supervisor = Supervisor(work, relay.housekeeper.clean_up_after, graceful_timeout)
    relay.own_workers = supervisor.ready_names
    server.counted = supervisor.counted
    return supervisor


# ``manage.py check`` runs in a child: it imports the site's URLs and views, and the interface server must not.


def start_checks(config: LaunchConfig) -> subprocess.Popen[str]:
    """Start the checks."""
    # With the database, or the check that warns of SQLite's deferred transactions would not run.
    database = layer_settings(config.layer).database
    command = [*manage_command(), "check", "--database", database, *config.passed_on]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def await_checks(checks: subprocess.Popen[str], write: Write) -> None:
    """Show what the checks found; raise InvalidConfiguration if they found an error."""
    output = checks.communicate()[0].strip()
    if checks.returncode:
        raise InvalidConfiguration(f"{output}\nThe system check found errors: correct them, and start again.")
    if "no issues" not in output:
        write(output)


def first_error(output: str) -> str:
    """Return the line of the checks' output that says most: the first error, or the last line of a traceback."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["no output"]
    found = lines[lines.index("ERRORS:") + 1 :] if "ERRORS:" in lines else lines[-1:]
    return found[0][:300]


# Signals.


class Stopping(Event):  # type: ignore[misc]
    """Set when the process is to end; ``restart`` says whether another one follows at once."""

    restart = False
    taken = False  # another one has taken over already
    signalled = False


def stop_at_signals(stop_now: Callable[[], None] = lambda: None) -> Stopping:
    """Return an event that SIGTERM and SIGINT set, and SIGUSR1 before a restart.

    A second signal ends the process at once, after a call of ``stop_now``, which ends the child processes.
    """
    stopping = Stopping()

    def stop(restart: bool) -> None:
        if stopping.signalled:
            try:
                stop_now()
            finally:
                os._exit(1)
        stopping.restart, stopping.signalled = restart or stopping.taken, True
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        gevent.signal_handler(number, stop, number == signal.SIGUSR1)
    return stopping


def restart_at_hangup(
    config: LaunchConfig, supervisor: Supervisor, stopping: Stopping, service: Service
) -> None:
    """At SIGHUP replace the workers by new ones, which run the new code; another SIGHUP meanwhile starts another round.

    The kernel also sends SIGHUP when the terminal is closed from which this was started: then the server stops.
    """
    asked, at_terminal = Event(), has_terminal()

    def restart() -> None:
        while True:
            asked.wait()
            asked.clear()
            service.tell_reloading()
            gevent.get_hub().threadpool.apply(replace_workers, (config, supervisor))
            service.tell("READY=1")

    def hang_up() -> None:
        (stopping if at_terminal and not has_terminal() else asked).set()

    gevent.signal_handler(signal.SIGHUP, hang_up)
    gevent.spawn(restart)


def replace_workers(config: LaunchConfig, supervisor: Supervisor) -> None:
    """Check the new code in a child, then replace the workers; if it is broken, the old workers keep running."""
    checks = start_checks(config)
    output = None
    while output is None:
        try:
            output = checks.communicate(timeout=0.2)[0]
        except subprocess.TimeoutExpired:
            if supervisor.stopping.is_set():
                checks.kill()
    if checks.returncode and not supervisor.stopping.is_set():
        log.error(
            "The new code is broken, so the old workers keep running: correct it, and send SIGHUP again (%s).",
            first_error(output),
        )
    elif not checks.returncode:
        supervisor.restart()


def banner(config: LaunchConfig, server: InterfaceServer, layer: BaseLayer) -> str:
    """Return what is shown at the start: versions, settings, addresses, and how to stop."""
    # A TCP address as a browser takes it, a Unix socket as curl does.
    addresses = " and ".join(str(one) if one.path else f"http://{one}/" for one in server.addresses)
    workers = {0: "none here: start them with runworker", 1: "1 process"}
    for_frames = "one kept for websocket.*, " if config.workers > 3 else ""
    kept = f"{config.workers} processes, {for_frames}one kept for http.* and websocket.*"
    health = server.health_address
    return "\n".join(
        [
            f"dbchannels {dbchannels.__version__}, Django {django.get_version()}, "
            f"settings {os.environ.get('DJANGO_SETTINGS_MODULE', '(configured)')!r}",
            f"Layer:   {layer.describe()}",
            f"Workers: {workers.get(config.workers, kept)}",
            *([f"Views:   in this process, {config.threads} threads"] if config.threads else []),
            *([f"Probes:  /healthz and /readyz at {health}"] if health else []),
            f"Serving {addresses} and WebSockets on the same port; quit with CONTROL-C.",
        ]
    )
