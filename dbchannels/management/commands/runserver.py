"""``manage.py runserver``, when ``dbchannels`` is listed above ``django.contrib.staticfiles`` in INSTALLED_APPS."""

from __future__ import annotations

import os
import socket
import sys
import time
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Any

import django
from django.apps import apps
from django.conf import settings
from django.core.management.base import CommandError
from django.core.management.commands import runserver
from django.utils import autoreload

import dbchannels
from dbchannels.exceptions import DBChannelsError
from dbchannels.layers import channel_layers
from dbchannels.layers.base import BaseLayer
from dbchannels.management.output import LongRunningCommand, log_to_terminal
from dbchannels.processes import development, reloader
from dbchannels.server.listeners import Address
from dbchannels.server.options import LaunchConfig, add_options


class Command(LongRunningCommand, runserver.Command):
    """Django's command line, for a server with WebSockets and workers."""

    help = "Serves the site during development, with WebSockets, consumers and static files; reloads changed code."

    def add_arguments(self, parser: Any) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--insecure", action="store_true", help="serve static files even if DEBUG is False"
        )
        parser.add_argument(
            "--workers",
            type=int,
            metavar="N",
            help="worker processes, or threads if the layer is in memory "
            f"({development.WORKERS}, or {development.THREADS})",
        )
        add_options(parser, "layer", "nostatic")

    def run(self, **options: Any) -> None:
        """Serve. Django calls this with the address in ``self.addr`` and ``self.port``."""
        log_to_terminal(options["verbosity"])
        development.show_requests(options["force_color"])
        layer = channel_layers[options["layer"]]
        if not layer.shared:
            self.run_in_process(options)
            return
        development.run(
            self.config(options),
            self.announce,
            self.stdout.write,
            reload=options["use_reloader"],
            checks=not options["skip_checks"],
            threads=development.THREADS if options["use_threading"] else 1,
        )

    def run_in_process(self, options: dict[str, Any]) -> None:
        """Serve with a layer in memory, in the child of Django's reloader or without one; or be its parent."""
        if options["use_reloader"] and os.environ.get(autoreload.DJANGO_AUTORELOAD_ENV) == "true":
            with suppress(KeyboardInterrupt):
                reloader.watch(lambda: self.inner_run(**options), time.time(), lambda line: None)
        else:
            super().run(**options)

    def inner_run(self, *args: Any, **options: Any) -> None:
        """Serve in this process, beside Django's reloader or without it."""
        autoreload.raise_last_exception()
        if not options["skip_checks"]:
            self.stdout.write("Performing system checks...\n\n")
            self.check(display_num_errors=True)
        self.check_migrations()
        try:
            development.run_in_process(self.config(options), self.announce)
        except DBChannelsError as error:
            self.stderr.write(str(error))
            os._exit(1)  # sys.exit would end the thread alone

    def config(self, options: dict[str, Any]) -> LaunchConfig:
        """Return what to start: as runchannels does, with the defaults of development."""
        workers = options["workers"]
        if not options["use_threading"]:
            workers = 1
        elif workers is None:
            shared = channel_layers[options["layer"]].shared
            workers = development.WORKERS if shared else development.THREADS
        defaults = {"graceful_timeout": development.GRACE, "max_body": sys.maxsize, "max_spool": sys.maxsize}
        config = LaunchConfig.from_options({**options, **defaults, "workers": workers})
        server = replace(config.server, addresses=(Address.parse(str(Address(self.host(), int(self.port)))),))
        insecure = options["insecure"] and not options["nostatic"]
        static = apps.is_installed("django.contrib.staticfiles") if insecure else config.static
        return replace(config, server=server, static=static)

    def host(self) -> str:
        """Return the address to bind. With ``--ipv6``, that is the IPv6 address of a host name."""
        if not self.use_ipv6 or ":" in self.addr:
            return "0.0.0.0" if self.addr == "0" else self.addr
        try:
            return str(socket.getaddrinfo(self.addr, None, socket.AF_INET6)[0][4][0])
        except OSError as error:
            raise CommandError(f"{self.addr} has no IPv6 address ({error.strerror}).") from None

    def announce(self, port: int, layer: BaseLayer) -> None:
        """Print the addresses of the site."""
        host = f"[{self.addr}]" if ":" in self.addr else self.host()
        self.stdout.write(
            f"{datetime.now():%B %d, %Y - %X}\n"
            f"Django version {django.get_version()}, using settings {settings.SETTINGS_MODULE!r}\n"
            f"dbchannels version {dbchannels.__version__}, layer: {layer.describe()}\n"
            f"Starting development server with WebSockets and workers at http://{host}:{port}/\n"
            "Quit the server with CONTROL-C."
        )
        self.stdout.flush()
