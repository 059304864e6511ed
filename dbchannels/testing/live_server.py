"""The interface server and its workers as processes beside a test, on the test's databases."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from django.conf import UserSettingsHolder, settings
from django.db import connections

from dbchannels.exceptions import InvalidConfiguration
from dbchannels.testing.live_site import CHANGES, SERVE
from dbchannels.waiting import wait_readable

READY_WITHIN = 60.0  # seconds
END_WITHIN = 30.0  # seconds, after which it is killed
ADDRESS = re.compile(r"Serving http://(\S+)/ and WebSockets")


class LiveServer:
    """Started when it is made; ``stop`` leaves nothing running. It ends with this process, too, however that ends."""

    def __init__(self, host: str, port: int, workers: int) -> None:
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "dbchannels.testing.live_site", SERVE, f"{host}:{port}"),
                *("--workers", str(workers), "--graceful-timeout", "2"),
            ],
            env=environment(host),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._passing = threading.Thread(target=self._pass_on, name="live server's output", daemon=True)
        try:
            self.address = self._read_address()
            self._passing.start()
        except BaseException:
            self.stop()
            raise

    @property
    def url(self) -> str:
        """Where the site is, without a slash at its end."""
        return f"http://{self.address}"

    @property
    def ws_url(self) -> str:
        """The same for WebSockets."""
        return f"ws://{self.address}"

    def _read_address(self) -> str:
        """Return the host and port, when it says them."""
        assert self._process.stdout is not None
        output, ends_at, said = self._process.stdout.fileno(), time.monotonic() + READY_WITHIN, ""
        while wait_readable([output], max(0.0, ends_at - time.monotonic())):
            data = os.read(output, 65_536)
            said += data.decode(errors="replace")
            if found := ADDRESS.search(said):
                return found[1]
            if not data:
                break
        raise InvalidConfiguration(f"The live server did not start. It said:\n{said.strip() or 'nothing'}")

    def _pass_on(self) -> None:
        """Show what consumers and views print, until all processes have ended; a full pipe would stop them."""
        assert self._process.stdout is not None
        while data := os.read(self._process.stdout.fileno(), 65_536):
            with suppress(OSError):  # nobody may be there to read
                os.write(2, data)

    def stop(self) -> None:
        """End it and its workers, and wait until they have."""
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
    """Return what the processes find in their environment; the host is allowed, whatever the settings say."""
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
    """Return the names of the test's databases by alias; raises InvalidConfiguration when one is in memory."""
    names = {}
    for alias in connections:
        connection: Any = connections[alias]
        if connection.vendor == "sqlite" and connection.is_in_memory_db():
            raise InvalidConfiguration(
                f"The test database {alias!r} is in this process's memory, where the live server does not see "
                f"it: set DATABASES[{alias!r}]['TEST'] = {{'NAME': BASE_DIR / 'test.sqlite3'}}, or take PostgreSQL."
            )
        names[alias] = str(connection.settings_dict["NAME"])
    return names


def overridden_settings() -> dict[str, Any]:
    """Return what override_settings has set; raises InvalidConfiguration for what cannot be handed to a process."""
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
            f"The setting {name} was overridden with what no JSON can say, and the live server's processes need it: "
            "put it into the settings module."
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
