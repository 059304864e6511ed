"""The long poll: which requests are answered when."""

from dbchannels import Group
from dbchannels.testing import ChannelTestCase
from longpoll.models import Headline
from longpoll.views import SHOWN


class LongPoll(ChannelTestCase):
    def test_a_headline_answers_everybody_who_waits(self):
        self.client.post("/longpoll/add/", {"text": " It rains. "})
        answer = self.assertSent(Group("longpoll"), status=200)
        headline = Headline.objects.get()
        self.assertEqual(answer["content"], b'{"id": %d, "text": "It rains."}' % headline.pk)
        self.assertIn([b"Content-Type", b"application/json"], answer["headers"])

    def test_an_empty_headline_is_none(self):
        for text in ("", "  ", "\0"):
            self.client.post("/longpoll/add/", {"text": text})
        self.assertNotSent(Group("longpoll"))
        self.assertFalse(Headline.objects.exists())

    def test_who_waits_is_answered_by_whoever_adds_a_headline(self):
        waiting = [self.client.get("/longpoll/next/", {"after": 0}).later for _ in range(2)]
        self.assertFalse(waiting[0].arrived)
        self.client.post("/longpoll/add/", {"text": "It rains."})
        for later in waiting:
            self.assertJSONEqual(later.receive().content, Headline.objects.get().as_json())

    def test_who_has_missed_some_is_answered_with_the_first_of_them_at_once(self):
        first, second = (Headline.objects.create(text=text) for text in ("one", "two"))
        for after, headline in ((0, first), (first.pk, second)):
            answer = self.client.get("/longpoll/next/", {"after": after})
            self.assertEqual(answer.json(), headline.as_json())

    def test_patience_ends_with_an_empty_answer(self):
        later = self.client.get("/longpoll/next/", {"after": 0}).later
        self.advance(24)
        self.drain()
        self.assertFalse(later.arrived)
        self.advance(1)
        self.drain()
        self.assertEqual(later.receive().status_code, 204)

    def test_what_is_no_id_is_refused_with_a_sentence(self):
        for after in ("", "-1", "x", "9" * 19, "\u0663"):
            answer = self.client.get("/longpoll/next/", {"after": after})
            self.assertEqual(answer.status_code, 400)
            self.assertIn("Give ?after=", answer.json()["error"])

    def test_the_page_shows_the_newest_first(self):
        for number in range(SHOWN + 1):
            Headline.objects.create(text=f"Headline {number}")
        page = self.client.get("/longpoll/").content.decode()
        self.assertLess(page.index(f"Headline {SHOWN}"), page.index(f"Headline {SHOWN - 1}"))
        self.assertNotIn("Headline 0<", page)
