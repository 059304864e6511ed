"""``runserver``: the server, its workers, and the reload of their code, on a developer's machine."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
from collections.abc import Callable
from copy import copy
from itertools import takewhile
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
from dbchannels.processes.reloader import CHANGED, CodeWatch
from dbchannels.processes.supervisor import Supervisor
from dbchannels.protocol import DURABLE, HTTP, KINDS, WEBSOCKET
from dbchannels.routing.table import load_routing
from dbchannels.server.options import LaunchConfig
from dbchannels.wakeup import WakeupPipe
from dbchannels.worker.views import ApplicationViews
from dbchannels.worker.worker import ProcessContext, Worker

GRACE = 1.0  # seconds that requests and consumers have to finish at a reload, and at the end
WORKERS = 3  # processes: for requests, for WebSockets, for the site's own channels and WebSockets
THREADS = 8  # that answer requests; with a layer in memory all workers are threads

Announce = Callable[[int, BaseLayer], None]  # called with the port once the site can be used


def run(
    config: LaunchConfig, announce: Announce, write: Write, *, reload: bool, checks: bool, threads: int = 1
) -> None:
    """Serve until Ctrl-C or SIGTERM. Raises DBChannelsError if the start fails, or if the site cannot run."""
    wakeups = {kind: WakeupPipe.new() for kind in KINDS}
    layer = usable_layer(config.layer)
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
    site = Site(
        make_workers=lambda: supervise(work, server, GRACE),
        announce=lambda: announce(server.address[1], layer),
        write=write,
        end=lambda: server.relay.hub.call(stopped.set),
        reload=reload,
    )
    arguments = ["--layer", config.layer, *config.passed_on, *([] if checks else ["--unchecked"])]
    watch = CodeWatch(arguments, site, once=not reload)
    watch.start()
    stopped.wait()
    gevent.get_hub().threadpool.apply(watch.stop)
    server.stop(restart=site.restart)
    gevent.get_hub().threadpool.apply(site.stop)
    if site.broken_for_good:
        raise InvalidConfiguration("The site cannot run: correct the errors above, and start again.")
    if site.restart:
        sys.stdout.flush()
        os.execv(sys.executable, sys.orig_argv)


def kinds_of(workers: int) -> list[str]:
    """Return what each worker takes, as ``production.kinds_of`` does; one process answers all requests.

    So a site finds in memory what an earlier request has left there, as under Django's own runserver:
    django-debug-toolbar and LocMemCache need that.
    """
    if workers < 2:
        return ["".join(KINDS)] * workers
    return [
        HTTP,
        *([WEBSOCKET] if workers > 2 else []),
        *[WEBSOCKET + DURABLE] * (workers - (2 if workers > 2 else 1)),
    ]


class Site:
    """The workers, and what happens to them and to the server when the code changes.

    After a change no worker runs old code; requests wait in the layer. The workers start again as soon as the site can
    be imported. The sockets stay open, unless the change is in the server's own code or in its settings.

    A CodeWatch calls ``ready``, ``broken`` and ``changed``, in its thread.
    """

    def __init__(
        self,
        *,
        make_workers: Callable[[], Supervisor],
        announce: Callable[[], None],
        write: Write,
        end: Callable[[], None],
        reload: bool,
    ) -> None:
        self.restart = False  # the server has to start again
        self.broken_for_good = False
        self._make_workers = make_workers
        self._workers: Supervisor | None = None
        self._ending: threading.Thread | None = None  # ends the workers
        self._announce: Callable[[], None] | None = announce  # until the first call
        self._write = write
        self._end = end
        self._reload = reload
        self._own_files = own_files()
        self._outdated = False  # one of these files has changed

    def ready(self) -> None:
        """Start the workers, or the server too."""
        if self._outdated:
            self.restart = True
            self._end()
            return
        self.stop()
        self._workers = self._make_workers()
        self._workers.start()
        if self._announce is not None:
            self._announce()
            self._announce = None

    def broken(self) -> None:
        """Wait for a change; without reload there will be none, so end."""
        if self._reload:
            self._write(
                "The site cannot run like this; requests wait until a change of the code corrects that."
            )
        else:
            self.broken_for_good = True
            self._end()

    def changed(self, path: str) -> None:
        """End the workers, without waiting for it."""
        self._outdated = self._outdated or Path(path).resolve() in self._own_files
        if self._outdated:
            self._write("The server itself runs this code, so it starts again too.")
        self._dismiss()

    def stop(self) -> None:
        """Return when all workers have ended."""
        self._dismiss()
        if self._ending is not None:
            self._ending.join()

    def _dismiss(self) -> None:
        workers, self._workers = self._workers, None
        if workers is not None:
            self._ending = threading.Thread(target=workers.stop, name="dismissal")
            self._ending.start()


def own_files() -> set[Path]:
    """Return the files whose code this process runs: dbchannels, manage.py, and all that the settings have imported.

    The apps' models are loaded here too, but only the workers run them. Django imports the settings first and then the
    apps, dbchannels among them, and Python keeps the modules in the order in which they were imported.
    """
    before_apps = takewhile("dbchannels.apps".__ne__, list(sys.modules))
    ours = [name for name in list(sys.modules) if name.partition(".")[0] in ("dbchannels", "__main__")]
    files = [getattr(sys.modules[name], "__file__", None) for name in {*before_apps, *ours}]
    return {Path(file).resolve() for file in files if file}


# With a layer in memory everything runs in this process, and Django's own reloader restarts it as a whole.


def run_in_process(config: LaunchConfig, announce: Announce) -> None:
    """Serve with workers in threads, until a signal comes or, beside Django's reloader, until that exits."""
    layer = channel_layers[config.layer]
    layer.check()
    routing = load_routing(layer_settings(config.layer).routing, config.layer)
    server = make_server(config, layer, {})
    in_main_thread = threading.current_thread() is threading.main_thread()
    stopped = stop_at_signals() if in_main_thread else Event()
    server.start()
    views, process = ApplicationViews(), ProcessContext(replace=lambda: os._exit(CHANGED))
    for number in range(config.workers):
        name = f"thread-{number}"
        worker = Worker(layer, routing, name=name, process=process, views=views)
        threading.Thread(target=worker.run, name=worker.name, daemon=True).start()
    announce(server.address[1], layer)
    stopped.wait()
    server.stop()


class RequestLines(ServerFormatter):
    """Short lines as those of Django's runserver, coloured by their status."""

    _COMBINED = re.compile(r'\S+ - - \[[^]]*\] ("[^"]*" (\S+) \S+) "[^"]*" "[^"]*" (\d+ ms)')

    def __init__(self, force_color: bool) -> None:
        super().__init__("[{server_time}] {message}", "%d/%b/%Y %H:%M:%S", style="{")
        self.style = color_style(force_color)

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        shown = copy(record)  # other handlers show the whole line
        shown.status_code = 200
        if found := self._COMBINED.fullmatch(record.getMessage()):
            shown.msg, shown.args = f"{found[1]} {found[3]}", ()
            if re.fullmatch(r"\d{3}", found[2]):  # it is the close code when a WebSocket ends
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
