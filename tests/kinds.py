"""The kinds of layer that the tests run on."""

from __future__ import annotations

from typing import Any

import pytest

#: (backend, alias of DATABASES); "polling" is the layer for any other database, here on PostgreSQL.
LAYERS = {
    "postgresql": ("postgresql", "default"),
    "polling": ("database", "default"),
    "sqlite": ("database", "sqlite"),
    "memory": ("memory", "default"),
}
NEED_POSTGRESQL = ("postgresql", "polling")
#: What most tests run on. "polling" differs from "sqlite" in its locks alone, so only tests/layers has it.
USUAL = ("postgresql", "sqlite", "memory")


def parameters(*kinds: str) -> list[Any]:
    """Return the kinds as parameters, those that need it marked as such."""
    marks = {kind: [pytest.mark.postgresql] if kind in NEED_POSTGRESQL else [] for kind in kinds}
    return [pytest.param(kind, marks=marks[kind]) for kind in kinds]


def only(*kinds: str) -> pytest.MarkDecorator:
    """Return a mark for tests, or a module, that run on these kinds only; the fixture ``layer`` is of that kind."""
    return pytest.mark.parametrize("layer_kind", parameters(*kinds))


#: Those that keep messages in a database; the second one with "polling" beside the others.
on_databases = only("postgresql", "sqlite")
on_all_databases = only("postgresql", "polling", "sqlite")
