"""Channel layers: what carries messages from those who send to those who receive.

``channel_layers["default"]`` is the site's layer. ``base`` holds the contract, with what every layer shares;
``postgresql`` is the product, ``database`` works on any database that Django does, ``memory`` in one process;
``store`` is what a layer of your own subclasses.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from django.utils.module_loading import import_string

from dbchannels import conf, foreign
from dbchannels.exceptions import InvalidConfiguration, safe_repr

if TYPE_CHECKING:
    from dbchannels.layers.base import BaseLayer

__all__ = ["ChannelLayers", "channel_layers"]


class ChannelLayers:
    """The configured layers by alias, each made when it is first asked for and shared by all threads."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._layers: dict[str, BaseLayer] = {}

    def __getitem__(self, alias: str) -> BaseLayer:
        if not isinstance(alias, str):
            raise InvalidConfiguration(
                f"The alias of a layer is {safe_repr(alias)}: write a key of DBCHANNELS, as 'default'."
            )
        with self._lock:
            if alias not in self._layers:
                self._layers[alias] = make_layer(conf.layer_settings(alias))
            return self._layers[alias]

    def __setitem__(self, alias: str, layer: BaseLayer) -> None:
        with self._lock:
            self._layers[alias] = layer

    @contextmanager
    def swapped(self, layers: Mapping[str, BaseLayer]) -> Iterator[None]:
        """Put other layers in the place of the site's while the block runs."""
        with self._lock:
            before = dict(self._layers)
            self._layers.update(layers)
        try:
            yield
        finally:
            with self._lock:
                self._layers = before

    def reset(self) -> None:
        """Forget every layer: the next one asked for is made from the settings as they are then."""
        with self._lock:
            self._layers.clear()


def make_layer(settings: conf.LayerSettings) -> BaseLayer:
    """Make a layer from its settings; without a BACKEND the database's vendor decides."""
    backend = settings.backend or conf.SHORT_BACKENDS[_vendors_layer(settings.database)]
    try:
        layer_class = import_string(backend)
    except ImportError as error:
        raise InvalidConfiguration(
            f"DBCHANNELS[{settings.alias!r}]['BACKEND'] names {backend!r}, which cannot be imported ({error}): "
            f"use one of {', '.join(conf.SHORT_BACKENDS)}, or the dotted name of a layer class."
        ) from error
    return layer_class(settings)  # type: ignore[no-any-return]


def _vendors_layer(database: str) -> str:
    from django.db import connections

    return "postgresql" if connections[database].vendor == "postgresql" else "database"


channel_layers = ChannelLayers()


__getattr__ = foreign.module_names(__name__)
