"""Whether a class takes what its route captures: found by ``manage.py check``, before a client does."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from dbchannels import foreign
from dbchannels.consumers.json import Demultiplexer, JsonWebsocketConsumer
from dbchannels.consumers.websocket import RESERVED, WebsocketConsumer, takes, wrong_receive
from dbchannels.worker.executor import is_generator

OURS = {*Demultiplexer.__mro__, *JsonWebsocketConsumer.__mro__}
_POSITIONAL = {"receive_json": "content", "disconnect": "code"}
RUN = ("connect", "receive", "receive_json", "disconnect", "groups")


def mismatch(consumer: Callable[..., Any], channel: str, captures: Sequence[str]) -> str:
    """Return what is wrong with the method of a class for this channel; "" for nothing, and for a function."""
    of = getattr(consumer, "consumer_class", None)
    if of is None:
        return ""
    if isinstance(of.groups, str):
        return f"its groups are one text; write groups = [{of.groups!r}]"
    if taken := sorted(RESERVED.intersection(captures)):
        return f"{taken[0]!r} is what its methods call something else; capture it by another name"
    return _misspelled(of) or _mismatch(of, channel.rpartition(".")[2], captures)


def _misspelled(of: type[WebsocketConsumer]) -> str:
    """Return what is wrong with a method that is nearly called as one that is run."""
    for name in (one for base in of.__mro__ if base not in OURS for one in vars(base)):
        if told := foreign.advice("class", name):
            return f"{of.__qualname__}.{name} means nothing here; {told}"
        if name == "receive_json" and not issubclass(of, JsonWebsocketConsumer):
            return f"{of.__qualname__}.receive_json is never run; subclass JsonWebsocketConsumer"
        near = difflib.get_close_matches(name, RUN, n=1, cutoff=0.85)
        if near and name not in RUN:
            return f"{of.__qualname__}.{name} is never run; write {near[0]}"
    return ""


def _mismatch(of: type[WebsocketConsumer], kind: str, captures: Sequence[str]) -> str:
    if kind == "receive" and (wrong_one := _wrong_receive(of, tuple(captures))):
        return wrong_one
    inner = of.consumers.values() if issubclass(of, Demultiplexer) else ()
    wrong = [_call(of, method, given, captures) for method, given in _calls(of, kind)]
    return next(filter(None, [*wrong, *(_mismatch(one, kind, captures) for one in inner)]), "")


def _calls(of: type[WebsocketConsumer], kind: str) -> list[tuple[str, dict[str, None] | tuple[None]]]:
    """Return the methods that are called for a kind of message, and what with."""
    if kind != "receive":
        groups: list[tuple[str, Any]] = [("groups", ())] if kind == "connect" and callable(of.groups) else []
        return [*groups, (kind, (None,))]
    if issubclass(of, JsonWebsocketConsumer):
        return [("receive_json", (None,))]
    kinds = [one for one in ("text", "bytes") if takes(of.receive, one)]
    return [("receive", {one: None}) for one in kinds]


def _call(
    of: type[WebsocketConsumer], method: str, given: dict[str, None] | tuple[None], captures: Sequence[str]
) -> str:
    arguments = () if isinstance(given, dict) else given
    keywords = {**(given if isinstance(given, dict) else {}), **dict.fromkeys(captures)}
    return _unfit(of, method, arguments, keywords)


def _wrong_receive(of: type[WebsocketConsumer], captures: tuple[str, ...]) -> str:
    if not issubclass(of, JsonWebsocketConsumer):
        return wrong_receive(of, captures)  # type: ignore[arg-type]
    if of.receive in (JsonWebsocketConsumer.receive, Demultiplexer.receive):
        return ""
    if inspect.signature(of.receive).parameters.keys().isdisjoint({"text", "bytes"}):
        return f"{of.__qualname__}.receive stands in front of receive_json: write receive_json(self, content)"
    return ""


def _unfit(
    of: type[WebsocketConsumer], method: str, arguments: tuple[None, ...], keywords: dict[str, None]
) -> str:
    """Return that a method cannot be called so, and what to write; "" where it can."""
    function = getattr(of, method)
    if is_generator(function) and method != "groups":
        return f"{of.__qualname__}.{method} is a generator, so calling it runs nothing; take the yield out"
    try:
        signature = inspect.signature(function)
        signature.bind(None, *arguments, **keywords)
    except TypeError:
        given = [_POSITIONAL.get(method, "message")] if arguments else []
        wanted = ", ".join(["self", *given, *keywords])
        return f"{of.__qualname__}.{method} takes {signature}; write {method}({wanted})"
    return ""
