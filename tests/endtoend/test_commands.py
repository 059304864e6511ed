"""The commands: what they say of bad input, what they print, how they end, and what they leave behind."""

from __future__ import annotations

import re
import secrets
import signal
import socket
from typing import Any

import pytest

from tests.endtoend.conftest import postgresql_database
from tests.harness import HOST, LiveSite, Served, is_running, until

#: Dead is who has not renewed its lease for so long, in seconds; on SQLite three times that.
SHORT_LEASE = {"DBCHANNELS": {"default": {"OPTIONS": {"lease": 0.6}}}}
EMPTY = ("process", "inflight", "connection", "membership")


def complaint(site: LiveSite, *arguments: str, settings: dict[str, Any] | None = None) -> str:
    """Run a command that cannot do what it is asked to; return all that it says, without the prefix."""
    done = site.manage(*arguments, settings=settings)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    return (done.stdout + done.stderr).strip().removeprefix("CommandError: ")


def layer(**entry: Any) -> dict[str, Any]:
    """Return the settings of a site whose DBCHANNELS has this entry."""
    return {"DBCHANNELS": {"default": entry}}


def elsewhere(site: LiveSite, **changes: Any) -> LiveSite:
    """Return the site with its database looked for elsewhere."""
    return LiveSite({**site.database, **changes}, site.folder)


def left_over(site: LiveSite) -> dict[str, int]:
    """Return which of our tables have rows, and how many."""
    return {table: number for table in EMPTY if (number := site.count(table))}


def family(served: Served) -> list[int]:
    """Return the process ids of a command and its workers, once each worker is on record."""
    workers = until(
        lambda: [pid for pid in served.workers() if on_record(served.site, pid)], "a worker is there"
    )
    return [served.process.pid, *workers]


def on_record(site: LiveSite, pid: int) -> bool:
    """Whether a process has registered."""
    return bool(site.count("process", f"pid = {pid}"))


# What is wrong is said in one sentence, which says what to do.


@pytest.mark.parametrize("command", ["runchannels", "runworker"])
def test_an_unknown_setting(site, command):
    assert complaint(site, command, settings=layer(BACKED="x")) == (
        "DBCHANNELS['default'] has the unknown key 'BACKED': write 'BACKEND'."
    )
    assert complaint(site, command, settings=layer(OPTIONS={"expire": 1})) == (
        "DBCHANNELS['default']['OPTIONS'] has the unknown key 'expire': write 'expiry'."
    )


def test_an_unknown_setting_is_found_by_check_too(site):
    found = complaint(site, "check", settings=layer(BACKED="x"))
    assert "(dbchannels.E001) DBCHANNELS['default'] has the unknown key 'BACKED': write 'BACKEND'." in found


def test_a_bad_channel_name_in_the_routing(site):
    said = complaint(site, "runworker", settings=layer(ROUTING="livesite.bad_routing"))
    assert said.startswith(
        "The name of a channel contains ' ' as character 8: write 'reports for jo' with ASCII letters, "
    )
    assert said in complaint(site, "runchannels", f"{HOST}:0", settings=layer(ROUTING="livesite.bad_routing"))


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        ("Channel('reports for jo')", "contains ' ' as character 8"),
        ("Group('a!b')", "remove it from 'a!b'"),
        ("Channel('ledger').send({'tags': {'a'}})", "sorted"),
        ("Channel('ledger').send({'text': 'x' * 2_000_000})", "raise OPTIONS['max_message_size']"),
    ],
)
def test_what_cannot_be_sent_is_said_to_the_sender(site, statement, sentence):
    said = site.shell(
        "from dbchannels import Channel, Group\nfrom dbchannels.exceptions import DBChannelsError\n"
        f"try: {statement}\nexcept DBChannelsError as error: print(error)"
    )
    assert sentence in said
    assert len(said.splitlines()) == 1
    assert site.count("durablemessage") == 0


def test_a_port_in_use(site):
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        assert complaint(site, "runchannels", f"{HOST}:{port}") == (
            f"{HOST}:{port} cannot be used (Address already in use): "
            "stop what listens there, or name another port."
        )
    assert left_over(site) == {}


@pytest.mark.parametrize("address", ["localhost:http", "127.0.0.1:70000"])
def test_a_bad_address(site, address):
    assert complaint(site, "runchannels", address) == (
        f"{address!r} is not an address: give a port, as 8000, or an address and a port, as 0.0.0.0:8000."
    )


def test_a_bad_number_of_workers(site):
    assert (
        complaint(site, "runchannels", f"{HOST}:0", "--workers", "-1") == "--workers takes a number from 0."
    )


@pytest.mark.parametrize("command", ["runchannels", "runworker"])
def test_a_database_that_is_down(site, command):
    with socket.create_server((HOST, 0)) as closed:
        port = closed.getsockname()[1]
    said = complaint(elsewhere(site, HOST=HOST, PORT=port), command, "--wait-for-database", "0")
    assert "Connection refused" in said
    assert "DATABASES" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("command", ["runchannels", "runworker"])
@pytest.mark.parametrize(("key", "said"), [("NAME", "does not exist"), ("USER", "no_such_name")])
def test_a_database_that_will_never_take_it_is_not_waited_for(site, command, key, said):
    found = complaint(elsewhere(site, **{key: "no_such_name"}), command)
    assert said in found
    assert "Waiting" not in found and len(found.splitlines()) == 1


@pytest.mark.parametrize("command", ["runchannels", "runworker"])
def test_missing_migrations(site, command):
    bare = elsewhere(site, NAME=postgresql_database("dbchannels_bare")["NAME"])
    said = complaint(bare, command)
    assert "manage.py migrate" in said
    assert len(said.splitlines()) == 1


def test_missing_migrations_on_sqlite(sqlite_site, tmp_path):
    said = complaint(elsewhere(sqlite_site, NAME=str(tmp_path / "bare.sqlite3")), "runchannels", f"{HOST}:0")
    assert "manage.py migrate" in said
    assert len(said.splitlines()) == 1


def test_patterns_that_leave_nothing(site):
    sentence = "No channel with a consumer is left: change --only or --exclude."
    assert complaint(site, "runworker", "--only", "unheard-of") == sentence
    assert complaint(site, "runworker", "--exclude", "*") == sentence
    assert left_over(site) == {}


@pytest.mark.parametrize("command", ["runchannels", "runworker"])
def test_an_unknown_layer(site, command):
    assert complaint(site, command, "--layer", "other") == (
        "DBCHANNELS has no layer 'other': add it, or use 'default'."
    )


@pytest.mark.parametrize("command", ["runchannels", "runworker"])
def test_a_layer_that_no_other_process_can_reach(site, command):
    said = complaint(site, command, settings=layer(BACKEND="memory"))
    assert said.startswith("This layer lives in one process")


# What is printed.


def test_the_banner_says_what_runs_where(served):
    lines = served.output().splitlines()
    assert re.match(r"dbchannels \d\S*, Django 5\S*, settings 'livesite.settings'$", lines[0])
    assert re.match(
        rf"Layer: +PostgreSQL \d\S*, database {served.site.database['NAME']}; wakeups by LISTEN/NOTIFY$",
        lines[1],
    )
    assert lines[2] == "Workers: 2 processes, one kept for http.* and websocket.*"
    assert lines[3] == (
        f"Serving http://{HOST}:{served.port}/ and WebSockets on the same port; quit with CONTROL-C."
    )


def test_the_banner_names_a_sqlite_file(sqlite_site):
    sqlite_site.empty()
    try:
        output = sqlite_site.serve("--workers", "0").output()
    finally:
        sqlite_site.end()
    assert "SQLite" in output
    assert "Workers: none here: start them with runworker" in output


def test_each_request_is_a_line_in_the_log(served):
    served.get("/seen?line=1")
    until(lambda: '"GET /seen?line=1 HTTP/1.1" 200 ' in served.output(), "a line for the request")


# The end.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything_in_good_order(any_site, number):
    served = any_site.serve("--workers", "1")
    clients = [served.socket("/room/tea/") for _ in range(3)]
    pids = family(served)
    served.process.send_signal(number)
    assert [client.closed() for client in clients] == [1001] * 3
    assert served.process.wait(20) == 0
    assert any_site.entries() == ["left tea 1001"] * 3
    assert [pid for pid in pids if is_running(pid)] == []
    assert left_over(any_site) == {}
    said = served.output().splitlines()
    after = said[said.index("Stopping.") + 1 :]
    assert [line for line in after if '"WSDISCONNECT /room/tea/ HTTP/1.1" 1001 ' not in line] == []


def test_a_request_under_way_is_finished_before_the_end(site):
    served = site.serve("--workers", "1")
    name = secrets.token_hex(4)
    with served.connection() as connection:
        connection.request("GET", f"/stream/{name}")
        response = connection.getresponse()
        assert response.readline() == b"first\n"
        served.process.terminate()
        until(lambda: "Stopping." in served.output(), "it has begun to stop")
        with pytest.raises(ConnectionRefusedError):
            until(lambda: served.get("/").status == 0, "the port is closed", 5)
        site.note(name)
        assert response.read() == b"second\n"
    assert served.process.wait(20) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_worker_ends_by_a_signal(site, number):
    worker = site.work()
    assert worker.terminate(number) == 0
    assert left_over(site) == {}
    assert "Traceback" not in worker.output()


def test_a_killed_server_takes_its_workers_along_and_others_clean_up(any_site):
    served = any_site.serve("--workers", "2", settings=SHORT_LEASE)
    clients = [served.socket("/room/tea/") for _ in range(3)]
    pids = family(served)
    assert any_site.count("connection") == any_site.count("membership") == 3
    served.process.kill()
    served.process.wait()
    assert [client.closed() for client in clients] == [1006] * 3
    until(lambda: not any(is_running(pid) for pid in pids), "its workers have ended")
    other = any_site.work(settings=SHORT_LEASE)
    until(lambda: any_site.entries() == ["left tea 1006"] * 3, "the disconnect consumers have run")
    until(lambda: any_site.count("process") == 1, "only the other one is left")
    assert any_site.count("connection") == any_site.count("membership") == 0
    assert other.terminate() == 0
    assert left_over(any_site) == {}


def test_the_server_imports_no_code_of_the_site(site):
    served = site.serve("--workers", "1", settings={"DEBUG": True})
    assert served.get("/").status == served.get("/static/admin/css/base.css").status == 200
    assert served.socket("/echo/").ask("tea") == "tea"
    (worker,) = served.workers(1)
    for module in ("livesite.urls", "livesite.consumers"):
        assert worker in site.importers(module)
        assert served.process.pid not in site.importers(module)


def test_a_second_signal_ends_it_now(site):
    served = site.serve("--workers", "1")
    with served.connection() as connection:
        connection.request("GET", "/sleep/60000")
        until(lambda: site.count("inflight", "messages LIKE 'http.request %'"), "the view runs")
        served.process.terminate()
        until(lambda: "Stopping." in served.output(), "it has begun to stop")
        pids = [served.process.pid, *served.workers()]
        served.process.terminate()
        assert served.process.wait(10) == 1
    until(lambda: not any(map(is_running, pids)), "its worker has ended too, though its view would run on")
