"""The layer of tests keeps the contract of all layers, with a clock that goes."""

from __future__ import annotations

import time

import pytest

from dbchannels.conf import OPTIONS, LayerSettings
from dbchannels.testing.layer import RecordingLayer
from dbchannels.testing.layers import LayerContract


class TickingLayer(RecordingLayer):
    """Its clock does not stand still."""

    def clock(self):
        return time.monotonic()


@pytest.mark.usefixtures("tables")
class TestRecordingLayer(LayerContract):
    """Its parts that need a process of their own, or its schedule, are not a test's."""

    layer_class = TickingLayer

    def make_layer(self, **options):
        return TickingLayer(LayerSettings("default", None, "default", None, {**OPTIONS, **options}), [])
