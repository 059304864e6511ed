"""Process 1 of a container. Here it is a process that orphans come to as they come to process 1."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

from dbchannels.processes import first
from tests.harness import children, until

#: Becomes the parent of orphans (PR_SET_CHILD_SUBREAPER), starts a shell, and goes on as process 1 would. What the test
#: run ignores, as under nohup, a shell could not trap.
ADOPTING = """
import ctypes, os, signal, sys
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, signal.SIG_DFL)
child = os.fork()
if not child:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
    os.execv("/bin/sh", ["sh", "-c", sys.argv[2]])
os.execv(sys.executable, [sys.executable, "-I", sys.argv[1], str(child)])
"""


@pytest.fixture
def start():
    """Start such a process, whose program is a line of a shell."""
    made = []

    def run(line):
        command = [sys.executable, "-c", ADOPTING, first.__file__, line]
        made.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return made[-1]

    yield run
    for process in made:
        for pid in [*children(process.pid), process.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize(("line", "status"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 137)])
def test_it_ends_as_its_program_does(start, line, status):
    assert start(line).wait(60) == status


def test_orphans_are_reaped_and_the_program_has_its_own_children_to_itself(start):
    # Ten orphans that end; then a child of the program whose exit status it waits for.
    orphans = "for n in 1 2 3 4 5 6 7 8 9 10; do (true &); done; (sleep 0.05 &)"
    process = start(f"{orphans}; sh -c 'exit 7' & wait $!; echo $?; exec sleep 60")
    assert process.stdout.readline() == "7\n"
    until(lambda: len(children(process.pid)) == 1, "only the program is left")
    assert process.poll() is None


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "USR1", "USR2", "QUIT"])
def test_signals_are_passed_on(start, name):
    process = start(f"trap 'echo {name}; exit 5' {name}; echo ready; while :; do sleep 0.02; done")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(getattr(signal, f"SIG{name}"))
    assert process.stdout.readline() == f"{name}\n"
    assert process.wait(60) == 5


def test_a_signal_that_the_program_does_not_handle_ends_it(start):
    process = start("echo ready; exec sleep 60")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM


class Replaced(BaseException):
    """An exec, which does not return."""


@pytest.fixture
def steps(monkeypatch):
    """What process 1 does, in order; it is the parent unless ``fork`` says otherwise."""
    made = []

    def replace(*arguments):
        made.append(("exec", *arguments))
        raise Replaced

    monkeypatch.setattr(os, "getpid", lambda: 1)
    monkeypatch.setattr(os, "fork", lambda: 4711)
    monkeypatch.setattr(os, "setsid", lambda: made.append("setsid"))
    monkeypatch.setattr(os, "execv", replace)
    monkeypatch.setattr(signal, "pthread_sigmask", lambda how, which: made.append(how) or {"before"})
    return made


def test_process_1_becomes_the_script(steps):
    with pytest.raises(Replaced):
        first.leave_first_place()
    assert steps == [
        signal.SIG_BLOCK,
        ("exec", sys.executable, [sys.executable, "-I", "-S", first.__file__, "4711"]),
    ]


def test_its_child_runs_the_command_with_the_sockets_that_were_passed(steps, monkeypatch):
    monkeypatch.setattr(os, "fork", lambda: 0)
    monkeypatch.setenv("LISTEN_PID", "1000")
    with pytest.raises(Replaced):
        first.leave_first_place()
    assert steps == [
        signal.SIG_BLOCK,
        "setsid",
        signal.SIG_SETMASK,
        ("exec", sys.executable, sys.orig_argv),
    ]
    assert os.environ["LISTEN_PID"] == str(os.getpid())


def test_any_other_process_goes_on(steps, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 2)
    first.leave_first_place()
    assert steps == []
