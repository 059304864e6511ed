"""Whether the methods of a consumer class accept the captures of its route (check E004)."""

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
RUN = ("connect", "receive", "receive_json", "disconnect", "groups")


def mismatch(consumer: Callable[..., Any], channel: str, captures: Sequence[str]) -> str:
    """Return what is wrong with the methods of a class for this channel; "" if nothing is, and for a function."""
    of = getattr(consumer, "consumer_class", None)
    if of is None:
        return ""
    if isinstance(of.groups, str):
        return f"its groups are a str; write groups = [{of.groups!r}]"
    if taken := sorted(RESERVED.intersection(captures)):
        return f"{taken[0]!r} is another parameter of its methods; rename the capture"
    return _misspelled(of) or _mismatch(of, channel.rpartition(".")[2], captures)


def _misspelled(of: type[WebsocketConsumer]) -> str:
    """Return a method that is never run, and what to write instead."""
    for name in (one for base in of.__mro__ if base not in OURS for one in vars(base)):
        if told := foreign.advice("class", name):
            return f"{of.__qualname__}.{name} means nothing in dbchannels; {told}"
        if name == "receive_json" and not issubclass(of, JsonWebsocketConsumer):
            return f"{of.__qualname__}.receive_json is never run; subclass JsonWebsocketConsumer"
        near = difflib.get_close_matches(name, RUN, n=1, cutoff=0.85)
        if near and name not in RUN:
            return f"{of.__qualname__}.{name} is never run; write {near[0]}"
    return ""


def _mismatch(of: type[WebsocketConsumer], kind: str, captures: Sequence[str]) -> str:
    if kind == "receive" and (wrong := _wrong_receive(of, tuple(captures))):
        return wrong
    for method, positional, keywords in _calls(of, kind):
        if wrong := _wrong_call(of, method, positional, [*keywords, *captures]):
            return wrong
    inner = of.consumers.values() if issubclass(of, Demultiplexer) else ()
    return next(filter(None, (_mismatch(one, kind, captures) for one in inner)), "")


def _wrong_receive(of: type[WebsocketConsumer], captures: tuple[str, ...]) -> str:
    if not issubclass(of, JsonWebsocketConsumer):
        return wrong_receive(of, captures)  # type: ignore[arg-type]
    if of.receive in (JsonWebsocketConsumer.receive, Demultiplexer.receive):
        return ""
    if inspect.signature(of.receive).parameters.keys().isdisjoint({"text", "bytes"}):
        return f"{of.__qualname__}.receive overrides the one that calls receive_json: write receive_json(self, content)"
    return ""


def _calls(of: type[WebsocketConsumer], kind: str) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """Return the methods called for a kind of message, each with its positional and its keyword arguments."""
    if kind == "connect":
        return [*([("groups", (), ())] if callable(of.groups) else []), (kind, ("message",), ())]
    if kind == "disconnect":
        return [(kind, ("code",), ())]
    if issubclass(of, JsonWebsocketConsumer):
        return [("receive_json", ("content",), ())]
    return [("receive", (), (one,)) for one in ("text", "bytes") if takes(of.receive, one)]


def _wrong_call(
    of: type[WebsocketConsumer], method: str, positional: Sequence[str], keywords: Sequence[str]
) -> str:
    function = getattr(of, method)
    if is_generator(function) and method != "groups":
        return f"{of.__qualname__}.{method} is a generator, so calling it runs nothing; remove the yield"
    try:
        signature = inspect.signature(function)
        signature.bind(None, *positional, **dict.fromkeys(keywords))
    except TypeError:
        wanted = ", ".join(["self", *positional, *dict.fromkeys(keywords)])
        return f"{of.__qualname__}.{method} takes {signature}; write {method}({wanted})"
    return ""
