"""Consumers for the scenarios of the faults; ``consumers`` imports them."""

import os
import time

from dbchannels import Group, consumer
from livesite.models import Entry


@consumer("booked", atomic=True)
def booked(message):
    """Write it into the ledger, together with the end of the message."""
    Entry.objects.create(text=message["text"], pid=os.getpid())
    time.sleep(message.get("sleep", 0) + (message.get("sleep-first", 0) if message.attempt == 1 else 0))


@consumer("stream")
def stream(message):
    """Write down that it ran, and stay under way for some milliseconds."""
    Entry.objects.create(text=message["text"], pid=os.getpid())
    time.sleep(message.get("sleep", 0))


@consumer("http.noted")
def noted(message):
    """Write down that a protocol message came."""
    Entry.objects.create(text=message["text"], pid=os.getpid())


@consumer("timed")
def timed(message):
    """Write down how many seconds it took to arrive, by the clock of this machine."""
    Entry.objects.create(text=f"{message['text']} {time.time() - message['sent']:.4f}", pid=os.getpid())


@consumer("http.paced")
@consumer("paced")
def paced(message):
    """Write down of some how many seconds they took; all others are empty work."""
    if "sent" in message:
        timed(message)


@consumer("poison")
def poison(message):
    """One that raises, or takes its process along, each time; the others are written down."""
    if kind := message.get("poison"):
        Entry.objects.create(text=f"tried {time.time():.3f}", pid=os.getpid())
        if kind == "exit":
            os._exit(9)
        raise ValueError(f"as asked for, {'at length ' * 2000}")
    Entry.objects.create(text=message["text"], pid=os.getpid())


@consumer("shout")
def shout(message):
    """Say something to a whole group."""
    Group(message["group"]).send({"text": message["text"]})


MEMBER = r"^/member/(?P<group>\w+)/(?P<client>\w+)/$"


@consumer("websocket.connect", path=MEMBER)
def enrol(message, group, client):
    """Everybody is in a group."""
    Group(f"members-{group}").add(message.reply_channel)


@consumer("websocket.receive", path=MEMBER)
def answer(message, group, client):
    """Write down what came, and say it back."""
    Entry.objects.create(text=f"{message['text']} {client}", pid=os.getpid())
    message.reply_channel.send({"text": message["text"]})


@consumer("websocket.disconnect", path=MEMBER)
def resign(message, group, client):
    """Write down who left, how, and where that was consumed."""
    Entry.objects.create(text=f"resigned {client} {message['code']}", pid=os.getpid())


ORDERED = r"^/ordered/(?P<client>[\w.]+)/$"


@consumer("websocket.receive", path=ORDERED)
def ordered(message, client):
    """Write down whose frame it was, and say it back."""
    Entry.objects.create(text=f"{client} {message['text']}", pid=os.getpid())
    message.reply_channel.send({"text": message["text"]})


NAMED = r"^/named/(?P<client>\w+)/$"


@consumer("websocket.receive", path=NAMED)
def name(message, client):
    """Say whose connection it is, and say back what came."""
    message.reply_channel.identify(message["text"])
    message.reply_channel.send({"text": message["text"]})


ARRIVAL = r"^/arrival/(?P<client>\w+)/$"


@consumer("websocket.connect", path=ARRIVAL)
def arrive(message, client):
    """Write down who came."""
    Entry.objects.create(text=f"arrived {client}", pid=os.getpid())


@consumer("websocket.disconnect", path=ARRIVAL)
def depart(message, client):
    """Write down who left."""
    Entry.objects.create(text=f"departed {client}", pid=os.getpid())


@consumer("share.a")
@consumer("share.b")
@consumer("share.c")
@consumer("share.limited", concurrency=1)
def share(message):
    """Write down whose turn it was."""
    Entry.objects.create(text=message.channel.name, pid=os.getpid())
