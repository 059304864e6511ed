"""The chat server: three functions, one for each thing that happens to a WebSocket.

Each is one transaction that locks the row of its room first. So what happens in one room happens in one
order, whatever the number of workers, and nobody misses what falls between the list they are given and the
first news they get. Different rooms do not wait for each other.
"""

from django.db import transaction

from chat import frames
from chat.models import ROOM_NAME, Presence, Room
from dbchannels import Group, consumer

PATH = rf"^/chat/(?P<room>{ROOM_NAME})/$"
HISTORY = 50  # lines that a newcomer is shown


@consumer("websocket.connect", path=PATH)
@transaction.atomic
def join(message, room):
    """Tell those who are here of the newcomer, and the newcomer who is here and what was said before."""
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
    """Keep what somebody says, and tell everybody in the room, the speaker too."""
    try:
        text = frames.read_say(message.get("text"))
    except frames.BadFrame as bad:
        message.reply_channel.send({"text": frames.error(bad)})
        return
    speaker = Presence.objects.speaking(message.reply_channel)
    if speaker is None:  # the room was deleted in the admin: the page comes back, and so does the room
        message.reply_channel.send({"close": True})
        return
    line = speaker.room.lines.create(name=speaker.name, text=text)
    Group(f"chat-{room}").send({"text": frames.said(line, speaker)})


@consumer("websocket.disconnect", path=PATH)
@transaction.atomic
def leave(message, room):
    """Tell those who stay. This runs even after a crash of the server; the group is left without our help."""
    leaver = Presence.objects.speaking(message.reply_channel)
    if leaver is None:  # never admitted
        return
    news = frames.left(leaver)
    leaver.delete()
    Group(f"chat-{room}").send({"text": news})
