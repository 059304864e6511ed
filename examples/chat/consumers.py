"""The chat server: three functions, one for each kind of message of a WebSocket.

Each is one transaction that first locks the row of its room. So the events in a room have one order, however many
workers there are, and nobody misses an event between the first list and the first news. Different rooms do not wait for
each other.
"""

from django.db import transaction

from chat import frames
from chat.models import ROOM_NAME, Presence, Room
from dbchannels import Group, consumer

PATH = rf"^/chat/(?P<room>{ROOM_NAME})/$"
HISTORY = 50  # lines that a newcomer receives


@consumer("websocket.connect", path=PATH)
@transaction.atomic
def join(message, room):
    """Announce the newcomer, and send the newcomer the people who are here and the latest lines."""
    try:
        name = frames.read_name(message["query_string"])
    except frames.BadFrame as bad:
        message.reply_channel.send({"text": frames.error(bad), "close": frames.NOT_ADMITTED})
        return
    entered = Room.objects.enter(room)
    newcomer = entered.people.create(name=name, reply_channel=message.reply_channel.name)
    lines = list(entered.lines.order_by("-id")[:HISTORY])
    members = Group(f"chat-{room}")
    members.send({"text": frames.joined(newcomer)})
    members.add(message.reply_channel)
    message.reply_channel.send({"text": frames.welcome(newcomer, entered.people.all(), reversed(lines))})


@consumer("websocket.receive", path=PATH)
@transaction.atomic
def say(message, room):
    """Store a line, and send it to everybody in the room, the speaker included."""
    try:
        text = frames.read_say(message.get("text"))
    except frames.BadFrame as bad:
        message.reply_channel.send({"text": frames.error(bad)})
        return
    speaker = Presence.objects.speaking(message.reply_channel)
    if speaker is None:  # the room was deleted in the admin: the page reconnects, and creates it again
        message.reply_channel.send({"close": True})
        return
    line = speaker.room.lines.create(name=speaker.name, text=text)
    Group(f"chat-{room}").send({"text": frames.said(line, speaker)})


@consumer("websocket.disconnect", path=PATH)
@transaction.atomic
def leave(message, room):
    """Announce that somebody left. This runs even after a crash of the server, which leaves the group for us."""
    leaver = Presence.objects.speaking(message.reply_channel)
    if leaver is None:  # never admitted
        return
    news = frames.left(leaver)
    leaver.delete()
    Group(f"chat-{room}").send({"text": news})
