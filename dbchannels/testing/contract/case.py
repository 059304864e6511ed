"""What the parts of the layer contract share: layers and links that are closed after a test, and waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connections

from dbchannels.conf import OPTIONS, LayerSettings
from dbchannels.layers.base import BaseLayer
from dbchannels.layers.link import Link
from dbchannels.names import random_part

DEADLINE = 10.0  # seconds after which what has not happened is a failure
PAUSE = 0.005  # seconds between two looks
SOON = 0.05  # seconds: what is set to end or to come so soon does so while a test waits


class LayerCase:
    """Makes layers for a test, and closes what it opened when the test has ended."""

    #: The class under test.
    layer_class: type[BaseLayer]
    #: The alias in DATABASES of the database that it uses, if it uses any.
    database = "default"

    def make_layer(self, **options: Any) -> BaseLayer:
        """Return a new layer with these OPTIONS, every other one at its default."""
        return self.layer_class(LayerSettings("default", None, self.database, None, {**OPTIONS, **options}))

    def setup_method(self) -> None:
        self._opened: list[BaseLayer | Link] = []

    def teardown_method(self) -> None:
        for opened in reversed(self._opened):
            opened.close()

    def layer(self, **options: Any) -> BaseLayer:
        """Return a new, empty layer."""
        layer = self.make_layer(**options)
        self._opened.append(layer)
        layer.flush()
        return layer

    def link(self, layer: BaseLayer) -> Link:
        """Return a new link to a layer."""
        link = layer.link()
        self._opened.append(link)
        return link

    def layer_and_link(self, **options: Any) -> tuple[BaseLayer, Link]:
        """Return a new, empty layer and a link to it."""
        layer = self.layer(**options)
        return layer, self.link(layer)


def in_thread(layer: BaseLayer, call: Callable[[], Any]) -> threading.Thread:
    """Call the function in a thread, which then closes its database connections."""

    def run() -> None:
        try:
            call()
        finally:
            layer.close()
            connections.close_all()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def process_name(kind: str) -> str:
    """Return a new name for a process, because the layer's ``flush`` does not delete the records of processes."""
    return f"{kind}-{random_part()}"


def drain(layer: BaseLayer, *channels: str) -> list[Any]:
    """Receive from the channels until they are empty; return the messages."""
    messages: list[Any] = []
    while (received := layer.receive(channels))[0] is not None:
        messages.append(received[1])
    return messages


def waiting(layer: BaseLayer, channel: str) -> float:
    """Return how many messages wait on a channel, and leave them there."""
    return layer.channel_statistics(channel)["messages_pending"]


def wait_until(condition: Callable[[], Any], deadline: float = DEADLINE) -> Any:
    """Return what ``condition()`` gives as soon as that is true; fail after ``deadline`` seconds."""
    end = time.monotonic() + deadline
    while not (found := condition()):
        assert time.monotonic() < end, f"This did not come true within {deadline:g} s: {condition}"
        time.sleep(PAUSE)
    return found


class Raised:
    """What ``raises`` caught: ``sentence`` is its text, once the block has ended."""

    sentence = ""


@contextmanager
def raises(expected: type[Exception]) -> Iterator[Raised]:
    """Pass when the block raises this exception, whose text is one sentence on one line."""
    raised = Raised()
    try:
        yield raised
    except expected as error:
        raised.sentence = str(error)
        assert raised.sentence.endswith(".") and "\n" not in raised.sentence, raised.sentence
    else:
        raise AssertionError(f"{expected.__name__} was not raised.")
