"""``manage.py watchcode``: a child process of ``runserver``; see ``dbchannels.processes.reloader``."""

from __future__ import annotations

import os
import threading
import traceback
from contextlib import suppress
from typing import Any

from django.core.management.base import BaseCommand, SystemCheckError
from django.db import connections

from dbchannels.conf import layer_settings
from dbchannels.exceptions import DBChannelsError
from dbchannels.processes import reloader
from dbchannels.server.options import add_options
from dbchannels.worker.views import load_site, site_application


class Command(BaseCommand):
    help = "For runserver: imports and checks the site, and ends when its code has changed."
    requires_system_checks: list[str] = []  # noqa: RUF012  (run after the import of the site)

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument("--report", type=int, default=None, metavar="FD", help="set by runserver")
        parser.add_argument("--since", type=float, default=0.0, metavar="TIME", help="set by runserver")
        parser.add_argument("--once", action="store_true", help="end when the site was checked")
        add_options(parser, "layer")
        parser.add_argument("--unchecked", action="store_true", help="do not run the system checks")

    def handle(self, *args: Any, **options: Any) -> None:
        descriptor = options["report"]

        def report(line: str) -> None:
            if descriptor is not None:
                with suppress(BrokenPipeError):  # the parent is ending, and so is this process
                    os.write(descriptor, f"{line}\n".encode(errors="surrogateescape"))

        if descriptor is not None:
            threading.Thread(target=end_with_parent, daemon=True).start()
        if options["once"]:
            self.prepare(options)
            report("ready")
        else:
            threading.excepthook = lambda raised: None  # the error was printed
            reloader.watch(lambda: self.prepare_and_report(options, report), options["since"], report)

    def prepare_and_report(self, options: dict[str, Any], report: Any) -> None:
        """Report whether the site could be imported and checked."""
        try:
            self.prepare(options)
        except (SystemCheckError, DBChannelsError) as error:
            self.stderr.write(str(error))
            report("broken")
        except BaseException:
            traceback.print_exc()
            report("broken")
            raise  # so that Django's reloader watches the file whose import failed
        else:
            report("ready")

    def prepare(self, options: dict[str, Any]) -> None:
        """Import what a worker imports, run the system checks, and warn of missing migrations."""
        load_site(options["layer"])
        site_application()
        if not options["unchecked"]:
            self.stdout.write("Performing system checks...\n\n")
            self.check(display_num_errors=True, databases=[layer_settings(options["layer"]).database])
        self.check_migrations()
        self.stdout.flush()
        connections.close_all()


def end_with_parent() -> None:
    """End this process as soon as its parent has ended in any way."""
    while os.read(0, 4096):  # not sys.stdin, whose lock a thread may hold when the interpreter ends
        continue
    os._exit(0)
