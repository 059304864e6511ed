"""The layer contract, sixth part: the clean-up after a process that died, and the records of WebSockets."""

from __future__ import annotations

from dbchannels import codec
from dbchannels.exceptions import DeclaredDead
from dbchannels.layers.operations import BatchResult, Connect, Disconnect, Record, session_digest
from dbchannels.protocol import NORMAL_CLOSURE, VANISHED, WORKER_DIED, lost
from dbchannels.testing.contract.case import SOON, LayerCase, drain, process_name, raises, wait_until, waiting
from dbchannels.testing.contract.durable import claim, numbers


class LivenessContract(LayerCase):
    """Dead workers and servers, and connections that have ended."""

    def test_the_clients_of_a_dead_worker_get_a_reply(self) -> None:
        layer, link = self.layer_and_link()
        if layer.shared:
            worker = process_name("worker")
            link.register(worker, "worker")
            for number, local in enumerate("abc"):
                layer.send("http.request", {"number": number, "reply_channel": f"reply.s!{local}"})
            layer.send("http.request", {"number": 3})
            finished, *in_flight = link.receive_many(["http.request"], 4, worker)
            link.finish(worker, BatchResult(in_flight=in_flight))
            self.link(layer).clean_up_after(worker)
            replies = [layer.receive(["reply.s!"]) for _ in range(3)]
            notice = lost(WORKER_DIED, "http.request")
            assert replies == [("reply.s!b", notice), ("reply.s!c", notice), (None, None)]
            assert finished.reply_channel == "reply.s!a"

    def test_the_claims_of_a_dead_worker_return_one_by_one(self) -> None:
        layer, link = self.layer_and_link()
        if layer.shared:
            worker = process_name("worker")
            link.register(worker, "worker")
            layer.send_many([("own", {"number": number}) for number in range(3)])
            assert len(claim(link, worker)) == 3
            self.link(layer).clean_up_after(worker)
            for number in range(3):
                (alone,) = claim(link, "w2")
                assert (numbers([alone]), alone.attempt) == ([number], 1)
                link.finish("w2", BatchResult(acknowledged=[alone]))
            assert claim(link, "w2") == []

    def test_a_worker_is_counted_by_its_queue_as_long_as_it_lives(self) -> None:
        layer, link = self.layer_and_link()
        if layer.shared:
            worker, server = process_name("worker"), process_name("server")
            queue = f"http.{worker}"
            link.register(worker, "worker")
            _, servers = link.count_live(queue)
            link.register(server, "server", queue)
            assert link.count_live(queue) == (0, servers + 1)
            reader = process_name("reader")
            link.register(reader, "worker", queue)
            assert link.count_live(queue) == (1, servers + 1)
            assert {worker, reader} <= set(link.workers())
            link.record_work(reader, '{"takes": ["own"]}')
            # A layer that lives in one process need not keep it.
            assert link.workers()[reader]["takes"] in (["own"], [])
            layer.send(queue, {"number": 1})
            self.link(layer).clean_up_after(reader)
            assert link.count_live(queue) == (0, servers + 1)
            assert layer.receive([queue]) == (queue, {"number": 1})  # what it would have read is for others
            for name in (worker, server):
                link.unregister(name)

    def test_members_of_a_live_server_stay_and_leave_with_it(self) -> None:
        layer, link = self.layer_and_link(group_expiry=SOON, expiry=60)
        if layer.shared:
            server = process_name("server")
            queue = f"reply.{server}!"
            link.register(server, "server", queue)
            layer.group_add("group", f"{queue}a")
            layer.group_add("group", "reply.nobody!a")
            wait_until(lambda: layer.group_channels("group") == [f"{queue}a"])
            link.clean_up()
            link.apply([Connect(f"{queue}a", server, "/chat/"), Connect(f"{queue}b", server, "/")])
            layer.send(f"{queue}a", {})
            for channel in (f"{queue}c", "reply.other!c"):
                layer.send("http.request", {"reply_channel": channel})
            link.apply([Disconnect(f"{queue}b")])
            self.link(layer).clean_up_after(server)
            assert layer.group_channels("group") == []
            assert layer.receive([queue]) == (None, None)
            assert drain(layer, "http.request") == [{"reply_channel": "reply.other!c"}]
            (disconnect,) = drain(layer, "websocket.disconnect")
            assert disconnect == {
                "reply_channel": f"{queue}a",
                "path": "/chat/",
                "code": VANISHED,
                "reason": "",
                "order": -1,
            }

    def test_a_disconnect_that_a_server_sent_before_it_died_is_the_only_one(self) -> None:
        layer, link = self.layer_and_link()
        if layer.shared:
            server, worker = process_name("server"), process_name("worker")
            queue = f"reply.{server}!"
            link.register(server, "server", queue)
            link.register(worker, "worker")
            leaves = {"reply_channel": f"{queue}a", "path": "/", "code": NORMAL_CLOSURE, "order": 7}
            connects = [Connect(f"{queue}{local}", server, "/") for local in "ab"]
            link.apply_as(server, [*connects, layer.make_send("websocket.disconnect", leaves)])
            self.link(layer).clean_up_after(server)
            with raises(DeclaredDead):
                link.apply_as(
                    server, [Connect(f"{queue}c", server, "/"), layer.make_send("http.request", {})]
                )
            assert waiting(layer, "http.request") == 0
            link.clean_up()
            taken = link.receive_many(["websocket.disconnect"], 10, worker)
            assert sorted(one.reply_channel for one in taken) == [f"{queue}a", f"{queue}b"]
            link.clean_up()
            assert [one.reply_channel for one in layer.connections(server=[server])] == [f"{queue}a"]
            link.finish(worker, BatchResult(operations=[Disconnect(one.reply_channel) for one in taken]))
            link.clean_up()
            assert layer.connections(server=[server]) == []
            assert waiting(layer, "websocket.disconnect") == 0
            link.unregister(worker)

    def test_the_channel_of_an_ended_connection_leaves_its_groups(self) -> None:
        layer = self.layer()
        for group in ("one", "two"):
            layer.group_add(group, "reply.a!b")
            layer.group_add(group, "reply.a!c")
        self.link(layer).apply([Disconnect("reply.a!b")])
        assert layer.group_channels("one") == layer.group_channels("two") == ["reply.a!c"]

    def test_any_path_of_a_connection_is_taken(self) -> None:
        layer = self.layer()
        connects = [
            Connect(f"reply.a!{number}", "server", path) for number, path in enumerate(["", "/\0", "/\udc80"])
        ]
        self.link(layer).apply([*connects, *connects, layer.make_send("http.request", {})])
        assert waiting(layer, "http.request") == 1

    def test_a_process_learns_that_it_was_cleaned_up_after(self) -> None:
        layer, link = self.layer_and_link()
        if layer.shared:
            worker = process_name("worker")
            link.register(worker, "worker")
            assert link.renew(worker)
            self.link(layer).clean_up_after(worker)
            assert not link.renew(worker)
            link.register(worker, "worker")
            assert link.renew(worker)
            link.unregister(worker)
            assert not link.renew(worker)


class ConnectionContract(LayerCase):
    """The records by which ``message.user`` and the sessions of a WebSocket are found."""

    def test_a_connection_is_found_by_each_of_its_fields(self) -> None:
        layer, link = self.layer_and_link()
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
        layer, link = self.layer_and_link()
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
        layer, link = self.layer_and_link()
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
