"""Consumers as classes, and dbchannels' own consumers, which workers find here as in every app."""

from dbchannels import other_libraries
from dbchannels.auth import logout
from dbchannels.consumers.json import Demultiplexer, JsonWebsocketConsumer
from dbchannels.consumers.live_groups import render_to_group
from dbchannels.consumers.websocket import WebsocketConsumer, route_class
from dbchannels.routing.table import consumer

__all__ = ["Demultiplexer", "JsonWebsocketConsumer", "WebsocketConsumer", "render_to_group", "route_class"]

consumer(logout.CHANNEL)(logout.close_stale)


__getattr__ = other_libraries.module_names(__name__)
