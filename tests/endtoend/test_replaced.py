"""Workers that are replaced (a message was cancelled, a limit is reached, SIGHUP), and bursts.

Process 1 of a container is here too: a process that takes itself for it, and to which orphans come.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
from pathlib import Path

import pytest

from tests.endtoend.test_life import asked, probes_of
from tests.harness import HOST, Served, children, is_running, until
from tests.soak.sites import options

CANCEL = """
from dbchannels import channel_layers
from dbchannels.models import DurableMessage
print(*channel_layers["default"].cancel(list(DurableMessage.objects.values_list("id", flat=True)), "ann"))
"""


def letters(site):
    return [text for (text,) in site.rows("SELECT error FROM dbchannels_deadletter ORDER BY id")]


def pids(site):
    return {pid for (pid,) in site.rows("SELECT pid FROM livesite_entry")}


# Cancelled.


def test_a_lone_worker_starts_anew_when_what_it_runs_is_cancelled(any_site):
    worker = any_site.work("--only", "ledger")
    any_site.send("ledger", {"text": "hangs", "announce": True, "sleep": 3600})
    until(lambda: any_site.entries() == ["started hangs"], worker.output, 60)
    assert any_site.shell(CANCEL) == "0 1"
    until(lambda: letters(any_site), worker.output, 60)
    (error,) = letters(any_site)
    assert re.match(r"ann cancelled this message after its consumer had run for \d+ s, so its worker ", error)
    assert 'time.sleep(message["sleep"])' in error
    any_site.send("ledger", {"text": "next"})
    until(lambda: "next" in any_site.entries(), worker.output)
    assert "is ended. ann cancelled this message" in worker.output()
    assert worker.output().count("reads ledger") == 2
    assert worker.terminate() == 0


def test_runchannels_replaces_a_worker_at_sighup_and_that_of_a_cancelled_message(site):
    served = site.serve("--workers", "1")
    (old,) = served.workers(1)
    until(lambda: site.count("process") == 2, "it takes messages")
    os.kill(old, signal.SIGHUP)
    until(lambda: not is_running(old) and served.workers(1) != [old], served.output)
    assert served.get("/").status == 200
    assert "starting another" not in served.output()
    (old,) = served.workers(1)
    site.send("ledger", {"text": "hangs", "announce": True, "sleep": 3600})
    until(lambda: site.entries() == ["started hangs"], "it runs")
    assert site.shell(CANCEL) == "0 1"
    until(lambda: letters(site) and served.workers(1) != [old], served.output)
    site.send("ledger", {"text": "next"})
    until(lambda: "next" in site.entries(), served.output)
    assert len(letters(site)) == 1
    assert served.get("/").status == 200


# Bursts.


def test_a_burst_drains_the_channels_and_ends(any_site):
    any_site.send("ledger", *({"text": str(number)} for number in range(5)), {"text": "x", "raise": 99})
    for seen in (6, 0):
        done = any_site.manage("runworker", "--burst", "--only", "ledger", settings=options(retries=0))
        assert done.returncode == 0, done.stderr  # a dead letter is no failure of the worker
        assert f"Nothing is left to do. Messages run: {seen}." in done.stdout
    assert any_site.entries() == [str(number) for number in range(5)]
    assert (any_site.count("durablemessage"), any_site.count("deadletter")) == (0, 1)


def test_a_burst_goes_on_after_a_limit(site_on_sqlite):
    site_on_sqlite.send("ledger", *({"text": str(number)} for number in range(5)))
    done = site_on_sqlite.manage("runworker", "--burst", "--only", "ledger", "--max-messages", "2")
    assert done.returncode == 0, done.stderr
    assert sorted(site_on_sqlite.entries()) == [str(number) for number in range(5)]
    assert len(pids(site_on_sqlite)) == 1


def test_a_burst_ends_at_sigterm(site):
    site.send("ledger", {"text": "slow", "announce": True, "sleep": 1}, {"text": "other"})
    worker = site.work("--burst", "--only", "ledger")
    until(lambda: site.entries() == ["started slow"], worker.output)
    assert worker.terminate() == 0
    assert site.entries() == ["started slow", "slow"]
    assert "Nothing is left" not in worker.output()


# Limits.


def test_runchannels_replaces_workers_that_have_reached_a_limit(site):
    limits = ("--max-messages", "3", "--max-memory", "300M")
    served = site.serve("--workers", "2", *limits, "--probe-port", "0")
    served.workers(2)
    descriptors = len(os.listdir(f"/proc/{served.process.pid}/fd"))
    texts = [str(number) for number in range(12)]
    site.send("ledger", *({"text": text} for text in texts))
    until(lambda: len(site.entries()) == 12, served.output, 60)
    assert sorted(site.entries()) == sorted(texts)
    assert len(pids(site)) == 4
    assert " messages (--max-messages), so another one takes its place." in served.output()
    assert "starting another" not in served.output()
    site.send("ledger", {"text": "grows", "grow": 300 * 2**20}, {"text": "next"})
    until(lambda: "next" in site.entries(), served.output, 60)
    assert site.entries()[12:] == ["grows", "next"]
    assert len(pids(site)) == 6
    assert " MiB of memory (--max-memory), so another one takes its place." in served.output()
    # The server keeps what those that have ended had counted, and nothing else of them.
    done = 'dbchannels_messages_done_total{channel="ledger"} 14\n'
    until(lambda: done in asked(probes_of(served), "/metrics")[1], served.output, 60)
    until(lambda: site.count("process") == 3, "the old workers are off the record", 60)
    until(lambda: len(os.listdir(f"/proc/{served.process.pid}/fd")) <= descriptors, "no descriptor is left")
    assert served.terminate() == 0


def test_a_lone_worker_that_has_reached_a_limit_starts_anew(site_on_sqlite):
    """Its probes go on at the same address."""
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    worker = site_on_sqlite.work("--only", "ledger", "--max-memory", "300M", "--probe-port", str(port))
    site_on_sqlite.send("ledger", {"text": "1"}, {"text": "grows", "grow": 300 * 2**20})
    until(lambda: worker.output().count("Probes: ") == 2, worker.output)
    site_on_sqlite.send("ledger", {"text": "2"})
    until(lambda: site_on_sqlite.entries() == ["1", "grows", "2"], worker.output)
    assert worker.output().count("reads ledger") == 2
    assert pids(site_on_sqlite) == {worker.process.pid}
    assert asked(port, "/readyz") == (200, "Ready.\n")
    assert 'messages_done_total{channel="ledger"} 1\n' in asked(port, "/metrics")[1]  # since it started anew
    assert worker.terminate() == 0


# Signals.


def test_sighup_starts_a_lone_worker_anew_when_its_consumer_has_ended(site):
    worker = site.work("--only", "ledger")
    site.send("ledger", {"text": "slow", "announce": True, "sleep": 1})
    until(lambda: site.entries() == ["started slow"], worker.output)
    worker.process.send_signal(signal.SIGHUP)
    until(lambda: worker.output().count("reads ledger") == 2, worker.output)
    assert site.entries() == ["started slow", "slow"]
    assert worker.terminate(signal.SIGUSR1) == 0
    assert site.count("process") == 0


# Process 1.

#: Runs manage.py as process 1, to which orphans come (PR_SET_CHILD_SUBREAPER), unless this is its child.
FIRST = """
import ctypes, os, runpy, sys
if "FIRST" not in os.environ:
    os.environ["FIRST"] = "1"
    assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0
    os.getpid = lambda: 1
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def as_first(site, *arguments):
    """Start a command as process 1."""
    program = (sys.executable, "-c", FIRST, str(site.manage_py))
    site.processes.append(Served(site, list(arguments), None, program))
    return site.processes[-1]


def command(pid):
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


@pytest.mark.parametrize(
    ("name", "banner"),
    [("runchannels", "quit with CONTROL-C"), ("runserver", "Quit the server with CONTROL-C")],
)
def test_process_1_serves_and_ends_in_good_order(site, name, banner):
    first = as_first(site, name, f"{HOST}:0", "--workers", "1")
    first.wait_ready(banner)
    assert first.get("/").status == 200
    (server,) = children(first.process.pid)
    assert "first.py" in command(first.process.pid) and name in command(server)
    (worker,) = [pid for pid in children(server) if "runworker" in command(pid)]
    assert first.terminate() == 0
    assert "Stopping." in first.output() or name == "runserver"
    assert not is_running(server) and not is_running(worker)


def test_process_1_ends_with_its_server(site):
    first = as_first(site, "runchannels", f"{HOST}:0", "--workers", "1")
    first.wait_ready()
    (server,) = children(first.process.pid)
    (worker,) = until(
        lambda: [pid for pid in children(server) if "runworker" in command(pid)], "the worker runs"
    )
    os.kill(server, signal.SIGKILL)
    assert first.process.wait(60) == 128 + signal.SIGKILL
    until(lambda: not is_running(worker), "its parent's death has ended it")


@pytest.mark.parametrize(
    ("arguments", "number"),
    [(("runchannels", f"{HOST}:0"), signal.SIGTERM), (("runworker",), signal.SIGINT)],
)
def test_a_signal_ends_process_1_while_it_waits_for_the_database(site, arguments, number, monkeypatch):
    monkeypatch.setitem(site.database, "HOST", HOST)
    monkeypatch.setitem(site.database, "PORT", "1")
    first = as_first(site, *arguments)
    first.wait_for_line("Waiting for it")
    assert first.terminate(number) == 128 + number
    assert "Traceback" not in first.output()
