"""``runchannels``: the interface server and its workers as one thing, from the first check to the last exit."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import django
import gevent
from django.apps import apps
from django.conf import settings
from django.urls import set_script_prefix
from gevent.event import Event

import dbchannels
from dbchannels.application import ApplicationViews, site_application
from dbchannels.conf import layer_settings
from dbchannels.doorbell import Doorbell
from dbchannels.exceptions import InvalidConfiguration
from dbchannels.interface.binding import Bind, SocketRights
from dbchannels.interface.direct import DirectViews
from dbchannels.interface.hub import GeventHub
from dbchannels.interface.limits import Limits
from dbchannels.interface.options import Options, checked
from dbchannels.interface.proxy import LOOPBACK, Trusted
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

LAST_WORK = 4.0  # seconds beyond --graceful-timeout for what workers run, when requests took all of it


class Plan(NamedTuple):
    """What the command line asks for."""

    host: str
    port: int
    workers: int
    layer: str
    http_timeout: float
    graceful_timeout: float
    static: bool
    limits: dict[str, Any]  # of the interface server's Options, those that were given
    passed_on: tuple[str, ...]  # options of manage.py itself that the children need too
    websocket: Limits = Limits()
    binds: tuple[Bind, ...] = ()  # where to listen in place of host and port
    socket_rights: SocketRights = SocketRights()
    proxies: Trusted | None = None
    root_path: str = ""
    probe: Bind | None = None
    threads: int = 0  # views run in so many threads of the server; 0: in the workers

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
            checked(options),
            tuple(passed_on),
            websocket_limits(options),
            tuple(map(Bind.of, options.get("bind") or ())),
            SocketRights.of(options.get("socket_mode") or "660", options.get("socket_owner") or ""),
            trusted(options.get("proxy_headers"), options.get("trusted_proxies")),
            check_root_path(options.get("root_path") or ""),
            Bind.of(options["probe_port"]) if options.get("probe_port") else None,
            threads=check_threads(options["threads"]) if options.get("http") == "direct" else 0,
        )


def trusted(proxy_headers: bool | None, proxies: Sequence[str] | None) -> Trusted | None:
    """Return whose X-Forwarded headers are believed; None: they are left to the site."""
    if proxies and not proxy_headers:
        raise InvalidConfiguration("--trusted-proxies says nothing without --proxy-headers: give both.")
    return Trusted.of(proxies or LOOPBACK) if proxy_headers else None


def check_root_path(path: str) -> str:
    """Return a path below which a site is, without a slash at its end."""
    if path and (not path.startswith("/") or "?" in path or "%" in path):
        raise InvalidConfiguration(
            f"--root-path takes a path that begins with a slash, as /site, not {path!r}."
        )
    return path.rstrip("/")


def check_threads(threads: int) -> int:
    """Return a number of threads."""
    if threads < 1:
        raise InvalidConfiguration("--threads takes a number from 1.")
    return threads


def run(plan: Plan, write: Write) -> None:
    """Serve until SIGTERM or Ctrl-C, then leave nothing running. Raises DBChannelsError before it has begun."""
    checks = start_checks(plan)
    bells = {"p": Doorbell.new(), "d": Doorbell.new()}
    try:
        layer = usable_layer(plan.layer)
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
    supervisor = Supervisor(tasks(plan, bells), server.relay.bury, plan.graceful_timeout)
    stopping = stop_at_signals(supervisor.kill)
    restart_at_hangup(plan, supervisor, stopping)
    server.has_worker = supervisor.has_ready if plan.workers else None
    server.start()
    supervisor.start()
    write(banner(plan, server, layer))
    stopping.wait()
    with suppress(OSError):  # the terminal may be gone
        write("Stopping.")
    ends_at = time.monotonic() + plan.graceful_timeout + LAST_WORK
    server.stop(stopping.restart)
    gevent.get_hub().threadpool.apply(supervisor.stop, (max(LAST_WORK, ends_at - time.monotonic()),))


def make_server(plan: Plan, layer: BaseLayer, bells: dict[str, Doorbell]) -> InterfaceServer:
    """Return the server, its addresses bound; raises AddressInUse."""
    options = Options(
        plan.host,
        plan.port,
        allowed_hosts(),
        http_timeout=plan.http_timeout,
        handshake_timeout=min(plan.http_timeout, Options().handshake_timeout),
        drain_timeout=plan.graceful_timeout,
        binds=plan.binds,
        socket_rights=plan.socket_rights,
        proxies=plan.proxies,
        root_path=plan.root_path,
        probe=plan.probe,
        websocket=plan.websocket,
        **plan.limits,
    )
    server = InterfaceServer(lambda on_dead: Relay(layer, bells, on_dead, GeventHub()), options)
    if plan.root_path:
        set_script_prefix(plan.root_path + "/")  # STATIC_URL without a slash before it begins there
    if plan.static:
        server.static_files = DevelopmentFiles()
    if plan.threads:
        views = ApplicationViews(site_application())
        server.direct = DirectViews(views, plan.threads, server.relay.call_in_hub)
    return server


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


class Stopping(Event):  # type: ignore[misc]
    """Set when the process is to end; ``restart``: another one follows it at once."""

    restart = False


def stop_at_signals(kill: Callable[[], None] = lambda: None) -> Stopping:
    """Return an event that SIGTERM and SIGINT set, and SIGUSR1 before a restart; a second one ends the process now.

    ``kill`` then ends what would live on.
    """
    stopping = Stopping()

    def stop(restart: bool) -> None:
        if stopping.is_set():
            kill()
            os._exit(1)
        stopping.restart = restart
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        gevent.signal_handler(number, stop, number == signal.SIGUSR1)
    return stopping


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


def has_terminal() -> bool:
    """Whether this process has a terminal that Ctrl-C comes from, and that is still there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


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


def complaint(output: str) -> str:
    """Return the line that says most of what ``manage.py check`` printed: an error's own, or a traceback's last."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["it said nothing"]
    found = lines[lines.index("ERRORS:") + 1 :] if "ERRORS:" in lines else lines[-1:]
    return found[0][:300]


def banner(plan: Plan, server: InterfaceServer, layer: BaseLayer) -> str:
    """Return what Django's users expect to read: versions, settings, address, and how to stop."""
    places, probe = " and ".join(map(shown, server.binds)), server.probe_bind
    workers = {0: "none here: start them with runworker", 1: "1 process"}
    kept = f"{plan.workers} processes, one kept for http.* and websocket.*"
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


def shown(bind: Bind) -> str:
    """Return an address as a browser takes it, or a Unix socket as curl does."""
    return str(bind) if bind.path else f"http://{bind}/"
