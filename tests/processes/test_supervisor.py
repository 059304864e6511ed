"""Worker processes that are started, watched, and started again. Here they are lines of a shell."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
import types
from functools import partial

import pytest

from dbchannels.measures import DONE, new_report, parse_report, total
from dbchannels.processes import production, supervisor
from dbchannels.processes.supervisor import Supervisor, Task, WorkerProcess, manage_command, start_worker
from dbchannels.testing.contract.case import wait_until
from dbchannels.wakeup import WakeupPipe
from dbchannels.worker.batch import Measures
from dbchannels.worker.sampler import Report

ENDLESS = "exec sleep 60"
GRACEFUL = "trap 'exit 0' TERM; while :; do sleep 0.02; done"
READY = "READY; exec sleep 60"
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
            return child(name, line)

        monkeypatch.setattr(supervisor, "start_worker", start)
        return started

    return use


def child(name, line):
    """Start a shell as a worker; ``READY`` in its line says that it is ready."""
    reader, writer = os.pipe()
    line = line.replace("READY", f"printf ! >/proc/self/fd/{writer}")
    process = subprocess.Popen(
        ["sh", "-c", line], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=[writer]
    )
    os.close(writer)
    return WorkerProcess(name, process, reader, new_report())


def pids_of(one):
    """Return the process ids of its workers."""
    return [worker.process.pid for worker in one._processes]


@pytest.fixture
def supervise():
    """Start a supervisor of so many workers; all that it started has ended when the test has."""
    made = []

    def start(number=1, graceful_timeout=10.0, on_death=None, kinds=("hwd",)):
        deaths = []
        each = [dict.fromkeys(kinds[position % len(kinds)]) for position in range(number)]
        tasks = [Task((f"--number={position}",), wakeups) for position, wakeups in enumerate(each)]
        one = Supervisor(tasks, on_death or deaths.append, graceful_timeout)
        one.deaths = deaths
        made.append(one)
        one.start()
        return one

    yield start
    for one in made:
        one.stop()
        assert pids_of(one) == []


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
    wait_until(lambda: len(pids_of(one)) == 3)
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
    wait_until(lambda: len(started) == 3 and pids_of(one))
    names = [name for name, _ in started]
    assert one.deaths == names[:2]
    assert len(set(names)) == 3
    assert len({task.arguments for _, task in started}) == 1


def test_one_that_dies_leaves_the_others_alone(shell, supervise):
    shell(ENDLESS)
    one = supervise(2)
    first, second = wait_until(lambda: len(pids_of(one)) == 2 and pids_of(one))
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: len(one.deaths) == 1 and len(pids_of(one)) == 2)
    assert second in pids_of(one) and first not in pids_of(one)


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
    started = shell("READY; exit 3", "READY; exit 3", "READY; exit 3", ENDLESS)
    supervise()
    wait_until(lambda: len(started) == 4)
    assert delays.asked == [1, 1, 1]


def test_one_that_worked_is_soon_replaced_however_often_it_dies(shell, supervise, monkeypatch, caplog):
    monkeypatch.setattr(supervisor, "SOON", 0.01)
    monkeypatch.setattr(Delays, "delay", lambda self: 3600)
    started = shell("READY; exit 3", "READY; exit 3", "exit 3", ENDLESS)
    supervise()
    wait_until(lambda: caplog.text.count("starting another in 3600.0 s") == 1)  # it never got ready
    assert len(started) == 3
    assert caplog.text.count("starting another in 0.0 s") == 2


def test_one_that_was_long_about_its_failed_start_did_not_run_well(shell, supervise, delays, monkeypatch):
    monkeypatch.setattr(supervisor, "STEADY", 0.0)
    started = shell("exit 3", "exit 3", ENDLESS)
    supervise()
    wait_until(lambda: len(started) == 3)
    assert delays.asked == [1, 2]


def test_a_machine_without_room_for_a_process_is_tried_again(shell, supervise, caplog):
    started = shell(BlockingIOError(11, "Resource temporarily unavailable"), ENDLESS)
    one = supervise()
    wait_until(lambda: len(started) == 2 and pids_of(one))
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
    pids = wait_until(lambda: len(pids_of(one)) == 2 and pids_of(one))
    one.stop()
    assert not any(is_running(pid) for pid in pids)
    assert pids_of(one) == []


def test_one_that_finished_at_stop_is_no_death(shell, supervise):
    started = shell(GRACEFUL)
    one = supervise()
    wait_until(lambda: started and pids_of(one) and traps(pids_of(one)[0]))
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
    (pid,) = wait_until(lambda: pids_of(one) and traps(pids_of(one)[0]) and pids_of(one))
    one.stop()
    assert not is_running(pid)
    assert one.deaths == [started[0][0]]
    assert len(started) == 1


def test_stop_can_leave_less_time_than_the_workers_own(shell, supervise):
    shell(STUBBORN)
    one = supervise(graceful_timeout=600.0)
    (pid,) = wait_until(lambda: pids_of(one) and traps(pids_of(one)[0]) and pids_of(one))
    one.stop(0.01)
    assert not is_running(pid)


def test_nothing_is_started_after_stop(shell, supervise):
    started = shell("exit 3")
    one = supervise()
    wait_until(lambda: len(started) > 2)
    one.stop()
    number = len(started)
    assert pids_of(one) == []
    assert not any(thread.is_alive() for thread in one._threads)
    assert len(started) == number


def test_stop_twice_is_stop_once(shell, supervise):
    shell(ENDLESS)
    one = supervise()
    wait_until(lambda: pids_of(one))
    one.stop()
    one.stop()
    assert pids_of(one) == []


# Restarting.

OLD = "READY; trap 'exit 0' TERM; while :; do sleep 0.02; done"


def running(one, number):
    """Wait until so many workers are ready; return their process ids."""
    return wait_until(
        lambda: (
            len(pids_of(one)) == number
            and all(worker.is_ready() for worker in one._processes)
            and pids_of(one)
        )
    )


def test_each_worker_is_replaced_by_another_one(shell, supervise):
    started = shell(OLD)
    one = supervise(3)
    old = running(one, 3)
    assert one.restart()
    new = running(one, 3)
    assert not set(old) & set(new) and not any(map(is_running, old))
    assert sorted(task.arguments for _, task in started[3:]) == [(f"--number={n}",) for n in range(3)]
    assert one.deaths == []


def test_the_old_one_is_asked_to_end_when_the_new_one_is_ready_and_one_after_another(
    shell, supervise, tmp_path
):
    log = tmp_path / "log"
    line = f"echo start >>{log}; sleep 0.1; echo ready >>{log}; READY; trap 'echo end >>{log}; exit 0' TERM; "
    shell(line + "while :; do sleep 0.02; done")
    one = supervise(2)
    running(one, 2)
    log.write_text("")
    assert one.restart()
    assert log.read_text().split() == ["start", "ready", "end"] * 2


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("exit 1", "ended with status 1"),
        ("kill -9 $$", "was killed by SIGKILL"),
        (STUBBORN, "did not get ready within 0 s"),
    ],
)
def test_a_broken_new_one_leaves_the_old_ones_at_work(shell, supervise, caplog, monkeypatch, line, words):
    started = shell(OLD, OLD, line)
    one = supervise(2)
    old = running(one, 2)
    if line == STUBBORN:
        monkeypatch.setattr(supervisor, "READY_WITHIN", 0.05)
    assert not one.restart()
    assert pids_of(one) == old and all(map(is_running, old))
    assert len(started) == 3 and one.deaths == []
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == f"The new worker 1 {words}, so the old ones keep running: correct the code."


def test_a_machine_without_room_for_another_one_keeps_the_old_ones(shell, supervise, caplog):
    shell(OLD, BlockingIOError(11, "Resource temporarily unavailable"))
    one = supervise()
    old = running(one, 1)
    assert not one.restart()
    assert pids_of(one) == old
    assert "cannot be started (" in caplog.text and "so the old ones keep running" in caplog.text


def test_one_that_took_over_is_kept_running_like_the_first(shell, supervise):
    started = shell(OLD)
    one = supervise()
    running(one, 1)
    assert one.restart()
    (pid,) = running(one, 1)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(started) == 3 and pids_of(one) and pids_of(one) != [pid])
    assert one.deaths == [started[1][0]]


def test_an_old_one_that_does_not_finish_in_time_is_killed_and_that_is_a_death(shell, supervise, monkeypatch):
    monkeypatch.setattr(supervisor, "KILL_AFTER", 0.0)
    started = shell("READY; " + STUBBORN, OLD)
    one = supervise(graceful_timeout=0.01)
    (pid,) = running(one, 1)
    wait_until(lambda: traps(pid))
    assert one.restart()
    wait_until(lambda: one.deaths)
    assert one.deaths == [started[0][0]]
    assert running(one, 1) != [pid]


def test_one_that_died_meanwhile_is_replaced_all_the_same(shell, supervise, monkeypatch):
    monkeypatch.setattr(Delays, "delay", lambda delays: 60.0)  # nobody but the restart starts another
    started = shell("READY; exit 3", OLD)
    one = supervise()
    wait_until(lambda: one.deaths)
    assert one.restart()
    assert len(started) == 2 and running(one, 1)
    one.stop()
    assert pids_of(one) == []


def test_stop_in_a_restart_leaves_nobody_running(shell, supervise, monkeypatch):
    started = shell(OLD, STUBBORN)
    one = supervise()
    running(one, 1)
    results = []
    thread = threading.Thread(target=lambda: results.append(one.restart()))
    thread.start()
    (new,) = wait_until(lambda: len(started) == 2 and [worker.process.pid for worker in one._processes[1:]])
    wait_until(lambda: traps(new))
    one._graceful_timeout = 0.01
    monkeypatch.setattr(supervisor, "KILL_AFTER", 0.0)
    one.stop()
    assert not is_running(new)
    thread.join(10)
    assert results == [False] and pids_of(one) == []


def test_one_that_gets_ready_in_a_stop_does_not_take_over(shell, supervise, monkeypatch):
    started = shell(OLD)
    one = supervise()
    (old,) = running(one, 1)
    is_ready = WorkerProcess.is_ready

    def ready_too_late(worker, timeout=0.0):
        found = is_ready(worker, timeout)
        if timeout:
            one.stopping.set()
        return found

    monkeypatch.setattr(WorkerProcess, "is_ready", ready_too_late)
    assert not one.restart()
    assert len(started) == 2 and pids_of(one) == [old]


def test_after_stop_nothing_is_restarted(shell, supervise):
    started = shell(OLD)
    one = supervise()
    running(one, 1)
    one.stop()
    assert not one.restart()
    assert len(started) == 1


def test_kill_ends_all_at_once(shell, supervise):
    shell(STUBBORN)
    one = supervise(2)
    pids = wait_until(lambda: len(pids_of(one)) == 2 and pids_of(one))
    one.stopping.set()
    one.kill()
    wait_until(lambda: pids_of(one) == [])
    assert not any(map(is_running, pids))


def test_it_knows_whether_a_worker_takes_messages(shell, supervise):
    shell(STUBBORN, OLD)
    one = supervise()
    (pid,) = wait_until(lambda: pids_of(one))
    assert not one.has_ready()
    os.kill(pid, signal.SIGKILL)
    wait_until(one.has_ready)
    with one._lock:  # while a process is started the hub is told what was true before
        assert one.has_ready()


@pytest.mark.parametrize(
    ("kinds", "ready"),
    [(["hwd"], True), (["w", "hw"], True), (["w", "h"], True), (["w", "d"], False), (["h"], False)],
)
def test_it_is_ready_when_both_requests_and_frames_are_taken(shell, supervise, kinds, ready):
    shell(OLD)
    one = supervise(len(kinds), kinds=kinds)
    wait_until(lambda: len(one.ready_names()) == len(kinds))
    assert one.has_ready() is ready


# What they count.


def counting(descriptor, number):
    """Leave in the file what a worker leaves that has run so many messages."""
    report, counters = Report(descriptor), Measures()
    for _ in range(number):
        counters.started("own", 0.0)
        counters.ended("own", DONE, 0.0)
    counters.count("renewals")
    report.add(counters)
    report.write()


def counted(one):
    ended, reports = one.counted()
    return total([ended, *map(parse_report, reports)])


def test_the_counters_of_workers_that_have_ended_are_kept(shell, supervise):
    shell(READY, READY)
    one = supervise(1)
    wait_until(lambda: one.ready_names())
    (first,) = one._processes
    counting(first._report, 3)
    assert counted(one)[0]["own"][DONE] == 3
    counting(first._report, 5)  # nobody asks before it ends
    first.process.kill()
    wait_until(lambda: one._processes and one._processes != [first] and one.ready_names())
    assert counted(one)[0]["own"][DONE] == 5
    (second,) = one._processes
    counting(second._report, 2)
    assert counted(one) == ({"own": [7, 7, *counted(one)[0]["own"][2:]]}, {"renewals": 2})


def test_a_report_that_was_cut_short_leaves_what_was_read_before(shell, supervise):
    shell(READY)
    one = supervise(1)
    wait_until(lambda: one._processes)
    (worker,) = one._processes
    counting(worker._report, 3)
    assert counted(one)[0]["own"][DONE] == 3
    os.pwrite(worker._report, b"x", 30)
    assert counted(one)[0]["own"][DONE] == 3
    counting(worker._report, 4)
    with one._lock:  # as while a worker is started
        assert counted(one)[0]["own"][DONE] == 3
    assert counted(one)[0]["own"][DONE] == 4


# How they are started.


@pytest.fixture
def command(monkeypatch):
    """Let workers be this line of Python: ``command("print(1)")``."""

    def use(code):
        monkeypatch.setattr(supervisor, "manage_command", lambda: [sys.executable, "-c", code])

    return use


def test_a_worker_is_runworker_with_its_name_pipes_and_arguments(command, capfd):
    command("import sys; print(*sys.argv[1:])")
    wakeups = {"h": WakeupPipe.new(), "d": WakeupPipe.new()}
    worker = start_worker("worker-1-x", Task(("--only", "http.*"), wakeups))
    assert worker.process.wait() == 0
    worker.close()
    words = capfd.readouterr().out.split()
    assert words.pop(2).removeprefix("--ready=").isdecimal()
    assert words.pop(2).removeprefix("--report=").isdecimal()
    given = f"--wakeup-fd={wakeups['h']} --wakeup-fd={wakeups['d']}"
    assert " ".join(words) == f"runworker --child=worker-1-x {given} --only http.*"
    for wakeup in wakeups.values():
        for descriptor in wakeup:
            os.close(descriptor)


def test_a_worker_with_threads_has_a_name_for_each_and_all_are_told_of(shell, supervise):
    started = shell("exit 3", ENDLESS)
    deaths = []
    one = Supervisor([Task((), {}, threads=3)], deaths.append, 10.0)
    one.start()
    try:
        wait_until(lambda: len(started) == 2 and pids_of(one))
        name = started[0][0]
        assert deaths == [name, f"{name}.2", f"{name}.3"]
    finally:
        one.stop()


def test_threads_and_the_time_of_the_start_are_told_where_they_matter(command, capfd):
    command("import sys; print(*sys.argv[5:])")
    before = time.time()
    for task in (Task((), {}), Task((), {}, threads=8, reloads=True)):
        worker = start_worker("worker-1-x", task)
        worker.process.wait()
        worker.close()
    plain, line = capfd.readouterr().out.splitlines()
    assert plain.split() == []
    threads, since = line.split()
    assert threads == "--threads=8"
    assert before <= float(since.removeprefix("--since=")) <= time.time()


def test_a_worker_can_write_to_its_wakeup_pipes(command):
    command("import os, sys; os.write(int(sys.argv[5].removeprefix('--wakeup-fd=').split(',')[1]), b'!')")
    wakeup = WakeupPipe.new()
    worker = start_worker("worker-1-x", Task((), {"h": wakeup}))
    assert worker.process.wait() == 0
    worker.close()
    assert os.read(wakeup.reader, 10) == b"!"
    for descriptor in wakeup:
        os.close(descriptor)


def test_a_worker_can_wake_readers(command):
    command(
        "import os, sys; os.write(int(sys.argv[5].removeprefix('--local-wakeup=reply.a!=').split(',')[1]), b'!')"
    )
    wakeup = WakeupPipe.new()
    worker = start_worker("worker-1-x", Task((), {}, (("reply.a!", wakeup),)))
    assert worker.process.wait() == 0
    worker.close()
    assert os.read(wakeup.reader, 10) == b"!"
    for descriptor in wakeup:
        os.close(descriptor)


def test_a_worker_can_say_that_it_is_ready(command):
    command("import os, sys; os.write(int(sys.argv[3].removeprefix('--ready=')), b'!'); sys.stdin.read()")
    worker = start_worker("worker-1-x", Task((), {}))
    assert worker.is_ready(20) and worker.is_ready()
    worker.process.stdin.close()
    assert worker.process.wait() == 0
    assert worker.is_ready()
    worker.close()


def test_one_that_ends_before_it_is_ready_never_was(command):
    command("raise SystemExit(3)")
    worker = start_worker("worker-1-x", Task((), {}))
    assert not worker.is_ready(20)
    assert worker.process.wait() == 3
    worker.close()


def test_one_that_cannot_be_started_leaves_no_descriptor(monkeypatch):
    monkeypatch.setattr(supervisor, "manage_command", lambda: ["/no/such/command"])
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(FileNotFoundError):
            start_worker("worker-1-x", Task((), {}))
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_workers_standard_input_ends_with_its_parent(command):
    command("import sys; sys.exit(7 if sys.stdin.read() == '' else 1)")
    worker = start_worker("worker-1-x", Task((), {}))
    assert worker.process.poll() is None
    worker.process.stdin.close()  # as the kernel does for a parent that dies
    assert worker.process.wait() == 7
    worker.close()


def test_ctrl_c_in_the_terminal_does_not_reach_a_worker(command):
    command("import os, sys; sys.exit(0 if os.getsid(0) == os.getpid() else 1)")
    worker = start_worker("worker-1-x", Task((), {}))
    assert worker.process.wait() == 0
    worker.close()


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
    wait_until(lambda: len(started) == 2 and pids_of(one))


def test_a_second_signal_ends_the_process_before_its_workers_are_started_too(monkeypatch):
    handlers, ended = {}, []

    def handle(number, call, *given):
        handlers[number] = partial(call, *given)

    monkeypatch.setattr(production.gevent, "signal_handler", handle)
    monkeypatch.setattr(os, "_exit", ended.append)
    stopping = production.stop_at_signals(Supervisor([Task((), {})], print, 1.0).stop_now)
    handlers[signal.SIGTERM]()
    assert stopping.is_set() and not ended
    with pytest.raises(RuntimeError):
        handlers[signal.SIGTERM]()
    assert ended == [1]
