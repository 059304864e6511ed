"""What a check of ``channels_doctor`` is given, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from django.db import connections

from dbchannels.layers.orm import DjangoLayer
from dbchannels.layers.overview import Overview

OK, NOTE, WRONG = "ok", "note", "wrong"


class Finding(NamedTuple):
    """One line of the report."""

    level: str  # OK, NOTE (worth knowing) or WRONG
    text: str  # with what to do


@dataclass
class Patient:
    """The site, and what earlier checks have found out for later ones."""

    layer: DjangoLayer
    max_connections: int  # of one server, as --max-connections
    reachable: bool = False
    migrated: bool = False
    overview: Overview = field(default_factory=lambda: Overview([], []))
    consumers: dict[str, list[str]] | None = None  # None: the routing cannot be read

    @property
    def server_reachable(self) -> bool:
        """Whether there is a PostgreSQL server to ask."""
        return self.reachable and self.on_postgresql

    @property
    def on_postgresql(self) -> bool:
        """Whether the layer's database is PostgreSQL."""
        return bool(connections[self.layer.database].vendor == "postgresql")

    def rows(self, statement: str, values: Any = None) -> list[tuple[Any, ...]]:
        """Run a statement on Django's connection of this thread."""
        with connections[self.layer.database].cursor() as cursor:
            cursor.execute(statement, values)
            return cursor.fetchall()  # type: ignore[no-any-return]


Check = Callable[[Patient], Iterator[Finding]]
