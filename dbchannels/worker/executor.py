"""Run the consumer of a message, and answer its client when the consumer raises."""

from __future__ import annotations

import difflib
import inspect
import logging
import math
import random
import re
import threading
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext, suppress
from contextvars import Context, copy_context
from copy import copy
from functools import partial
from typing import Any

from asgiref.sync import async_to_sync
from django.conf import settings
from django.db import transaction
from django.http.response import HttpResponseBase

from dbchannels import codec, names, other_libraries, signals
from dbchannels.conf import TEN_YEARS
from dbchannels.exceptions import (
    ConsumeLater,
    DenyConnection,
    InvalidConfiguration,
    InvalidMessage,
    LoginEnded,
    NewerFormat,
    ResponseLater,
    TransactionLeftOpen,
    UnreadableMessage,
    WebSocketCloseException,
    WorkerKilled,
    safe_repr,
)
from dbchannels.layers.base import BaseLayer
from dbchannels.layers.link import Link
from dbchannels.layers.operations import (
    Delivery,
    Disconnect,
    Failure,
    Keep,
    Operation,
    Result,
    Send,
)
from dbchannels.layers.tasks import ReturnValue, running
from dbchannels.message import Message
from dbchannels.protocol import (
    AGAIN,
    CONSUMER_RAISED,
    ERROR,
    EVENT,
    FINISHED,
    LATER,
    TAKEN,
    WORKER_DIED,
    Fields,
    lost,
    status_reply,
)
from dbchannels.redaction import Lines, RateLimitedLog
from dbchannels.routing.routes import Backoff, ConsumerOptions, Route
from dbchannels.routing.table import Routing
from dbchannels.worker import database_connections
from dbchannels.worker.stacks import format_error
from dbchannels.worker.views import ApplicationViews

log = logging.getLogger("dbchannels.worker")

# The delays of a failed message by default: the first, what each attempt multiplies it by, and the longest.
FIRST, FACTOR, LONGEST = 1.0, 5.0, 3600.0
JITTER = 0.25  # of a delay, so that messages that failed together do not come back together
NEWER_AGAIN = 10.0  # seconds until a message that needs a later release is offered to a worker again
NEWER = "%d message(s) wait for a worker with a later release of dbchannels, the first on %s. %s"

_DEFAULT_OPTIONS = ConsumerOptions("")  # of views, and of messages without a route


class ClaimLost(Exception):
    """Another worker has claimed the message meanwhile: everything that this one did is rolled back."""


def dead(
    delivery: Delivery, error: str, ran: bool = True, exception: type[BaseException] = CancelledError
) -> Result:
    """Return the end of a durable message that runs no more: a dead letter with this text."""
    return Result([], Failure(delivery, error, None, ran, exception), False)


class Executor:
    """Runs consumers for one worker, one message at a time."""

    #: Leaves Django's connections for the next message.
    tidy = staticmethod(database_connections.end_message)

    def __init__(
        self, layer: BaseLayer, routing: Routing, link: Link, views: ApplicationViews | None = None
    ) -> None:
        self.layer = layer
        self.routing = routing
        self.views = views or ApplicationViews(threads=False)
        self._link = link
        self._route: Route | None = None  # of the message that runs
        self._returned = "null"  # what its task has returned
        self._newer = RateLimitedLog(log, NEWER, None, every=math.inf)

    def execute(self, delivery: Delivery, worker: str) -> Result:
        """Run the consumer of a message; return what it sent, its failure if it raised, and whether to acknowledge.

        It runs in a context of its own: the language, the time zone, the script prefix and whatever else a consumer or
        a view keeps in a ContextVar are gone for the next message. A message that somebody has cancelled does not run.
        """
        if delivery.cancelled_by:
            again = " again" if delivery.attempt > 1 else ""
            text = f"{delivery.cancelled_by} cancelled this message before it ran{again}."
            log.warning("A message on %s does not run. %s", delivery.channel, text)
            return dead(delivery, text, ran=False)
        return copied_context().run(self._execute, delivery, worker)

    def call_between(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Call receivers of signals between two messages: they leave nothing behind for the next message either."""
        blocks = database_connections.open_blocks()
        try:
            copied_context().run(call, *args, **kwargs)
        finally:
            if left := database_connections.end_transactions(blocks):
                log.error("After the receivers of a signal: %s", TransactionLeftOpen(left))
            self.tidy()

    def _execute(self, delivery: Delivery, worker: str) -> Result:
        self._route, self._returned = None, "null"
        blocks = database_connections.open_blocks()
        is_first = delivery.channel in ("websocket.connect", "http.request")
        opening = self.layer.opening(delivery.reply_channel if is_first else "")
        with opening, self.layer.buffered() as buffer:
            try:
                answers = self._run(delivery, worker)
                atomic = self._options.atomic
                if atomic and isinstance(self._returned, ReturnValue):
                    self._returned.written()
                sent = buffer.pending()
                if left := database_connections.end_transactions(blocks):
                    raise TransactionLeftOpen(left)
                if delivery.channel == "http.request":
                    _check_answers(sent, delivery.reply_channel)
                operations = _merged(sent, answers) if sent and answers else sent or answers
                return Result(operations, None, not atomic, return_value=self._returned)
            except BaseException as error:  # SystemExit and asyncio's CancelledError too
                database_connections.end_transactions(blocks)
                return self._raised(delivery, error)
            finally:
                self.tidy()

    def _run(self, delivery: Delivery, worker: str) -> list[Operation]:
        """Run the consumer or the view; return the replies that dbchannels itself sends when it has returned."""
        channel, content = delivery.channel, codec.decode(delivery.payload)
        found = self.routing.match(channel, content)
        if found is None:
            return self._run_without_route(delivery, content)
        self._route, captures = found
        message = Message(channel, content, attempt=delivery.attempt, layer=self.layer.alias, worker=worker)
        if delivery.attempt > 1 and delivery.attempt > self._option("retries") + 1:
            raise WorkerKilled(delivery.attempt - 1)
        # A consumer may answer its request late, or have another process do so: then the next of its address may come.
        answer = {TAKEN: True} if channel == "http.request" and message.reply_channel is not None else None
        atomic = self._options.atomic
        together = transaction.atomic(using=self.layer.database) if atomic else nullcontext()
        with signals.sending(self._route.consumer, message), together:
            try:
                returned = completed(self._route.run(message, captures))
                if isinstance(returned, ReturnValue):
                    self._returned = returned
                _check_result(self._route, channel, returned)
            except ResponseLater:
                if answer is None:
                    raise
                answer = {LATER: True}
            message.save_sessions()
            if atomic:
                # A coroutine sends in a thread that has no transaction: its sends are written here.
                self.layer.send_many([])
                # The effect of the consumer and the end of its message are one transaction: both happen, or neither.
                done = delivery._replace(return_value=self._returned) if delivery.is_task else delivery
                if delivery.durable and not self.layer.acknowledge(worker, done):
                    raise ClaimLost
        return self._finished(delivery, content) if answer is None else [self._reply(delivery, answer)]

    def _run_without_route(self, delivery: Delivery, content: Fields) -> list[Operation]:
        if delivery.channel == "http.request":
            return self.views.respond(content, self._link, self.layer)
        if delivery.channel == "websocket.connect" and not self.routing.match("websocket.receive", content):
            if settings.DEBUG:
                log.warning("%s", no_route_sentence(self.routing, content.get("path")))
            return self._finished(delivery, content, {"accept": False, "status": 404})
        if delivery.channel == "websocket.event":
            log_unhandled(str(content.get(EVENT)), f"the WebSocket on {safe_repr(content.get('path'), 200)}")
        if delivery.durable:
            raise InvalidMessage(
                f"No route on {delivery.channel} has filters that match this message: correct them, or add a route "
                "without filters after them."
            )
        return self._finished(delivery, content)

    def _reply(self, delivery: Delivery, fields: Fields) -> Operation:
        return self.layer.reply(delivery.reply_channel, fields)

    def _finished(
        self, delivery: Delivery, content: Fields, decision: Fields | None = None
    ) -> list[Operation]:
        """Tell the connection's server that this message is done, so that it sends the next one."""
        order = content.get("order")
        if not isinstance(order, int) or order < 0 or not delivery.reply_channel:
            return []
        answers = [self._reply(delivery, {**(decision or {}), FINISHED: order})]
        if delivery.channel == "websocket.disconnect":
            # The record goes together with what the consumer did: no clean-up sends this message a second time.
            answers.append(Disconnect(delivery.reply_channel))
        return answers

    # When a consumer raises.

    def _raised(self, delivery: Delivery, error: BaseException) -> Result:
        """Drop what the consumer has sent, answer its client at once, and have a durable message run again."""
        if isinstance(error, ClaimLost):
            log.warning("A message on %s was claimed by another worker meanwhile.", delivery.channel)
            return Result([], None, False, raised=True)
        if isinstance(error, NewerFormat) and self._route is None and delivery.durable:
            self._newer.count(None, delivery.channel, error)
            return Result([], Failure(delivery, str(error), NEWER_AGAIN, ran=False), False)
        if isinstance(error, UnreadableMessage) and self._route is None:
            log.error("A message on %s cannot be read. %s", delivery.channel, error)
            if delivery.durable:
                return dead(delivery, str(error), exception=type(error))
            return self.failed(delivery, "")
        if (answers := self._answer_to_exception(delivery, error)) is not None:
            return Result(answers, None, False)
        text = format_error(error) + _MISPLACED.get(type(error), "")
        denied = isinstance(error, DenyConnection) and delivery.channel == "websocket.connect"
        result = self.failed(delivery, text, 403 if denied else 500, type(error))
        if denied:  # it has refused a client, as it should
            result = result._replace(raised=False)
        if (failure := result.failure) is not None:
            if isinstance(error, WorkerKilled):
                failure = failure._replace(ran=False)
                result = result._replace(failure=failure)
            text += f"This was attempt {failure.attempts} of {self._option('retries') + 1}"
            if failure.retry_in is None:
                replay = f"'manage.py replay {delivery.channel}'"
                text += f": it is a dead letter now, see the admin, or {replay}.\n"
            else:
                text += f"; the next is in {failure.retry_in:.1f} s.\n"
        if not denied and not (delivery.durable and isinstance(error, ConsumeLater)):
            self.report(delivery, error, text)
        return result

    def report(self, delivery: Delivery, error: BaseException, text: str) -> None:
        """Log why a message failed; ``text`` is the traceback, and what becomes of the message."""
        if self._route:
            told = f"{self._route.name} raised on a message of {delivery.channel}"
        elif delivery.channel == "http.request":
            told = "The view raised on a message of http.request"
        else:  # no route matches it, or it cannot be decoded
            told = f"No consumer ran for a message of {delivery.channel}"
        log.error("%s:\n    %s", told, Lines(text))

    def _answer_to_exception(self, delivery: Delivery, error: BaseException) -> list[Operation] | None:
        """Return the replies when a consumer closes, or asks for its message later; None where that means nothing."""
        later, closes = isinstance(error, ConsumeLater), isinstance(error, WebSocketCloseException)
        if delivery.durable or not (later or closes):
            return None
        if delivery.channel == "http.request" and (later or isinstance(error, LoginEnded)):
            return [self._reply(delivery, _NOT_YET if later else _LOGIN_ENDED)]
        order = codec.decode(delivery.payload).get("order")
        if delivery.channel not in names.WEBSOCKET or not isinstance(order, int) or order < 0:
            return None
        if isinstance(error, WebSocketCloseException):
            # Only an accepted client can be closed with a code.
            accept = {"accept": True} if delivery.channel == "websocket.connect" else {}
            reason = {"reason": error.reason} if error.reason else {}
            return [self._reply(delivery, {**accept, "close": error.code, **reason, FINISHED: order})]
        return [self._reply(delivery, {AGAIN: order})]

    def failed(
        self,
        delivery: Delivery,
        text: str,
        status: int = 500,
        exception: type[BaseException] = TimeoutError,
    ) -> Result:
        """Return what becomes of a message whose consumer has failed; ``status`` answers a handshake.

        The watchdog calls this from its own thread when a consumer hangs.
        """
        if delivery.durable:
            retry_in = None
            if delivery.attempt <= self._option("retries"):
                name = self._route.name if self._route else ""
                retry_in = retry_delay(delivery.attempt, self._options.backoff, name)
            return Result([], Failure(delivery, text, retry_in, True, exception, running.get()), False)
        answers: list[Operation] = []
        if delivery.channel == "http.request" and delivery.reply_channel:
            answers = [self._reply(delivery, {ERROR: CONSUMER_RAISED})]
        elif delivery.reply_channel:
            decision = {"accept": False, "status": status}
            try:
                content = codec.decode(delivery.payload)
            except UnreadableMessage:  # without an answer the client would wait for ever
                if delivery.channel in names.WEBSOCKET:
                    answers = [self._reply(delivery, lost(WORKER_DIED, delivery.channel))]
            else:
                connect = delivery.channel == "websocket.connect"
                answers = self._finished(delivery, content, decision if connect else None)
        return Result(answers, None, False, raised=True)

    # The options of the message that runs.

    def timeouts(self) -> tuple[float, float]:
        """Return the soft and the hard time-out in seconds; 0: none."""
        return self._option("soft_timeout"), self._option("hard_timeout")

    @property
    def _options(self) -> ConsumerOptions:
        return _DEFAULT_OPTIONS if self._route is None else self._route.options

    def _option(self, name: str) -> Any:
        """Return the consumer's own option, or the layer's."""
        own = getattr(self._options, name)
        return self.layer.options[name] if own is None else own


def copied_context() -> Context:
    """Return a copy of this thread's context, with copies of the objects in it that can be copied.

    Otherwise one message could change them for all others: a scope of Sentry's SDK, the context of decimal numbers.
    """
    context = copy_context()
    for variable, value in list(context.items()):
        if hasattr(type(value), "__copy__") or isinstance(value, (dict, list, set)):
            with suppress(Exception):  # a Context of OpenTelemetry, for one, is a dict that nobody can fill
                context.run(variable.set, copy(value))
    return context


def backoff(attempt: int) -> float:
    """Return the seconds after which a failed message runs again by default: 1, 5, 25, 125 ..., an hour at most."""
    return min(LONGEST, FIRST * FACTOR ** min(attempt - 1, 6)) * random.uniform(1 - JITTER, 1 + JITTER)


def retry_delay(attempt: int, own: Backoff | None, consumer: str) -> float:
    """Return the seconds until the next attempt: by the consumer's own ``backoff``, if it gives a usable one."""
    if own is None:
        return backoff(attempt)
    try:
        seconds = float(own(attempt) if callable(own) else own)
    except Exception:
        log.exception("The backoff of %s raised; the default is used.", consumer)
        return backoff(attempt)
    return seconds if 0 <= seconds <= TEN_YEARS else backoff(attempt)


#: The coroutine that each thread waits for, so that the watchdog can show where it stands.
coroutines: dict[int, Awaitable[Any]] = {}


def completed(result: Any) -> Any:
    """Return the result of a consumer; of an ``async def`` what its coroutine returns, once that has run.

    The coroutine runs in a thread of its own, and what it awaits of Django's ORM in the calling thread: on the worker's
    connection, inside the transaction that is open there.
    """
    if inspect.isgenerator(result) or inspect.isasyncgen(result):
        raise InvalidConfiguration(
            f"{result.__qualname__} is a generator, so calling it ran nothing: take the yield out, and send what it "
            "yields to a channel."
        )
    if not inspect.isawaitable(result):
        return result
    thread = threading.get_ident()
    coroutines[thread] = result
    try:
        return async_to_sync(_awaited)(result)
    finally:
        coroutines.pop(thread, None)  # a test client may have run another one meanwhile


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def is_generator(consumer: Any) -> bool:
    """Whether a call of the consumer, without its decorators and partials, makes a generator."""
    while isinstance(consumer, partial):
        consumer = consumer.func
    if not inspect.isroutine(consumer):  # an object that can be called
        consumer = getattr(type(consumer), "__call__", consumer)  # noqa: B004
    inner = inspect.unwrap(consumer)
    if isinstance(inner, partial):
        return is_generator(inner)
    return inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner)


def _check_answers(sent: Sequence[Operation], reply_channel: str) -> None:
    """Log it when a request's consumer has sent more than one response: its client gets the first alone."""
    own = [one for one in sent if isinstance(one, Send) and one.channel == reply_channel]
    if len(own) > 1 and sum("status" in codec.decode(one.payload) for one in own) > 1:
        log.warning(
            "A consumer of http.request has sent more than one response, and the client gets the first: send one, or "
            "its parts with 'more_content': True."
        )


def _check_result(route: Route, channel: str, result: Any) -> None:
    """Refuse a result that its author meant to have an effect."""
    if channel == "websocket.connect" and result is False:
        told = "False, which does not refuse the connection: raise DenyConnection() instead"
    elif channel == "http.request" and isinstance(result, HttpResponseBase):
        told = "a response, which is not sent: write message.reply_channel.send(response)"
    elif isinstance(result, HttpResponseBase) and channel in names.WEBSOCKET:
        told = "a response, which no WebSocket takes: write message.reply_channel.send({'text': ...})"
    elif channel == "http.request" and isinstance(result, (str, bytes, tuple)):
        told = f"{safe_repr(result)}, which is not sent: write message.reply_channel.send(HttpResponse(...))"
    elif isinstance(result, dict) and names.is_protocol(channel):
        told = "a dict, which is not sent: write message.reply_channel.send({...})"
    else:
        return
    raise InvalidConfiguration(f"{route.name} returned {told}.")


def log_unhandled(event: str, where: str, advice: str = "") -> None:
    """Log that a WebSocket has no handler for a group's event, the first time in this process."""
    if (event, advice) in _unhandled or len(_unhandled) == MOST_UNHANDLED:
        return
    _unhandled.add((event, advice))
    if told := other_libraries.advice("event", event):
        log.warning("The message %s has come to %s: %s.", event, where, told)
        return
    if not advice:
        method = names.event_handler(event)
        write = (
            f"write a method {method}(self, event)"
            if method
            else "name it as a method, such as 'chat.message'"
        )
        advice = f"{write} in its consumer class, or send the frame itself, {{'text': ...}}, without a 'type'"
    log.warning("No consumer of %s handles the event %s: %s.", where, event, advice)


MOST_UNHANDLED = 1000  # names of events that are logged
_unhandled = set[tuple[str, str]]()
#: What to write instead of an exception that a channel gives no meaning.
_MISPLACED: dict[type[BaseException], str] = {
    DenyConnection: "Only websocket.connect can be refused: raise WebSocketCloseException to close a WebSocket.\n",
    ResponseLater: "Only http.request is answered later: send to the reply channel whenever there is something.\n",
}
_TAKEN = codec.encode_trusted({TAKEN: True})
_NOT_YET = status_reply(503, "This cannot be answered yet: try again soon.", retry_after=1)
#: As Django answers a request whose session was deleted before its end.
_LOGIN_ENDED = status_reply(400, "The session of this request has ended meanwhile: log in again.")


def _merged(sent: list[Operation], answers: list[Operation]) -> list[Operation]:
    """Return both in one list; the consumer's last reply also says that its message is finished: a row less."""
    answer, last = answers[0], sent[-1]
    if getattr(answer, "payload", b"") == _TAKEN and any(one[:1] == answer[:1] for one in sent):
        return sent  # the request has its answer
    if isinstance(last, Keep):  # in front, so that the reply is the last
        return [last, *(_merged(sent[:-1], answers) if sent[:-1] else answers)]
    if len(answers) == 1 and isinstance(answer, Send) and isinstance(last, Send) and last[:1] == answer[:1]:
        content = codec.decode(answer.payload)
        if list(content) == [FINISHED] and (
            payload := codec.with_field(last.payload, FINISHED, content[FINISHED])
        ):
            return [*sent[:-1], last._replace(payload=payload, certain=True)]
    return [*sent, *answers]


def no_route_sentence(routing: Routing, path: object) -> str:
    """Return a sentence on a handshake without a route, with the paths that are nearest to its own."""
    bound = [one for one in routing.bound_routes() if one.route.channel in names.WEBSOCKET]
    paths = dict.fromkeys(text for one in bound if (text := one.shown_filters().get("path")))
    fixed = {text: re.split(r"[<(\[\\]", text.lstrip("^"))[0] for text in paths}  # up to the first capture
    close = difflib.get_close_matches(str(path), set(fixed.values()), n=3, cutoff=0.3)
    near = [text for one in close for text in paths if fixed[text] == one][:3]
    told = f"the nearest are {', '.join(near)}" if near else f"there are {', '.join(paths) or 'none'}"
    return f"No route takes a WebSocket on {safe_repr(path, 200)}: {told}."
