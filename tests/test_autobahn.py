"""The command that runs Autobahn's suite: how it judges. The suite itself needs CPython 2.7."""

from __future__ import annotations

import pytest

from tests import autobahn
from tests.autobahn import Case, expected_code, read, table


def report(**cases):
    """Return a report of the suite: the behaviour, the closing and the code of each case."""
    keys = ("behavior", "behaviorClose", "remoteCloseCode")
    return {"dbchannels": {name: dict(zip(keys, case, strict=True)) for name, case in cases.items()}}


@pytest.mark.parametrize(
    ("number", "code"),
    [
        ("1.1.1", 1000),
        ("2.4", 1000),
        ("2.5", 1002),
        ("3.1", 1002),
        ("4.2.5", 1002),
        ("5.1", 1002),
        ("5.3", 1000),
        ("5.18", 1002),
        ("5.19", 1000),
        ("6.2.1", 1000),
        ("6.3.1", 1007),
        ("6.6.1", 1007),
        ("6.6.2", 1000),
        ("6.6.11", 1000),
        ("6.11.5", 1007),
        ("6.21.8", 1007),
        ("6.22.1", 1000),
        ("7.3.1", None),
        ("7.3.2", 1002),
        ("7.7.13", 4999),
        ("7.9.1", 1002),
        ("9.1.6", 1000),
        ("10.1.1", 1000),
    ],
)
def test_each_case_has_a_code(number, code):
    assert expected_code(number) == code


@pytest.mark.parametrize(
    ("found", "right"),
    [
        (("OK", "OK", 1002), True),
        (("NON-STRICT", "OK", 1002), True),
        (("FAILED", "OK", 1002), False),
        (("OK", "UNCLEAN", 1002), False),
        (("OK", "OK", 1000), False),
        (("OK", "OK", None), False),
    ],
)
def test_a_case_is_right_by_what_it_did_and_how_it_closed(found, right):
    (case,) = read(report(**{"3.1": found}))
    assert case.is_right() == right


def test_the_table_counts_and_names_what_is_wrong():
    cases = read(
        report(**{"10.1.1": ("OK", "OK", 1000), "3.1": ("OK", "OK", 1000), "3.2": ("OK", "OK", 1002)})
    )
    assert table(cases).splitlines() == [
        "section  3:   1 of   2",
        "section 10:   1 of   1",
        "all: 2 of 3",
        "3.1: OK, OK, code 1000, not 1002",
    ]


@pytest.mark.parametrize(("cases", "status"), [([], 1), ([Case("1.1.1", "OK", "OK", 1000)], 0)])
def test_the_status_says_whether_all_is_right(monkeypatch, capsys, cases, status):
    monkeypatch.setattr(autobahn, "run", lambda *_: cases)
    assert autobahn.main(["--suite", "/nowhere"]) == status
    assert f"all: {len(cases)} of {len(cases)}" in capsys.readouterr().out
