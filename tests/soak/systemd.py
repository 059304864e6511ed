"""No fault: the printed unit under a systemd of its own, process 1 of its own namespaces. It needs root."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.endtoend.test_deploy import Client, free_port
from tests.harness import HOST, LiveSite, Served, until
from tests.soak.row import Row, Seen
from tests.soak.sites import on_sqlite

PROGRAM = "/lib/systemd/systemd"
UNITS = "/etc/systemd/system"
#: Makes systemd's folders anew, with the site's unit and the journal as all that there is to start. $1: the units.
BOOT = f"""
set -e
mount --make-rprivate /
mount -t proc proc /proc
if [ "$(stat -f -c %T /sys/fs/cgroup)" = cgroup2fs ]; then
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
else
    mount -t tmpfs tmpfs /sys/fs/cgroup
    mkdir /sys/fs/cgroup/systemd
    mount -t cgroup -o none,name=systemd systemd /sys/fs/cgroup/systemd
fi
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/lock /run/systemd
mount -t tmpfs tmpfs {UNITS}
cp -r "$1"/. {UNITS}
cd /lib/systemd/system
for wants in sysinit multi-user sockets timers local-fs; do
    if [ -d $wants.target.wants ]; then mount -t tmpfs tmpfs $wants.target.wants; fi
done
ln -s /lib/systemd/system/systemd-journald.service sysinit.target.wants
ln -s /lib/systemd/system/systemd-journald.socket sockets.target.wants
exec env -i PATH=/usr/sbin:/usr/bin container=dbchannels {PROGRAM} --system --unit=basic.target
"""


class Systemd:
    """A systemd with the unit ``site``."""

    def __init__(self, units: Path) -> None:
        groups = Path("/sys/fs/cgroup/systemd")
        self._group = (groups if groups.is_dir() else groups.parent) / f"dbchannels-{secrets.token_hex(4)}"
        self._group.mkdir()
        unshare = "unshare --pid --mount --ipc --uts --cgroup --fork --kill-child"
        enter = f'echo $$ > {self._group}/cgroup.procs; exec {unshare} sh -c "$1" boot "$2"'
        self._process = subprocess.Popen(
            ["sh", "-c", enter, "enter", BOOT, str(units)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        until(lambda: self.run("systemctl", "is-system-running")[1] in ("running", "degraded"), "it runs", 60)

    def run(self, *command: str) -> tuple[int, str]:
        """Run a command inside; return its status and what it prints."""
        first = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        enter = ["nsenter", "-t", first[0] if first else "1", "-p", "-m", "-i", "-u", "-C"]
        if not first:
            return 1, ""
        done = subprocess.run([*enter, *command], capture_output=True, text=True, timeout=200)
        return done.returncode, done.stdout.strip()

    def show(self, name: str) -> str:
        """Return a property of the service."""
        return self.run("systemctl", "show", "site", "--value", "-p", name)[1]

    def kill(self, number: int) -> None:
        """Send a signal to the service's main process."""
        self.run("systemctl", "kill", "--kill-who=main", f"--signal={number}", "site")

    def journal(self) -> str:
        """Return what the service has logged."""
        return self.run("journalctl", "--unit=site", "--output=cat", "--no-pager")[1]

    def end(self) -> None:
        """Kill it, with all that it has started."""
        self._process.kill()
        self._process.wait()
        until(self._removed, "all has ended")

    def _removed(self) -> bool:
        try:
            for folder in [*sorted(self._group.rglob("*/"), reverse=True), self._group]:
                folder.rmdir()
        except OSError:  # a process in it has not ended yet
            return False
        return True


@contextmanager
def printed(site: LiveSite) -> Iterator[tuple[Systemd, Client]]:
    """Lend a systemd with the printed unit, unchanged, and its site's client."""
    units, port = site.folder / "units", free_port()
    options = (
        "--name",
        "site",
        "--user",
        "root",
        "--bind",
        f"{HOST}:{port}",
        "--probe-port",
        "0",
        "--workers",
        "2",
    )
    done = site.manage("channels_deploy", "systemd", *options, "--output", str(units))
    assert done.returncode == 0, done.stderr
    (units / "site.service.d").mkdir()
    variables = "".join(
        f"{name}='{value}'\n" for name, value in site.environment().items() if name.startswith("LIVESITE")
    )
    (site.folder / "environment").write_text(variables)
    (units / "site.service.d" / "test.conf").write_text(
        f"[Service]\nEnvironmentFile={site.folder}/environment\n"
    )
    systemd = Systemd(units)
    try:
        yield systemd, Client(port)
    finally:
        systemd.end()


class Lifetime(NamedTuple):
    """What systemd said of each step; each is 0, or the state, when all is well."""

    start: tuple[int, str]
    reload: tuple[int, str]
    failures: int  # of the requests meanwhile
    hangup: set[str]  # the states at SIGHUP
    broken: tuple[int, str]  # a reload to code that is broken
    killed: str  # the state after kill -9 of the main process
    killed_early: tuple[int, str]  # the same during a reload, before the new server has asked for the sockets
    killed_late: tuple[int, str]  # and after that
    restart: tuple[int, str]
    stop: tuple[int, str]
    left: int  # processes


def lifetime(site: LiveSite) -> Lifetime:
    """Take the service through its life."""
    with printed(site) as (systemd, client), ThreadPoolExecutor(2) as pool:

        def do(verb: str) -> tuple[int, str]:
            before = systemd.show("MainPID")
            status, _ = systemd.run("systemctl", verb, "site")
            state = systemd.show("ActiveState")
            same = systemd.show("MainPID") == before
            return status, f"{state}, {'same' if same else 'another'} process"

        def served() -> str:
            until(lambda: systemd.show("ActiveState") == "active" and answers(client), systemd.journal, 60)
            return systemd.show("ActiveState")

        def killed_in_reload(when: str) -> tuple[int, str]:
            count = systemd.journal().count(when)
            reloading = pool.submit(systemd.run, "systemctl", "reload", "site")
            until(lambda: systemd.show("ActiveState") == "reloading", "it reloads")
            if when:
                until(lambda: systemd.journal().count(when) > count, "the sockets are handed over", 60)
            systemd.kill(signal.SIGKILL)
            return reloading.result()[0], served()

        started = do("start")
        before = answers(client)
        reloading, failures = pool.submit(do, "reload"), int(not before)
        while not reloading.done():
            failures += not answers(client)
        systemd.kill(signal.SIGHUP)
        states = {until(lambda: systemd.show("ActiveState") == "reloading" and "reloading", "SIGHUP")}
        states.add(served())
        (site.folder / "broken").touch()
        broken = do("reload")
        (site.folder / "broken").unlink()
        systemd.kill(signal.SIGKILL)
        until(lambda: systemd.show("NRestarts") == "1", "it is started again")
        killed = served()
        early, late = killed_in_reload(""), killed_in_reload("gets ready to take over")
        restarted, stopped = do("restart"), do("stop")
        left = systemd.run("systemctl", "show", "site", "--value", "-p", "TasksCurrent")[1]
        number = int(left) if re.fullmatch(r"\d{1,6}", left) else 0
        return Lifetime(
            started,
            reloading.result(),
            failures,
            states,
            broken,
            killed,
            early,
            late,
            restarted,
            stopped,
            number,
        )


def answers(client: Client) -> bool:
    """Whether a page is served."""
    try:
        return Served.get(client, "/").status == 200  # type: ignore[arg-type]
    except OSError:
        return False
    finally:
        time.sleep(0.02)


GOOD = Lifetime(
    start=(0, "active, another process"),
    reload=(0, "active, another process"),
    failures=0,
    hangup={"reloading", "active"},
    broken=(1, "active, same process"),
    killed="active",
    killed_early=(1, "active"),  # systemd starts it anew
    killed_late=(1, "active"),  # the same: it ends the new server, too
    restart=(0, "active, another process"),
    stop=(0, "inactive, another process"),
    left=0,
)


def _lifetime(scale: float) -> Seen:
    if os.geteuid() or not Path(PROGRAM).exists():
        return Seen("not measured: this takes root and systemd", False)
    with on_sqlite() as site:
        found = lifetime(site)
    wrong = {name: value for name, value in found._asdict().items() if value != getattr(GOOD, name)}
    return Seen(f"wrong: {wrong}" if wrong else "as it must be", not wrong)


ROWS = [
    Row(
        0,
        "start, reload, SIGHUP, kill -9, restart and stop of the printed unit under systemd",
        "no request refused by a reload; serves again after each kill; leaves no process",
        _lifetime,
    )
]
