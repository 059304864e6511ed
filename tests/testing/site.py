"""Consumers for the tests of the test tools; ``routes`` is the ROUTING of these tests."""

from __future__ import annotations

from django.contrib.auth.models import Group as Model
from django.db import transaction

from dbchannels import Channel, ConsumeLater, DenyConnection, Group, route

ROUTING = {"default": {"ROUTING": "tests.testing.site"}, "second": {"BACKEND": "memory"}}


def join(message, room):
    """Put a socket into its room, and tell it what the handshake was."""
    Group(f"room-{room}").add(message.reply_channel)
    headers = [name.decode() for name, _ in message["headers"]]
    message.reply_channel.send({"text": ",".join(sorted(headers))})


@transaction.atomic
def say(message, room):
    """Tell everybody in the room; ``fail`` raises after that."""
    Group(f"room-{room}").send(
        {"text": message["text"]} if "text" in message else {"bytes": message["bytes"]}
    )
    text = str(message.get("text"))
    Model.objects.create(name=f"{text[:20]} {len(text)}")
    if message.get("text") == "fail":
        raise ValueError("say failed")
    if message.get("text") == "work":
        Channel("work").send({"step": 1})
    if message.get("text") == "close":
        message.reply_channel.send({"close": 4001})


def talk(message):
    """Print more than a pipe holds, as one does to see what goes on."""
    for _ in range(1000):
        print("x" * 200)
    message.reply_channel.send({"text": "done"})


def leave(message, room):
    """Tell those who stay."""
    Group(f"room-{room}").send({"text": f"left {message['code']}"})


def choose(message):
    """Accept with a subprotocol, a cookie, and data."""
    query = message["query_string"].decode()
    if query == "deny":
        raise DenyConnection
    if query == "status":
        message.reply_channel.send({"accept": False, "status": 401})
    elif query == "fail":
        raise ValueError("choose failed")
    else:
        headers = [["set-cookie", "seen=1; Path=/"]]
        message.reply_channel.send({"accept": True, "subprotocol": query or None, "headers": headers})


def address(message):
    """Tell the socket its own address."""
    text = f"{message['scheme']} {message['path']} {message['query_string'].decode()}"
    message.reply_channel.send({"text": text})


def forget(message):
    """Note a client that did not wait."""
    Channel("done").send({"left": message["path"]})


def patient(message):
    """Answer once there is a row."""
    if not Model.objects.exists():
        raise ConsumeLater
    message.reply_channel.send({"text": message["text"]})


def user(message):
    """Say who asks, and for which time."""
    count = message.channel_session["count"] = message.channel_session.get("count", 0) + 1
    message.reply_channel.send({"text": f"{message.user} {count}"})


def work(message):
    """Send oneself the next step, three times."""
    if message["step"] < 3:
        Channel("work").send({"step": message["step"] + 1})
    else:
        Channel("done").send({"steps": message["step"]})


def loop(message):
    """Never end."""
    Channel("loop").send({})


def tick(message):
    """Send oneself the next, an hour later, for ever."""
    Channel("tick", delay=3600).send({})


def flaky(message):
    """Fail twice; what is sent by an attempt that fails is not sent."""
    Channel("done").send({"attempt": message.attempt})
    if message.attempt < 3:
        raise RuntimeError(f"attempt {message.attempt}")


def exact(message):
    """Write a row, and fail after that at the first attempt."""
    Model.objects.create(name=f"exact {message.attempt}")
    if message.attempt == 1:
        raise RuntimeError("after the row")


def broken(message):
    """Fail always."""
    raise RuntimeError("broken")


routes = [
    route("websocket.connect", join, path=r"^/room/(?P<room>\w+)/$"),
    route("websocket.receive", say, path=r"^/room/(?P<room>\w+)/$"),
    route("websocket.disconnect", leave, path=r"^/room/(?P<room>\w+)/$"),
    route("websocket.connect", choose, path=r"^/choose/$"),
    route("websocket.connect", address, path=r"^/address/$"),
    route("http.disconnect", forget, path=r"^/later/$"),
    route("websocket.receive", patient, path=r"^/patient/$"),
    route("websocket.receive", user, path=r"^/user/$"),
    route("websocket.receive", talk, path=r"^/talk/$"),
    route("work", work),
    route("loop", loop),
    route("tick", tick),
    route("flaky", flaky, retries=2),
    route("exact", exact, atomic=True),
    route("broken", broken, retries=0),
]
