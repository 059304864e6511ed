"""Consumers that are ``async def`` run to their end in the worker, which goes on being synchronous."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable
from functools import partial
from typing import Any

from asgiref.sync import async_to_sync

from dbchannels.exceptions import InvalidConfiguration


def completed(result: Any) -> Any:
    """Return what a consumer gave; of a coroutine what it returns, once it has run.

    Its code runs in a thread of its own, and what it awaits of Django's ORM in the calling one: on the worker's
    connection, and inside the transaction that is open there.
    """
    if inspect.isgenerator(result) or inspect.isasyncgen(result):
        raise InvalidConfiguration(
            f"{result.__qualname__} is a generator, so calling it ran nothing: take the yield out, and send what it "
            "yields to a channel."
        )
    return async_to_sync(_awaited)(result) if inspect.isawaitable(result) else result


def is_generator(consumer: Any) -> bool:
    """Whether calling a consumer makes a generator: itself, or what is inside of its decorators and partials."""
    while isinstance(consumer, partial):
        consumer = consumer.func
    if not inspect.isroutine(consumer):  # an object that can be called
        consumer = getattr(type(consumer), "__call__", consumer)  # noqa: B004
    inner = inspect.unwrap(consumer)
    if isinstance(inner, partial):
        return is_generator(inner)
    return inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner)


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
