"""The front page, and the list of examples on it: a new example adds one line here and one in ``urls.py``."""

from __future__ import annotations

from typing import NamedTuple

from django.shortcuts import render


class Example(NamedTuple):
    """What the front page says of one example; ``url`` is the name of its first page."""

    title: str
    url: str
    sentence: str
    shows: str


EXAMPLES = [
    Example(
        "Chat",
        "chat:lobby",
        "Rooms, names, history, and who is here.",
        "Decorated consumers, a group for each room, models and transactions as in any view.",
    ),
    Example(
        "The chat of the tutorial",
        "rooms",
        "Rooms for users who are logged in (on your own machine: admin, admin), with what was said and who was there.",
        "A consumer as a class, sessions and users, in 48 lines of Python; docs/tutorial.rst explains each.",
    ),
    Example(
        "Thumbnails",
        "thumbnails:page",
        "Upload pictures, and watch three sizes of each being made.",
        "Background work with retries, its progress by server-sent events, an upload that waits for nothing.",
    ),
    Example(
        "Live blog",
        "liveblog:blog",
        "Write in the admin, read here, without a reload.",
        "A post_save receiver that sends to a group: whatever saves a post tells its readers, at the commit.",
    ),
    Example(
        "Long poll",
        "longpoll:page",
        "Headlines by plain requests, each answered when there is one.",
        "Views that are answered later, a group of requests, and a message that is due in 25 seconds.",
    ),
    Example(
        "The chat of 2015",
        "post2015:page",
        "The chat server of the blog post that began it, with its own function signatures.",
        "Consumers that take keywords, a routing module, and a group where the post had a set in Redis.",
    ),
]


def index(request):
    """Show the examples."""
    return render(request, "demo/index.html", {"examples": EXAMPLES})
