"""``manage.py runworker``: take messages and run their consumers."""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Any

from django.core.management.base import CommandError
from django.template import engines
from django.template.backends.django import DjangoTemplates
from django.template.loaders import cached

from dbchannels.exceptions import DBChannelsError, InvalidConfiguration
from dbchannels.layers import channel_layers
from dbchannels.layers.base import BaseLayer
from dbchannels.layers.health import await_layer
from dbchannels.management.output import LongRunningCommand, log_to_terminal
from dbchannels.names import worker_names
from dbchannels.other_libraries import advice
from dbchannels.processes.reloader import CodeChanges
from dbchannels.processes.supervisor import REPLACED, has_terminal
from dbchannels.routing.table import Routing
from dbchannels.server.listeners import Address
from dbchannels.server.options import LEAST_MEMORY, add_options, check_number
from dbchannels.wakeup import LONGEST_TIMEOUT, WakeupPipe, check_timeout, wait_readable
from dbchannels.worker import database_connections
from dbchannels.worker.limits import Limits
from dbchannels.worker.response_stream import FileSender
from dbchannels.worker.sampler import Report
from dbchannels.worker.views import ApplicationViews, load_site
from dbchannels.worker.worker import ProcessContext, Worker

log = logging.getLogger("dbchannels.worker")

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
ORPHANED = 60.0  # seconds that a consumer may go on after the worker's parent has died
GIVE_BACK_WITHIN = 0.7  # seconds; see supervisor.GIVE_BACK
HUNG = 75  # exit status of a worker whose consumer hangs: EX_TEMPFAIL of sysexits.h


#: The options that runchannels and runserver give to the workers that they start.
CHILD_OPTIONS: dict[str, dict[str, Any]] = {
    "--child": {"default": "", "metavar": "NAME", "help": "the worker's name"},
    "--wakeup-fd": {"action": "append", "default": [], "help": "the descriptors of a pipe that wakes it"},
    "--local-wakeup": {
        "action": "append",
        "default": [],
        "metavar": "QUEUE=PIPE",
        "help": "a queue, and the descriptors of the pipe that wakes its reader",
    },
    "--files": {"default": "", "metavar": "QUEUE=SOCKET", "help": "where to send the files of responses"},
    "--fresh-templates": {"action": "store_true", "help": "read a template at each use"},
    "--threads": {"type": int, "default": 1, "help": "how many threads take messages"},
    "--since": {
        "type": float,
        "default": None,
        "help": "take no message once code has changed after this time",
    },
    "--report": {"type": int, "default": None, "help": "a descriptor of the file for what it counts"},
    "--ready": {"type": int, "default": None, "help": "a descriptor to write to once it takes messages"},
}


class Command(LongRunningCommand):
    help = "Takes messages from the channel layer and runs their consumers, until SIGTERM or Ctrl-C."
    requires_system_checks: list[str] = []  # noqa: RUF012  (Django's own attribute)

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument(
            "--only",
            action="append",
            default=[],
            metavar="PATTERN",
            help="read only these channels, such as 'http.*'; can be given more than once (all)",
        )
        parser.add_argument(
            "--exclude",
            action="append",
            default=[],
            metavar="PATTERN",
            help="read all channels but these; can be given more than once",
        )
        parser.add_argument(
            "--graceful-timeout",
            type=float,
            default=30.0,
            metavar="S",
            help="seconds for a consumer to finish after SIGTERM (30)",
        )
        parser.add_argument(
            "--burst", action="store_true", help="end when no due message is left, as for a cron job"
        )
        add_options(parser, "max_messages", "max_memory", "probe_port", "layer", "wait_for_database")
        for name, keywords in CHILD_OPTIONS.items():
            parser.add_argument(name, **keywords | {"help": f"set by runchannels: {keywords['help']}"})

    def handle(self, *args: Any, **options: Any) -> None:
        log_to_terminal(options["verbosity"])
        child = options["child"]
        try:
            layer, routing = load(options)
            database_connections.keep()
            if options["fresh_templates"]:
                uncache_templates()
            workers = make_workers(layer, routing, options)
            worker = workers[0]
            if not worker.channels:
                raise CommandError("No channel with a consumer is left: change --only or --exclude.")
            stop_at_signals(workers, options["graceful_timeout"], sys.stdin.fileno() if child else None)
            worker.load()
            probes = make_probes(options["probe_port"], workers)
        except KeyboardInterrupt:  # it may have waited for the database
            raise SystemExit(130) from None
        if not child:
            self.stdout.write(
                f"Worker {worker.name} reads {', '.join(worker.channels)} from {layer.describe()}."
            )
        with probes as address:
            if address:
                self.stdout.write(f"Probes: /healthz and /readyz at {address}")
            run(workers)
        if worker.wants_successor:
            if child:
                raise SystemExit(REPLACED)
            start_anew()
        if options["burst"] and not worker.stopping.is_set():
            self.stdout.write(f"Nothing is left to do. Messages run: {worker.consumed:,}.")


def make_probes(address: str, workers: Sequence[Worker]) -> AbstractContextManager[Any]:
    """Return what answers probes while it is entered, and is the address then. Raises InvalidConfiguration."""
    if not address:
        return nullcontext()
    from dbchannels.processes.probes import Probes  # and with it gevent, which no other worker needs

    return Probes(Address.parse(address), workers)


def run(workers: Sequence[Worker]) -> None:
    """Run the first worker here, and each other one in a thread. Raises CommandError."""
    threads = [threading.Thread(target=one.run, name=one.name, daemon=True) for one in workers[1:]]
    for thread in threads:
        thread.start()
    try:
        workers[0].run()
    except DBChannelsError as error:
        raise CommandError(
            f"The database was unavailable for longer than --wait-for-database allows ({error}), "
            "so this burst has ended."
        ) from None
    for thread in threads:
        thread.join()


def load(options: dict[str, Any]) -> tuple[BaseLayer, Routing]:
    """Check the options, wait for the layer, and load the site; raises one of DBChannelsError."""
    check_timeout("--graceful-timeout", options["graceful_timeout"])
    check_timeout("--wait-for-database", options["wait_for_database"])
    if options["threads"] != 1 and not options["child"]:
        raise InvalidConfiguration(f"--threads is for runserver: {advice('command', '--threads')}.")
    check_number("max_messages", options["max_messages"], 1)
    check_number("max_memory", options["max_memory"], LEAST_MEMORY)
    layer = channel_layers[options["layer"]]
    if not options["child"]:  # a parent has waited, and a child tries again for ever
        await_layer(layer, options["wait_for_database"])
    routing = load_site(options["layer"])
    if not layer.shared:
        raise InvalidConfiguration(
            "This layer lives in one process, so no worker can reach it: use a database layer."
        )
    return layer, routing


def make_workers(layer: BaseLayer, routing: Routing, options: dict[str, Any]) -> list[Worker]:
    """Return a worker for each thread."""
    ready = threading.Barrier(options["threads"], partial(say_ready, options["ready"]))
    queue, _, descriptor = options["files"].partition("=")
    files = FileSender(queue, int(descriptor)) if descriptor else None
    views = ApplicationViews(threads=options["threads"] > 1, files=files)
    local_wakeups = [text.partition("=") for text in options["local_wakeup"]]
    report = None if options["report"] is None else Report(options["report"])
    process = ProcessContext(
        wakeups=[WakeupPipe.inherited(text) for text in options["wakeup_fd"]],
        local_wakeups={queue: WakeupPipe.inherited(pipe) for queue, _, pipe in local_wakeups},
        replace=partial(end_child, report) if options["child"] else start_anew,
        on_ready=ready.wait,
        is_outdated=CodeChanges(options["since"]) if options["since"] else None,
        report=report,
    )
    limited = options["max_messages"] is not None or options["max_memory"] is not None
    workers = [
        Worker(
            layer,
            routing,
            only=options["only"],
            exclude=options["exclude"],
            name=name,
            process=process,
            views=views,
            limits=Limits(options["max_messages"], options["max_memory"]) if limited else None,
            burst=options["burst"],
            patience=options["wait_for_database"] if options["burst"] else math.inf,
        )
        for name in worker_names(options["child"], options["threads"])
    ]
    for worker in workers if report else ():
        report.add(worker.measures)
    return workers


def say_ready(descriptor: int | None) -> None:
    """Tell the parent that this worker takes messages now."""
    if descriptor is not None:
        with suppress(OSError):  # the parent has ended
            os.write(descriptor, b"!")
        os.close(descriptor)


def uncache_templates() -> None:
    """Have Django read a template at each use, so that a change shows at once."""
    for backend in engines.all():
        if isinstance(backend, DjangoTemplates):
            loaders = backend.engine.template_loaders
            caching = [one for one in loaders if isinstance(one, cached.Loader)]
            plain = [inner for one in caching for inner in one.loaders]
            backend.engine.template_loaders = [*plain, *(one for one in loaders if one not in caching)]


def end_child(report: Report | None) -> None:
    """End this process, whatever its main thread does; ``runchannels`` starts another worker."""
    if report is not None:
        report.write()
    os._exit(HUNG)


def start_anew() -> None:
    """Start this command again in place of this process, which has no parent to do it."""
    os.execv(sys.executable, sys.orig_argv)


def stop_at_signals(workers: Sequence[Worker], graceful_timeout: float, life: int | None = None) -> None:
    """At SIGTERM, SIGINT and SIGUSR1 let consumers finish; after the time-out, or at a second one, give back messages.

    SIGHUP does the same, and then another process takes this one's place, which runs the new code. The kernel also
    sends SIGHUP when the terminal is closed: then it is as SIGTERM. The death of the parent counts as a signal:
    ``life`` is a pipe that the parent holds. All this runs in a thread, because a main thread that hangs in a query
    runs no signal handlers.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for number in (*SIGNALS, signal.SIGHUP):
        signal.signal(number, lambda number, frame: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    arguments = (workers, graceful_timeout, reader, life, has_terminal())
    threading.Thread(target=await_end, args=arguments, name="end", daemon=True).start()


def await_end(
    workers: Sequence[Worker], graceful_timeout: float, signals: int, life: int | None, at_terminal: bool
) -> None:
    """Stop the workers at a signal, and end the process when that takes too long, or at a second signal."""
    watched = [signals] if life is None else [signals, life]
    ends_at, signalled, restarts = math.inf, 0, False
    while signalled < 2 and time.monotonic() < ends_at:
        readable = wait_readable(watched, min(LONGEST_TIMEOUT, ends_at - time.monotonic()))
        now = time.monotonic()
        if signals in readable:
            received = os.read(signals, 64)
            hung_up = at_terminal and not has_terminal()
            signalled += sum(
                number in SIGNALS or (number == signal.SIGHUP and hung_up) for number in received
            )
            restarts = not signalled and (restarts or signal.SIGHUP in received)
            ends_at = min(ends_at, now + graceful_timeout) if signalled or restarts else ends_at
        if life in readable:
            log.info("The parent has ended; so does this worker.")
            watched, ends_at = [signals], min(ends_at, now + ORPHANED)
        if readable and ends_at < math.inf:
            for worker in workers:
                worker.wants_successor = restarts
                worker.stop()
    end = start_anew if restarts and life is None else partial(os._exit, 1)
    timer = threading.Timer(GIVE_BACK_WITHIN, end)
    timer.daemon = True
    timer.start()
    for worker in workers:
        # Without a database the lease ends, and other processes give the messages back.
        with suppress(Exception):
            worker.abandon()
    end()
