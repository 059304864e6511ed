"""Channel layers carry messages from senders to receivers.

``channel_layers["default"]`` is the site's layer. ``base`` has the contract and what all layers share. ``postgresql``
is the product, ``database`` works on any database that Django supports, ``memory`` in one process, and ``store`` is the
base class for a layer of your own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from django.db import connections
from django.utils.module_loading import import_string

from dbchannels import conf, other_libraries
from dbchannels.exceptions import InvalidConfiguration
from dbchannels.layers.base import BaseLayer

__all__ = ["ChannelLayers", "channel_layers"]


class ChannelLayers(dict[str, BaseLayer]):
    """The configured layers by alias. Each is made at its first use, and shared by all threads.

    After ``clear()`` they are made anew, from the settings of that moment.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __missing__(self, alias: str) -> BaseLayer:
        with self._lock:
            if alias not in self:
                self[alias] = make_layer(conf.layer_settings(alias))
            return self[alias]

    @contextmanager
    def swapped(self, layers: Mapping[str, BaseLayer]) -> Iterator[None]:
        """Replace layers of the site during the block."""
        before = self.copy()
        self.update(layers)
        try:
            yield
        finally:
            self.update(before)
            for alias in self.keys() - before.keys():
                del self[alias]


def layer_class(settings: conf.LayerSettings) -> type[BaseLayer]:
    """Return the class that BACKEND names, or else the one for the database; raises InvalidConfiguration."""
    vendor = connections[settings.database].vendor
    backend = settings.backend or conf.SHORT_BACKENDS["postgresql" if vendor == "postgresql" else "database"]
    where = f"DBCHANNELS[{settings.alias!r}]['BACKEND']"
    choices = f"use one of {', '.join(conf.SHORT_BACKENDS)}, or the dotted name of a layer class"
    try:
        found = import_string(backend)
    except ImportError as error:
        raise InvalidConfiguration(
            f"{where} names {backend!r}, which cannot be imported ({error}): {choices}."
        ) from error
    if not (isinstance(found, type) and issubclass(found, BaseLayer)):
        raise InvalidConfiguration(f"{where} names {backend!r}, which is not a layer class: {choices}.")
    if missing := sorted(found.__abstractmethods__):
        raise InvalidConfiguration(
            f"{where} names {backend!r}, which lacks methods: add {', '.join(missing)}."
        )
    if backend == conf.SHORT_BACKENDS["postgresql"] and vendor != "postgresql":
        raise InvalidConfiguration(
            f"{where} is for PostgreSQL, and the database {settings.database!r} is not (its vendor is {vendor!r}): "
            "leave BACKEND out, or name a PostgreSQL database in DATABASE."
        )
    return found


def make_layer(settings: conf.LayerSettings) -> BaseLayer:
    """Make a layer from its settings."""
    return layer_class(settings)(settings)


channel_layers = ChannelLayers()


__getattr__ = other_libraries.module_names(__name__)
