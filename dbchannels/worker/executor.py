"""One message: which consumer it is for, what running that gives, and what is answered when it raises."""

from __future__ import annotations

import difflib
import logging
import random
import re
import traceback
from contextlib import nullcontext
from contextvars import copy_context
from typing import Any

from django.conf import settings
from django.db import transaction
from django.http.response import HttpResponseBase

from dbchannels import codec, names, signals
from dbchannels.exceptions import (
    ConsumeLater,
    DenyConnection,
    InvalidConfiguration,
    InvalidMessage,
    LoginEnded,
    ResponseLater,
    TransactionLeftOpen,
    UnreadableMessage,
    WebSocketCloseException,
    WorkerKilled,
    safe_repr,
)
from dbchannels.layers.base import BaseLayer
from dbchannels.layers.delivery import LONGEST_DELAY
from dbchannels.layers.link import Link
from dbchannels.layers.operations import Delivery, Disconnect, Failure, Keep, Operation, Result, Send
from dbchannels.message import Message
from dbchannels.protocol import (
    AGAIN,
    CONSUMER_RAISED,
    ERROR,
    FINISHED,
    LATER,
    TAKEN,
    WORKER_DIED,
    lost,
    status_reply,
)
from dbchannels.redaction import Lines
from dbchannels.routing.options import ConsumerOptions
from dbchannels.routing.table import Captures, Route, Routing
from dbchannels.worker import database_connections
from dbchannels.worker.application import ApplicationViews
from dbchannels.worker.coroutines import completed

log = logging.getLogger("dbchannels.worker")


class ClaimLost(Exception):
    """The message was claimed by another worker meanwhile: everything that this one did is rolled back."""


class Executor:
    """Runs consumers for one worker, one message at a time."""

    def __init__(
        self, layer: BaseLayer, routing: Routing, link: Link, views: ApplicationViews | None = None
    ) -> None:
        self.layer = layer
        self.routing = routing
        self.views = views or ApplicationViews(threads=False)
        self._link = link
        self._route: Route | None = None  # of the message under way

    def execute(self, delivery: Delivery, worker: str) -> Result:
        """Run the consumer; return what it sent and added, its failure if it raised, and whether to acknowledge.

        In a context of its own: the language, the time zone, the script prefix and whatever else a consumer or a view
        keeps in a ContextVar are not there for the next.
        """
        return copy_context().run(self._execute, delivery, worker)

    def _execute(self, delivery: Delivery, worker: str) -> Result:
        self._route = None
        blocks = database_connections.open_blocks()
        with self.layer.buffered() as buffer:
            try:
                answers = self._run(delivery, worker)
                if left := database_connections.end_transactions(blocks):
                    raise TransactionLeftOpen(left)
                atomic = self._options().atomic
                return Result(_joined(buffer.pending(), answers), None, not atomic)
            except BaseException as error:  # SystemExit and asyncio's CancelledError too
                database_connections.end_transactions(blocks)
                return self._raised(delivery, error)
            finally:
                self.tidy()

    def _run(self, delivery: Delivery, worker: str) -> list[Operation]:
        content = codec.decode(delivery.payload)
        message = Message(delivery.channel, content, attempt=delivery.attempt, layer=self.layer.alias)
        found = self.routing.match(message)
        if found is not None:
            if not self._run_route(*found, message, delivery, worker):
                return [reply(self.layer, delivery.reply_channel, {LATER: True})]
        elif delivery.channel == "http.request":
            return self.views.respond(message, self._link, self.layer)
        elif delivery.channel == "websocket.connect" and not self.routing.match(message, "websocket.receive"):
            if settings.DEBUG:
                log.warning("%s", self._nearest(message))
            return self._finished(message, {"accept": False, "status": 404})
        elif delivery.durable:
            raise InvalidMessage(
                f"No consumer on {delivery.channel} matches this message: add a route for it."
            )
        if delivery.channel == "http.request" and message.reply_channel is not None:
            # The answer may come from elsewhere, and late: until then another request of its address may come.
            return [reply(self.layer, delivery.reply_channel, {TAKEN: True})]
        return self._finished(message, {})

    def _nearest(self, message: Message) -> str:
        """Return what to say of a handshake that no route takes: which paths would have been nearest."""
        bound = [one for one in self.routing.bound_routes() if one.route.channel in names.WEBSOCKET]
        paths = dict.fromkeys(text for one in bound if (text := one.shown_filters().get("path")))
        fixed = {
            text: re.split(r"[<(\[\\]", text.lstrip("^"))[0] for text in paths
        }  # what stands before a capture
        close = difflib.get_close_matches(str(message.get("path")), set(fixed.values()), n=3, cutoff=0.3)
        near = [text for one in close for text in paths if fixed[text] == one][:3]
        told = f"the nearest are {', '.join(near)}" if near else f"there are {', '.join(paths) or 'none'}"
        return f"No route takes a WebSocket on {safe_repr(message.get('path'), 200)}: {told}."

    def _run_route(
        self, route: Route, captures: Captures, message: Message, delivery: Delivery, worker: str
    ) -> bool:
        """Run the consumer; False when it says that somebody else answers its request later."""
        self._route = route
        if delivery.durable and delivery.attempt > self._option("retries") + 1:
            raise WorkerKilled(delivery.attempt - 1)
        together = transaction.atomic(using=self.layer.database) if route.options.atomic else nullcontext()
        with signals.sending(route.consumer, message), together:
            answered = self._answered(route, message, captures)
            message.save_sessions()
            if route.options.atomic:
                self.layer.send_many(
                    []
                )  # takes along what a coroutine has sent: in its thread is no transaction
                # In the consumer's own transaction: its effect and the end of its message are one, or neither is.
                if delivery.durable and not self.layer.acknowledge(worker, delivery):
                    raise ClaimLost
        return answered

    def _answered(self, route: Route, message: Message, captures: Captures) -> bool:
        try:
            _check_result(route, message.channel.name, completed(route.run(message, captures)))
        except ResponseLater:
            if message.channel.name != "http.request" or message.reply_channel is None:
                raise
            return False
        return True

    def _finished(self, message: Message, verdict: dict[str, Any]) -> list[Operation]:
        """Tell the connection's server that this frame is done: it sends the next one then."""
        order = message.get("order")
        if not isinstance(order, int) or order < 0 or message.reply_channel is None:
            return []
        name = message.reply_channel.name
        answer = reply(self.layer, name, {**verdict, FINISHED: order})
        # With what the consumer did the record goes: whoever cleans up after a dead server sends no second message.
        return [answer, *([Disconnect(name)] if message.channel.name == "websocket.disconnect" else [])]

    def _raised(self, delivery: Delivery, error: BaseException) -> Result:
        """What the consumer had sent is dropped; its client is answered at once; a durable message is retried."""
        if isinstance(error, UnreadableMessage) and self._route is None:
            log.error("A message on %s cannot be read. %s", delivery.channel, error)
            failure = Failure(delivery, str(error), None) if delivery.durable else None
            return Result(self._error_answers(delivery, False) if failure is None else [], failure, False)
        if isinstance(error, ClaimLost):
            log.warning("A message on %s was claimed by another worker meanwhile.", delivery.channel)
            return Result([], None, False)
        if (answers := answer_to_exception(self.layer, delivery, error)) is not None:
            return Result(answers, None, False)
        text = "".join(traceback.format_exception(error))
        expected = isinstance(error, DenyConnection) or (delivery.durable and isinstance(error, ConsumeLater))
        result = self._failed(delivery, text, isinstance(error, DenyConnection))
        if isinstance(error, WorkerKilled) and result.failure is not None:
            result = result._replace(failure=result.failure._replace(ran=False))
        if not expected:
            self.report(delivery, error, text + self._fate(delivery, result))
        return result

    def report(self, delivery: Delivery, error: BaseException, text: str) -> None:
        """Say that a consumer raised; ``text`` is the traceback, and what becomes of the message."""
        name = self._route.name if self._route else "The view"
        log.error("%s raised on a message of %s:\n    %s", name, delivery.channel, Lines(text))

    def _fate(self, delivery: Delivery, result: Result) -> str:
        """Return the line below the traceback of a message of the site's own channels."""
        if result.failure is None:
            return ""
        attempt = f"This was attempt {result.failure.attempts} of {self._option('retries') + 1}"
        if result.failure.retry_in is None:
            return f"{attempt}: it is a dead letter now, see the admin, or 'manage.py replay {delivery.channel}'.\n"
        return f"{attempt}; the next is in {result.failure.retry_in:.1f} s.\n"

    def tidy(self) -> None:
        """Leave Django's connections for the next message."""
        database_connections.end_message()

    def timed_out(self, delivery: Delivery, text: str) -> Result:
        """Return what becomes of a message whose consumer does not end; from the watch's thread."""
        return self._failed(delivery, text, False)

    def timeouts(self) -> tuple[float, float]:
        """Return the soft and the hard time-out of the message under way, in seconds; 0: none."""
        return self._option("soft_timeout"), self._option("hard_timeout")

    def _failed(self, delivery: Delivery, text: str, denied: bool) -> Result:
        if delivery.durable:
            retry_in = (
                self._retry_in(delivery.attempt) if delivery.attempt <= self._option("retries") else None
            )
            return Result([], Failure(delivery, text, retry_in), False)
        return Result(self._error_answers(delivery, denied), None, False)

    def _options(self) -> ConsumerOptions:
        return ConsumerOptions("") if self._route is None else self._route.options

    def _option(self, name: str) -> Any:
        """Return the consumer's own, or the layer's."""
        own = getattr(self._options(), name)
        return self.layer.options[name] if own is None else own

    def _retry_in(self, attempt: int) -> float:
        """Return the seconds until the next attempt: by the consumer's own ``backoff``, if it gives a usable one."""
        own = self._options().backoff
        if own is None:
            return backoff(attempt)
        try:
            seconds = float(own(attempt) if callable(own) else own)
        except Exception:
            log.exception(
                "The backoff of %s raised; the usual one is taken.", self._route.name if self._route else ""
            )
            return backoff(attempt)
        return seconds if 0 <= seconds <= LONGEST_DELAY else backoff(attempt)

    def _error_answers(self, delivery: Delivery, denied: bool) -> list[Operation]:
        if not delivery.reply_channel:
            return []
        if delivery.channel == "http.request":
            return [reply(self.layer, delivery.reply_channel, {ERROR: CONSUMER_RAISED})]
        refused = {"accept": False, "status": 403 if denied else 500}
        verdict = refused if delivery.channel == "websocket.connect" else {}
        try:
            message = Message(delivery.channel, codec.decode(delivery.payload), layer=self.layer.alias)
        except Exception:  # which was logged already; untold, the client would wait for ever
            websocket = delivery.channel in names.WEBSOCKET
            notice = lost(WORKER_DIED, delivery.channel)
            return [reply(self.layer, delivery.reply_channel, notice)] if websocket else []
        return self._finished(message, verdict)


def _check_result(route: Route, channel: str, result: Any) -> None:
    """Refuse what a consumer returns where its author surely meant something by it."""
    if channel == "websocket.connect" and result is False:
        told = "False, which refuses nobody: raise DenyConnection() in its place"
    elif channel == "http.request" and isinstance(result, HttpResponseBase):
        told = "a response, which is sent to nobody: write message.reply_channel.send(response)"
    elif names.is_protocol(channel) and isinstance(result, dict):
        told = "a dict, which is sent to nobody: write message.reply_channel.send({...})"
    else:
        return
    raise InvalidConfiguration(f"{route.name} returned {told}.")


def reply(layer: BaseLayer, channel: str, message: dict[str, Any]) -> Operation:
    """Return the sending of a message that dbchannels made itself."""
    return Send(channel, codec.encode_trusted(message), "", layer.options["expiry"], certain=True)


def answer_to_exception(layer: BaseLayer, delivery: Delivery, error: BaseException) -> list[Operation] | None:
    """Return what is answered when a consumer asks for its message later, or closes; None where that means nothing."""
    later = isinstance(error, ConsumeLater)
    if delivery.durable or not (later or isinstance(error, WebSocketCloseException)):
        return None
    if delivery.channel == "http.request" and (later or isinstance(error, LoginEnded)):
        return [reply(layer, delivery.reply_channel, _NOT_YET if later else _LOGIN_ENDED)]
    order = codec.decode(delivery.payload).get("order")
    if delivery.channel not in names.WEBSOCKET or not isinstance(order, int) or order < 0:
        return None
    if isinstance(error, WebSocketCloseException):
        # To be closed with a code a client must be accepted.
        accept = {"accept": True} if delivery.channel == "websocket.connect" else {}
        reason = {"reason": error.reason} if error.reason else {}
        answer = {**accept, "close": error.code, **reason, FINISHED: order}
    else:
        answer = {AGAIN: order}
    return [reply(layer, delivery.reply_channel, answer)]


_TAKEN = codec.encode_trusted({TAKEN: True})
_NOT_YET = status_reply(503, "This cannot be answered yet: try again soon.", retry_after=1)
#: As Django answers a request whose session was deleted before its end.
_LOGIN_ENDED = status_reply(400, "The session of this request has ended meanwhile: log in again.")


def _joined(sent: list[Operation], answers: list[Operation]) -> list[Operation]:
    """Let the consumer's last word to a connection say that the frame is finished too: one row in place of two."""
    if (
        answers
        and getattr(answers[0], "payload", b"") == _TAKEN
        and any(one[:1] == answers[0][:1] for one in sent)
    ):
        return sent
    last = sent[-1] if sent else None
    if isinstance(last, Keep):  # in front, so that the last word is one
        return [last, *_joined(sent[:-1], answers)]
    if len(answers) == 1 and isinstance(last, Send) and last[:1] == answers[0][:1]:
        content = codec.decode(answers[0].payload)
        if list(content) == [FINISHED] and (
            payload := codec.with_field(last.payload, FINISHED, content[FINISHED])
        ):
            return [*sent[:-1], last._replace(payload=payload, certain=True)]
    return [*sent, *answers]


def backoff(attempt: int) -> float:
    """Return the seconds before a failed message runs again: 1, 5, 25, 125 ..., an hour at most, jittered."""
    return min(3600.0, 5.0 ** min(attempt - 1, 6)) * random.uniform(0.75, 1.25)
