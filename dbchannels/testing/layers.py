"""The contract of a channel layer as a test class: for our layers, and for yours.

::

    from dbchannels.testing.layers import LayerContract

    class TestMine(LayerContract):
        layer_class = MyLayer

pytest collects it as it is. It uses nothing of pytest but ``setup_method`` and ``teardown_method``, and touches
a database only inside its tests, so that fixtures can open it (``@pytest.mark.usefixtures`` on your class).
"""

from __future__ import annotations

from dbchannels.testing.contract.case import LayerCase, raises, wait_until
from dbchannels.testing.contract.delivery import DeliveryContract
from dbchannels.testing.contract.durable import DurableContract, UniqueContract
from dbchannels.testing.contract.groups import GroupContract
from dbchannels.testing.contract.history import HistoryContract
from dbchannels.testing.contract.liveness import ConnectionContract, LivenessContract
from dbchannels.testing.contract.messages import MessageContract
from dbchannels.testing.contract.operating import OperatingContract

__all__ = ["LayerCase", "LayerContract", "raises", "wait_until"]


class LayerContract(
    MessageContract,
    DeliveryContract,
    GroupContract,
    HistoryContract,
    DurableContract,
    UniqueContract,
    OperatingContract,
    LivenessContract,
    ConnectionContract,
):
    """Everything that a layer promises. Set ``layer_class``, or write ``make_layer`` yourself.

    A layer is not tested for what it does not claim: without ``shared`` it need not survive a process, without
    ``transactional`` it need not take part in the caller's transaction.
    """
