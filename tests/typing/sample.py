"""A site's code, as a type checker sees it: what is right passes, and each line that is marked is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from django.contrib.auth.models import User
from typing_extensions import assert_type

from dbchannels import (
    Binding,
    Channel,
    Group,
    JsonWebsocketConsumer,
    Message,
    WebsocketConsumer,
    consumer,
    include,
    reverse,
    route,
    route_class,
)
from dbchannels.exceptions import DenyConnection
from dbchannels.routing.routes import Include, Route
from dbchannels.signals import consumer_finished


@consumer("websocket.connect", path="/chat/<slug:room>/", name="room")
def join(message: Message, room: str) -> None:
    if message.reply_channel is None:
        raise DenyConnection
    assert_type(message.reply_channel, Channel)
    Group(f"chat-{room}").add(message.reply_channel)
    Group(f"chat-{room}").send_event("chat.joined", {"who": message.headers["User-Agent"]})
    assert_type(message.headers, Mapping[str, str])
    assert_type(message.cookies, dict[str, str])
    assert_type(message.client_address, str)


@consumer("thumbnails", retries=3, atomic=True, every=timedelta(minutes=5), filters={"name": "a"})
def make_thumbnail(message: Message) -> int:
    return int(message["photo"])


# The decorated function is what it was.
assert_type(make_thumbnail(Message("thumbnails", {"photo": 7})), int)
join(Message("own", {}), 7)  # type: ignore[arg-type]
join(Message("own", {}))  # type: ignore[call-arg]

assert_type(route("own", make_thumbnail, kind="a"), Route)
assert_type(include("chat.routing", path="/chat", namespace="chat"), Include)
assert_type(reverse("room", kwargs={"room": "tea"}), str)
assert_type(reverse(join, {"room": "tea"}), str)
reverse(7)  # type: ignore[arg-type]
consumer(7)  # type: ignore[arg-type]

assert_type(Group("tea").channels(), list[str])
assert_type(Group("tea").count(), int)
Channel("own", delay=timedelta(hours=1), priority=3).send({"id": 7})
Channel("own", dealy=3)  # type: ignore[arg-type]
Channel("own").send(["no dict"])  # type: ignore[arg-type]
Group("tea").add(7)  # type: ignore[arg-type]


class UserBinding(Binding):
    model = User
    fields = ["username"]

    def groups(self, instance: User, action: str) -> Iterable[str]:
        return [f"user-{instance.pk}"]

    def permitted(self, user: Any, instance: User, action: str) -> bool:
        return bool(user.is_staff)


class WrongBinding(Binding):
    model = 7  # type: ignore[assignment]
    moves = "no"  # type: ignore[assignment]


UserBinding.subscribe("tea", "reply.a!b", User())
UserBinding.send_updated(User.objects.all())
with UserBinding.changing(User.objects.all()):
    pass
assert_type(UserBinding.message(User()), dict[str, str])

consumer_finished.connect(lambda **fields: None, sender=join)


@route_class(path="/votes/<slug:room>/")
class Votes(JsonWebsocketConsumer):
    groups = ("votes",)

    def receive_json(self, content: dict[str, Any], room: str) -> None:
        self.send_json(content, close=4000)
        self.send_json(content, close="4000")  # type: ignore[arg-type]


assert_type(route_class(Votes, path="/"), Include)
assert_type(Votes, type[Votes])
route_class(int, path="/")  # type: ignore[arg-type]


class Chat(WebsocketConsumer):
    async def receive(self, text: str, room: str) -> None:
        self.send(text)
        self.send(7)  # type: ignore[arg-type]
        assert_type(self.reply_channel, Channel)
