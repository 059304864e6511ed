"""A real server and its workers on the test's databases: a test case for browsers, and the processes themselves.

``python -m dbchannels.testing.live`` is the ``manage.py`` of these processes. They read the settings module that
DJANGO_SETTINGS_MODULE names, and find what the test has changed in their environment. They import this module before
Django is set up, so models are imported where they are used.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import django
from django.apps import apps
from django.conf import UserSettingsHolder, settings
from django.core.management import CommandError, execute_from_command_line
from django.db import OperationalError, connections, transaction
from django.test import TransactionTestCase

from dbchannels import Channel, conf
from dbchannels.exceptions import DBChannelsError, InvalidConfiguration
from dbchannels.protocol import GOING_AWAY
from dbchannels.wakeup import wait_readable

READY_WITHIN = 60.0  # seconds
END_WITHIN = 30.0  # seconds, after which the server is killed
QUIET_WITHIN = 5.0  # seconds after a test, for its sockets to close and its consumers to end
PAUSE = 0.02  # seconds between two looks
ATTEMPTS = 5  # to empty the tables
ADDRESS = re.compile(r"Serving http://(\S+)/ and WebSockets")
SERVE = "livechannels"  # the command of the server; all others are Django's
CHANGES = (
    "DBCHANNELS_LIVE_TEST"  # in the environment: JSON of {"databases": {alias: name}, "settings": {...}}
)


class ChannelLiveServerTestCase(TransactionTestCase):
    """``runchannels`` with its workers for the tests of a class, with static files, at ``live_server_url``.

    The server sees at once what a test saves, as in any TransactionTestCase. After each test its sockets are
    closed (1001) and all tables emptied. The processes end with the class, or with the test's own process.
    """

    host: ClassVar[str] = "localhost"
    port: ClassVar[int] = 0
    workers: ClassVar[int] = 2
    live_server: ClassVar[LiveServer]
    live_server_url: ClassVar[str]  # "http://localhost:49321"
    live_server_ws_url: ClassVar[str]  # "ws://localhost:49321"

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.live_server = LiveServer(cls.host, cls.port, cls.workers)
        cls.addClassCleanup(cls.live_server.stop)
        cls.live_server_url = cls.live_server.url
        cls.live_server_ws_url = cls.live_server.ws_url

    def _fixture_teardown(self) -> None:
        """Close the sockets, wait for their consumers, and empty the tables.

        Empty them again if a process of the server wrote meanwhile, and PostgreSQL found a deadlock.
        """
        from dbchannels.models import Connection, InFlight

        database = conf.layer_settings().database
        connections, in_flight = Connection.objects.using(database), InFlight.objects.using(database)
        opened = list(connections.values_list("reply_channel", flat=True))
        for channel in opened:
            Channel(channel).send({"close": GOING_AWAY})
        ends_at = time.monotonic() + QUIET_WITHIN
        while time.monotonic() < ends_at and (
            connections.filter(reply_channel__in=opened).exists() or in_flight.exclude(messages="").exists()
        ):
            time.sleep(PAUSE)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._empty_tables(database)
            except CommandError as error:  # of Django's flush
                if attempt == ATTEMPTS or not isinstance(error.__cause__, OperationalError):
                    raise

    def _empty_tables(self, database: str) -> None:
        """Empty the tables in one transaction that leaves the records of the server's processes."""
        from dbchannels.models import Process

        with transaction.atomic(using=database):
            processes = Process.objects.using(database)
            # Written first: on SQLite a transaction that reads, and writes later, fails when others wrote meanwhile.
            processes.filter(name="").delete()
            rows = list(processes.values())
            super()._fixture_teardown()  # type: ignore[misc]
            processes.bulk_create(Process(**row) for row in rows)


class LiveServer:
    """A server with its workers, started at once. It ends with ``stop``, or with this process, however that ends."""

    def __init__(self, host: str, port: int, workers: int) -> None:
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "dbchannels.testing.live", SERVE, f"{host}:{port}"),
                *("--workers", str(workers), "--graceful-timeout", "2"),
            ],
            env=environment(host),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._passing = threading.Thread(target=self._pass_on, name="live server's output", daemon=True)
        try:
            assert self._process.stdout is not None
            output, ends_at, said = self._process.stdout.fileno(), time.monotonic() + READY_WITHIN, ""
            data = b" "
            while data and not ADDRESS.search(said) and wait_readable([output], ends_at - time.monotonic()):
                data = os.read(output, 65_536)
                said += data.decode(errors="replace")
            found = ADDRESS.search(said)
            if found is None:
                raise InvalidConfiguration(
                    f"The live server did not start. It said:\n{said.strip() or 'nothing'}"
                )
            self.address = found[1]
            self._passing.start()
        except BaseException:
            self.stop()
            raise

    @property
    def url(self) -> str:
        """The address of the site, without a slash at its end."""
        return f"http://{self.address}"

    @property
    def ws_url(self) -> str:
        """The address for WebSockets."""
        return f"ws://{self.address}"

    def _pass_on(self) -> None:
        """Print what consumers and views print, until all processes have ended; a full pipe would stop them."""
        assert self._process.stdout is not None
        while data := os.read(self._process.stdout.fileno(), 65_536):
            with suppress(OSError):  # nobody may be there to read
                os.write(2, data)

    def stop(self) -> None:
        """Stop the server and its workers, and wait for their end."""
        if self._process.stdin:
            self._process.stdin.close()  # which it takes for our end
        try:
            self._process.wait(END_WITHIN)
        except subprocess.TimeoutExpired:
            self._process.kill()  # its workers notice, and end
            self._process.wait()
        if self._passing.is_alive():
            self._passing.join(1.0)  # at most: a process that a consumer has started may hold the pipe
        if self._process.stdout and not self._passing.is_alive():
            self._process.stdout.close()


def environment(host: str) -> dict[str, str]:
    """Return the environment of the processes; the host is allowed, whatever the settings say."""
    module = getattr(_holders()[-1], "SETTINGS_MODULE", None)
    if not module:
        raise InvalidConfiguration(
            "Live tests start processes, which read a settings module: name one in DJANGO_SETTINGS_MODULE, in place "
            "of settings.configure()."
        )
    changes = {"databases": databases(), "settings": overridden_settings()}
    changes["settings"]["ALLOWED_HOSTS"] = [*settings.ALLOWED_HOSTS, host]
    paths = [os.path.abspath(path) for path in sys.path]
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": module,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        CHANGES: json.dumps(changes),
    }


def databases() -> dict[str, str]:
    """Return the names of the test's databases by alias; raise InvalidConfiguration if one is in memory."""
    names = {}
    for alias in connections:
        connection: Any = connections[alias]
        if connection.vendor == "sqlite" and connection.is_in_memory_db():
            raise InvalidConfiguration(
                f"The test database {alias!r} is in this process's memory, where the live server does not see "
                f"it: set DATABASES[{alias!r}]['TEST'] = {{'NAME': BASE_DIR / 'test.sqlite3'}}, or use PostgreSQL."
            )
        names[alias] = str(connection.settings_dict["NAME"])
    return names


def overridden_settings() -> dict[str, Any]:
    """Return what override_settings has set; raise InvalidConfiguration for what JSON cannot carry."""
    found: dict[str, Any] = {}
    for holder in _holders()[:-1]:
        own = {name: value for name, value in vars(holder).items() if name.isupper()}
        found = {**own, **found}
    found = {name: value for name, value in found.items() if name != "SETTINGS_MODULE"}
    found.setdefault("DEBUG", settings.DEBUG)  # the test runner's
    for name, value in found.items():
        with suppress(TypeError, ValueError):
            json.dumps(value, default=_plain)
            continue
        raise InvalidConfiguration(
            f"The setting {name} was overridden with a value that JSON does not have, but the processes of the live "
            "server need it: put it into the settings module."
        )
    return json.loads(json.dumps(found, default=_plain))  # type: ignore[no-any-return]


def _holders() -> list[Any]:
    """Return the settings of each override_settings in force, the innermost first, and the settings themselves."""
    holders: list[Any] = [settings._wrapped]
    while isinstance(holders[-1], UserSettingsHolder):
        holders.append(holders[-1].default_settings)
    return holders


def _plain(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError


# In the processes themselves.


def main(arguments: list[str]) -> None:
    """Run a command."""
    change_settings(json.loads(os.environ[CHANGES]))
    if arguments[1:2] == [SERVE]:
        serve(arguments[2:])
    else:
        execute_from_command_line(arguments)


def change_settings(changes: dict[str, Any]) -> None:
    """Use the test's databases, and the settings that it has changed."""
    for name, value in changes["settings"].items():
        setattr(settings, name, value)
    for alias, name in changes["databases"].items():
        settings.DATABASES[alias]["NAME"] = name


def serve(arguments: list[str]) -> None:
    """Do what ``runchannels`` does, with static files whatever DEBUG says, until the test's process ends."""
    django.setup()
    from dbchannels.management.commands.runchannels import Command
    from dbchannels.processes import production
    from dbchannels.server.options import LaunchConfig

    options = vars(Command().create_parser("manage.py", "runchannels").parse_args(arguments))
    logging.getLogger("dbchannels.access").disabled = True
    config = LaunchConfig.from_options(options)
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        production.run(replace(config, static=apps.is_installed("django.contrib.staticfiles")), write)
    except DBChannelsError as error:
        write(str(error))  # what the test shows
        sys.exit(1)


def write(text: str) -> None:
    """Print for the test, which reads the address."""
    print(text, flush=True)


def end_with_parent() -> None:
    """End with the test's process: its end of our standard input is closed then, however it ends."""
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main(sys.argv)
