"""The chat: each test opens windows and checks the frames that arrive."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

from django.db import connection
from django.test import TestCase, TransactionTestCase, override_settings, skipUnlessDBFeature

from chat import consumers, frames
from chat.consumers import HISTORY
from chat.models import NAME_LIMIT, ROOM_RULE, TEXT_LIMIT, Line, Presence, Room
from dbchannels import Group, Message, channel_layers
from dbchannels.testing import ChannelClient, ChannelTestCase


class Page:
    """A window on one room."""

    def __init__(self, name: str, room: str = "garden") -> None:
        self.socket = ChannelClient().ws(f"/chat/{room}/", query_params={"name": name})

    def say(self, text: object) -> None:
        self.socket.send_json({"type": "say", "text": text})

    def frames(self) -> list[dict]:
        """Take the frames that have arrived."""
        return self.socket.receive_all_json()

    def said(self) -> list[tuple[str, str]]:
        """Take the frames that have arrived, and return the lines with their authors."""
        lines = [frame["line"] for frame in self.frames() if frame["type"] == "said"]
        return [(line["name"], line["text"]) for line in lines]


def names(people: list[dict]) -> list[str]:
    return [person["name"] for person in people]


class Joining(ChannelTestCase):
    def test_a_newcomer_learns_who_is_here_and_the_others_learn_of_the_newcomer(self):
        ann = Page("Ann")
        (welcome,) = ann.frames()
        self.assertEqual((welcome["type"], welcome["you"]["name"]), ("welcome", "Ann"))
        self.assertEqual(welcome["here"], [welcome["you"]])
        ben = Page("Ben")
        (welcome,) = ben.frames()
        self.assertEqual(names(welcome["here"]), ["Ann", "Ben"])
        self.assertEqual(ann.frames(), [{"type": "joined", "person": welcome["you"]}])

    def test_a_newcomer_is_shown_the_last_lines_the_oldest_first(self):
        ann = Page("Ann")
        for number in range(HISTORY + 2):
            ann.say(f"line {number}")
        (welcome,) = Page("Ben").frames()
        shown = [line["text"] for line in welcome["lines"]]
        self.assertEqual(shown, [f"line {number}" for number in range(2, HISTORY + 2)])

    def test_other_rooms_hear_nothing_and_share_nothing(self):
        ann, zoe = Page("Ann"), Page("Zoe", "kitchen")
        ann.frames()
        self.assertEqual(names(zoe.frames()[0]["here"]), ["Zoe"])
        ann.say("hello")
        self.assertEqual(zoe.frames(), [])
        self.assertEqual(ann.said(), [("Ann", "hello")])

    def test_a_name_is_put_on_one_line_without_what_cannot_be_seen(self):
        for given, shown in [
            ("  Ann ", "Ann"),
            ("Ann\nB.", "Ann B."),
            ("\u202eAnn\0", "Ann"),
            ("<b>Ann</b>", "<b>Ann</b>"),
            ("علي", "علي"),
            ("x" * NAME_LIMIT, "x" * NAME_LIMIT),
        ]:
            with self.subTest(given):
                self.assertEqual(Page(given).frames()[0]["you"]["name"], shown)

    def test_without_a_usable_name_nobody_is_admitted(self):
        for query in ["", "?name=", "?name=%20%09", "?name=%E2%80%8B", "?name=" + "x" * (NAME_LIMIT + 1)]:
            with self.subTest(query):
                window = self.client.ws(f"/chat/garden/{query}")
                self.assertEqual(window.receive_json()["code"], "bad-name")
                self.assertEqual(window.close_code, frames.NOT_ADMITTED)
        self.assertFalse(Presence.objects.exists())
        self.assertFalse(Room.objects.exists())
        self.assertEqual(Group("chat-garden").channels(), [])

    def test_a_query_that_is_no_utf8_is_no_error(self):
        window = self.client.ws("/chat/garden/?name=%FF%FF&&=&x")
        self.assertEqual(window.receive_json()["you"]["name"], "\ufffd\ufffd")


class Saying(ChannelTestCase):
    def test_everybody_in_the_room_gets_it_and_it_is_kept(self):
        ann, ben = Page("Ann"), Page("Ben")
        ann.say("hello")
        self.assertEqual(ann.said(), [("Ann", "hello")])
        self.assertEqual(ben.said(), [("Ann", "hello")])
        self.assertEqual(Line.objects.get().text, "hello")

    def test_the_speaker_can_tell_the_own_line(self):
        ann, other = Page("Ann"), Page("Ann")
        (welcome,) = (frame for frame in ann.frames() if frame["type"] == "welcome")
        other.frames()
        ann.say("hello")
        self.assertEqual(ann.frames()[0]["by"], welcome["you"]["id"])

    def test_what_is_said_arrives_as_it_was_written(self):
        ann = Page("Ann")
        for text in [
            "<script>alert(1)</script>",
            'a "quote" & \\ %s',
            "two\nlines\tand a tab",
            "👩‍👩‍👧",
            "x" * TEXT_LIMIT,
        ]:
            with self.subTest(text[:20]):
                ann.say(text)
                self.assertEqual(ann.said(), [("Ann", text)])

    def test_what_no_database_stores_is_left_out(self):
        ann = Page("Ann")
        for given, kept in [("a\0b", "ab"), ("\x1b[2Jc\r\n", "[2Jc"), ("\ud83dd", "d"), (" e ", "e")]:
            with self.subTest(kept):
                ann.say(given)
                self.assertEqual(ann.said(), [("Ann", kept)])

    def test_what_cannot_be_used_is_answered_with_an_error_and_told_to_nobody(self):
        ann, ben = Page("Ann"), Page("Ben")
        ann.frames(), ben.frames()
        for raw, code in [
            ("", "not-json"),
            ("{", "not-json"),
            ("[" * 10_000, "not-json"),
            ("[]", "not-json"),
            ("null", "not-json"),
            ('"say"', "not-json"),
            ("9" * 5_000, "not-json"),
            ("{}", "bad-type"),
            ('{"type": []}', "bad-type"),
            ('{"type": "welcome"}', "bad-type"),
            ('{"type": "say"}', "bad-text"),
            ('{"type": "say", "text": 1}', "bad-text"),
            ('{"type": "say", "text": ["a"]}', "bad-text"),
            ('{"type": "say", "text": null}', "bad-text"),
            ('{"type": "say", "text": " \\u0000 "}', "bad-text"),
            (json.dumps({"type": "say", "text": "x" * (TEXT_LIMIT + 1)}), "too-long"),
            ("x" * (frames.FRAME_LIMIT + 1), "too-long"),
        ]:
            with self.subTest(raw[:40]):
                ann.socket.send(raw)
                self.assertEqual(ann.frames(), [{"type": "error", "code": code, "text": frames.ERRORS[code]}])
        self.assertEqual(ben.frames(), [])
        self.assertFalse(Line.objects.exists())

    def test_the_longest_text_fits_however_json_writes_it(self):
        ann = Page("Ann")
        ann.say("😀" * TEXT_LIMIT)  # json.dumps writes each as two escapes of six characters
        self.assertEqual(ann.said(), [("Ann", "😀" * TEXT_LIMIT)])

    def test_a_binary_frame_is_answered_with_an_error(self):
        ann = Page("Ann")
        ann.frames()
        ann.socket.send(b'{"type": "say", "text": "hello"}')
        self.assertEqual([frame["code"] for frame in ann.frames()], ["not-text"])

    def test_after_its_room_was_deleted_a_window_is_closed_so_that_it_comes_back(self):
        ann = Page("Ann")
        ann.frames()
        Room.objects.all().delete()
        ann.say("hello")
        self.assertEqual(ann.socket.close_code, 1000)
        self.assertFalse(Room.objects.exists())


class Leaving(ChannelTestCase):
    def test_those_who_stay_are_told(self):
        ann, ben = Page("Ann"), Page("Ben")
        person = ben.frames()[0]["you"]
        ann.frames()
        ben.socket.close()
        self.assertEqual(ann.frames(), [{"type": "left", "person": person}])
        self.assertEqual(list(Presence.objects.values_list("name", flat=True)), ["Ann"])

    def test_what_was_said_stays(self):
        ann = Page("Ann")
        ann.say("hello")
        ann.socket.close()
        (welcome,) = Page("Ben").frames()
        self.assertEqual([(line["name"], line["text"]) for line in welcome["lines"]], [("Ann", "hello")])


@override_settings(DBCHANNELS={"default": {"BACKEND": "memory"}})
class Together(TransactionTestCase):
    """The lock on the room's row: several workers, here threads, run consumers at the same time."""

    def setUp(self):
        channel_layers.clear()
        self.addCleanup(channel_layers.clear)

    @skipUnlessDBFeature("has_select_for_update")
    def test_nobody_misses_anybody_and_all_read_the_same_in_the_same_order(self):
        def visit(number):
            """Join and speak, by calling the consumers with messages made by hand."""
            reply_channel = f"reply.{number}!1"
            query = f"name={quote(everybody[number])}".encode()
            fields = {"reply_channel": reply_channel, "query_string": query}
            try:
                consumers.join(Message("websocket.connect", fields), "garden")
                fields = {"reply_channel": reply_channel, "text": '{"type": "say", "text": "hello"}'}
                consumers.say(Message("websocket.receive", fields), "garden")
            finally:
                connection.close()

        everybody = [f"visitor {number}" for number in range(8)]
        with ThreadPoolExecutor(len(everybody)) as threads:
            list(threads.map(visit, range(len(everybody))))
        kept = list(Line.objects.values_list("pk", flat=True))
        for number in range(len(everybody)):
            welcome, *news = self.received(f"reply.{number}!")
            joined = [frame["person"]["name"] for frame in news if frame["type"] == "joined"]
            said = [frame["line"]["id"] for frame in news if frame["type"] == "said"]
            self.assertCountEqual(names(welcome["here"]) + joined, everybody)
            self.assertEqual([line["id"] for line in welcome["lines"]] + said, kept)

    def received(self, channel):
        layer = channel_layers["default"]
        messages = iter(lambda: layer.receive([channel])[1], None)
        return [json.loads(message["text"]) for message in messages]


class Pages(TestCase):
    def test_the_lobby_lists_the_rooms_the_fullest_first(self):
        Room.objects.create(name="attic")
        garden = Room.objects.create(name="garden")
        garden.people.create(name="Ann", reply_channel="reply.a!1")
        page = self.client.get("/chat/").content.decode()
        self.assertLess(page.index("/chat/garden/"), page.index("/chat/attic/"))
        self.assertIn("1 here", page)
        self.assertIn("empty", page)

    def test_any_words_lead_to_a_room(self):
        for words, room in [
            ("garden", "garden"),
            (" My Room! ", "my-room"),
            ("a_b", "a-b"),
            ("é" * 50, "e" * 40),
        ]:
            with self.subTest(words):
                page = self.client.get("/chat/", {"room": words})
                self.assertRedirects(page, f"/chat/{room}/")

    def test_words_that_leave_nothing_are_answered_with_the_rule(self):
        page = self.client.get("/chat/", {"room": '"><'})
        self.assertContains(page, ROOM_RULE, html=True)
        self.assertContains(page, "&quot;&gt;&lt;")

    def test_looking_at_a_room_does_not_make_it(self):
        self.assertContains(self.client.get("/chat/garden/"), "Join this room")
        self.assertFalse(Room.objects.exists())

    def test_a_name_that_no_room_can_have_is_told_with_the_rule(self):
        for path in ["/chat/Garden/", "/chat/" + "x" * 41 + "/", "/chat/a/b/", "/chat/é/"]:
            with self.subTest(path):
                page = self.client.get(path)
                self.assertContains(page, ROOM_RULE, status_code=404, html=True)
        self.assertContains(self.client.get("/chat/Garden/"), 'href="/chat/garden/"', status_code=404)
        self.assertEqual(self.client.get("/chat/garden%0A/").status_code, 404)
