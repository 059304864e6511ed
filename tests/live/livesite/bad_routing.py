"""Routing with a name that no channel can have."""

from dbchannels import route


def nothing(message):
    """Never runs."""


routes = [route("reports for jo", nothing)]
