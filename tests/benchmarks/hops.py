"""The two hops alone: to another process and back, by rows and NOTIFY, with psycopg2 and without dbchannels.

``python -m tests.benchmarks.hops DSN`` is the process that answers.
"""

from __future__ import annotations

import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

import psycopg2
from psycopg2.extras import execute_values

PAYLOAD = b"x" * 100
MAKE = """
CREATE UNLOGGED TABLE IF NOT EXISTS hops_{} (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, client int NOT NULL, payload bytea NOT NULL
)
"""
TAKEN = {"there": 10, "back": 100}  # rows at once, by the way that they go


class End:
    """One of the two processes. It sends in one direction and takes from the other."""

    def __init__(self, dsn: str, sends: str, takes: str) -> None:
        self.connection = psycopg2.connect(dsn)
        self.connection.autocommit = True
        self._cursor = self.connection.cursor()
        self._cursor.execute(f"LISTEN {takes}")
        self._insert = f"INSERT INTO hops_{sends} (client, payload) VALUES %s; NOTIFY {sends}"
        self._delete = (
            f"DELETE FROM hops_{takes} WHERE id IN (SELECT id FROM hops_{takes} ORDER BY id LIMIT {TAKEN[takes]}) "
            "RETURNING client"
        )

    def close(self) -> None:
        """End the session."""
        self.connection.close()

    def send(self, clients: Sequence[int]) -> None:
        """Write one row for each, in one statement, and notify."""
        execute_values(
            self._cursor, self._insert, [(one, PAYLOAD) for one in clients], page_size=len(clients)
        )

    def take(self) -> list[int]:
        """Wait for rows; return the clients they are for. Raises AssertionError when none comes for a minute."""
        stop = time.monotonic() + 60
        while not (taken := self._taken()):
            assert time.monotonic() < stop, "The other end is silent."
            # What comes with a statement's answer leaves the socket silent.
            if not self.connection.notifies and select.select([self.connection], [], [], 1.0)[0]:
                self.connection.poll()
            self.connection.notifies.clear()
        return taken

    def _taken(self) -> list[int]:
        self._cursor.execute(self._delete)
        return [client for (client,) in self._cursor.fetchall()]


def main() -> None:
    end = End(sys.argv[1], sends="back", takes="there")
    print("ready", flush=True)
    while True:
        end.send(end.take())  # it is ended with what has started it


@contextmanager
def hops(dsn: str) -> Iterator[End]:
    """Yield the end that asks; the tables and the process that answers exist for the block."""
    with closing(psycopg2.connect(dsn)) as connection, connection.cursor() as cursor:
        for way in TAKEN:
            cursor.execute(MAKE.format(way))
        connection.commit()
    command = [sys.executable, "-m", "tests.benchmarks.hops", dsn]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline().strip() == "ready"
            with closing(End(dsn, sends="there", takes="back")) as end:
                yield end
        finally:
            process.terminate()


def rounds(end: End, clients: int, seconds: float) -> list[float]:
    """Let each client send again as soon as it has its answer; return how long the answers took, sorted."""
    sent = dict.fromkeys(range(clients), time.perf_counter())
    spent, stop = [], time.perf_counter() + seconds
    end.send(list(sent))
    while time.perf_counter() < stop:
        answered = end.take()
        now = time.perf_counter()
        spent += [now - sent[one] for one in answered]
        sent |= dict.fromkeys(answered, now)
        end.send(answered)
    under_way = clients
    while under_way:
        under_way -= len(end.take())
    return sorted(spent)


if __name__ == "__main__":
    main()
