"""Consumers as classes, one for all messages of a WebSocket, and the way to route them.

``websocket`` has the plain one, ``json_frames`` the one whose frames are JSON, ``demultiplexer`` the one that has
several of these over one socket. Workers find dbchannels' own consumer here, as they find those of every app.
"""

from dbchannels import foreign, logins
from dbchannels.consumers.class_routes import route_class
from dbchannels.consumers.demultiplexer import Demultiplexer
from dbchannels.consumers.json_frames import JsonWebsocketConsumer
from dbchannels.consumers.websocket import WebsocketConsumer
from dbchannels.routing import consumer

__all__ = ["Demultiplexer", "JsonWebsocketConsumer", "WebsocketConsumer", "route_class"]

consumer(logins.CHANNEL)(logins.check)


__getattr__ = foreign.module_names(__name__)
