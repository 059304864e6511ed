"""What the project of docs/channels1.rst does."""

# ruff: noqa: PT009, PT027 (it is run by a TestCase of Django)

import json
from contextlib import redirect_stdout
from datetime import timedelta
from io import StringIO

from blog.consumers import next_post, ping
from blog.models import Post
from django.contrib.auth.models import Permission, User
from django.db import transaction

from dbchannels import Group, Message, ResponseLater, channel_layers
from dbchannels.testing import ChannelClient, ChannelTestCase


class PageTest(ChannelTestCase):
    def receive(self):
        return channel_layers["default"].receive(["reply.a!"])[1]

    def test_a_stranger_is_refused_and_whoever_leaves_is_told_of(self):
        self.assertEqual(self.client.ws("/chat/garden/").status, 403)
        ann, ben = ChannelClient(), ChannelClient()
        ann.force_login(User.objects.create_user("ann"))
        ben.force_login(User.objects.create_user("ben"))
        here = ann.ws("/chat/garden/")
        with ben.ws("/chat/garden/"), ann.ws("/chat/house/") as elsewhere:
            pass
        self.assertEqual(here.receive_all(), ["ben left."])
        self.assertTrue(elsewhere.closed)
        here.send("hello")
        with redirect_stdout(StringIO()) as printed:
            self.drain()
        self.assertEqual(printed.getvalue(), "a thumbnail for ann: hello\n")

    def test_the_lobby(self):
        ann, ben = self.client.ws("/chat/lobby/live/"), self.client.ws("/chat/lobby/live/")
        ann.send("hello")
        ann.close()
        self.assertEqual(ben.receive_all(), ["somebody: hello", "somebody left."])

    def test_a_consumer_answers_a_request(self):
        message = Message("http.request", {"reply_channel": "reply.a!b", "path": "/ping/"})
        ping(message)
        told = self.receive()
        self.assertEqual((told["status"], told["content"]), (200, b"pong"))

    def test_a_request_waits_for_the_next_post(self):
        message = Message("http.request", {"reply_channel": "reply.a!b", "path": "/next-post/"})
        with self.assertRaises(ResponseLater):
            next_post(message)
        self.assertEqual(self.client.get("/remind/").content, b"Reminded.")
        self.assertEqual(self.receive()["content"], b"There is a new post.")

    def test_a_reminder_comes_after_an_hour(self):
        ann = self.client.ws("/chat/lobby/live/")
        Group("user-7").add(ann.reply_channel)
        self.client.get("/remind/")
        self.assertEqual(self.assertSent("reminders", user=7).delay, timedelta(hours=1))
        self.drain()
        ann.assertNothingReceived()
        self.drain(delayed=True)
        self.assertEqual(ann.receive(), "You wanted to be reminded.")

    def test_the_streams(self):
        ann, ben = self.client.ws("/everything/"), self.client.ws("/everything/")
        ann.send_json({"stream": "echo", "payload": {"a": 1}})
        self.assertEqual(ann.receive_json(), {"stream": "echo", "payload": {"echo": {"a": 1}}})
        ann.send_json({"stream": "comments", "payload": {"comment": "good"}})
        for one in (ann, ben):
            self.assertEqual(one.receive_json(), {"stream": "comments", "payload": {"comment": "good"}})

    def test_changes_of_a_post_are_sent(self):
        ann = self.client.ws("/posts/")
        post = Post.objects.create(title="Tea")
        data = {"title": "Tea", "published": False}
        payload = {"model": "blog.post", "action": "create", "pk": post.pk, "data": data}
        self.assertEqual(ann.receive_json(), {"stream": "posts", "payload": payload})
        with self.assertRaises(ZeroDivisionError), transaction.atomic():
            Post.objects.create(title="Milk")
            raise ZeroDivisionError
        ann.assertNothingReceived()

    def ask(self, socket, **payload):
        socket.send_json({"stream": "posts", "payload": payload})
        return [one.get("payload") or one["error"]["code"] for one in socket.receive_all_json()]

    def test_a_client_changes_posts_if_it_may(self):
        user = User.objects.create_user("ann")
        self.client.force_login(user)
        ann = self.client.ws("/posts/")
        tea = {"title": "Tea", "published": True}
        self.assertEqual(self.ask(ann, action="create", data=tea), ["forbidden"])
        user.user_permissions.set(Permission.objects.filter(content_type__app_label="blog"))
        ann = self.client.ws("/posts/")
        (created,) = self.ask(ann, action="create", data=tea)
        post = Post.objects.get()
        self.assertEqual(created, {"model": "blog.post", "action": "create", "pk": post.pk, "data": tea})
        milk = {"title": "Milk", "published": False}
        (updated,) = self.ask(ann, action="update", pk=post.pk, data=milk)
        self.assertEqual((updated["action"], updated["data"]), ("update", milk))
        self.assertEqual(
            self.ask(ann, action="update", pk=post.pk, data={"published": True}), ["invalid_data"]
        )
        self.assertEqual(self.ask(ann, action="create"), ["invalid_data"])
        self.assertEqual(self.ask(ann, action="update", pk=10**30, data=milk), ["not_found"])
        self.assertEqual(self.ask(ann, action="delete", pk="1"), ["not_found"])
        for action in ("drop", ["create"], None):
            self.assertEqual(self.ask(ann, action=action, pk=post.pk), ["invalid_action"])
        (deleted,) = self.ask(ann, action="delete", pk=post.pk)
        self.assertEqual(deleted["action"], "delete")
        self.assertEqual(json.dumps(list(Post.objects.values())), "[]")
