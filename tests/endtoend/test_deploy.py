"""The files of channels_deploy at work: behind nginx and Caddy, from units and crontabs, for projects of any shape."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.endtoend.conftest import migrated, sqlite_database
from tests.endtoend.test_nginx import NGINX, accepts, run_nginx
from tests.harness import HOST, LiveSite, Served, until

CADDY = shutil.which("caddy")
ANALYZE = shutil.which("systemd-analyze")
STATIC = {"STATIC_ROOT": "", "MEDIA_URL": "/media/"}


def free_port() -> int:
    with socket.socket() as found:
        found.bind((HOST, 0))
        return int(found.getsockname()[1])


def words(line: str) -> list[str]:
    """Return the words of ExecStart as systemd hands them to the program."""
    return [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(line)]


# In front of a site.


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=getattr(pytest.mark, name)) for name in ("nginx", "caddy")],
)
def deployed(
    postgresql_site: LiveSite, tmp_path_factory: pytest.TempPathFactory, request
) -> Iterator[Served]:
    """A server as the printed unit starts it, behind nginx or Caddy with the printed file, unchanged."""
    if (NGINX if request.param == "nginx" else CADDY) is None:
        pytest.skip(f"There is no {request.param}.")
    site, folder, port = postgresql_site, tmp_path_factory.mktemp("deployed"), free_port()
    static = folder / "static files"
    settings = {"STATIC_ROOT": str(static), "MEDIA_URL": "/media/"}
    for name in ("static files", "printed"):
        (folder / name).mkdir()
    (static / "site.css").write_text("body {}")
    (site.folder / "cat.txt").write_text("a cat")
    options = (
        "--bind",
        f"unix:{folder}/s",
        "--workers",
        "1",
        "--max-body",
        "1000000",
        "--probe-port",
        str(free_port()),
        "--control",
        str(folder / "control"),
    )
    for target in ("systemd", request.param):
        done = site.manage(
            *("channels_deploy", target, "--name", "site", "--user", "site", "--listen", f"{HOST}:{port}"),
            *("--output", str(folder / "printed"), *options),
            settings=settings,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
    unit = (folder / "printed" / "site.service").read_text()
    command = words(re.findall(r"^ExecStart=(.+)$", unit, re.M)[0])
    assert command[:3] == [sys.executable, "manage.py", "runchannels"]
    served = Served(site, command[2:], settings)
    site.processes.append(served)
    served.wait_ready()
    served.port = port
    with (behind_nginx if request.param == "nginx" else behind_caddy)(folder, port):
        yield served
    served.end()


@contextmanager
def behind_nginx(folder: Path, port: int) -> Iterator[None]:
    nginx = run_nginx(folder, f"include {folder}/printed/site.conf;", port)
    yield
    nginx.terminate()
    nginx.wait(60)


@contextmanager
def behind_caddy(folder: Path, port: int) -> Iterator[None]:
    printed = folder / "printed" / "Caddyfile"
    check = ["validate", "--adapter", "caddyfile", "--config"]
    environment = {
        **os.environ,
        "HOME": str(folder),
        "XDG_DATA_HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder),
    }
    done = subprocess.run([str(CADDY), *check, str(printed)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder / "Caddyfile").write_text(f"{{\n\tadmin off\n}}\nimport {printed}\n")
    with (folder / "log").open("wb") as log:
        caddy = subprocess.Popen(
            [str(CADDY), "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")],
            env=environment,
            stdout=log,
            stderr=log,
        )
    until(lambda: accepts(port) or caddy.poll() is not None, "Caddy listens")
    assert caddy.poll() is None, (folder / "log").read_text()
    yield
    caddy.terminate()
    caddy.wait(60)


def test_pages_pass_with_the_address_of_the_client(deployed: Served) -> None:
    seen = deployed.get("/seen?a=b", Host="localhost").json()
    assert (seen["REMOTE_ADDR"], seen["secure"], seen["QUERY_STRING"]) == (HOST, False, "a=b")
    assert seen["host"].partition(":")[0] == "localhost"


def test_static_and_media_files_come_from_the_proxy(deployed: Served) -> None:
    for path, text in (("/static/site.css", "body {}"), ("/media/cat.txt", "a cat")):
        answer = deployed.get(path)
        assert (answer.status, answer.text, answer.header("X-Content-Type-Options")) == (200, text, "nosniff")
        assert f'"GET {path} ' not in deployed.output()
    assert deployed.get("/static/none.css").status == 404


def test_a_websocket_passes_and_its_origin_is_checked(deployed: Served) -> None:
    client = deployed.socket("/echo/", Origin=f"http://{HOST}:{deployed.port}")
    assert client.status == 101
    assert client.ask("tea") == "tea"
    assert client.ask(b"\x00" * 100_000) == b"\x00" * 100_000
    client.close(4000)
    assert client.closed() == 4000
    assert deployed.socket("/echo/", Origin="https://evil.example").status == 403


def test_uploads_pass_up_to_the_same_limit(deployed: Served) -> None:
    assert deployed.request("POST", "/hash", b"x" * 900_000).status == 200
    assert deployed.request("POST", "/hash", b"x" * 1_000_001).status == 413


def test_a_stream_passes_at_once(deployed: Served) -> None:
    with deployed.connection() as connection:
        connection.request("GET", "/stream/through%20the%20proxy")
        response = connection.getresponse()
        assert response.readline() == b"first\n"  # it does not wait for the second
        deployed.site.note("through the proxy")
        assert response.read() == b"second\n"


# Projects of all kinds.


MANAGE = """
import os, sys

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", {module!r})
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)
"""
SETTINGS = """
SECRET_KEY = "only for the tests"
ALLOWED_HOSTS = ["127.0.0.1"]
INSTALLED_APPS = ["dbchannels"]
ROOT_URLCONF = {module!r}
DATABASES = {{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": {database!r}}}}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = False

from django.http import HttpResponse
from django.urls import path

urlpatterns = [path("", lambda request: HttpResponse("hello"))]
"""


MIGRATED: list[bytes] = []  # the file of a migrated database


class Project:
    """A small project, with an interpreter of its own beside it."""

    def __init__(self, folder: Path, settings: str = "mysite/settings.py", manage: str = "manage.py") -> None:
        self.folder, self.manage = folder, folder / manage
        module = settings.removesuffix(".py").replace("/", ".")
        home = self.manage.parent if manage.endswith("manage.py") else folder
        database = str(folder / "db.sqlite3")
        for path, text in ((self.manage, MANAGE), (home / settings, SETTINGS)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.format(module=module, database=database))
        venv = folder.parent / "venv 100%"
        (venv / "bin").mkdir(parents=True)
        self.python = venv / "bin" / "python"
        self.python.symlink_to(os.path.realpath(sys.executable))
        (venv / "pyvenv.cfg").write_text(f"home = {Path(os.path.realpath(sys.executable)).parent}\n")
        packages = venv / "lib" / "python{}.{}".format(*sys.version_info) / "site-packages"
        packages.mkdir(parents=True)
        paths = [str(Path(__file__).parents[2]), *(one for one in sys.path if "packages" in one)]
        (packages / "tests.pth").write_text("\n".join(paths))

    def migrate(self, start: tuple[str, ...] = ()) -> None:
        """Make the database by the command, or as it was made for another project: all have the same tables."""
        file = self.folder / "db.sqlite3"
        if MIGRATED:
            file.write_bytes(MIGRATED[0])
        else:
            self.run("migrate", "--verbosity", "0", start=start)
            MIGRATED.append(file.read_bytes())

    def run(self, *arguments: str, cwd: Path | None = None, start: tuple[str, ...] = ()) -> str:
        """Run manage.py to its end; return what it prints."""
        done = subprocess.run(
            [str(self.python), *(start or (str(self.manage),)), *arguments],
            cwd=cwd or self.folder,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


#: As systemd and cron give it.
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "TMPDIR": os.environ.get("TMPDIR", "/tmp")}
AWKWARD = 'it\'s 100% & "so"'


@contextmanager
def started(unit: str, folder: Path, *program: str) -> Iterator[int]:
    """Start the command of a unit, by another program if there is one; yield the port at which it serves."""
    found = dict(re.findall(r"^(\w+)=(.*)$", unit.partition("@.service")[0], re.M))
    variables = [words(one)[0].partition("=") for one in re.findall(r"^Environment=(.+)$", unit, re.M)]
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*program, *words(found["ExecStart"])],
            cwd=found["WorkingDirectory"].replace("%%", "%"),
            env={**ENVIRONMENT, **{name: value for name, _, value in variables}},
            stdout=output,
            stderr=output,
        )
    try:
        until(lambda: "CONTROL-C" in log.read_text() or process.poll() is not None, log.read_text, 60)
        yield int(re.findall(r"http://127\.0\.0\.1:(\d+)", log.read_text())[0])
    finally:
        process.terminate()
        assert process.wait(60) == 0, log.read_text()


@pytest.mark.parametrize(
    ("settings", "manage", "start"),
    [
        ("config/settings/production.py", "manage.py", ()),
        ("settings.py", "manage.py", ()),
        ("mysite/settings.py", "src/app/manage.py", ()),
        ("project/settings.py", "project/__main__.py", ("-m", "project")),
    ],
)
def test_the_units_command_serves_a_project_of_any_shape(
    tmp_path: Path, settings: str, manage: str, start: tuple[str, ...]
) -> None:
    folder = tmp_path / AWKWARD
    project = Project(folder, settings, manage)
    project.migrate(start)
    options = ("--user", "site", "--bind", f"{HOST}:0", "--probe-port", str(free_port()), "--workers", "1")
    options += ("--control", str(tmp_path / "control"))
    unit = project.run("channels_deploy", "systemd", *options, start=start)
    assert f"WorkingDirectory={project.manage.parent if not start else folder}".replace("%", "%%") in unit
    with started(unit, tmp_path) as port:
        assert Served.get(Client(port), "/").text == "hello"  # type: ignore[arg-type]


class Client:
    """Where requests go, for the methods of `Served` that are clients."""

    request, connection = Served.request, Served.connection

    def __init__(self, port: int) -> None:
        self.port = port


def test_the_commands_of_the_image_run(tmp_path: Path) -> None:
    project = Project(tmp_path / "app")
    static = tmp_path / "static"
    with (project.folder / "mysite" / "settings.py").open("a") as settings:
        settings.write(f'\nINSTALLED_APPS += ["django.contrib.staticfiles"]\nSTATIC_ROOT = {str(static)!r}\n')
        settings.write('STATIC_URL = "static/"\n')
    text = project.run("channels_deploy", "docker")
    (collect,) = re.findall(r"^RUN (SECRET_KEY=.+)$", text, re.M)
    (migrate,) = re.findall(r"^    command: (.+)$", text, re.M)
    environment = {**ENVIRONMENT, "PATH": f"{project.python.parent}:/usr/bin:/bin"}
    for command in (collect, shlex.join(json.loads(migrate))):
        done = subprocess.run(
            ["sh", "-c", command], cwd=project.folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert (static / "dbchannels" / "dbchannels.js").exists()
    assert (project.folder / "db.sqlite3").exists()


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    if ANALYZE is None:
        pytest.skip("There is no systemd-analyze.")
    project = Project(tmp_path / AWKWARD)
    project.run("channels_deploy", "systemd", "--name", "site", "--user", "root", "--output", str(tmp_path))
    units = [str(tmp_path / "site.service"), str(tmp_path / "site-worker@.service")]
    done = subprocess.run([ANALYZE, "verify", "--man=no", *units], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    text = Path(units[0]).read_text().replace("/bin/python", "/bin/no-python")
    Path(units[0]).write_text(text)
    done = subprocess.run([ANALYZE, "verify", "--man=no", *units], capture_output=True, text=True)
    assert str(project.python.with_name("no-python")) in done.stderr  # it reads the path as it is


#: What systemd's options for a service do, as far as this can be done without it.
HARDENED = """
for folder in /usr /boot /etc; do mount --bind $folder $folder && mount -o remount,bind,ro $folder || exit 1; done
exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs "$@"
"""


def test_the_server_runs_with_what_the_unit_leaves_it(tmp_path: Path) -> None:
    unshare = ["unshare", "--mount", "sh", "-c"]
    if shutil.which("setpriv") is None or subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("This user cannot make namespaces.")
    project = Project(tmp_path / "site")
    project.migrate()
    options = ("--user", "site", "--bind", f"{HOST}:0", "--probe-port", str(free_port()), "--workers", "1")
    options += ("--control", str(tmp_path / "control"))
    unit = project.run("channels_deploy", "systemd", *options)
    with started(unit, tmp_path, *unshare, HARDENED, "unit") as port:
        assert Served.get(Client(port), "/").text == "hello"  # type: ignore[arg-type]


def test_cron_runs_the_crontab(tmp_path: Path) -> None:
    """The line goes through sh as cron hands it over; a worker runs the message, and ends."""
    site = migrated(sqlite_database(tmp_path), tmp_path)
    done = site.manage("channels_deploy", "cron")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line for line in done.stdout.splitlines() if line and not line.startswith("#")]
    variables = dict(line.split("=", 1) for line in lines if re.match(r"[A-Z_]+=", line))
    assert variables["DJANGO_SETTINGS_MODULE"] == "livesite.settings"
    worker, purge = (line for line in lines if " cd " in line)
    assert re.match(r"(\* ){5}cd ", worker) and re.match(r"\d+ \d+ \* \* \* cd ", purge)
    lock = tmp_path / "worker.lock"

    def run(line: str) -> tuple[int, str, str]:
        command = line.partition(" cd ")[2].replace(r"\%", "%").replace("worker.lock", str(lock))
        environment = {**site.environment(), **variables}
        done = subprocess.run(
            ["sh", "-c", f"cd {command}"], env=environment, capture_output=True, text=True, timeout=60
        )
        return done.returncode, done.stdout, done.stderr

    site.send("ledger", {"text": "by cron"})
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert run(worker) == (1, "", "")  # another one still runs
    assert site.entries() == []
    assert run(worker) == (0, "", "")
    assert (site.entries(), site.count("process")) == (["by cron"], 0)
    assert run(purge) == (0, "", "")
    site.end()
