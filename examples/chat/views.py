"""The pages of the chat: the lobby, a room, and an error page for invalid room names."""

from __future__ import annotations

import re

from django.db.models import Count
from django.shortcuts import redirect, render
from django.utils.text import slugify

from chat.models import NAME_LIMIT, ROOM_NAME, ROOM_RULE, TEXT_LIMIT, Room

SHOWN = 100  # rooms in the lobby, the fullest first


def lobby(request):
    """List the rooms; ``?room=Any Words`` redirects to the room of that name."""
    asked = request.GET.get("room", "")
    if name := room_name(asked):
        return redirect("chat:room", name)
    rooms = Room.objects.annotate(here=Count("people")).order_by("-here", "name")[:SHOWN]
    problem = ROOM_RULE if asked else ""
    return render(request, "chat/lobby.html", {"rooms": rooms, "asked": asked, "problem": problem})


def room(request, name):
    """Show one room. It is created when somebody joins, not when the page is loaded."""
    limits = {"name_limit": NAME_LIMIT, "text_limit": TEXT_LIMIT}
    return render(request, "chat/room.html", {"room": name, **limits})


def no_room(request, name):
    """Explain the names of rooms, and offer the nearest valid name."""
    context = {"name": name, "rule": ROOM_RULE, "nearest": room_name(name)}
    return render(request, "chat/no_room.html", context, status=404)


def room_name(words: str) -> str:
    """Return the nearest valid name, ``my-room`` for ``My Room!``; "" if there is none."""
    name = slugify(words.replace("_", " "))[:40].strip("-")
    return name if re.fullmatch(ROOM_NAME, name) else ""
