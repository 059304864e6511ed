"""Consumers that are ``async def`` run to their end in the worker, which goes on being synchronous."""

from __future__ import annotations

import inspect
from collections.abc import Coroutine
from typing import Any

from asgiref.sync import async_to_sync


def completed(result: Any) -> Any:
    """Return what a consumer gave; of a coroutine what it returns, once it has run.

    Its code runs in a thread of its own, and what it awaits of Django's ORM in the calling one: on the worker's
    connection, and inside the transaction that is open there.
    """
    return async_to_sync(_awaited)(result) if inspect.iscoroutine(result) else result


async def _awaited(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return await coroutine
