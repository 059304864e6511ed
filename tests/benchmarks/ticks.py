"""One task, which notes when it ran, as each of the systems takes it; BENCH_SYSTEM names the system."""

from __future__ import annotations

import os
import struct
import sys
import time

SYSTEM = os.environ["BENCH_SYSTEM"]


def tick() -> None:
    """Append the time to the file of ticks."""
    file = os.open(os.environ["BENCH_TICKS"], os.O_WRONLY | os.O_APPEND)
    os.write(file, struct.pack("d", time.time()))
    os.close(file)


if SYSTEM == "celery":
    from celery import Celery

    app = Celery(broker=os.environ["BENCH_REDIS"], backend=os.environ["BENCH_REDIS"])
    app.conf.worker_hijack_root_logger = False
    tick = app.task(name="tick")(tick)
    enqueue = tick.delay
elif SYSTEM == "procrastinate":
    import procrastinate

    sends = sys.argv[1:2] in (["enqueue"], ["wake"])  # else it is the worker, which is async
    connector = procrastinate.SyncPsycopgConnector if sends else procrastinate.PsycopgConnector
    app = procrastinate.App(connector=connector(conninfo=os.environ["BENCH_CONNINFO"]))
    if sends:
        app.open()
    tick = app.task(name="tick")(tick)
    enqueue = tick.defer
else:
    try:
        from django.tasks import task
    except ImportError:
        from django_tasks import task

    tick = task(tick)
    enqueue = tick.enqueue
