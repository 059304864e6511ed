"""A request that its view leaves to others: what a test sees of the answer when it comes."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.test.client import ClientHandler

from dbchannels import names
from dbchannels.channel import Channel
from dbchannels.protocol import MORE_CONTENT
from dbchannels.server.reply import Reply
from dbchannels.testing.channels import Channels, current_channels, in_use
from dbchannels.worker.views import RequestContext, teach_django


class LaterAnswer:
    """What is sent to the reply channel of a request whose view has raised ResponseLater."""

    def __init__(self, channels: Channels, path: str) -> None:
        self.reply_channel = channels.server.open(self)
        self._channels, self._path = channels, path
        self._messages: list[dict[str, Any]] = []

    def deliver(self, reply: Reply) -> None:
        """Take one message."""
        self._messages.append(reply.message)

    @property
    def arrived(self) -> bool:
        """Whether it has been answered, to the end."""
        self._channels.run()
        return bool(self._messages) and not self._messages[-1].get(MORE_CONTENT)

    @property
    def content(self) -> bytes:
        """What has arrived of it until now: of a stream that stays open, such as server-sent events."""
        self._channels.run()
        return b"".join(message.get("content", b"") for message in self._messages)

    def receive(self) -> HttpResponse:
        """Return the answer. Fails when there is none, or not all of it, yet."""
        if not self.arrived:
            sentences = [f"The request of {self._path} was not answered.", *self._channels.explain()]
            raise AssertionError(" ".join(sentences))
        self.close()
        response = HttpResponse(self.content, status=self._messages[0].get("status", 200))
        for name, value in self._messages[0].get("headers", ()):
            response[_text(name)] = _text(value)
        return response

    def leave(self) -> None:
        """Go away without waiting for it, and run the consumers of ``http.disconnect``."""
        self.close()
        fields = {"reply_channel": self.reply_channel, "path": self._path}
        server = self._channels.server
        server.send(server.make_send("http.disconnect", fields))
        self._channels.run()

    def close(self) -> None:
        """Take no more."""
        self._channels.server.close(self.reply_channel)


class LaterHandler(ClientHandler):
    """Django's, with what views find on a request in the worker: ``reply_channel``, and ResponseLater."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        teach_django()

    def get_response(self, request: HttpRequest) -> HttpResponseBase:
        """Run the view; its response has the attribute ``later`` when others answer."""
        if not in_use():
            return super().get_response(request)
        later = LaterAnswer(current_channels(), request.path)
        context = RequestContext(Channel(later.reply_channel))
        request.environ[names.REQUEST_CONTEXT] = context  # type: ignore[attr-defined]
        try:
            response = super().get_response(request)
        except BaseException:
            later.close()
            raise
        if context.answered_later:
            response.later = later  # type: ignore[attr-defined]
        else:
            later.close()
        return response


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")
