"""A database with several addresses, of which one takes writes: a primary and its standbys.

libpq tries them in turn, and a host that has vanished costs each new connection its ``connect_timeout``. So in this
process the address that was last connected to comes first, for Django's connections too.
https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-MULTIPLE-HOSTS
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.db import connections
from django.db.backends.signals import connection_created

Address = tuple[str, str]  # (host, port)


def addresses(settings: Mapping[str, Any]) -> list[Address]:
    """Return the addresses in an entry of DATABASES, if there are several; nothing if libpq would refuse them."""
    hosts = str(settings.get("HOST") or "").split(",")
    ports = str(settings.get("PORT") or "5432").split(",")
    ports *= len(hosts) if len(ports) == 1 else 1
    return list(zip(hosts, ports, strict=True)) if len(ports) == len(hosts) > 1 else []


def joined(pairs: list[Address]) -> dict[str, str]:
    """Return HOST and PORT of addresses."""
    hosts, ports = zip(*pairs, strict=True)
    return {"HOST": ",".join(hosts), "PORT": ",".join(ports)}


def prefer(address: Address) -> None:
    """Put an address that has just accepted a connection first, wherever DATABASES has it among several."""
    for settings in connections.settings.values():
        pairs = addresses(settings)
        if address in pairs[1:]:
            settings.update(joined(sorted(pairs, key=lambda pair: pair != address)))


def learn() -> None:
    """Learn from each connection of Django's from now on, if a database has several addresses."""
    if any(map(addresses, connections.settings.values())):
        connection_created.connect(_connected)


def _connected(connection: Any, **kwargs: Any) -> None:
    if connection.vendor == "postgresql" and addresses(connection.settings_dict):
        about = connection.connection.info
        prefer((str(about.host), str(about.port)))
