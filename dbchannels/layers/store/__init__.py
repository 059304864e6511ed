"""A layer in anything that keeps tables: the base of the memory layer, the tests' layer and layers of your own."""

from dbchannels.layers.store.layer import StoreLayer
from dbchannels.layers.store.link import StoreLink

__all__ = ["StoreLayer", "StoreLink"]
