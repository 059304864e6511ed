"""What the pages on deploying, containers, cron, runserver and performance show works; so does CONTRIBUTING.rst."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from django.core.checks.security.base import SECRET_KEY_INSECURE_PREFIX
from django.core.management import load_command_class

from dbchannels import Group, Message
from dbchannels.conf import SHORT_BACKENDS
from dbchannels.layers.base import BaseLayer
from dbchannels.protocol import CHUNK
from dbchannels.server.options import LaunchConfig
from tests import kinds
from tests.benchmarks.__main__ import PARTS
from tests.docs import pages
from tests.endtoend.conftest import migrated, postgresql_database, sqlite_database
from tests.harness import HOST, MANAGE, LiveSite, Served, children, close_all, until

ROOT = Path(__file__).parents[2]
CONTRIBUTING = (ROOT / "CONTRIBUTING.rst").read_text()


def block(page: str, caption: str) -> str:
    """Return the code of the block with this caption."""
    (code,) = (one.code for one in pages.blocks(page) if one.caption == caption)
    return code


def ours(text: str) -> list[list[str]]:
    """Return the commands of manage.py in a text, shell lines and JSON lists, each with its arguments."""
    lists = [json.loads(found) for found in re.findall(r'\["python", "manage\.py".*?\]', text, re.DOTALL)]
    lines = [
        shlex.split(found) for found in re.findall(r"python (manage\.py .*?)(?: >/dev/null)?$", text, re.M)
    ]
    return [words[2:] for words in lists] + [words[1:] for words in lines]


@pytest.fixture(autouse=True)
def _close_sockets() -> Iterator[None]:
    yield
    close_all()


# The commands.


@pytest.mark.parametrize("page", ["containers", "cron", "deploying", "performance"])
def test_the_commands_of_a_page_can_be_given_like_this(page: str) -> None:
    given = [
        words
        for one in pages.blocks(page)
        for words in ours(one.code)
        if words[0].startswith(("run", "channels_"))
    ]
    assert given
    for command, *arguments in given:
        parser = load_command_class("dbchannels", command).create_parser("manage.py", command)
        parser.parse_args([argument.replace("$PORT", "8000") for argument in arguments])


@pytest.mark.parametrize("page", ["containers", "cron", "deploying", "performance", "runserver"])
def test_the_options_that_a_page_names_exist(page: str) -> None:
    known = {"--deploy", "--init", "--time", "--layer", "--noreload", "--nothreading"}  # the others' own
    for command in ("runchannels", "runworker", "channels_deploy"):
        parser = load_command_class("dbchannels", command).create_parser("manage.py", command)
        known |= {option for action in parser._actions for option in action.option_strings}
    prose = re.sub(r"``(?:pg_\w+|python -m)[^`]*``|``--(?:quick|data-only)``", "", pages.text(page))
    named = {
        option for text in re.findall(r"``[^`]*``", prose) for option in re.findall(r"--[a-z][a-z-]+", text)
    }
    assert named <= known


# One machine.


def test_the_secret_key_comes_from_the_file_that_the_service_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = pages.text("deploying")
    file, kept = "/etc/site.env", str(tmp_path / "site.env")
    (make,) = (line for line in page.splitlines() if f">>{file}" in line)
    (read,) = (line for line in page.splitlines() if f". {file}" in line)
    assert f"EnvironmentFile=-{file}\n" in block("deploying", "/etc/systemd/system/site.service")
    subprocess.run(make.strip().removeprefix("# ").replace(file, kept), shell=True, check=True)
    shell = (
        f"{read.strip().removeprefix('$ ').replace(file, kept)} && python3 -c 'import os; print(os.environ)'"
    )
    assert "SECRET_KEY" in subprocess.check_output(shell, shell=True, text=True)
    monkeypatch.setenv("SECRET_KEY", Path(kept).read_text().strip().removeprefix("SECRET_KEY="))
    names: dict[str, Any] = {}
    exec(block("deploying", "settings.py"), names)
    assert len(names["SECRET_KEY"]) >= 50 and not names["SECRET_KEY"].startswith(SECRET_KEY_INSECURE_PREFIX)


# Containers.


def test_the_packages_of_the_image_are_what_the_site_imports() -> None:
    for name in block("containers", "requirements.txt").split():
        assert metadata.version(name)


def test_the_settings_read_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    compose = block("containers", "compose.yaml")
    environment = dict(re.findall(r"^      (DATABASE_URL|SECRET_KEY|ALLOWED_HOSTS): (.+)$", compose, re.M))
    assert len(environment) == 3
    for name, value in environment.items():
        monkeypatch.setenv(name, value.strip('"').replace("${DATABASE_PASSWORD:?}", "secret"))
    names: dict[str, Any] = {"BASE_DIR": ROOT}
    exec(block("containers", "mysite/settings.py"), names)
    found = names["DATABASES"]["default"]
    assert (found["ENGINE"], found["HOST"], found["NAME"], found["USER"], found["PASSWORD"]) == (
        "django.db.backends.postgresql",
        "database",
        "site",
        "site",
        "secret",
    )
    assert names["ALLOWED_HOSTS"] == ["site.example"]


def test_the_services_name_each_other_and_get_a_signal_that_they_handle() -> None:
    first, second = (one.code for one in pages.blocks("containers", "yaml"))
    services = re.split(r"^  (?=\w+:\n)", first + textwrap.indent(second, "  "), flags=re.M)
    found = {one.partition(":")[0]: one for one in services}
    for name, service in found.items():
        assert set(re.findall(r"^      (\w+): \{condition", service, re.M)) <= set(found)
        if "stop_signal" in service:
            assert "stop_signal: SIGUSR1" in service and '"runworker"' not in service, name
    assert {"database", "migrate", "site", "server", "worker"} <= set(found)


def test_one_address_may_send_the_largest_body_into_the_tmpfs() -> None:
    (given,) = (words for words in ours(block("containers", "Dockerfile")) if words[0] == "runchannels")
    numbers = {name: int(given[given.index(name) + 1]) for name in given if name.startswith("--max-")}
    assert numbers["--max-body"] * 2 == numbers["--max-spool"]
    assert numbers["--max-spool"] + numbers["--max-response-spool"] == 256 * 2**20
    assert "size=256m" in block("containers", "compose.yaml")


#: As a container runs a program: process 1, on a file system that it cannot write, with a tmpfs, without capabilities
#: but the one to reach what the test run has made for other users.
CONTAINER = """
mount -t tmpfs -o size=64m tmpfs "$TMPDIR" && mount -o remount,bind,ro / &&
exec setpriv --bounding-set=-all,+dac_override --inh-caps=-all --no-new-privs "$@"
"""
UNSHARE = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]


@pytest.fixture
def contained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Served]]:
    """Run commands of manage.py in something like a container."""
    if shutil.which("setpriv") is None or subprocess.run([*UNSHARE, "true"], capture_output=True).returncode:
        pytest.skip("This user cannot make namespaces.")
    site = migrated(postgresql_database("dbchannels_contained"), tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    def run(*arguments: str) -> Served:
        program = [*UNSHARE, "sh", "-c", CONTAINER, "container", sys.executable, str(MANAGE)]
        served = Served(site, list(arguments), None, program)
        site.processes.append(served)
        return served

    yield run
    site.end()


def stop(served: Served, number: int) -> int:
    """Send a signal to process 1, as Docker does; return its exit status."""
    (first,) = children(served.process.pid)
    os.kill(first, number)
    return served.process.wait(30)


def free_port() -> int:
    with socket.socket() as found:
        found.bind((HOST, 0))
        return int(found.getsockname()[1])


@pytest.mark.postgresql
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 1001), ("SIGUSR1", 1012)])
def test_the_image_runs_as_process_1_on_a_read_only_file_system(
    contained: Callable[..., Served], name: str, code: int
) -> None:
    dockerfile = block("containers", "Dockerfile")
    port, probes = free_port(), free_port()
    (command,) = (words for words in ours(dockerfile) if words[0] == "runchannels")
    replaced = {"0.0.0.0:8000": f"{HOST}:{port}", "8001": str(probes)}
    served = contained(*(replaced.get(word, word) for word in command))
    served.wait_ready()
    (check,) = re.findall(r"^  CMD (\[.+\])$", dockerfile, re.M)
    _, _, code_of_check = json.loads(check)
    healthy = [sys.executable, "-c", code_of_check.replace(":8001/", f":{probes}/")]
    until(lambda: subprocess.run(healthy, capture_output=True).returncode == 0, served.output)
    assert served.get("/").text == "hello"
    body = b"x" * 2_000_000  # more than fits into memory
    assert served.request("POST", "/hash", body).status == 200
    assert "could not be stored" not in served.output()
    window = served.socket("/echo/")
    assert window.ask("hello") == "hello"
    assert stop(served, getattr(signal, name)) == 0, served.output()
    assert window.closed() == code


@pytest.mark.postgresql
def test_a_worker_alone_ends_as_process_1(contained: Callable[..., Served]) -> None:
    (command,) = (
        words
        for one in pages.blocks("containers", "yaml")
        for words in ours(one.code)
        if words[0] == "runworker"
    )
    served = contained(*command)
    served.wait_for_line("reads", 60)
    assert stop(served, signal.SIGTERM) == 0, served.output()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[LiveSite]:
    made = migrated(sqlite_database(tmp_path), tmp_path)
    yield made
    made.end()


def test_a_platform_that_names_the_port_reaches_the_site(
    site: LiveSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = dict(line.split(": ", 1) for line in block("containers", "Procfile").splitlines())
    (release,) = ours(steps["release"])
    assert site.manage(*release).returncode == 0
    monkeypatch.setenv("PORT", str(free_port()))
    command = steps["web"].replace("python manage.py", f"exec {sys.executable} {MANAGE}")
    served = Served(site, ["web"], None, ("sh", "-c", command.replace("0.0.0.0:", f"{HOST}:")))
    site.processes.append(served)
    served.wait_ready()
    assert str(served.port) == os.environ["PORT"]
    assert served.get("/").text == "hello"


# Cron.


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home directory with the project and its virtual environment."""
    folder = tmp_path / "site"
    (folder / "venv" / "bin").mkdir(parents=True)
    (folder / "manage.py").symlink_to(MANAGE)
    python = folder / "venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return tmp_path


def test_cron_starts_one_worker_at_a_time_and_ends_it(site: LiveSite, home: Path) -> None:
    site.send("ledger", {"text": "by cron"})
    environment = {**site.environment(), "HOME": str(home)}
    line = block("cron", "crontab, for messages that cannot wait for a minute").strip()
    minute, command = line.split(" cd ", 1)
    assert minute == "* * * * *"
    arguments = ["sh", "-c", f"cd {command}"]
    worker = subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until(lambda: site.entries() == ["by cron"], "a worker that has run the message", 60)
    second = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=60)
    assert (second.returncode, second.stdout, second.stderr) == (1, "", "")
    assert worker.poll() is None
    os.kill(timeout_of(worker.pid), signal.SIGALRM)  # as if the 55 seconds were over
    output, errors = worker.communicate(timeout=60)
    assert (worker.returncode, output, errors) == (124, "", "")
    assert site.count("process") == 0


def timeout_of(pid: int) -> int:
    """Return the process id of ``timeout`` below a process."""
    below = children(pid)
    for child in below:
        if Path(f"/proc/{child}/comm").read_text().strip() == "timeout":
            return child
    return timeout_of(below[0])


def test_the_page_on_cron_sends_what_its_consumer_takes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dbchannels.routing.table._decorated", [])
    names: dict[str, Any] = {}
    exec(block("cron", "shop/consumers.py"), names)
    names["make_invoice"](Message("invoices", {"order": 7}))
    assert capsys.readouterr().out == "an invoice for order 7\n"
    assert '"order": 7' in block("cron", "shop/views.py")


# One machine.


def test_systemd_takes_what_a_takeover_and_socket_activation_need(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("There is no systemd-analyze.")
    for name in ("site.service", "site.socket"):
        unit = block("deploying", f"/etc/systemd/system/{name}")
        unit = unit.replace("/srv/site/venv/bin/python", sys.executable).replace("=site\n", "=root\n")
        (tmp_path / name).write_text(unit)
    for name in ("site.service", "site.socket"):
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(tmp_path / name)],
            env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_runserver_is_ours_with_these_settings() -> None:
    names: dict[str, Any] = {}
    exec(block("runserver", "settings.py"), names)
    apps = names["INSTALLED_APPS"]
    assert apps.index("dbchannels") < apps.index("django.contrib.staticfiles")
    exec(block("runserver", "settings.py, in place of the database"), names)
    assert names["DBCHANNELS"]["default"]["BACKEND"] in SHORT_BACKENDS


# Performance.


def pending(layer: BaseLayer, channel: str) -> float:
    return layer.channel_statistics(channel)["messages_pending"]


@kinds.only("postgresql", "memory")
def test_what_makes_a_site_faster_works(
    layer: BaseLayer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found: list[Any] = []
    monkeypatch.setattr("dbchannels.routing.table._decorated", found)
    names: dict[str, Any] = {"__name__": "gallery.tasks"}
    for caption in ("gallery/tasks.py", "ledger/consumers.py", "prices/views.py"):
        exec(block("performance", caption), names)
    names["remake"](range(3))
    assert pending(layer, "thumbnails") == 3
    Group("prices").add("reply.a!b")
    names["publish"]("7.50")
    assert layer.receive(["reply.a!"]) == ("reply.a!b", {"text": "7.50"})
    (booked,) = found
    assert booked.options.atomic
    names["book"](Message("bookings", {"bookings": [1, 2]}))
    assert capsys.readouterr().out == "booked 1\nbooked 2\n"


def test_the_page_on_performance_names_the_limits_of_the_server() -> None:
    page = pages.text("performance")
    assert f"**{LaunchConfig.server.max_connections:,} connections" in page
    assert f"each {CHUNK // 1024} KiB" in page


# Programs beside the package.


@pytest.mark.parametrize(
    "text", [pages.text("performance"), CONTRIBUTING], ids=["performance", "CONTRIBUTING"]
)
def test_the_programs_that_a_page_names_exist(text: str) -> None:
    named = re.findall(r"python -m (tests\.[\w.]+)((?: [\w-]+)*)", text)
    assert named
    for module, arguments in named:
        assert importlib.util.find_spec(module), module
        if module == "tests.benchmarks":
            assert set(arguments.split()) <= {"--quick", *PARTS}


def test_the_files_and_extras_that_contributing_names_are_there() -> None:
    for path in re.findall(r"``((?:dbchannels|docs|examples|tests)/[\w./-]*|\w+\.rst)``", CONTRIBUTING):
        assert (ROOT / path).exists(), path
    (extras,) = re.findall(r"-e '\.\[(.+)\]'", CONTRIBUTING)
    provided = metadata.metadata("dbchannels").get_all("Provides-Extra") or []
    assert set(extras.split(",")) <= set(provided)


def test_the_mark_that_contributing_names_is_known(pytestconfig: pytest.Config) -> None:
    (mark,) = re.findall(r'-m "not (\w+)"', CONTRIBUTING)
    assert any(line.startswith(f"{mark}:") for line in pytestconfig.getini("markers"))
