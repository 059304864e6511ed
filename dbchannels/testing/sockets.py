"""A WebSocket from the side of a test's client."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import TracebackType
from typing import Any

from dbchannels.exceptions import safe_repr
from dbchannels.protocol import NORMAL_CLOSURE
from dbchannels.server.http.messages import Request
from dbchannels.server.websocket.handshake import Accepted
from dbchannels.testing.server import TestedConnection


class ClientSocket:
    """An open or refused WebSocket, see ``accepted``. Sending runs the consumer before the call returns.

    As a context manager it is closed at the end of the block.
    """

    def __init__(self, request: Request, run: Callable[[], None], explain: Callable[[], list[str]]) -> None:
        self.path = request.path
        self.status = 101  # of the answer to the handshake
        self.headers: list[tuple[str, str]] = []  # of that answer, as the consumer gave them
        self.subprotocol: str | None = None
        self.reason = ""  # the sentence of a refusal
        self._run, self._explain = run, explain
        self._connection: TestedConnection | None = None

    def accept(self, connection: TestedConnection, decision: Accepted) -> None:
        """Use this connection."""
        self._connection = connection
        self.subprotocol, self.headers = decision.subprotocol, decision.headers

    def refuse(self, status: int, reason: str, headers: list[tuple[str, str]]) -> None:
        """Store the answer of a refusal."""
        self.status, self.reason, self.headers = status, reason, headers

    # Its state.

    @property
    def accepted(self) -> bool:
        """Whether the handshake was accepted."""
        return self._connection is not None

    @property
    def closed(self) -> bool:
        """Whether it is not open."""
        self._run()
        return self._connection is None or self._connection.transport.closed

    @property
    def close_code(self) -> int | None:
        """The close code, from either side; None while the WebSocket is open, and after a refusal."""
        self._run()
        return self._connection.transport.close_code if self._connection else None

    @property
    def close_reason(self) -> str:
        """The reason that was given with the code, "" for none."""
        self._run()
        return self._connection.transport.close_reason if self._connection else ""

    @property
    def reply_channel(self) -> str:
        """The name of its reply channel."""
        return self._opened().reply_channel

    # Sending.

    def send(self, data: str | bytes) -> None:
        """Send a text or a binary frame, and run its consumer. Raises what the consumer raises."""
        if not isinstance(data, (str, bytes)):
            raise TypeError(
                f"A frame is a str or bytes, not {safe_repr(data)}: write send_json(...) for JSON."
            )
        transport = self._opened().transport
        self._run()
        if transport.closed:
            raise AssertionError(
                f"The WebSocket {self.path} is closed ({transport.close_code}): nothing can be sent."
            )
        transport.give(data)
        self._run()

    def send_json(self, value: Any) -> None:
        """Send a text frame with a value as JSON."""
        self.send(json.dumps(value))

    def close(self, code: int = NORMAL_CLOSURE, reason: str = "") -> None:
        """Close the WebSocket, and run its disconnect consumer; with 1006 the client vanishes."""
        if self._connection is not None:
            self._connection.transport.leave(code, reason)
            self._run()

    # Receiving.

    def receive(self) -> str | bytes:
        """Return the next frame: a str, or bytes for a binary frame. Fails if there is none."""
        transport = self._opened().transport
        self._run()
        if not transport.arrived:
            closed = [f"It was closed with {transport.close_code}."] if transport.closed else []
            sentences = [f"Nothing has arrived on the WebSocket {self.path}.", *closed, *self._explain()]
            raise AssertionError(" ".join(sentences))
        return transport.arrived.pop(0)

    def receive_json(self) -> Any:
        """Return the next frame, decoded from JSON. Fails if there is none, or if it is not JSON."""
        data = self.receive()
        try:
            return json.loads(data)
        except ValueError as error:
            raise AssertionError(f"The frame {safe_repr(data, 200)} is not JSON: {error}.") from None

    def receive_all(self) -> list[str | bytes]:
        """Return all frames that have arrived since."""
        transport = self._opened().transport
        self._run()
        arrived, transport.arrived = transport.arrived, []
        return arrived

    def receive_all_json(self) -> list[Any]:
        """Return all frames that have arrived since, decoded from JSON."""
        return [json.loads(data) for data in self.receive_all()]

    def assertNothingReceived(self) -> None:
        """Fail if a frame has arrived."""
        arrived = self.receive_all()
        if arrived:
            frames = "\n".join(f"  {safe_repr(data, 200)}" for data in arrived)
            raise AssertionError(f"The WebSocket {self.path} has received:\n{frames}")

    def _opened(self) -> TestedConnection:
        if self._connection is None:
            raise AssertionError(f"The WebSocket {self.path} was refused with {self.status}: {self.reason}")
        return self._connection

    def __enter__(self) -> ClientSocket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<WebSocket {self.path}: {'accepted' if self.accepted else self.status}>"
