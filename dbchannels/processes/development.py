"""``runserver``: the server, its workers and the reload of their code, for the developer's own machine."""

from __future__ import annotations

import ast
import logging
import os
import re
import sys
import threading
from collections.abc import Callable
from copy import copy
from importlib.util import resolve_name
from pathlib import Path

import gevent
from django.core.management.color import color_style
from django.utils.log import ServerFormatter
from gevent.event import Event

from dbchannels.conf import layer_settings
from dbchannels.exceptions import InvalidConfiguration
from dbchannels.layers import channel_layers
from dbchannels.layers.base import BaseLayer
from dbchannels.processes.production import (
    Write,
    make_server,
    stop_at_signals,
    supervise,
    tasks,
    usable_layer,
)
from dbchannels.processes.reloader import CHANGED, CodeWatch, release
from dbchannels.processes.supervisor import Supervisor
from dbchannels.protocol import DURABLE, HTTP, KINDS, WEBSOCKET
from dbchannels.routing.table import load_routing
from dbchannels.server.config import LaunchConfig
from dbchannels.wakeup import WakeupPipe
from dbchannels.worker.application import ApplicationViews
from dbchannels.worker.worker import Worker

GRACE = 1.0  # seconds for what runs when workers are started again, and at the end
HANDED_OVER = "DBCHANNELS_HANDED_OVER"  # in the environment: what the program before has left for us
WORKERS = 3  # processes: for requests, for WebSockets, for the site's own channels and WebSockets
THREADS = 8  # that answer requests; of a layer in memory all workers are threads

Announce = Callable[[int, BaseLayer], None]  # is given the port when the site can be looked at


def run(
    config: LaunchConfig, announce: Announce, write: Write, *, reload: bool, checks: bool, threads: int = 1
) -> None:
    """Serve until Ctrl-C or SIGTERM. Raises DBChannelsError before it has begun, or when what it is cannot work."""
    wakeups = {kind: WakeupPipe.new() for kind in KINDS}
    layer = usable_layer(config.layer)
    release(os.environ.pop(HANDED_OVER, ""))
    server = make_server(config, layer, wakeups)
    stopped = stop_at_signals()
    server.start()
    work = [
        one._replace(
            arguments=(*one.arguments, "--fresh-templates"),
            threads=threads if HTTP in one.wakeups else 1,
            reloads=reload,
        )
        for one in tasks(config, wakeups, kinds_of(config.workers))
    ]
    crew = Crew(lambda: supervise(work, server, GRACE))
    site = Site(
        crew,
        announce=lambda: announce(server.address[1], layer),
        write=write,
        end=lambda: server.relay.hub.call(stopped.set),
        reload=reload,
    )
    arguments = ["--layer", config.layer, *config.passed_on, *([] if checks else ["--unchecked"])]
    watch = CodeWatch(arguments, site, once=not reload)
    watch.start()
    stopped.wait()
    if site.restart:
        os.environ[HANDED_OVER] = watch.hand_over()
    else:
        gevent.get_hub().threadpool.apply(watch.stop)
    server.stop(restart=site.restart)
    gevent.get_hub().threadpool.apply(crew.stop)
    if site.broken_for_good:
        raise InvalidConfiguration("The site cannot run: correct what is said above, and start again.")
    if site.restart:
        sys.stdout.flush()
        os.execv(sys.executable, sys.orig_argv)


def kinds_of(workers: int) -> list[str]:
    """Return what each worker takes, see ``production.kinds_of``: one process answers all requests, as Django's does.

    So what a site keeps in memory is there for the next request: django-debug-toolbar, LocMemCache.
    """
    if workers < 2:
        return ["".join(KINDS)] * workers
    return [
        HTTP,
        *([WEBSOCKET] if workers > 2 else []),
        *[WEBSOCKET + DURABLE] * (workers - (2 if workers > 2 else 1)),
    ]


class Crew:
    """All workers together; each call from any one thread at a time."""

    def __init__(self, make: Callable[[], Supervisor]) -> None:
        self._make = make
        self._supervisor: Supervisor | None = None
        self._ending: threading.Thread | None = None

    def start(self) -> None:
        """Start the workers, once those before them have ended."""
        self.stop()
        self._supervisor = self._make()
        self._supervisor.start()

    def dismiss(self) -> None:
        """Ask the workers to end, and do not wait for it."""
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            self._ending = threading.Thread(target=supervisor.stop, name="dismissal")
            self._ending.start()

    def stop(self) -> None:
        """Return when all workers have ended."""
        self.dismiss()
        if self._ending is not None:
            self._ending.join()


class Site:
    """What becomes of the server and the workers when the code changes.

    After a change no worker runs old code; what is asked meanwhile waits in the layer. The workers come back as soon as
    the site can be imported. The sockets stay open, unless what changed is the server's own code or its settings.
    """

    def __init__(
        self,
        crew: Crew,
        *,
        announce: Callable[[], None],
        write: Write,
        end: Callable[[], None],
        reload: bool,
    ) -> None:
        self.restart = False  # the server is to be started again, now
        self.broken_for_good = False
        self._crew = crew
        self._announce: Callable[[], None] | None = announce  # until it was done
        self._write = write
        self._end = end
        self._reload = reload
        self._own_files = own_files()
        self._outdated = False  # some of these have changed

    def ready(self) -> None:
        """Start the workers, or the server too."""
        if self._outdated:
            self.restart = True
            self._end()
            return
        self._crew.start()
        if self._announce is not None:
            self._announce()
            self._announce = None

    def broken(self) -> None:
        """Wait for a change; without reload there will be none."""
        if self._reload:
            self._write(
                "The site cannot run like this; what is asked of it waits for the change that mends it."
            )
        else:
            self.broken_for_good = True
            self._end()

    def changed(self, path: str) -> None:
        """Let the workers go."""
        self._outdated = self._outdated or Path(path).resolve() in self._own_files
        if self._outdated:
            self._write("This is what the server itself runs by, so it starts again too.")
        self._crew.dismiss()


def own_files() -> set[Path]:
    """Return the files that this process runs by: dbchannels, manage.py, the settings, and what these import."""
    own = [name for name in sys.modules if name.partition(".")[0] in ("dbchannels", "__main__")]
    files = [getattr(sys.modules[name], "__file__", None) for name in [*own, *settings_modules()]]
    return {Path(file).resolve() for file in files if file}


def settings_modules() -> set[str]:
    """Return the names of the settings module and of those in its package that it imports, by way of others too."""
    found: set[str] = set()
    todo = [os.environ.get("DJANGO_SETTINGS_MODULE", "")]
    top = todo[0].partition(".")[0]
    while todo:
        name = todo.pop()
        module = sys.modules.get(name)
        file = getattr(module, "__file__", None)
        if name in found or name.partition(".")[0] != top or module is None or file is None:
            continue
        found.add(name)
        todo += [name.rpartition(".")[0], *imported_names(Path(file), module.__package__ or "")]
    return found


def imported_names(file: Path, package: str) -> list[str]:
    """Return the names that a module's import statements name, whether they are modules or not."""
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_text(errors="replace"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), package)
            names += [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
    return names


# A layer in memory: everything in this process, which Django's own reloader starts again as a whole.


def run_in_process(config: LaunchConfig, announce: Announce) -> None:
    """Serve with workers in threads, until a signal in the main thread; beside Django's reloader, until it exits."""
    layer = channel_layers[config.layer]
    layer.check()
    routing = load_routing(layer_settings(config.layer).routing)
    server = make_server(config, layer, {})
    in_main_thread = threading.current_thread() is threading.main_thread()
    stopped = stop_at_signals() if in_main_thread else Event()
    server.start()
    views = ApplicationViews()
    for number in range(config.workers):
        name = f"thread-{number}"
        worker = Worker(layer, routing, name=name, replace=lambda: os._exit(CHANGED), views=views)
        threading.Thread(target=worker.run, name=worker.name, daemon=True).start()
    announce(server.address[1], layer)
    stopped.wait()
    server.stop()


class RequestLines(ServerFormatter):
    """Lines as those of Django's runserver, short, and coloured by the status that is in them."""

    _COMBINED = re.compile(r'\S+ - - \[[^]]*\] ("[^"]*" (\S+) \S+) "[^"]*" "[^"]*" (\d+ ms)')

    def __init__(self, force_color: bool) -> None:
        super().__init__("[{server_time}] {message}", "%d/%b/%Y %H:%M:%S", style="{")
        self.style = color_style(force_color)

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        shown = copy(record)  # other handlers have the whole of it
        shown.status_code = 200
        if found := self._COMBINED.fullmatch(record.getMessage()):
            shown.msg, shown.args = f"{found[1]} {found[3]}", ()
            if re.fullmatch(r"\d{3}", found[2]):  # of a WebSocket's end it is a close code
                shown.status_code = int(found[2])
        return super().format(shown)


def show_requests(force_color: bool) -> None:
    """Print one line for each request and WebSocket, unless the site's LOGGING has a handler for them."""
    log = logging.getLogger("dbchannels.access")
    if log.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(RequestLines(force_color))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
