"""The long poll: what is answered when, as far as no socket is needed for it; tests/browser has the rest."""

from dbchannels import Channel, Group
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
        self.client.post("/longpoll/add/", {"text": "  "})
        self.assertNotSent(Group("longpoll"))
        self.assertFalse(Headline.objects.exists())

    def test_patience_ends_with_an_empty_answer(self):
        Channel("longpoll.patience", delay=25).send({"to": "reply.a!b"})
        self.drain()
        self.assertNotSent("reply.a!b")
        self.drain(delayed=True)
        self.assertSent("reply.a!b", status=204)

    def test_what_is_no_id_is_refused_with_a_sentence(self):
        for after in ("", "-1", "x", "9" * 19, "\u0663"):
            answer = self.client.get("/longpoll/next/", {"after": after})
            self.assertEqual(answer.status_code, 400)
            self.assertIn("Say ?after=", answer.json()["error"])

    def test_the_page_shows_the_newest_first(self):
        for number in range(SHOWN + 1):
            Headline.objects.create(text=f"Headline {number}")
        page = self.client.get("/longpoll/").content.decode()
        self.assertLess(page.index(f"Headline {SHOWN}"), page.index(f"Headline {SHOWN - 1}"))
        self.assertNotIn("Headline 0<", page)
