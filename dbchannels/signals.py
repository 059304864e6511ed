"""Django signals of the worker, for logs, metrics and set-up. Errors of receivers are logged, and change nothing else.

``consumer_started``
    Before a consumer runs: ``sender`` is the consumer, with ``message``.
``consumer_finished``
    After a consumer has run: ``sender`` is the consumer, with ``message``, ``seconds`` and ``error``, its exception or
    None. The consumer's transaction, if any, has ended. Not sent if the worker is killed.
``worker_ready``
    Once in each worker, when it starts to take messages: ``sender`` is the class ``Worker``, with ``name`` and
    ``channels``.
``message_dead``
    After a message on one of the site's own channels was stored as a dead letter: ``sender`` is the class ``Worker``,
    with ``channel``, ``content``, ``attempts`` and ``error``, the traceback as text. ``content`` is an empty dict if
    the payload cannot be decoded.

Receivers run in the worker. Messages that a receiver of the first two signals sends are written, or dropped, with those
of the consumer, except by ``Channel(name, immediately=True)``. Views have Django's own ``request_started`` and
``request_finished``.
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

_NO_RECEIVER = nullcontext()


def sending(consumer: Callable[..., Any], message: Message) -> AbstractContextManager[None]:
    """Return a context manager that sends the signals of a consumer; without receivers it costs nothing."""
    if consumer_started.receivers or consumer_finished.receivers:
        return _sending(consumer, message)
    return _NO_RECEIVER


@contextmanager
def _sending(consumer: Callable[..., Any], message: Message) -> Iterator[None]:
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


def send_dead(sender: type, failures: Sequence[Failure]) -> None:
    """Send ``message_dead`` for the failures that were stored as dead letters."""
    for failure in failures if message_dead.receivers else ():
        if failure.retry_in is None:
            try:
                content = codec.decode(failure.delivery.payload)
            except UnreadableMessage:  # that is why it failed
                content = {}
            message_dead.send_robust(
                sender,
                channel=failure.delivery.channel,
                content=content,
                attempts=failure.attempts,
                error=failure.error,
            )
