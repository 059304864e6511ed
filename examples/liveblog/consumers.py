"""A reader's WebSocket: it joins the group and receives the current posts."""

import json

from dbchannels import consumer
from liveblog.models import Post
from liveblog.receivers import READERS

PATH = r"^/liveblog/$"
SHOWN = 30  # posts, the newest first


@consumer("websocket.connect", path=PATH)
def follow(message):
    """Send the current posts, so that a page that reconnects has missed nothing."""
    READERS.add(message.reply_channel)
    posts = [post.as_json() for post in Post.objects.all()[:SHOWN]]
    message.reply_channel.send({"text": json.dumps({"type": "all", "posts": posts})})
