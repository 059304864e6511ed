"""Statements that a session of the layer's own keeps planned.

To parse and plan the claim takes PostgreSQL 320 us, to run it on a short queue 60. The generic plan is made once,
perhaps while the tables are empty, and used when they hold a million rows: so it may be made of index scans only,
and once a second it is made anew, to choose among the indexes by what the tables hold.
See https://www.postgresql.org/docs/current/sql-prepare.html.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

import psycopg2.errors

from dbchannels.layers.postgresql import sql_durable

REPLAN_AFTER = 1.0  # seconds
# What is forbidden only costs 10**10 more, which would let the compiler (jit) start at each sweep.
SETTINGS = """
SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET enable_bitmapscan = off; SET jit = off
"""
#: A pooler gave the session another connection, or had the name already; or a migration changed the columns.
LOST = (
    psycopg2.errors.InvalidSqlStatementName,
    psycopg2.errors.DuplicatePreparedStatement,
    psycopg2.errors.FeatureNotSupported,
)


class Prepared(NamedTuple):
    """A statement with its name in the session, and its parameters' types by their names."""

    name: str
    text: str
    types: dict[str, str]

    def prepare(self) -> str:
        """Return what prepares it: ``%(queues)s`` becomes ``$1``."""
        numbers = {name: f"${number}" for number, name in enumerate(self.types, 1)}
        text = re.sub(r"%\((\w+)\)s", lambda found: numbers[found[1]], self.text).replace("%%", "%")
        return f"PREPARE {self.name} {self._listed(self.types.values())} AS {text}"

    def execute(self) -> str:
        """Return what runs it, with the values by name as in the statement itself."""
        return f"EXECUTE {self.name} {self._listed(f'%({name})s' for name in self.types)}"

    def _listed(self, parts: Iterable[str]) -> str:
        return f"({', '.join(parts)})" if self.types else ""


PROMOTE = Prepared("dbchannels_promote", sql_durable.PROMOTE, {})
CLAIM = Prepared(
    "dbchannels_claim", sql_durable.CLAIM, {"queues": "text[]", "limit": "bigint", "worker": "text"}
)
