"""Django signals of the worker, for logs, metrics and set-up. Receivers that raise are logged, and break nothing.

``consumer_started``
    Before a consumer runs: ``sender`` is the consumer, with ``message``.
``consumer_finished``
    After it: ``sender`` is the consumer, with ``message``, ``seconds`` and ``error``, the exception that it raised, or
    None. Its transaction, where it has one, has ended. It does not come when the worker is killed meanwhile.
``worker_ready``
    Once in each worker, when it begins to take messages: ``sender`` is the class ``Worker``, with ``name`` and
    ``channels``.
``message_dead``
    A message on one of the site's own channels has become a dead letter, and that is written: ``sender`` is the class
    ``Worker``, with ``channel``, ``content``, ``attempts`` and ``error``, the traceback as text. The content of a
    payload that cannot be decoded is an empty dict.

They run in the worker. What a receiver of the first two sends shares the consumer's fate, unless it goes by
``Channel(name, immediately=True)``. Views have Django's own ``request_started`` and ``request_finished``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from django.dispatch import Signal

from dbchannels import codec
from dbchannels.exceptions import UnreadableMessage

if TYPE_CHECKING:
    from dbchannels.layers.operations import Failure
    from dbchannels.message import Message

consumer_started = Signal()
consumer_finished = Signal()
worker_ready = Signal()
message_dead = Signal()

_UNTOLD = nullcontext()


def told(consumer: Callable[..., Any], message: Message) -> AbstractContextManager[None]:
    """Return what tells of a consumer that runs inside of it; nothing, at no cost, when nobody listens."""
    if consumer_started.receivers or consumer_finished.receivers:
        return _telling(consumer, message)
    return _UNTOLD


@contextmanager
def _telling(consumer: Callable[..., Any], message: Message) -> Iterator[None]:
    sender = consumer if isinstance(consumer, Hashable) else type(consumer)
    consumer_started.send_robust(sender, message=message)
    started, raised = time.monotonic(), None
    try:
        yield
    except BaseException as error:
        raised = error
        raise
    finally:
        seconds = time.monotonic() - started
        consumer_finished.send_robust(sender, message=message, seconds=seconds, error=raised)


def tell_of_dead(sender: type, failures: Sequence[Failure]) -> None:
    """Tell of those failures that were written as dead letters."""
    for failure in failures if message_dead.receivers else ():
        if failure.retry_in is None:
            try:
                content = codec.decode(failure.delivery.payload)
            except UnreadableMessage:  # which is why it is dead
                content = {}
            message_dead.send_robust(
                sender,
                channel=failure.delivery.channel,
                content=content,
                attempts=failure.attempts,
                error=failure.error,
            )
