"""Django's test cases with channels of each test's own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

from django.test import TestCase, TransactionTestCase

from dbchannels.channel import Channel, Group
from dbchannels.other_libraries import ForeignNames
from dbchannels.testing.channels import Channels, use_channels
from dbchannels.testing.client import ChannelClient
from dbchannels.testing.sent import SentMessage, SentMessages


class ChannelTestMixin(ForeignNames):
    """Gives each test channels of its own, and their methods. Put it before a test case of Django's."""

    _place = "test"
    client_class: Any = ChannelClient
    client: Any  # a ChannelClient
    channels: Channels

    @classmethod
    def setUpClass(cls) -> None:
        """Give the class channels too: what ``setUpTestData`` sends belongs to no test."""
        block = use_channels()
        block.__enter__()
        cls.addClassCleanup(block.__exit__, None, None, None)  # type: ignore[attr-defined]
        super().setUpClass()  # type: ignore[misc]

    def run(self, result: Any = None) -> Any:
        """Run the test, from setUp to the last cleanup."""
        return self._with_channels(super().run, result)  # type: ignore[misc]

    def debug(self) -> None:
        """Run the test without collecting its errors."""
        self._with_channels(super().debug)  # type: ignore[misc]

    def _with_channels(self, run: Callable[..., Any], *arguments: Any) -> Any:
        with use_channels() as self.channels:
            return run(*arguments)

    # The methods of Channels, whose docstrings say more.

    def captureMessages(self) -> AbstractContextManager[SentMessages]:
        """Collect the messages that are sent in the block."""
        return self.channels.captureMessages()

    def assertSent(self, channel: Channel | Group | str, /, **fields: Any) -> SentMessage:
        """Return the first message sent to a channel or group with these fields; fail if there is none."""
        return self.channels.assertSent(channel, **fields)

    def assertNotSent(self, channel: Channel | Group | str, /, **fields: Any) -> None:
        """Fail if such a message was sent."""
        self.channels.assertNotSent(channel, **fields)

    def drain(self, *, delayed: bool = False, limit: int = 1000, raise_exception: bool = True) -> int:
        """Run the consumers of waiting messages until none waits; return how many ran."""
        return self.channels.drain(delayed=delayed, limit=limit, raise_exception=raise_exception)

    def advance(self, time: timedelta | float) -> None:
        """Move the layer's clock forward: delayed messages become due."""
        self.channels.advance(time)


class ChannelTestCase(ChannelTestMixin, TestCase):
    """Django's TestCase: what was sent inside ``atomic()`` counts as sent after the block, unless it is rolled back."""


class ChannelTransactionTestCase(ChannelTestMixin, TransactionTestCase):
    """Django's TransactionTestCase: what was sent inside ``atomic()`` is sent at commit."""
