"""One system of background tasks, in a process of its own: ``python -m tests.benchmarks.task_systems COMMAND``.

``setup`` makes its tables, ``worker`` runs a worker until SIGTERM; ``enqueue N`` prints how many a second, ``wake N``
how many milliseconds pass at the median until an idle worker runs a task. This module is the Django settings too.
"""

from __future__ import annotations

import json
import os
import statistics
import struct
import subprocess
import sys
import time

SYSTEM = os.environ["BENCH_SYSTEM"]
BACKENDS = {
    "dbchannels": "dbchannels.tasks.ChannelsBackend",
    "django-tasks-db": "django_tasks_db.DatabaseBackend",
}

# Django's settings.
DATABASES = {"default": json.loads(os.environ["BENCH_DATABASE"])}
INSTALLED_APPS = {"dbchannels": ["dbchannels"], "django-tasks-db": ["django_tasks", "django_tasks_db"]}.get(
    SYSTEM, []
)
TASKS = {"default": {"BACKEND": BACKENDS.get(SYSTEM, "")}}
SECRET_KEY = "only for a benchmark"
USE_TZ = True
LOGGING_CONFIG = None


def setup() -> None:
    if SYSTEM == "procrastinate":
        subprocess.run([*PROCRASTINATE, "schema", "--apply"], check=True)
    elif SYSTEM in BACKENDS:
        from django.core.management import call_command

        call_command("migrate", verbosity=0)


PROCRASTINATE = [sys.executable, "-m", "procrastinate", "--app=tests.benchmarks.ticks.app"]


def worker() -> None:
    """Become a worker, of one process, with the settings that serve it best."""
    celery = [sys.executable, "-m", "celery", "-A", "tests.benchmarks.ticks", "worker"]
    commands = {
        "celery": [*celery, "--concurrency=1", "--loglevel=ERROR", "--without-gossip", "--without-mingle"],
        "procrastinate": [*PROCRASTINATE, "worker", "--concurrency=10"],
        "dbchannels": [sys.executable, "-m", "django", "runworker", "--only=tasks.*"],
        "django-tasks-db": [sys.executable, "-m", "django", "db_worker", "--interval=0.05"],
    }
    os.execv(sys.executable, commands[SYSTEM])


def enqueue(number: int) -> float:
    """Return how many tasks a second are enqueued, one by one."""
    from tests.benchmarks.ticks import enqueue

    start = time.perf_counter()
    for _ in range(number):
        enqueue()
    return number / (time.perf_counter() - start)


def wake(number: int) -> float:
    """Return the median of the milliseconds from an enqueue until an idle worker runs the task."""
    from tests.benchmarks.ticks import enqueue

    ticks, found = os.environ["BENCH_TICKS"], []
    for _ in range(number):
        before, start = os.path.getsize(ticks), time.time()
        enqueue()
        while os.path.getsize(ticks) == before:
            time.sleep(0.0002)
        with open(ticks, "rb") as file:
            file.seek(before)
            found.append((struct.unpack("d", file.read(8))[0] - start) * 1000)
        time.sleep(0.02)
    return statistics.median(found)


def main() -> None:
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.benchmarks.task_systems"
    import django

    django.setup()
    command, *numbers = sys.argv[1:]
    found = globals()[command](*map(int, numbers))
    if found is not None:
        print(found)


if __name__ == "__main__":
    main()
