"""Tools for the tests of a site with channels, see docs/testing.rst. Each name is imported when it is first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dbchannels.other_libraries import module_names

if TYPE_CHECKING:
    from dbchannels.testing.cases import ChannelTestCase, ChannelTestMixin, ChannelTransactionTestCase
    from dbchannels.testing.channels import Channels, use_channels
    from dbchannels.testing.client import ChannelClient, LaterAnswer
    from dbchannels.testing.live import ChannelLiveServerTestCase
    from dbchannels.testing.sent import SentMessage
    from dbchannels.testing.sockets import ClientSocket

_MODULES = {
    "ChannelClient": "client",
    "ChannelLiveServerTestCase": "live",
    "ChannelTestCase": "cases",
    "ChannelTestMixin": "cases",
    "ChannelTransactionTestCase": "cases",
    "Channels": "channels",
    "ClientSocket": "sockets",
    "LaterAnswer": "client",
    "SentMessage": "sent",
    "use_channels": "channels",
}

__all__ = [
    "ChannelClient",
    "ChannelLiveServerTestCase",
    "ChannelTestCase",
    "ChannelTestMixin",
    "ChannelTransactionTestCase",
    "Channels",
    "ClientSocket",
    "LaterAnswer",
    "SentMessage",
    "use_channels",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        return module_names(__name__)(name)
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
