"""Imports point down only. Read from the source: what is imported while typing is checked does not count."""

from __future__ import annotations

import ast
import graphlib
from functools import cache
from pathlib import Path

import pytest

import dbchannels

ROOT = Path(dbchannels.__file__).parent
#: From the bottom up; modules of one line do not know each other, unless they are in one folder. What is not named
#: (``apps``, ``wsgi``) stands above all.
LEVELS = (
    ("protocol",),
    ("exceptions",),
    ("names", "codec", "conf", "wakeup", "signals", "other_libraries"),
    ("models", "redaction", "measures"),
    ("samples",),
    ("layers",),
    ("channel",),
    ("auth", "bindings", "events"),
    ("message",),
    ("tasks",),
    ("server", "routing"),
    ("worker",),
    ("consumers",),
    ("checks",),
    ("processes",),
    ("management", "admin"),
    ("testing",),
)
RANKS = {name: rank for rank, names in enumerate(LEVELS) for name in names}
PURE = ("gevent", "django.db", "models")
#: No way leads from one to the others, not even through modules between them.
NEVER = {
    "server": ("routing", "consumers", "worker", "admin", "checks"),
    "worker": ("gevent", "geventwebsocket", "server"),
    "wsgi": ("gevent", "geventwebsocket", "routing", "consumers", "worker"),
    "layers.postgresql": ("layers.database", "layers.store"),
    "layers.database": ("layers.postgresql", "layers.store"),
    "layers.store": ("layers.postgresql", "layers.database", "layers.orm"),
    **{
        f"server.{name}": PURE
        for name in (
            "http.headers",
            "http.messages",
            "http.parser",
            "websocket.framing",
            "websocket.messages",
            "websocket.handshake",
            "proxy_headers",
            "options",
            "access_log",
        )
    },
}
#: Imports inside functions, except of models: the registry of apps must be ready first.
LATE = {
    ("routing.interval", "cronsim"),
    ("apps", "checks"),
    ("apps", "bindings.binding"),
    ("apps", "redaction"),
    ("apps", "layers.addresses"),
    ("bindings.binding", "django.contrib.auth.models"),
    ("apps", "auth.logout"),
    ("auth.users", "django.contrib.auth.models"),
    ("wsgi", "server.wsgi_gateway"),
    ("management.commands.runworker", "processes.probes"),
    ("tasks", "tasks.framework"),
    ("tasks", "tasks.backend"),
    ("checks.site", "tasks.framework"),
    ("worker.database_connections", "psycopg.rows"),  # of a driver that may not be there
}

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").strip("."): path
    for path in ROOT.rglob("*.py")
    if "migrations" not in path.parts and path.parent != ROOT / "testing"
}
del FILES[""]


def imports(nodes):
    """Yield the modules that these nodes import: ours by their name inside the package, others by their own."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            ours = node.module.removeprefix("dbchannels").strip(".")
            for name in [f"{ours}.{alias.name}".strip(".") for alias in node.names]:
                yield name if name in FILES else ours


def walk(node):
    """Yield a node and all below it, without blocks under ``if TYPE_CHECKING``."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and getattr(child.test, "id", "") == "TYPE_CHECKING"):
            yield from walk(child)


@cache
def trees():
    """Return the syntax tree of each module: not at the import, which each process that runs tests does."""
    return {name: ast.parse(path.read_text()) for name, path in FILES.items()}


@cache
def graph():
    """Return what each module imports."""
    return {name: set(imports(walk(tree))) - {name} for name, tree in trees().items()}


def reached(name):
    """Return everything that importing a module imports."""
    found: set[str] = set()
    todo = [name]
    while todo:
        for one in graph().get(todo.pop(), set()) - found:
            found.add(one)
            todo.append(one)
    return found


def within(names, parts):
    """Return those names that are, or are inside of, one of the parts."""
    return sorted(
        name for name in names if any(name == part or name.startswith(part + ".") for part in parts)
    )


@pytest.mark.parametrize("name", FILES)
def test_imports_point_down(name):
    rank = RANKS.get(name.partition(".")[0], len(LEVELS))
    assert [one for one in reached(name) if RANKS.get(one.partition(".")[0], 0) > rank] == []


@pytest.mark.parametrize("part", NEVER)
def test_what_must_not_be_reached_is_not(part):
    for name in within(FILES, [part]):
        assert within(reached(name), NEVER[part]) == [], name


def test_one_module_knows_the_websocket_package():
    assert len([name for name in graph() if within(graph()[name], ["geventwebsocket"])]) <= 1


def test_there_is_no_cycle():
    list(graphlib.TopologicalSorter(graph()).static_order())


def test_imports_stand_at_the_top():
    functions = [
        (name, node)
        for name, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    ]
    late = {(name, one) for name, function in functions for one in imports(walk(function))}
    assert {(name, one) for name, one in late if one != "models"} == LATE


def test_each_name_above_is_of_a_module():
    named = {*RANKS, *NEVER, *(name for name, _ in LATE)}
    assert [name for name in sorted(named) if not within(FILES, [name])] == []


def test_the_reader_of_imports_sees_them():
    assert "message" in graph()["worker.executor"]
    assert "layers.operations" in graph()["layers.database"]
    assert "layers.base" not in graph()["layers.link"]
    assert "django.db" in reached("channel")
