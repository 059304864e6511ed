"""The WebSocket server under Autobahn|Testsuite's fuzzing client: ``python -m tests.autobahn --suite FOLDER``.

The suite runs under CPython 2.7 alone. Once: ``python2.7 -m pip install --target FOLDER autobahntestsuite==0.8.2``.
A site of its own on an embedded PostgreSQL echoes through a worker. The suite looks at behaviour; the close codes,
which it only writes down, are compared here.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from tests.harness import HOST
from tests.soak.sites import on_postgresql, options

SECTIONS = ("1", "2", "3", "4", "5", "6", "7", "9", "10")
COMPRESSION = ("12", "13")  # with --compression
GOOD = {"OK", "NON-STRICT", "INFORMATIONAL"}
LARGEST = 16 * 1024 * 1024  # bytes of the largest message of section 9
FRAGMENTS = 300_000  # of 64 bytes, 4 MiB: fault 19 has its limit elsewhere, here the suite must get through
#: A folder of ``--target`` is no place that Python looks for ``.pth`` files, which zope.interface has.
START = "import site, sys; site.addsitedir(sys.argv.pop(1)); from autobahntestsuite.wstest import run; run()"


#: Cases by the beginnings of their numbers, with the code of the server's Close (RFC 6455 sections 5, 7.4 and 8.1);
#: after all others the client says 1000, and the server says it too.
PROTOCOL_ERRORS = (
    "2.5.",
    "3.",
    "4.",
    *(f"5.{one}." for one in (1, 2, *range(9, 19))),
    "7.3.2.",
    "7.3.6.",
    "7.9.",
    "7.13.",
)
NOT_UTF8 = (
    *("6.3.", "6.4.", "6.8.", "6.10.", "6.11.5.", "7.5.1."),
    *(f"6.6.{one}." for one in (1, 3, 4, 6, 8, 10)),
    *(f"6.{one}." for one in range(12, 22)),
)
ECHOED = (
    1000,
    1001,
    1002,
    1003,
    1007,
    1008,
    1009,
    1010,
    1011,
    3000,
    3999,
    4000,
    4999,
)  # of 7.7.1 and following


class Case(NamedTuple):
    """What became of one case."""

    number: str  # "7.5.1"
    behavior: str
    closing: str
    code: int | None  # of the server's Close

    def is_right(self) -> bool:
        """Whether the suite is content, and the close code is the one that the RFC asks for."""
        return self.behavior in GOOD and self.closing in GOOD and self.code == expected_code(self.number)


def expected_code(number: str) -> int | None:
    """Return the code that the server's Close must have in a case; None: it has none."""
    if number.startswith("7.7."):
        return ECHOED[int(number.split(".")[2]) - 1]
    if number == "7.3.1":
        return None
    if (number + ".").startswith(PROTOCOL_ERRORS):
        return 1002
    return 1007 if (number + ".").startswith(NOT_UTF8) else 1000


def main(arguments: list[str] | None = None) -> int:
    """Run the suite and print the table; 1 when a case is not right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", required=True, help="where autobahntestsuite was installed")
    parser.add_argument("--python", default="python2.7", help="CPython 2.7 (python2.7)")
    parser.add_argument("--report", default="", help="keep the suite's own pages in this folder")
    parser.add_argument("--compression", action="store_true", help="serve with --ws-compression, and test it")
    parser.add_argument(
        "cases", nargs="*", help="such as 6.* (default: all sections, 12 and 13 with --compression)"
    )
    given = parser.parse_args(arguments)
    sections = [*SECTIONS, *(COMPRESSION if given.compression else ())]
    cases = given.cases or [f"{section}.*" for section in sections]
    with tempfile.TemporaryDirectory(prefix="dbchannels-autobahn-") as folder:
        report = Path(given.report or folder) / "report"
        found = run((given.python, given.suite), cases, Path(folder), report, given.compression)
    print(table(found))
    return 0 if found and all(case.is_right() for case in found) else 1


def run(
    suite: tuple[str, str], cases: list[str], folder: Path, report: Path, compression: bool
) -> list[Case]:
    """Serve, and let the suite at it: its Python, and the folder where it is."""
    large = str(LARGEST)
    with on_postgresql(fsync="off") as (site, _):
        limits = (
            "--ws-max-size",
            large,
            "--ws-max-fragments",
            str(FRAGMENTS),
            "--ws-waiting-bytes",
            str(2 * LARGEST),
            *(["--ws-compression"] if compression else []),
        )
        settings = options(max_message_size=LARGEST)
        served = site.serve("--workers", "2", *limits, settings=settings)
        url = f"ws://{HOST}:{served.port}/echo/"
        server = {"agent": "dbchannels", "url": url, "options": {"version": 18}}
        spec = {"outdir": str(report), "servers": [server], "cases": cases, "exclude-cases": []}
        (folder / "spec.json").write_text(json.dumps({**spec, "exclude-agent-cases": {}}))
        command = [suite[0], "-c", START, suite[1], "-m", "fuzzingclient", "-s", str(folder / "spec.json")]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return read(json.loads((report / "index.json").read_text()))


def read(index: dict[str, dict[str, Any]]) -> list[Case]:
    """Return the cases of a report, in their order."""
    found = [
        Case(number, one["behavior"], one["behaviorClose"], one["remoteCloseCode"])
        for cases in index.values()
        for number, one in cases.items()
    ]
    return sorted(found, key=lambda case: [int(part) for part in case.number.split(".")])


def table(cases: list[Case]) -> str:
    """Return a line for each section and each case that is not right."""
    total: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for case in cases:
        section = case.number.partition(".")[0]
        total[section] += 1
        right[section] += case.is_right()
    lines = [f"section {section:>2}: {right[section]:>3} of {total[section]:>3}" for section in total]
    wrong = [
        f"{case.number}: {case.behavior}, {case.closing}, code {case.code}, not {expected_code(case.number)}"
        for case in cases
        if not case.is_right()
    ]
    return "\n".join([*lines, f"all: {sum(right.values())} of {sum(total.values())}", *wrong])


if __name__ == "__main__":
    sys.exit(main())
