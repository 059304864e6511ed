"""Consumers as classes, one for all messages of a WebSocket, and the way to route them.

``websocket`` has the plain one, ``json`` the one whose frames are JSON, ``demultiplexer`` the one that has
several of these over one socket. Workers find dbchannels' own consumer here, as they find those of every app.
"""

from dbchannels import foreign
from dbchannels.auth import logout
from dbchannels.consumers.json import Demultiplexer, JsonWebsocketConsumer
from dbchannels.consumers.websocket import WebsocketConsumer, route_class
from dbchannels.routing.table import consumer

__all__ = ["Demultiplexer", "JsonWebsocketConsumer", "WebsocketConsumer", "route_class"]

consumer(logout.CHANNEL)(logout.close_stale)


__getattr__ = foreign.module_names(__name__)
