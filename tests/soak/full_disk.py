"""Fault 13: the disk is full."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import psycopg2.errors

from examples.embedded_postgres import EmbeddedPostgres
from tests.harness import LiveSite, until
from tests.soak.row import Row, Seen
from tests.soak.sites import on_postgresql

TABLES = ("dbchannels_protocolmessage", "dbchannels_durablemessage")
MEGABYTES = 32
LARGE = 200_000  # characters: more than is free in the pages that a table has

REFUSE = """
CREATE FUNCTION public.disk_is_full() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$
"""
FILL = "INSERT INTO filler SELECT string_agg(md5(n::text), '') FROM generate_series(1, {}) n"
SEND = """
import sys
from dbchannels import Channel
from django.db import OperationalError
try:
    Channel("stream").send({"text": "refused", "large": "x" * %d})
except OperationalError as error:
    print(error.__cause__.pgcode)
"""


class Full(NamedTuple):
    """What senders and clients were told while there was no space, and what came back with it."""

    code: str  # of the error that a sender got
    status: int  # of a request
    retry_after: bool
    refused: int  # rows that the refused send left
    heard: bool  # what a socket said meanwhile was answered afterwards
    unbroken: bool  # the same processes
    recovery: float  # seconds until a page, a frame and a durable message had their turn


#: Fills the disk, and gives what frees it.
Fill = Callable[[LiveSite], "Callable[[], Any]"]


def full_disk(site: LiveSite, fill: Fill) -> Full:
    """Fill the disk, let all that sends run into it, and free it."""
    served = site.serve("--workers", "2", "--http-timeout", "2")
    until(lambda: served.get("/").status == 200, "a worker is ready")
    socket = served.socket("/echo/")
    assert (served.get("/").text, socket.ask("before")) == ("hello", "before")
    before = [served.process.pid, *sorted(served.workers(2))]
    free = fill(site)
    socket.send("x" * LARGE)
    answer = served.request("POST", "/", "x" * LARGE)
    code = site.shell(SEND % LARGE)
    refused = site.count("durablemessage")
    free()
    started = time.monotonic()
    heard = socket.receive() == "x" * LARGE
    until(lambda: served.get("/").status == 200, "a page is served")
    site.send("stream", {"text": "durable"})
    until(lambda: site.entries() == ["durable"], "a durable message has run")
    unbroken = before == [served.process.pid, *sorted(served.workers())]
    polite = bool(answer.header("Retry-After"))
    return Full(code, answer.status, polite, refused, heard, unbroken, time.monotonic() - started)


def refuse(site: LiveSite) -> Callable[[], Any]:
    """Let each INSERT of a message fail as on a full disk."""
    triggers = "".join(
        f"; CREATE TRIGGER full_disk BEFORE INSERT ON {table} EXECUTE FUNCTION public.disk_is_full()"
        for table in TABLES
    )
    site.rows(REFUSE + triggers)
    return lambda: site.rows("DROP FUNCTION public.disk_is_full CASCADE")


@contextmanager
def small_disk(server: EmbeddedPostgres) -> Iterator[str]:
    """Mount a small file system for a tablespace; only root can."""
    with tempfile.TemporaryDirectory(prefix="dbchannels-disk-") as folder:
        os.chmod(folder, 0o755)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs", folder], check=True)
        try:
            owner = os.stat(server.socket)
            os.chown(folder, owner.st_uid, owner.st_gid)
            yield folder
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


def filler(folder: str) -> Fill:
    """Return what moves the messages onto the small disk, and fills it with another table."""

    def fill(site: LiveSite) -> Callable[[], Any]:
        site.rows(f"CREATE TABLESPACE small LOCATION '{folder}'")
        for table in TABLES:
            site.rows(f"ALTER TABLE {table} SET TABLESPACE small")
        site.rows("CREATE TABLE filler (text text) TABLESPACE small")
        for size in (1_000_000, 100_000, 7000):  # characters
            with suppress(psycopg2.errors.DiskFull):
                while True:
                    site.rows(FILL.format(size // 32))
        return lambda: site.rows("DROP TABLE filler")

    return fill


def _full(scale: float) -> Seen:
    with on_postgresql() as (site, server):
        try:
            with small_disk(server) as folder:
                found, how = full_disk(site, filler(folder)), f"a tablespace of {MEGABYTES} MB"
        except (subprocess.CalledProcessError, PermissionError):
            found, how = full_disk(site, refuse), "an injected error: only root can mount a small disk"
    expected = Full("53100", 503, True, 0, True, True, found.recovery)
    text = f"{how}: sender {found.code}, HTTP {found.status}; all well after {found.recovery:.1f} s"
    return Seen(text, found == expected)


ROWS = [Row(13, "small file system, full", "sender gets the error, HTTP 503, all live and recover", _full)]
