"""``python -m tests.benchmarks.listeners [SECONDS]``: what sessions that LISTEN cost each NOTIFY.

Each listener reads what comes, as a worker does; all of them share one process, so on a small machine they take a part
of the time themselves.
"""

from __future__ import annotations

import select
import statistics
import subprocess
import sys
import time
from contextlib import closing

import psycopg2

from examples.embedded_postgres import EmbeddedPostgres

NUMBERS = (0, 1, 10, 50, 100, 200)
SETTINGS = {"max_connections": "300"}


def connect(url: str) -> psycopg2.extensions.connection:
    """Open a session in autocommit."""
    connection = psycopg2.connect(url)
    connection.autocommit = True
    return connection


def listen(url: str, number: int) -> None:
    """Hold so many sessions that LISTEN, and read what comes, until the standard input ends."""
    sessions = {one.fileno(): one for one in (connect(url) for _ in range(number))}
    poll = select.poll()
    for one in sessions.values():
        one.cursor().execute("LISTEN dbchannels")
        poll.register(one.fileno(), select.POLLIN)
    poll.register(sys.stdin.fileno(), select.POLLIN | select.POLLHUP)
    print("ready", flush=True)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor not in sessions:
                return
            sessions[descriptor].poll()
            sessions[descriptor].notifies.clear()


def measure(url: str, number: int, seconds: float) -> tuple[float, float]:
    """Return how many times a second one session can notify, and the median time of one, in seconds."""
    program = [sys.executable, "-m", __spec__.name, url, str(number)]
    with (
        subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process,
        closing(connect(url)) as connection,
    ):
        assert process.stdout and process.stdout.readline() == b"ready\n"
        cursor, times, end = connection.cursor(), list[float](), time.monotonic() + seconds
        while (started := time.monotonic()) < end:
            cursor.execute("NOTIFY dbchannels, 'd'")
            times.append(time.monotonic() - started)
        process.communicate()
    return len(times) / seconds, statistics.median(times)


def main() -> None:
    if len(sys.argv) == 3:
        listen(sys.argv[1], int(sys.argv[2]))
        return
    seconds = float(sys.argv[1]) if sys.argv[1:] else 5.0
    with EmbeddedPostgres.start(settings=SETTINGS) as server:
        for number in NUMBERS:
            rate, median = measure(server.url, number, seconds)
            print(f"{number:4} listeners: {rate:8,.0f} NOTIFY/s, p50 {median * 1000:.2f} ms", flush=True)


if __name__ == "__main__":
    main()
