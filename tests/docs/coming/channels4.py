"""What the project of docs/channels4.rst does."""

# ruff: noqa: PT009, PT027 (it is run by a TestCase of Django)

import asyncio
from contextlib import redirect_stdout
from io import StringIO

from django.contrib.auth.models import User
from shop.consumers import make_thumbnail, tick

from dbchannels import Channel, Group
from dbchannels.testing import ChannelClient, ChannelTestCase
from dbchannels.worker.executor import completed


class PageTest(ChannelTestCase):
    def test_the_room_is_a_word_and_its_end_leaves_no_member(self):
        self.assertEqual(self.client.ws("/ws/chat/a-b/").status, 404)
        with self.client.ws("/ws/chat/garden/") as ann:
            self.assertEqual(Group("chat_garden").channels(), [ann.reply_channel])
        self.assertEqual(Group("chat_garden").count(), 0)

    def test_guests_and_the_staff_see_different_frames(self):
        guest, staff = ChannelClient(), ChannelClient()
        guest.force_login(User.objects.create_user("ann"))
        staff.force_login(User.objects.create_user("ben", is_staff=True))
        ann, ben = guest.ws("/ws/support/desk/"), staff.ws("/ws/support/desk/")
        ann.send_json({"message": "help"})
        self.assertEqual(ann.receive_json(), {"message": "help"})
        self.assertEqual(ben.receive_json(), {"message": "help", "from": "ann"})
        Group("support-desk-guests").send({"close": 4000})
        self.assertEqual(ann.close_code, 4000)
        self.assertFalse(ben.closed)

    def test_the_sender_is_skipped(self):
        ann, ben, cat = (self.client.ws("/ws/board/a/") for _ in range(3))
        ann.send("a line")
        self.assertEqual([ben.receive(), cat.receive()], ["a line"] * 2)
        ann.assertNothingReceived()

    def test_the_handler_runs_for_each_member_but_the_sender(self):
        ann, ben, cat = (self.client.ws("/ws/lobby/a/") for _ in range(3))
        ann.send_json({"message": "a line"})
        self.assertEqual([ben.receive_json(), cat.receive_json()], [{"message": "a line"}] * 2)
        ann.assertNothingReceived()

    def test_a_connection_follows_topics(self):
        ann = self.client.ws("/ws/topics/")
        ann.send_json({"topic": "news", "follow": True})
        Group("topic-news").send({"text": "first"})
        self.assertEqual(ann.receive(), "first")
        ann.send_json({"topic": "news", "follow": False})
        Group("topic-news").send({"text": "second"})
        for topic in ("secret", ["news"], None):
            ann.send_json({"topic": topic, "follow": True})
            self.assertEqual(ann.receive_json()["error"]["code"], "unknown_topic")
        self.assertEqual(Group("topic-secret").count(), 0)

    def test_the_scope_is_in_the_message(self):
        self.client.force_login(User.objects.create_user("ann"))
        self.client.cookies["theme"] = "dark"
        query, headers = {"currency": "USD"}, {"User-Agent": "Browser/1"}
        ann = self.client.ws("/ws/shop/tea/", query_params=query, headers=headers)
        ann.send_json({})
        kept = {"currency": "USD", "theme": "dark", "browser": "Browser/1"}
        told = {"path": "/ws/shop/tea/", "department": "tea", "user": "ann"}
        self.assertEqual(ann.receive_json(), {**told, **kept})

    def test_the_state_stays_with_its_connection(self):
        ann, ben = self.client.ws("/ws/basket/"), self.client.ws("/ws/basket/")
        ann.send_json({"item": "tea"})
        ben.send_json({"item": "milk"})
        ann.send_json({"item": "cup"})
        self.assertEqual(ann.receive_all_json(), [{"items": ["tea"]}, {"items": ["tea", "cup"]}])
        self.assertEqual(ben.receive_all_json(), [{"items": ["milk"]}])

    def test_a_consumer_that_raises_leaves_the_connection_open(self):
        ann = self.client.ws("/ws/basket/")
        with self.assertRaises(KeyError):
            ann.send_json({})
        self.assertFalse(ann.closed)
        ann.send_json({"item": "tea"})
        self.assertEqual(ann.receive_json(), {"items": ["tea"]})

    def test_accepting_refusing_and_closing(self):
        self.assertEqual(self.client.ws("/ws/auction/101/").status, 403)
        sold = self.client.ws("/ws/auction/100/")
        self.assertEqual(
            (sold.accepted, sold.close_code, sold.close_reason), (True, 4004, "This lot is sold.")
        )
        offers = ["auction.v1", "auction.v2"]
        ann = self.client.ws("/ws/auction/7/", subprotocols=offers)
        self.assertEqual(ann.subprotocol, "auction.v2")
        ann.send("12")
        self.assertEqual(ann.receive(), "You bid 12.")
        with redirect_stdout(StringIO()) as printed:
            ann.send("leave")
            self.assertEqual((ann.receive(), ann.close_code), ("Good bye.", 4000))
        self.assertEqual(printed.getvalue().split(), ["bidder", "of", "lot", "7", "left", "with", "4000"])

    def test_calls_in_one_async_method_run_together(self):
        ann = self.client.ws("/ws/prices/")
        ann.send_json({})
        self.assertEqual(ann.receive_json(), {"north": 5, "south-west": 10})

    def test_a_task_ends_with_its_method(self):
        ends = []

        async def task():
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                ends.append("cancelled")
                raise

        async def method():
            ends.append(asyncio.create_task(task()))
            await asyncio.sleep(0)

        completed(method())
        self.assertEqual(ends[1:], ["cancelled"])

    def test_the_clock_ticks_for_all(self):
        ann, ben = self.client.ws("/ws/clock/"), self.client.ws("/ws/clock/")
        Channel("clock").send({})
        self.assertEqual(self.drain(), 1)
        self.assertEqual(ann.receive(), ben.receive())
        self.assertTrue(callable(tick))

    def test_a_ticket_opens_the_feed(self):
        user = User.objects.create_user("ann")
        self.assertEqual(self.client.get("/ticket/").status_code, 302)
        self.client.force_login(user)
        ticket = self.client.get("/ticket/").json()["ticket"]
        self.client.logout()
        self.assertEqual(self.client.ws("/ws/feed/").status, 403)
        self.assertEqual(self.client.ws("/ws/feed/", query_params={"ticket": ticket + "x"}).status, 403)
        ann = self.client.ws("/ws/feed/", query_params={"ticket": ticket})
        self.assertEqual(Group(f"user-{user.pk}").users(), [str(user.pk)])
        Group(f"user-{user.pk}").send({"text": "for ann"})
        self.assertEqual(ann.receive(), "for ann")

    def test_the_routing_module_has_its_route(self):
        ann = self.client.ws("/ws/wishlist/")
        ann.send_json({"item": "tea"})
        self.assertEqual(ann.receive_json(), {"wished": "tea"})

    def test_a_view_sends_with_its_transaction(self):
        ann = self.client.ws("/ws/clock/")
        self.client.get("/announce/?never_mind")
        self.assertNotSent("thumbnails")
        ann.assertNothingReceived()
        self.client.get("/announce/")
        self.assertEqual(ann.receive(), "The shop closes in ten minutes.")
        with redirect_stdout(StringIO()) as printed:
            self.assertEqual(self.drain(), 1)
        self.assertEqual(printed.getvalue(), "a thumbnail of 7\n")
        self.assertTrue(callable(make_thumbnail))

    def test_several_consumers_share_a_socket(self):
        ann = self.client.ws("/ws/all/")
        ann.send_json({"stream": "basket", "payload": {"item": "tea"}})
        ann.send_json({"stream": "prices", "payload": {}})
        self.assertEqual(
            ann.receive_all_json(),
            [
                {"stream": "basket", "payload": {"items": ["tea"]}},
                {"stream": "prices", "payload": {"north": 5, "south-west": 10}},
            ],
        )

    def test_server_sent_events(self):
        stream = self.client.get("/events/").later
        self.client.get("/price-changed/")
        self.client.get("/price-changed/")
        self.assertEqual(stream.content, b"data: a price has changed\n\n" * 2)
        self.assertFalse(stream.arrived)

    def test_a_long_poll(self):
        waiting = self.client.get("/next-price/").later
        self.assertFalse(waiting.arrived)
        self.client.get("/set-price/?price=12")
        self.assertEqual(waiting.receive().content, b'{"price": "12"}')
