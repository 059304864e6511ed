"""Every layer keeps the contract."""

from __future__ import annotations

import pytest

from dbchannels.layers.database import DatabaseLayer
from dbchannels.layers.memory import MemoryLayer
from dbchannels.layers.postgresql import PostgreSQLLayer
from dbchannels.testing.layers import LayerContract


@pytest.mark.postgresql
@pytest.mark.usefixtures("tables")
class TestPostgreSQLLayer(LayerContract):
    layer_class = PostgreSQLLayer


@pytest.mark.usefixtures("tables")
class TestSQLiteLayer(LayerContract):
    layer_class = DatabaseLayer
    database = "sqlite"


@pytest.mark.postgresql
@pytest.mark.usefixtures("tables")
class TestPollingLayerOnPostgreSQL(LayerContract):
    layer_class = DatabaseLayer


class TestMemoryLayer(LayerContract):
    layer_class = MemoryLayer
