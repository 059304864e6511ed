"""Consumers that do what a test asks for."""

import os
import signal
import sys
import time
from datetime import timedelta

from django.conf import settings
from django.db import transaction

from dbchannels import Channel, DenyConnection, Group, consumer
from livesite import faults, imported, leaving, people  # noqa: F401  (more consumers)
from livesite.models import Entry

imported.note(__name__)

# A worker of a site like this one dies before it has done anything; the system checks find nothing wrong.
if "runworker" in sys.argv and (settings.MEDIA_ROOT / "broken").exists():
    os._exit(3)
while "runworker" in sys.argv and (settings.MEDIA_ROOT / "hesitates").exists():
    time.sleep(0.05)


@consumer("websocket.receive", path=r"^/slow/")
def slow(message):
    """Take a while."""
    time.sleep(0.05)


ROOM = r"^/room/(?P<room>[\w-]+)/$"


@consumer("http.request", path=r"^/raises$")
def raises(message):
    """A consumer of requests that is no view."""
    raise ValueError("as asked for")


@consumer("http.disconnect", path=r"^/(events|never|read/.*)$")
def gone(message):
    """Write down that nobody waits any more."""
    Entry.objects.create(text=f"gone {message['path']}")


@consumer("answers")
def answers(message):
    """Answer a request that a view left."""
    Channel(message["to"]).send({"status": 200, "content": message["text"].encode()})


@consumer("websocket.receive", path=r"^/echo/$")
def echo(message):
    """Send back what came."""
    key = "text" if message.get("text") is not None else "bytes"
    message.reply_channel.send({key: message[key]})


@consumer("websocket.connect", path=ROOM)
def join(message, room):
    """Everybody may come in."""
    Group(f"room-{room}").add(message.reply_channel)


@consumer("websocket.receive", path=ROOM)
def say(message, room):
    """A few words are orders; all others go to the room."""
    word, _, argument = message["text"].partition(" ")
    if word == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif word == "raise":
        message.reply_channel.send({"text": "never seen"})
        raise ValueError("as asked for")
    elif word == "sleep":
        time.sleep(float(argument))
    elif word == "broadcast":
        for number in range(int(argument)):
            Group(f"room-{room}").send({"text": str(number)})
        return
    elif word == "pid":
        message.reply_channel.send({"text": str(os.getpid())})
        return
    elif word == "roll-back":
        try:
            with transaction.atomic():
                Group(f"room-{room}").send({"text": "never seen"})
                raise ValueError
        except ValueError:
            message.reply_channel.send({"text": "rolled back"})
        return
    Group(f"room-{room}").send({"text": message["text"]})


@consumer("websocket.disconnect", path=ROOM)
def leave(message, room):
    """Write down who left, and how."""
    Entry.objects.create(text=f"left {room} {message['code']}")


@consumer("websocket.connect", path=r"^/scheme/$")
def scheme(message):
    """Say how the connection looks from the inside."""
    message.reply_channel.send({"text": f"{message['scheme']} {message['client'][0]}"})


@consumer("websocket.connect", path=r"^/denied/$")
def denied(message):
    """Nobody may come in."""
    raise DenyConnection


@consumer("websocket.connect", path=r"^/broken/$")
def broken(message):
    """The consumer has a fault."""
    raise ValueError("as asked for")


@consumer("websocket.connect", path=r"^/chosen/$")
def chosen(message):
    """Accept with a subprotocol, and say something at once."""
    message.reply_channel.send({"accept": True, "subprotocol": "b", "text": "welcome"})


@consumer("narrow", concurrency=1)
def narrow(message):
    """Write down when it begins and when it ends."""
    Entry.objects.create(text="in")
    time.sleep(0.02)
    Entry.objects.create(text="out")


if getattr(settings, "TICKING", False):

    @consumer("tick", every=timedelta(seconds=1))
    def tick(message):
        """Write down for which moment it was sent."""
        Entry.objects.create(text=message["scheduled_at"])


KEPT: list[bytes] = []  # by workers that grow


@consumer("ledger")
def ledger(message):
    """Write down that it ran."""
    if message.get("announce"):
        Entry.objects.create(text=f"started {message['text']}")
    if message.get("sleep"):
        time.sleep(message["sleep"])
    KEPT.append(b"." * message.get("grow", 0))
    end = time.monotonic() + message.get("busy", 0)
    while time.monotonic() < end:
        pass
    if message.get("die-once") and not Entry.objects.filter(text=f"died of {message['text']}").exists():
        Entry.objects.create(text=f"died of {message['text']}")
        os.kill(os.getpid(), signal.SIGKILL)
    if message.get("raise") and message.attempt <= message["raise"]:
        raise ValueError("as asked for")
    Entry.objects.create(text=message["text"], pid=os.getpid())
    for number in range(message.get("more", 0)):
        Channel("ledger").send({"text": f"{message['text']}.{number}"})
