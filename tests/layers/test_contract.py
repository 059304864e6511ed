"""Every layer keeps the contract."""

from __future__ import annotations

import pytest

from dbchannels.layers.database import DatabaseLayer
from dbchannels.layers.memory import MemoryLayer
from dbchannels.layers.postgresql import PostgreSQLLayer
from dbchannels.testing.contract.delivery import DeliveryContract
from dbchannels.testing.contract.durable import DurableContract, UniqueContract
from dbchannels.testing.contract.liveness import LivenessContract
from dbchannels.testing.contract.operating import OperatingContract
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
class TestPollingLayerOnPostgreSQL(
    DeliveryContract, DurableContract, UniqueContract, OperatingContract, LivenessContract
):
    """What goes by the database's locks; for the rest the layer does on PostgreSQL what it does on SQLite."""

    layer_class = DatabaseLayer


class TestMemoryLayer(LayerContract):
    layer_class = MemoryLayer
