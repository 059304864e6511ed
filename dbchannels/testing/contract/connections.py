"""The layer contract, part eight: what is on record of open WebSockets, and closing them."""

from __future__ import annotations

from dbchannels import codec
from dbchannels.layers.operations import Connect, Disconnect, Record, session_digest
from dbchannels.protocol import VANISHED
from dbchannels.testing.contract.case import LayerCase, drain, process_name


class ConnectionContract(LayerCase):
    """What ``message.user`` and the sessions of a WebSocket are found by."""

    def test_a_connection_is_found_by_each_of_its_fields(self) -> None:
        layer = self.layer()
        link = self.link(layer)
        opened = [Connect("reply.k!a", "one", "/", "key-of-a"), Connect("reply.k!b", "two", "/")]
        link.apply(opened)
        a, b = Record("reply.k!a", "key-of-a", ""), Record("reply.k!b", "", "-")
        wanted: list[tuple[dict[str, list[str]], list[Record]]] = [
            ({"reply_channel": ["reply.k!a"]}, [a]),
            ({"server": ["one", "two"]}, [a, b]),
            ({"session_digest": [session_digest("key-of-a")]}, [a]),
            ({"server": ["one", "two"], "login": [""]}, [a]),
            ({"server": ["two"], "login": ["-"]}, [b]),
            ({"session_digest": [session_digest("another key")]}, []),
        ]
        for fields, found in wanted:
            assert layer.connections(**fields) == found, fields
        assert layer.connections(limit=1, server=["one", "two"]) == [a]
        assert layer.connections(after="reply.k!a", server=["one", "two"]) == [b]
        assert layer.connections(watched=True, server=["one", "two"]) == [a]
        link.apply([Disconnect(one.reply_channel) for one in opened])
        assert layer.connections(server=["one", "two"]) == []

    def test_what_is_kept_with_a_connection_goes_with_it(self) -> None:
        layer = self.layer()
        link = self.link(layer)
        link.apply([Connect("reply.k!a", "server", "/", "key-of-a"), Connect("reply.k!b", "server", "/")])
        layer.keep("reply.k!a", session=b"\x00\xff")
        layer.keep("reply.k!a", login="+7")
        layer.keep("reply.k!gone", session=b"x", login="+7")
        assert layer.connections(server=["server"]) == [
            Record("reply.k!a", "key-of-a", "+7", b"\x00\xff"),
            Record("reply.k!b", "", "-", b""),
        ]
        assert layer.connections(login=["+7"]) == layer.connections(reply_channel=["reply.k!a"])
        layer.keep("reply.k!a", login="-")  # a slower look that found no login
        link.apply([Connect("reply.k!a", "server", "/", "key-of-a")])  # written again after an outage
        assert layer.connections(login=["+7"])[0].session == b"\x00\xff"
        link.apply([Disconnect("reply.k!a"), Disconnect("reply.k!b")])
        layer.keep("reply.k!a", session=b"late")
        assert layer.connections(reply_channel=["reply.k!a", "reply.k!gone"]) == []

    def test_a_disconnect_of_a_dead_server_tells_what_was_kept(self) -> None:
        layer = self.layer()
        link = self.link(layer)
        if layer.shared:
            server = process_name("server")
            channel = f"reply.{server}!a"
            link.register(server, "server", f"reply.{server}!")
            link.apply([Connect(channel, server, "/", "key-of-a")])
            layer.keep(channel, session=b"kept", login="+7")
            self.link(layer).clean_up_after(server)
            (disconnect,) = drain(layer, "websocket.disconnect")
            record = {"session_key": "key-of-a", "login": "+7", "session": b"kept"}
            assert codec.decode(disconnect.pop("session")) == record
            assert disconnect == {
                "reply_channel": channel,
                "path": "/",
                "code": VANISHED,
                "reason": "",
                "order": -1,
            }

    def test_connections_are_closed_though_their_server_has_much_to_read(self) -> None:
        layer = self.layer(capacity=1)
        layer.send("reply.k!a", {"text": "in the way"})
        layer.close_connections(["reply.k!a", "reply.k!b"], 4401)
        layer.close_connections([], 4401)
        assert drain(layer, "reply.k!")[1:] == [{"close": 4401}] * 2
