"""client.ws: the socket of a test's client, through the server's own handshake and the site's consumers."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import Group as Model
from django.contrib.auth.models import User
from django.db import transaction
from django.test import override_settings

from dbchannels import Channel, Group
from dbchannels.exceptions import InvalidConfiguration
from dbchannels.testing import ChannelClient, ChannelTestCase
from tests.testing.site import ROUTING


@override_settings(DBCHANNELS=ROUTING, ROOT_URLCONF="tests.testing.urls")
class Sockets(ChannelTestCase):
    def ws(self, path="/room/a/", **options):
        """Open a socket and take its greeting."""
        socket = self.client.ws(path, **options)
        socket.greeting = socket.receive()
        return socket

    # The handshake.

    def test_the_connect_consumer_has_run_when_it_is_open(self):
        socket = self.ws()
        assert (socket.accepted, socket.status, socket.closed, socket.close_code) == (True, 101, False, None)
        assert Group("room-a").channels() == [socket.reply_channel]

    def test_the_handshake_is_a_browsers_with_the_clients_cookies_and_headers(self):
        assert "cookie" not in self.ws().greeting
        self.client.force_login(User.objects.create_user("ann"))
        greeting = self.ws(headers={"x-own": "1"}).greeting.split(",")
        assert {"cookie", "host", "origin", "sec-websocket-key", "upgrade", "x-own"} <= set(greeting)

    def test_the_address_and_the_scheme_are_as_given(self):
        for options, shown in (
            ({}, "ws /address/ x=1&y=%20"),
            ({"secure": True}, "wss /address/ x=1&y=%20"),
            ({"query_params": {"x": "a b"}}, "ws /address/ x=a+b"),
        ):
            assert self.client.ws("/address/?x=1&y= ", **options).receive() == shown

    def test_a_client_that_comes_back_gets_what_it_missed(self):
        first = self.client.ws("/room/a/?dbchannels-resume=")
        Group("room-a", history=5).send(text="one")
        *_, last_id, text = first.receive_all()
        assert (last_id[:4], text) == ("\0id ", "one")
        first.close()
        Group("room-a", history=5).send(text="two")
        back = self.client.ws(f"/room/a/?dbchannels-resume={last_id[4:]}")
        assert [frame for frame in back.receive_all() if frame in ("one", "two")] == ["two"]

    def test_a_subprotocol_is_one_that_the_client_offers(self):
        socket = self.client.ws("/choose/?chat", subprotocols=["chat", "other"])
        assert (socket.accepted, socket.subprotocol) == (True, "chat")
        with pytest.raises(ValueError, match="The client offered no subprotocol 'chat'"):
            self.client.ws("/choose/?chat")

    def test_a_cookie_of_the_answer_is_kept(self):
        self.client.ws("/choose/")
        assert self.client.cookies["seen"].value == "1"
        assert "cookie" in self.ws().greeting

    def test_a_refusal_has_its_status(self):
        for path, status in (("/choose/?deny", 403), ("/choose/?status", 401), ("/nowhere/", 404)):
            socket = self.client.ws(path)
            assert (socket.accepted, socket.status, socket.closed) == (False, status, True), path
            with pytest.raises(AssertionError, match=f"was refused with {status}"):
                socket.send("hi")

    def test_what_the_connect_consumer_raises_is_raised_or_is_a_500(self):
        with pytest.raises(ValueError, match="choose failed"):
            self.client.ws("/choose/?fail")
        with self.assertLogs("dbchannels.worker", "ERROR"):
            client = ChannelClient(raise_request_exception=False)
            assert client.ws("/choose/?fail").status == 500

    def test_a_page_of_another_site_is_refused_as_by_the_server(self):
        with self.assertLogs("dbchannels.server", "WARNING"):
            assert self.client.ws("/room/a/", headers={"origin": "https://evil.example"}).status == 403
        assert self.client.ws("/room/a/", headers={"host": "evil.example"}).status == 400
        assert Group("room-a").channels() == []

    # Frames.

    def test_a_frame_has_run_its_consumer_and_reached_the_group(self):
        ann, ben = self.ws(), ChannelClient().ws("/room/a/")
        ben.receive()
        other = self.ws("/room/b/")
        ann.send("hello")
        ben.send(b"\0\1")
        assert Model.objects.filter(name="hello 5").exists()
        assert ann.receive_all() == ben.receive_all() == ["hello", b"\0\1"]
        other.assertNothingReceived()

    def test_a_frame_of_another_type_is_refused_before_a_consumer_runs(self):
        with pytest.raises(TypeError, match=r"A frame is a str or bytes, not {'a': 1}: write send_json"):
            self.ws().send({"a": 1})

    def test_json(self):
        socket = self.ws()
        socket.send_json({"a": [1, None]})
        assert socket.receive_json() == {"a": [1, None]}
        socket.send_json(1), socket.send_json(2)
        assert socket.receive_all_json() == [1, 2]
        socket.send("no json")
        with pytest.raises(AssertionError, match="The frame 'no json' is not JSON"):
            socket.receive_json()

    def test_long_frames_arrive_whole(self):
        socket = self.ws()
        for size in (0, 125, 126, 65_535, 65_536):
            socket.send("x" * size)
            assert socket.receive() == "x" * size
        socket.send("x" * 1_048_577)
        assert socket.close_code == 1009

    def test_what_a_consumer_raises_is_raised_and_what_it_had_sent_is_not(self):
        socket = self.ws()
        with pytest.raises(ValueError, match="say failed"):
            socket.send("fail")
        socket.assertNothingReceived()
        assert not Model.objects.exists()
        socket.send("on")
        assert socket.receive() == "on"

    def test_queries_can_be_counted_over_a_frame(self):
        socket = self.ws()
        with self.assertNumQueries(3):  # a savepoint, a row, and the savepoint's release
            socket.send("hello")

    def test_what_a_view_sends_arrives(self):
        socket = self.ws()
        self.client.get("/send/")
        assert socket.receive() == "from a view"

    def test_own_channels_wait_for_drain(self):
        socket = self.ws()
        socket.send("work")
        self.assertSent("work", step=1)
        self.assertNotSent("work", step=2)
        socket.receive()
        with pytest.raises(AssertionError, match=r"Messages wait on work: call drain\(\)\.$"):
            socket.receive()
        self.drain()
        self.assertSent("done")

    def test_a_failure_says_why_nothing_may_have_arrived(self):
        socket = self.ws()
        with pytest.raises(AssertionError) as raised:
            socket.receive()
        assert str(raised.value) == "Nothing has arrived on the WebSocket /room/a/."
        with transaction.atomic():
            Group("room-a").send({"text": "later"})
            with pytest.raises(AssertionError, match=r"An atomic\(\) block is open"):
                socket.receive()
        with pytest.raises(AssertionError, match="The WebSocket /room/a/ has received:\n  'later'"):
            socket.assertNothingReceived()

    def test_a_frame_that_is_put_off_comes_when_time_passes_and_none_overtakes_it(self):
        socket = self.client.ws("/patient/")
        socket.send("one")
        socket.send("two")
        self.advance(1)
        socket.assertNothingReceived()
        Model.objects.create(name="at last")
        socket.assertNothingReceived()
        self.drain(delayed=True)
        assert socket.receive_all() == ["one", "two"]

    def test_the_session_and_its_user_are_there_and_their_end_closes_the_socket(self):
        self.client.force_login(User.objects.create_user("ann"))
        socket = self.client.ws("/user/")
        socket.send("who")
        assert socket.receive() == "ann 1"
        socket.send("who")
        assert socket.receive() == "ann 2"
        self.client.logout()
        assert socket.close_code == 4401

    # The end.

    def test_a_closed_socket_has_run_its_disconnect_consumer_and_left_its_groups(self):
        ann, ben = self.ws(), self.ws()
        with ben:
            pass
        assert ann.receive() == "left 1000"
        assert (ben.closed, ben.close_code) == (True, 1000)
        assert Group("room-a").channels() == [ann.reply_channel]
        with pytest.raises(AssertionError, match=r"is closed \(1000\)"):
            ben.send("too late")
        ben.close()
        ann.assertNothingReceived()

    def test_one_that_vanishes_is_told_with_1006(self):
        ann, ben = self.ws(), self.ws()
        ben.close(1006)
        assert ann.receive() == "left 1006"

    def test_the_server_closes_after_what_was_sent_before(self):
        ann, ben = self.ws(), self.ws()
        ann.send("close")
        assert (ann.receive(), ann.close_code, ann.closed) == ("close", 4001, True)
        assert ben.receive_all() == ["close", "left 4001"]
        with pytest.raises(AssertionError, match="It was closed with 4001"):
            ann.receive()

    def test_anybody_may_close_it_by_its_reply_channel(self):
        socket = self.ws()
        Channel(socket.reply_channel).send({"close": 4401, "reason": "Enough."})
        assert (socket.close_code, socket.close_reason) == (4401, "Enough.")

    def test_a_user_is_present_who_was_identified(self):
        socket = self.ws()
        Channel(socket.reply_channel).identify(7)
        assert Group("room-a").users() == ["7"]
        socket.close()
        assert Group("room-a").users() == []

    def test_a_socket_stays_in_its_groups_however_long(self):
        socket = self.ws()
        Group("room-a").add("reply.made-by-hand!1")
        self.advance(2 * 86_400)
        assert Group("room-a").channels() == [socket.reply_channel]


class TestWithoutChannels:
    def test_a_client_says_what_is_missing(self):
        with pytest.raises(InvalidConfiguration, match="use ChannelTestCase, the fixture channels, or"):
            ChannelClient().ws("/room/a/")
