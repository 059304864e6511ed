"""Worker processes that are started, watched, and started again. Here they are lines of a shell."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import types

import pytest

from dbchannels import supervisor
from dbchannels.doorbell import Doorbell
from dbchannels.supervisor import Supervisor, Task, manage_command, start_worker
from dbchannels.testing.layer_case import wait_until

ENDLESS = "exec sleep 60"
GRACEFUL = "trap 'exit 0' TERM; while :; do sleep 0.02; done"
STUBBORN = "trap '' TERM; while :; do sleep 0.05; done"


class Delays:
    """A Backoff that counts instead of waiting."""

    made = 0
    asked: list[int] = []  # noqa: RUF012  (one for all, which the fixture empties)

    def __init__(self, first=0.0, most=0.0):
        type(self).made += 1
        self.tries = 0

    def delay(self):
        """Wait for nothing."""
        self.tries += 1
        self.asked.append(self.tries)
        return 0.001


@pytest.fixture(autouse=True)
def delays(monkeypatch):
    """Start the dead again at once, and count."""
    monkeypatch.setattr(supervisor, "Backoff", Delays)
    Delays.made = 0
    Delays.asked.clear()
    return Delays


@pytest.fixture
def shell(monkeypatch):
    """Workers are these lines, one for each start, the last one for all that follow: ``shell("exit 3", ENDLESS)``."""
    started = []

    def use(*lines):
        def start(name, task):
            line = lines[min(len(started), len(lines) - 1)]
            started.append((name, task))
            if isinstance(line, Exception):
                raise line
            return subprocess.Popen(["sh", "-c", line], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)

        monkeypatch.setattr(supervisor, "start_worker", start)
        return started

    return use


@pytest.fixture
def supervise():
    """Start a supervisor of so many workers; all that it started has ended when the test has."""
    made = []

    def start(number=1, graceful_timeout=10.0, on_death=None):
        deaths = []
        tasks = [Task((f"--number={position}",), ()) for position in range(number)]
        one = Supervisor(tasks, on_death or deaths.append, graceful_timeout)
        one.deaths = deaths
        made.append(one)
        one.start()
        return one

    yield start
    for one in made:
        one.stop()
        assert one.pids() == []


def is_running(pid):
    """Whether there is such a process; what has ended was waited for."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# Starting, dying, starting again.


def test_each_task_has_a_worker_with_a_name_of_its_own(shell, supervise):
    started = shell(ENDLESS)
    one = supervise(3)
    wait_until(lambda: len(one.pids()) == 3)
    assert sorted(task.arguments for _, task in started) == [
        ("--number=0",),
        ("--number=1",),
        ("--number=2",),
    ]
    assert sorted(name.rsplit("-", 1)[0][:8] for name, _ in started) == ["worker-1", "worker-2", "worker-3"]
    assert len({name for name, _ in started}) == 3
    assert one.deaths == []


def test_one_that_dies_is_told_of_and_started_again_under_a_new_name(shell, supervise):
    started = shell("exit 3", "kill -9 $$", ENDLESS)
    one = supervise()
    wait_until(lambda: len(started) == 3 and one.pids())
    names = [name for name, _ in started]
    assert one.deaths == names[:2]
    assert len(set(names)) == 3
    assert len({task for _, task in started}) == 1


def test_one_that_dies_leaves_the_others_alone(shell, supervise):
    shell(ENDLESS)
    one = supervise(2)
    first, second = wait_until(lambda: len(one.pids()) == 2 and one.pids())
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: len(one.deaths) == 1 and len(one.pids()) == 2)
    assert second in one.pids() and first not in one.pids()


def test_one_that_ends_by_itself_is_started_again_too(shell, supervise):
    started = shell("exit 0", ENDLESS)
    one = supervise()
    wait_until(lambda: len(started) == 2)
    assert one.deaths == [started[0][0]]


def test_one_that_cannot_start_is_tried_again_with_growing_delays(shell, supervise, delays):
    started = shell("exit 3", "exit 3", "exit 3", ENDLESS)
    supervise()
    wait_until(lambda: len(started) == 4)
    assert (delays.asked, delays.made) == ([1, 2, 3], 1)


def test_one_that_had_run_well_starts_the_delays_anew(shell, supervise, delays, monkeypatch):
    monkeypatch.setattr(supervisor, "STEADY", 0.0)
    started = shell("exit 3", "exit 3", "exit 3", ENDLESS)
    supervise()
    wait_until(lambda: len(started) == 4)
    assert delays.asked == [1, 1, 1]


def test_a_machine_without_room_for_a_process_is_tried_again(shell, supervise, caplog):
    started = shell(BlockingIOError(11, "Resource temporarily unavailable"), ENDLESS)
    one = supervise()
    wait_until(lambda: len(started) == 2 and one.pids())
    assert one.deaths == []
    assert "cannot be started" in caplog.text and "Resource temporarily unavailable" in caplog.text


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("exit 3", "Worker 1 ended with status 3"),
        ("kill -9 $$", "Worker 1 was killed by SIGKILL"),
        ("kill -40 $$", "Worker 1 was killed by signal 40"),
    ],
)
def test_each_death_is_logged_in_words(shell, supervise, caplog, line, words):
    started = shell(line, ENDLESS)
    with caplog.at_level(logging.WARNING, "dbchannels.supervisor"):
        supervise()
        wait_until(lambda: len(started) == 2)
    assert words in caplog.text


# The end.


def test_stop_ends_all_workers_and_waits_for_them(shell, supervise):
    shell(GRACEFUL)
    one = supervise(2)
    pids = wait_until(lambda: len(one.pids()) == 2 and one.pids())
    one.stop()
    assert not any(is_running(pid) for pid in pids)
    assert one.pids() == []


def test_one_that_finished_at_stop_is_no_death(shell, supervise):
    started = shell(GRACEFUL)
    one = supervise()
    wait_until(lambda: started and one.pids() and traps(one.pids()[0]))
    one.stop()
    assert one.deaths == []
    assert len(started) == 1


def traps(pid):
    """Whether a process catches or ignores SIGTERM yet (the masks in /proc, by bits)."""
    with open(f"/proc/{pid}/status") as status:
        masks = dict(line.split(":", 1) for line in status if line.startswith(("SigCgt", "SigIgn")))
    return any(int(mask, 16) >> (signal.SIGTERM - 1) & 1 for mask in masks.values())


def test_one_that_does_not_finish_in_time_is_killed_and_that_is_a_death(shell, supervise, monkeypatch):
    monkeypatch.setattr(supervisor, "KILL_AFTER", 0.0)
    started = shell(STUBBORN)
    one = supervise(graceful_timeout=0.01)
    (pid,) = wait_until(lambda: one.pids() and traps(one.pids()[0]) and one.pids())
    one.stop()
    assert not is_running(pid)
    assert one.deaths == [started[0][0]]
    assert len(started) == 1


def test_nothing_is_started_after_stop(shell, supervise):
    started = shell("exit 3")
    one = supervise()
    wait_until(lambda: len(started) > 2)
    one.stop()
    number = len(started)
    assert one.pids() == []
    assert not any(thread.is_alive() for thread in one._threads)
    assert len(started) == number


def test_stop_twice_is_stop_once(shell, supervise):
    shell(ENDLESS)
    one = supervise()
    wait_until(one.pids)
    one.stop()
    one.stop()
    assert one.pids() == []


# How they are started.


@pytest.fixture
def command(monkeypatch):
    """Let workers be this line of Python: ``command("print(1)")``."""

    def use(code):
        monkeypatch.setattr(supervisor, "manage_command", lambda: [sys.executable, "-c", code])

    return use


def test_a_worker_is_runworker_with_its_name_bells_and_arguments(command, capfd):
    command("import sys; print(*sys.argv[1:])")
    bells = (Doorbell.new(), Doorbell.new())
    process = start_worker("worker-1-x", Task(("--only", "http.*"), bells))
    assert process.wait(20) == 0
    process.stdin.close()
    expected = f"runworker --child worker-1-x --bell {bells[0]} --bell {bells[1]} --only http.*"
    assert capfd.readouterr().out.strip() == expected
    for bell in bells:
        for descriptor in bell:
            os.close(descriptor)


def test_a_worker_can_ring_its_bells(command):
    command("import os, sys; os.write(int(sys.argv[5].split(',')[1]), b'!')")
    bell = Doorbell.new()
    process = start_worker("worker-1-x", Task((), (bell,)))
    assert process.wait(20) == 0
    process.stdin.close()
    assert os.read(bell.reader, 10) == b"!"
    for descriptor in bell:
        os.close(descriptor)


def test_a_workers_standard_input_ends_with_its_parent(command):
    command("import sys; sys.exit(7 if sys.stdin.read() == '' else 1)")
    process = start_worker("worker-1-x", Task((), ()))
    assert process.poll() is None
    process.stdin.close()  # as the kernel does for a parent that dies
    assert process.wait(20) == 7


def test_ctrl_c_in_the_terminal_does_not_reach_a_worker(command):
    command("import os, sys; sys.exit(0 if os.getsid(0) == os.getpid() else 1)")
    process = start_worker("worker-1-x", Task((), ()))
    assert process.wait(20) == 0
    process.stdin.close()


@pytest.mark.parametrize(
    ("name", "module"), [("django.__main__", "django"), ("site.manage", "site.manage"), ("manage", "manage")]
)
def test_a_module_is_started_again_as_one(monkeypatch, name, module):
    main = types.SimpleNamespace(__spec__=types.SimpleNamespace(name=name))
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert manage_command() == [sys.executable, "-m", module]


def test_a_script_is_started_again_by_its_whole_path(monkeypatch):
    monkeypatch.setitem(sys.modules, "__main__", types.SimpleNamespace(__spec__=None))
    monkeypatch.setattr(sys, "argv", ["manage.py", "runchannels"])
    assert manage_command() == [sys.executable, os.path.abspath("manage.py")]


def test_a_death_is_told_from_a_thread_that_goes_on(shell, supervise):
    told = threading.Event()
    started = shell("exit 3", ENDLESS)
    one = supervise(on_death=lambda name: told.set())
    assert told.wait(10)
    wait_until(lambda: len(started) == 2 and one.pids())
