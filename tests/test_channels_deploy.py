"""``manage.py channels_deploy``: the files have the project's paths and settings, each as its format reads it."""

from __future__ import annotations

import grp
import io
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from django.core.management import CommandError, call_command

from dbchannels.management.commands import channels_deploy
from tests.docs import pages

Print = Callable[..., str]
PYTHON, MANAGE = "/srv/site/venv/bin/python", "/srv/site/app/manage.py"
TARGETS = list(channels_deploy.TARGETS)
POSTGRESQL = {"ENGINE": "django.db.backends.postgresql", "NAME": "site"}
SQLITE = {"ENGINE": "django.db.backends.sqlite3", "NAME": "/srv/site/db.sqlite3"}
#: A site in production, as far as the command looks at it.
SITE = {
    "ALLOWED_HOSTS": ["site.example"],
    "DATABASES": {"default": POSTGRESQL},
    "DATA_UPLOAD_MAX_MEMORY_SIZE": 2_621_440,
    "DEBUG": False,
    "FORCE_SCRIPT_NAME": None,
    "MEDIA_ROOT": "",
    "MEDIA_URL": "/",
    "MIDDLEWARE": ["whitenoise.middleware.WhiteNoiseMiddleware"],
    "STATIC_ROOT": "/srv/site/static",
    "STATIC_URL": "/static/",
}


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> Print:
    """Run the command for a site in /srv/site; what it says beside the files is in ``printed.notes``."""
    monkeypatch.delenv("PYTHONPATH", raising=False)

    def run(target: str, *arguments: str, python: str = PYTHON, manage: str = MANAGE, **given: Any) -> str:
        monkeypatch.setattr(channels_deploy, "manage_command", lambda: [python, *manage.split("\0")])
        monkeypatch.setattr(channels_deploy, "settings", SimpleNamespace(**{**SITE, **given}))
        monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "mysite.settings")
        monkeypatch.setattr(channels_deploy, "is_group", lambda name: name == "www-data")
        user = ["--user", "site"] if target == "systemd" and "--user" not in arguments else []
        out, notes = io.StringIO(), io.StringIO()
        call_command("channels_deploy", target, *user, *arguments, stdout=out, stderr=notes, no_color=True)
        run.notes = notes.getvalue()  # type: ignore[attr-defined]
        return out.getvalue()

    return run


def value(text: str, name: str) -> list[str]:
    """Return what a unit says for a name, once or more."""
    return re.findall(rf"^{name}=(.*)$", text, re.M)


def words(line: str) -> list[str]:
    """Return the words of ExecStart as systemd hands them to the program."""
    return [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(line)]


# Which options the files have.


def test_what_runchannels_is_given_is_in_each_file(printed: Print) -> None:
    given = ["--workers", "6", "--max-body", "9000000", "--no-access-log", "--later-timeout", "900.5"]
    unit = printed("systemd", *given)
    command = words(value(unit, "ExecStart")[0])
    assert command[:3] == [PYTHON, "manage.py", "runchannels"]
    assert {*given, "--proxy-headers", "unix:/run/mysite/site.sock", ":www-data"} <= set(command)
    assert "client_max_body_size 9000000;" in printed("nginx", *given)
    assert "proxy_read_timeout 931s;" in printed("nginx", *given)
    (command,) = re.findall(r"^CMD (.+)$", printed("docker", *given), re.M)
    assert set(given) <= set(json.loads(command))


def test_a_default_is_not_repeated(printed: Print) -> None:
    command = words(value(printed("systemd"), "ExecStart")[0])[3:]
    assert command == [
        *("--control", "/run/mysite/control", "--bind", "unix:/run/mysite/site.sock"),
        *("--socket-owner", ":www-data", "--proxy-headers", "--probe-port", "8001"),
    ]


def test_the_server_takes_as_much_as_django_does(printed: Print) -> None:
    assert "client_max_body_size 104857600;" in printed("nginx")
    assert "client_max_body_size 200000000;" in printed("nginx", DATA_UPLOAD_MAX_MEMORY_SIZE=200_000_000)
    unit = printed("systemd", DATA_UPLOAD_MAX_MEMORY_SIZE=200_000_000)
    assert "--max-body 200000000" in unit
    assert "client_max_body_size 104857600;" in printed("nginx", DATA_UPLOAD_MAX_MEMORY_SIZE=None)


def test_a_wrong_option_is_one_sentence(printed: Print) -> None:
    with pytest.raises(CommandError, match="is not an address"):
        printed("systemd", "--bind", "nowhere:")
    with pytest.raises(CommandError, match="--max-body takes no more than --max-spool"):
        printed("docker", "--max-body", "999999999")
    with pytest.raises(CommandError, match="--listen takes a port, such as 8080, or an address and a port"):
        printed("nginx", "--listen", "unix:/run/site.sock")
    with pytest.raises(CommandError, match="give --name, in letters"):
        printed("nginx", "--name", "a/b")
    with pytest.raises(CommandError, match="invalid choice: 'apache'"):
        printed("apache")


# systemd.


@pytest.mark.parametrize(
    ("database", "after"),
    [
        (POSTGRESQL, "network.target postgresql.service"),
        ({**POSTGRESQL, "HOST": "/var/run/postgresql"}, "network.target postgresql.service"),
        ({**POSTGRESQL, "HOST": "localhost"}, "network.target postgresql.service"),
        ({**POSTGRESQL, "HOST": "db.example"}, "network-online.target"),
        ({**POSTGRESQL, "OPTIONS": {"service": "site"}}, "network-online.target"),
        (SQLITE, "network.target"),
        ({}, "network.target"),
    ],
)
def test_the_service_waits_for_a_database_of_this_machine(
    printed: Print, database: dict[str, Any], after: str
) -> None:
    unit, worker = re.split(
        r"^# .*worker@.service\n", printed("systemd", DATABASES={"default": database}), flags=re.M
    )
    assert value(unit, "After") == [after]
    assert value(unit, "Wants") == (["network-online.target"] if after == "network-online.target" else [])
    assert "postgresql.service" not in worker


def test_the_unit_gives_the_server_the_time_that_it_asks_for(printed: Print) -> None:
    assert value(printed("systemd"), "TimeoutStartSec") == ["150"]
    assert value(printed("systemd", "--wait-for-database", "600"), "TimeoutStartSec") == ["690"]
    assert value(printed("systemd"), "TimeoutStopSec")[0] == "20"
    assert value(printed("systemd", "--graceful-timeout", "90.5"), "TimeoutStopSec")[0] == "101"
    assert value(printed("systemd", "--max-connections", "50000"), "LimitNOFILE") == ["200000"]


@pytest.mark.parametrize(
    ("bind", "folder"),
    [
        ("unix:/run/site/site.sock", ["site"]),
        ("unix:/run/a/b/site.sock", ["a/b"]),
        ("unix:/srv/site/site.sock", []),
        ("127.0.0.1:8000", []),
        ("127.0.0.1:8000 --control /run/other/control", ["other"]),
    ],
)
def test_systemd_makes_the_folder_of_the_socket(printed: Print, bind: str, folder: list[str]) -> None:
    arguments = bind if "--control" in bind else f"{bind} --control /srv/site/control"
    unit = printed("systemd", "--bind", *arguments.split())
    assert value(unit, "RuntimeDirectory") == folder
    assert ("--socket-owner" in unit) == bool(value(unit, "SupplementaryGroups")) == bind.startswith("unix:")


def test_an_interpreter_that_is_named_by_a_relative_path_is_written_plainly(printed: Print) -> None:
    """``sys.executable`` of ``../venv/bin/python`` has the dots in it."""
    for target in ("systemd", "cron"):
        text = printed(target, python="/srv/site/app/../venv/bin/python")
        assert PYTHON in text and "/../" not in text


def test_a_reload_starts_a_server_that_takes_over(printed: Print) -> None:
    unit = printed("systemd", "--workers", "8", "--pythonpath", "/srv/more")
    start, reload = words(value(unit, "ExecStart")[0]), words(value(unit, "ExecReload")[0])
    assert reload == [*start, "--takeover", "--detach"]
    assert start[start.index("--control") + 1] == "/run/mysite/control"
    assert value(unit, "RuntimeDirectory") == ["mysite"]
    assert (value(unit, "Type")[0], value(unit, "NotifyAccess")) == ("notify", ["all"])
    for target in ("systemd", "docker"):
        with pytest.raises(CommandError, match="leave them out"):
            printed(target, "--takeover", "--control", "/run/mysite/control")


def test_only_root_can_make_a_socket_in_run_itself(printed: Print) -> None:
    with pytest.raises(CommandError, match="Only root"):
        printed("systemd", "--bind", "unix:/run/site.sock")


def test_what_the_site_needs_is_not_protected_from_it(printed: Print) -> None:
    def protected(*arguments: str, **given: Any) -> set[str]:
        names = ("PrivateTmp", "ProtectHome", "ProtectSystem")
        return {name for name in names if value(printed("systemd", *arguments, **given), name)}

    assert protected() == {"PrivateTmp", "ProtectHome", "ProtectSystem"}
    assert protected(manage="/home/ann/app/manage.py") == {"PrivateTmp", "ProtectSystem"}
    assert protected(python="/root/.pyenv/bin/python") == {"PrivateTmp", "ProtectSystem"}
    assert protected(MEDIA_ROOT="/usr/local/media") == {"PrivateTmp", "ProtectHome"}
    assert protected(DATABASES={"default": {**POSTGRESQL, "HOST": "/tmp"}}) == {
        "ProtectHome",
        "ProtectSystem",
    }
    assert protected("--bind", "unix:/tmp/site.sock") == {"ProtectHome", "ProtectSystem"}
    assert value(printed("systemd", "--bind", "0.0.0.0:80"), "AmbientCapabilities")
    assert not value(printed("systemd", "--bind", "0.0.0.0:8080"), "AmbientCapabilities")


def test_the_owner_of_the_project_runs_it_but_never_root(printed: Print, tmp_path: Path) -> None:
    class Folder(type(tmp_path)):  # type: ignore[misc]
        owner_id = 12_345_678

        def stat(self, **keywords: Any) -> Any:
            return SimpleNamespace(st_uid=self.owner_id)

    program = channels_deploy.Program(Folder("/srv/site"), PYTHON, ["manage.py"])
    values = {"socket_owner": ""}
    config = channels_deploy.LaunchConfig()
    assert channels_deploy.systemd_context(program, values, config, "")["user"] == "12345678"
    Folder.owner_id = 0
    with pytest.raises(CommandError, match="belongs to root, who must not run a site: give --user"):
        channels_deploy.systemd_context(program, values, config, "")
    with pytest.raises(CommandError, match="is no name of a user"):
        printed("systemd", "--user", "a b")


# How each format writes a value.


AWKWARD = '/srv/a b 100%/it\'s "x" $HOME;#'


def test_a_unit_has_an_awkward_path_as_systemd_reads_it(printed: Print) -> None:
    unit = printed("systemd", python="/srv/a b 100%/bin/python", manage=f"{AWKWARD}/site.py")
    command = value(unit, "ExecStart")[0]
    assert words(command)[:2] == ["/srv/a b 100%/bin/python", "site.py"]
    assert value(unit, "WorkingDirectory")[0] == AWKWARD.replace("%", "%%")
    unit = printed("systemd", "--bind", f"unix:{AWKWARD}/s")
    assert f"unix:{AWKWARD}/s" in words(value(unit, "ExecStart")[0])
    assert "$$HOME" in unit and "100%%" in unit


def test_nginx_and_caddy_have_it_in_quotes(printed: Print) -> None:
    assert r'alias "/srv/a b/it\"s \\/";' in printed("nginx", STATIC_ROOT='/srv/a b/it"s \\')
    assert r'root * "/srv/a b/it\"s $x"' in printed("caddy", STATIC_ROOT='/srv/a b/it"s $x')


def test_a_crontab_has_it_as_cron_reads_it(printed: Print) -> None:
    line = printed("cron", python=f"{AWKWARD}/bin/python", manage=f"{AWKWARD}/manage.py").splitlines()[-1]
    assert not re.search(r"(?<!\\)%", line)
    found = shlex.split(line.replace(r"\%", "%").partition(" cd ")[2])
    assert found[0] == AWKWARD and f"{AWKWARD}/bin/python" in found


@pytest.mark.parametrize(
    ("target", "given", "sentence"),
    [
        ("nginx", {"STATIC_ROOT": "/srv/a$b"}, "a configuration of nginx, because it contains '\\$'"),
        ("caddy", {"STATIC_ROOT": "/srv/a{b}"}, "a Caddyfile, because it contains '{'"),
        ("systemd", {"python": "/srv/a$b/python"}, "ExecStart of systemd, because it contains '\\$'"),
        ("systemd", {"manage": "/srv/a \n/manage.py"}, r"because it contains '\\n'"),
        ("systemd", {"manage": "/srv/a\\/manage.py"}, "because of its end"),
        ("nginx", {"STATIC_ROOT": "/srv/a\nb"}, r"because it contains '\\n'"),
        ("caddy", {"STATIC_ROOT": "/srv/a\nb"}, r"because it contains '\\n'"),
        ("cron", {"manage": "/srv/a\nb/manage.py"}, r"because it contains '\\n'"),
        ("docker", {"manage": "/srv/a\nb/manage.py"}, r"because it contains '\\n'"),
        ("docker", {"MEDIA_ROOT": "/srv/a b"}, "cannot be written into a Dockerfile"),
        ("nginx", {"ALLOWED_HOSTS": ["a; b"]}, "is no name of a host"),
    ],
)
def test_what_a_format_cannot_write_is_refused(
    printed: Print, target: str, given: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(CommandError, match=sentence):
        printed(target, **given)


# The proxies.


def test_static_and_media_files_are_served_by_the_proxy(printed: Print) -> None:
    given = {"MEDIA_URL": "/media/", "MEDIA_ROOT": Path("/srv/site/media")}
    text = printed("nginx", **given)
    assert re.findall(r"location (\S+) \{\n    alias (\S+);", text) == [
        ("/static/", "/srv/site/static/"),
        ("/media/", "/srv/site/media/"),
    ]
    text = printed("caddy", **given)
    assert re.findall(r"handle_path (\S+) \{\n\t\troot \* (\S+)\n", text) == [
        ("/static/*", "/srv/site/static"),
        ("/media/*", "/srv/site/media"),
    ]


@pytest.mark.parametrize(
    "given",
    [
        {"STATIC_ROOT": None},
        {"STATIC_URL": "https://cdn.example/static/"},
        {"STATIC_URL": "//cdn.example/static/"},
        {"STATIC_URL": None},
        {"STATIC_URL": "/"},
        {"STATIC_URL": "/shop/", "FORCE_SCRIPT_NAME": "/shop"},
    ],
)
def test_what_another_host_serves_is_left_to_it(printed: Print, given: dict[str, Any]) -> None:
    assert "alias" not in printed("nginx", **given)
    assert ("STATIC_ROOT is not set" in printed.notes) == ("STATIC_ROOT" in given)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("hosts", "nginx", "caddy"),
    [
        (["site.example", ".other.example"], "site.example .other.example", "site.example, other.example"),
        (
            ["site.example", "127.0.0.1", "[::1]", "localhost"],
            "site.example 127.0.0.1 [::1] localhost",
            "site.example",
        ),
        ([], "_", ":80"),
        (["*"], "_", ":80"),
        (["*", "site.example"], "_", "site.example"),
    ],
)
def test_the_names_of_the_site_are_those_of_django(
    printed: Print, hosts: list[str], nginx: str, caddy: str
) -> None:
    text = printed("nginx", ALLOWED_HOSTS=hosts)
    assert f"  server_name {nginx};" in text
    assert ("certbot --nginx -d" in text) == (caddy != ":80")
    assert ("names no single host" in printed.notes) == (nginx == "_")  # type: ignore[attr-defined]
    assert ("is empty" in printed.notes) == (not hosts)  # type: ignore[attr-defined]
    assert f"\n{caddy} {{\n" in printed("caddy", ALLOWED_HOSTS=hosts)


def test_a_site_below_a_path_is_reached_there(printed: Print) -> None:
    given = {"FORCE_SCRIPT_NAME": "/shop/", "STATIC_URL": "/shop/static/"}
    assert "--root-path /shop " in printed("systemd", **given)
    assert "  location /shop/ {\n    proxy_pass http://mysite;" in printed("nginx", **given)
    assert "\thandle /shop* {\n" in printed("caddy", **given)


def test_the_proxy_reaches_the_server_where_it_listens(printed: Print) -> None:
    for bind, nginx, caddy in (
        ("unix:/run/mysite/site.sock", "unix:/run/mysite/site.sock", "unix//run/mysite/site.sock"),
        ("0.0.0.0:8000", "127.0.0.1:8000", "127.0.0.1:8000"),
        ("[::]:8000", "[::1]:8000", "[::1]:8000"),
    ):
        assert f"server {nginx} " in printed("nginx", "--bind", bind).replace('"', "")
        assert f"reverse_proxy {caddy} " in printed("caddy", "--bind", bind).replace('"', "")
    assert "keepalive 16;" in printed("nginx")
    assert "keepalive 16;" not in printed("nginx", "--keep-alive-timeout", "0")


def test_two_sites_on_one_nginx_have_names_of_their_own(printed: Print) -> None:
    found = [
        set(re.findall(r"upstream (\S+)|map \S+ (\S+)", printed("nginx", "--name", one)))
        for one in ("a-1", "b")
    ]
    assert not found[0] & found[1]
    assert "$connection_a_1;" in printed("nginx", "--name", "a-1")


# The program.


@pytest.mark.parametrize(
    ("manage", "start"),
    [
        ("/srv/site/app/manage.py", [PYTHON, "manage.py"]),
        ("-m\0project", [PYTHON, "-m", "project"]),
        ("/srv/site/venv/bin/django-admin", [PYTHON, "/srv/site/venv/bin/django-admin"]),
    ],
)
def test_the_program_is_started_as_this_one_was(printed: Print, manage: str, start: list[str]) -> None:
    unit = printed("systemd", manage=manage)
    folder = "/srv/site/app" if manage == MANAGE else str(Path.cwd())
    assert value(unit, "WorkingDirectory")[0] == folder
    assert words(value(unit, "ExecStart")[0])[: len(start)] == start
    assert value(unit, "Environment")[0] == "DJANGO_SETTINGS_MODULE=mysite.settings"
    command = json.loads(re.findall(r"^CMD (.+)$", printed("docker", manage=manage), re.M)[0])
    assert command[: command.index("runchannels")] == {
        "manage.py": ["python", "manage.py"],
        "project": ["python", "-m", "project"],
    }.get(start[-1], ["django-admin"])


def test_the_name_is_that_of_the_settings(printed: Print, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "upstream mysite {" in printed("nginx")
    assert channels_deploy.default_name(Path("/srv/my site")) == "mysite"
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "settings")
    assert channels_deploy.default_name(Path("/srv/my site")) == "my-site"


# The pages.


@pytest.mark.parametrize(
    ("page", "targets"),
    [("deploying", ["systemd", "nginx", "caddy"]), ("containers", ["docker"]), ("cron", ["cron"])],
)
def test_a_page_shows_what_is_printed(printed: Print, page: str, targets: list[str]) -> None:
    text = "\n".join(printed(target, "--name", "site") for target in targets)
    text = re.sub(r"^FROM python:3\.\d+-", "FROM python:3.12-", text, flags=re.M)
    shown = [one for one in pages.blocks(page) if one.code.startswith(f"# {one.caption}\n")]
    assert len(shown) == sum(len(channels_deploy.TARGETS[target]) for target in targets) - (
        page == "containers"
    )
    for one in shown:
        assert one.code in text, one.caption


# Docker.


KEYS = {
    *("image", "build", "command", "environment", "volumes", "healthcheck", "depends_on", "ports", "init"),
    *(
        "read_only",
        "tmpfs",
        "mem_limit",
        "security_opt",
        "cap_drop",
        "stop_signal",
        "stop_grace_period",
        "restart",
    ),
}


def compose_of(text: str) -> str:
    return text.partition("# compose.yaml")[2]


def test_the_compose_file_has_keys_that_compose_knows(printed: Print) -> None:
    text = compose_of(printed("docker", MEDIA_ROOT="/srv/site/media"))
    services = text.partition("\nservices:\n")[2].partition("\nvolumes:\n")[0]
    assert set(re.findall(r"^    (\w+):", services, re.M)) <= KEYS
    assert re.findall(r"^  (\w+):$", services, re.M) == ["database", "migrate", "site"]
    assert re.findall(r"^  (\w+):$", text.partition("\nvolumes:\n")[2], re.M) == ["database", "media"]
    assert "\t" not in text and not re.search(r"^(?:  )* \S", text, re.M)
    found = yaml.safe_load(text)
    assert found["services"]["site"]["environment"] == found["services"]["migrate"]["environment"]
    assert found["services"]["site"]["volumes"] == ["media:/srv/site/media"]


def test_the_container_has_memory_for_what_its_options_allow(printed: Print) -> None:
    assert "mem_limit: 1024m" in printed("docker")
    assert 'tmpfs: ["/tmp:size=256m"]' in printed("docker")
    text = printed("docker", "--workers", "8", "--max-spool", str(2**30))
    assert "mem_limit: 2048m" in text and 'tmpfs: ["/tmp:size=1152m"]' in text


def test_the_image_is_built_where_the_list_of_packages_is(printed: Print, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    manage = str(tmp_path / "src" / "manage.py")
    assert "has no requirements.txt" in (printed("docker", manage=manage), printed.notes)[1]  # type: ignore[attr-defined]
    (tmp_path / "pyproject.toml").touch()
    text = printed("docker", manage=manage, MEDIA_ROOT=tmp_path / "media")
    assert f"# Put the three files into {tmp_path}," in text
    assert "WORKDIR /app/src\n" in text and "RUN pip install --no-cache-dir .\n" in text
    assert 'volumes: ["media:/app/media"]' in text
    assert "install --directory --owner site /app/media\n" in text
    (tmp_path / "requirements.txt").touch()
    assert "COPY requirements.txt .\n" in printed("docker", manage=manage)


def test_the_groups_of_web_servers_are_those_of_this_machine() -> None:
    assert channels_deploy.is_group(grp.getgrgid(0).gr_name)
    assert not channels_deploy.is_group("no such group")


def test_a_container_needs_a_port(printed: Print) -> None:
    with pytest.raises(CommandError, match="health check of a container needs --probe-port"):
        printed("docker", "--probe-port", "")
    with pytest.raises(CommandError, match=r"give --bind 0\.0\.0\.0:8000"):
        printed("docker", "--bind", "unix:/run/site/site.sock")
    text = printed("docker", "--bind", "0.0.0.0:9000", "--probe-port", "9001")
    assert "EXPOSE 9000" in text and ":9001/readyz" in text and '"127.0.0.1:9000:9000"' in text


def test_what_a_container_lacks_is_said(printed: Print) -> None:
    printed("docker", MIDDLEWARE=[], DATABASES={"default": SQLITE}, DEBUG=True)
    notes = printed.notes.splitlines()  # type: ignore[attr-defined]
    assert [one.split()[0] for one in notes] == ["DEBUG", "Nothing", "/srv/site/app", "The"]


# Writing them.


@pytest.mark.parametrize("target", TARGETS)
def test_files_are_written_and_never_replaced_unasked(printed: Print, tmp_path: Path, target: str) -> None:
    folder = tmp_path / "new" / "folder"
    text = printed(target)
    assert "Wrote" in printed(target, "--output", str(folder))
    found = {path.name: path.read_text() for path in folder.iterdir()}
    assert len(found) == len(channels_deploy.TARGETS[target])
    assert sorted(text) == sorted("\n".join(found.values()))
    for name, content in found.items():
        assert content.startswith("# ") and content.partition("\n")[0].endswith(name)
        (folder / name).write_text("mine")
    with pytest.raises(CommandError, match="exists: add --force to replace it"):
        printed(target, "--output", str(folder))
    assert {path.read_text() for path in folder.iterdir()} == {"mine"}
    printed(target, "--output", str(folder), "--force")
    assert {path.name: path.read_text() for path in folder.iterdir()} == found


def test_a_folder_that_cannot_be_written_is_one_sentence(printed: Print, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CommandError, match="cannot be written: "):
        printed("nginx", "--output", str(tmp_path / "file"))


@pytest.mark.parametrize("target", TARGETS)
def test_the_text_has_no_traces_of_its_template(printed: Print, target: str) -> None:
    text = printed(target)
    assert "{%" not in text and "&#" not in text and "None" not in text
    assert "\n\n\n" not in text and not re.search(r"[ \t]+$", text, re.M)
