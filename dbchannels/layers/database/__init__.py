"""The layer for any Django database: the same rows through the ORM, polled; SQLite is woken by datagrams."""

from dbchannels.layers.database.layer import DatabaseLayer

__all__ = ["DatabaseLayer"]
