"""Fault 43: what a message leaves behind is not there for the next."""

from __future__ import annotations

import json
import os
from typing import NamedTuple

from tests.harness import LiveSite, ask
from tests.soak.row import Row, Seen
from tests.soak.sites import on_postgresql, scaled

CLEAN = ["", True, False, "off", 0, 0, 0, "en-us", "America/Chicago", False]
PSYCOPG3 = os.environ.get("DBCHANNELS_PSYCOPG3", "")
WORKERS = 2


class Found(NamedTuple):
    """What requests and frames have found."""

    unclean: list[list[object]]
    sessions: int  # of the database
    failed: int  # requests that left a transaction open


def leftovers(site: LiveSite, number: int) -> Found:
    """Send so many requests and as many frames, each of which leaves something behind."""
    served = site.serve("--workers", str(WORKERS))
    answers, failed = [], 0
    client = served.socket("/left/")
    with served.connection() as connection:
        for one in range(number):
            answer = ask(connection, "GET", f"/left/{one}")
            if answer.status == 500:
                failed += 1
            else:
                answers.append(answer.json())
            if one % 50 != 49:  # of a frame that fails nothing comes back
                answers.append(json.loads(client.ask(str(one))))
    unclean = [one["found"] for one in answers if one["found"] != CLEAN]
    return Found(unclean, len({one["pid"] for one in answers}), failed)


def _leftovers(scale: float) -> Seen:
    number, texts, good = scaled(2_000, scale, 100), [], True
    for name, folder in (("psycopg2", ""), ("psycopg 3", PSYCOPG3)):
        if name == "psycopg 3" and not folder:
            texts.append("psycopg 3 not there: set DBCHANNELS_PSYCOPG3")
            continue
        with on_postgresql(fsync="off") as (site, _):
            given = site.environment

            def environment(settings: object = None, given=given, folder=folder) -> dict[str, str]:  # type: ignore[no-untyped-def]
                found = given(settings)
                return {**found, "PYTHONPATH": os.pathsep.join(filter(None, [found["PYTHONPATH"], folder]))}

            site.environment = environment  # type: ignore[assignment,method-assign]
            found = leftovers(site, number)
        texts.append(
            f"{name}: {len(found.unclean)} of {2 * number:,} unclean, {found.failed} failed, {found.sessions} sessions"
        )
        good = good and not found.unclean and found.failed == number // 50
        good = good and found.sessions <= WORKERS + found.failed
    return Seen("; ".join(texts), good)


ROWS = [
    Row(
        43,
        "2,000 requests and frames that leave settings, roles, locks, transactions, languages",
        "0 found by the next; only who leaves a transaction fails, and costs a session",
        _leftovers,
    )
]
