"""Fixtures for pytest, available wherever dbchannels is installed. Nothing is imported before a test uses one."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from dbchannels.testing import ChannelClient, Channels
    from dbchannels.testing.layer import RecordingLayer
    from dbchannels.testing.live import LiveServer


@pytest.fixture
def channels() -> Iterator[Channels]:
    """Empty channels in memory that replace the site's: ``assertSent``, ``drain`` and the others."""
    with import_module("dbchannels.testing").use_channels() as channels:
        yield channels


@pytest.fixture
def channel_layer(channels: Channels) -> RecordingLayer:
    """The layer of these channels: ``channel_layers["default"]`` during the test."""
    return channels.layer


@pytest.fixture
def ws_client(channels: Channels) -> ChannelClient:
    """A ChannelClient; logins need the fixture ``db`` too."""
    client: ChannelClient = import_module("dbchannels.testing").ChannelClient()
    return client


@pytest.fixture
def live_channels(transactional_db: None) -> Iterator[LiveServer]:
    """``runchannels`` and two workers on the test's database, at ``url`` and ``ws_url``. Needs pytest-django."""
    server = import_module("dbchannels.testing.live").LiveServer("localhost", 0, 2)
    yield server
    server.stop()
