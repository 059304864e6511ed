"""The front page, and the list of examples on it: a new example adds one line here and one in ``urls.py``."""

from __future__ import annotations

from typing import NamedTuple

from django.shortcuts import render


class Example(NamedTuple):
    """One example on the front page; ``url`` is the name of its first page."""

    title: str
    url: str
    sentence: str
    shows: str


EXAMPLES = [
    Example(
        "Chat",
        "chat:lobby",
        "Rooms, names, history, and a list of who is here.",
        "Decorated consumers, a group for each room, models and transactions as in any view.",
    ),
    Example(
        "The chat of the tutorial",
        "rooms",
        "Rooms for logged-in users (on your own machine: admin, admin), with their lines and visits.",
        "A consumer as a class, sessions and users, in 50 lines of Python; docs/tutorial.rst explains each of them.",
    ),
    Example(
        "Thumbnails",
        "thumbnails:page",
        "Upload pictures, and watch three sizes of each being made.",
        "Background work with retries, progress by server-sent events, an upload that does not wait.",
    ),
    Example(
        "Live blog",
        "liveblog:blog",
        "Write in the admin, read here, without reloading.",
        "A post_save receiver that sends to a group: every saved post reaches its readers at commit.",
    ),
    Example(
        "Long poll",
        "longpoll:page",
        "Headlines by plain requests, each answered when there is a new one.",
        "Views that are answered later, a group of requests, and a message that is due in 25 seconds.",
    ),
    Example(
        "The chat of 2015",
        "post2015:page",
        "The chat server of the blog post that started it, with its own function signatures.",
        "Consumers that take keywords, a routing module, and a group instead of the post's set in Redis.",
    ),
]


def index(request):
    """Show the examples."""
    return render(request, "demo/index.html", {"examples": EXAMPLES})
