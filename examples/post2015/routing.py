"""The routes of the post's consumers, which have no decorators."""

from dbchannels import route
from post2015.consumers import ws_connect, ws_disconnect, ws_receive

routes = [
    route("websocket.connect", ws_connect, path=r"^/post-2015/$"),
    route("websocket.receive", ws_receive, path=r"^/post-2015/$"),
    route("websocket.disconnect", ws_disconnect, path=r"^/post-2015/$"),
]
