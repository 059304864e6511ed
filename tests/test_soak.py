"""The soak's command: which rows, what it prints, its status, and what it leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import until
from tests.soak import __main__ as command
from tests.soak.row import Row, Seen

ROOT = Path(__file__).parents[1]


def row(fault: int, reached: bool = True) -> Row:
    """Return a row that is measured at once."""
    return Row(fault, f"thing {fault}", "all", lambda scale: Seen(f"at {scale:g}", reached))


def broken(scale: float) -> Seen:
    raise ValueError("as asked for")


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command on these rows: its status, and the lines below the table's head."""

    def run(rows, *arguments):
        monkeypatch.setattr(command, "all_rows", lambda: rows)
        monkeypatch.setattr(signal, "signal", lambda *_: None)  # the test run keeps its own
        status = command.main(list(arguments))
        return status, capsys.readouterr().out.splitlines()[2:]

    return run


def test_each_figure_stands_beside_its_target(run):
    status, lines = run([row(1), row(2)], "--scale", "0.1")
    assert lines == ["| 1 | thing 1 | at 0.1 | all | yes |", "| 2 | thing 2 | at 0.1 | all | yes |"]
    assert status == 0


def test_a_missed_target_is_in_the_status_and_hides_no_later_row(run):
    status, lines = run([row(1, reached=False), row(2)])
    assert (status, [line[-5:-2] for line in lines]) == (1, [" NO", "yes"])


def test_what_cannot_be_measured_is_missed(run):
    status, lines = run([Row(3, "thing", "all", broken), row(4)])
    assert (status, len(lines)) == (1, 2)
    assert lines[0] == "| 3 | thing | not measured: ValueError | all | NO |"


def test_only_the_faults_that_are_named(run):
    assert run([row(1), row(2), row(2)], "2")[1] == ["| 2 | thing 2 | at 1 | all | yes |"] * 2
    assert run([row(1)], "9") == (2, [])


@pytest.mark.parametrize("scale", ["0", "-1", "11", "nan", "much"])
def test_a_scale_that_means_nothing_is_refused(run, scale):
    with pytest.raises(SystemExit) as raised:
        run([row(1)], "--scale", scale)
    assert raised.value.code == 2


def test_the_rows_of_all_modules_are_ordered_by_fault():
    faults = [one.fault for one in command.all_rows()]
    assert faults == sorted(faults)
    assert {*range(24), 25, *range(31, 37), 38, 39, 44, 45} <= set(faults)


def processes(folder: Path) -> list[int]:
    """Return the ids of all processes that were started under this folder of temporary files."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if str(folder).encode() in environ.read_bytes():
                found.append(int(environ.parent.name))
        except OSError:  # it has ended
            continue
    return found


def serving(folder: Path) -> bool:
    """Whether a server under this folder has printed its banner."""
    return any("quit with" in log.read_text() for log in folder.glob("*/runchannels-*.log"))


@pytest.mark.postgresql
def test_interrupted_it_leaves_no_process_behind(tmp_path):
    soak = subprocess.Popen(
        [sys.executable, "-m", "tests.soak", "7"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: serving(tmp_path), "a server runs", 60)
        until(lambda: len(processes(tmp_path)) > 3, "its workers run")
        soak.send_signal(signal.SIGINT)
        assert soak.wait(60) == 130
        until(lambda: not processes(tmp_path), "all have ended", 30)
    finally:
        soak.kill()
        soak.wait()
