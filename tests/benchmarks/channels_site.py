"""A site of Channels 4, as its tutorial builds one: a chat, whose channel layer the environment names.

``python -m tests.benchmarks.channels_site`` is its manage.py.
"""

from __future__ import annotations

import json
import os
import uuid

import django
from django.conf import settings

LAYER = json.loads(os.environ["CHANNELS_LAYER"])
settings.configure(
    ALLOWED_HOSTS=["*"],
    DATABASES=json.loads(os.environ["CHANNELS_DATABASES"]),
    DBCHANNELS={"default": {"OPTIONS": json.loads(os.environ.get("CHANNELS_OPTIONS", "{}"))}},
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    INSTALLED_APPS=["channels", "dbchannels", *json.loads(os.environ.get("CHANNELS_APPS", "[]"))],
    ASGI_APPLICATION=f"{__name__}.application",
    CHANNEL_LAYERS={"default": LAYER},
    SECRET_KEY="benchmark",
    USE_TZ=True,
)
django.setup()

from asgiref.sync import async_to_sync  # noqa: E402
from channels.consumer import SyncConsumer  # noqa: E402
from channels.generic.websocket import AsyncWebsocketConsumer, WebsocketConsumer  # noqa: E402
from channels.routing import ChannelNameRouter, ProtocolTypeRouter, URLRouter  # noqa: E402
from django.urls import re_path  # noqa: E402


class ChatConsumer(AsyncWebsocketConsumer):
    """Sends what a member says to the room; a room without a name has one member."""

    async def connect(self):
        self.room = f"chat_{self.scope['url_route']['kwargs']['room'] or uuid.uuid4().hex}"
        await self.channel_layer.group_add(self.room, self.channel_name)
        await self.accept()

    async def disconnect(self, code):
        await self.channel_layer.group_discard(self.room, self.channel_name)

    async def receive(self, text_data):
        await self.channel_layer.group_send(self.room, {"type": "chat.message", "message": text_data})

    async def chat_message(self, event):
        await self.send(text_data=event["message"])


class ThreadedChatConsumer(WebsocketConsumer):
    """The same in a thread, as the tutorial's second part has it."""

    def connect(self):
        self.room = f"chat_{self.scope['url_route']['kwargs']['room']}"
        async_to_sync(self.channel_layer.group_add)(self.room, self.channel_name)
        self.accept()

    def disconnect(self, code):
        async_to_sync(self.channel_layer.group_discard)(self.room, self.channel_name)

    def receive(self, text_data):
        event = {"type": "chat.message", "message": text_data}
        async_to_sync(self.channel_layer.group_send)(self.room, event)

    def chat_message(self, event):
        self.send(text_data=event["message"])


class Worker(SyncConsumer):
    """Runs under Channels' own runworker."""

    def shout(self, event):
        event = {"type": "chat.message", "message": event["message"].upper()}
        async_to_sync(self.channel_layer.group_send)("chat_garden", event)


application = ProtocolTypeRouter(
    {
        "websocket": URLRouter(
            [
                re_path(r"^ws/(?P<room>\w*)$", ChatConsumer.as_asgi()),
                re_path(r"^threaded/(?P<room>\w+)$", ThreadedChatConsumer.as_asgi()),
            ]
        ),
        "channel": ChannelNameRouter({"shouts": Worker.as_asgi()}),
    }
)

if __name__ == "__main__":
    import sys

    from django.core.management import execute_from_command_line

    execute_from_command_line(["manage.py", *sys.argv[1:]])
