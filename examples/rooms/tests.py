from django.contrib.auth.models import User

from dbchannels.testing import ChannelClient, ChannelTestCase
from rooms.models import Line, Visit


class ChatTest(ChannelTestCase):
    def enter(self, name, room="lobby"):
        """Open a window as this user; what is there at the start has been read."""
        client = ChannelClient()
        client.force_login(User.objects.get_or_create(username=name)[0])
        return client.ws(f"/rooms/{room}/")

    def test_a_line_goes_to_everybody_in_the_room_and_is_kept(self):
        ann, ben, zoe = self.enter("ann"), self.enter("ben"), self.enter("zoe", "kitchen")
        for window in (ann, ben, zoe):
            window.receive_all_json()
        ann.send_json({"key": "1", "text": "hello"})
        said = {"line": {"id": Line.objects.get().pk, "key": "1", "name": "ann", "text": "hello"}}
        self.assertEqual(ann.receive_json(), said)
        self.assertEqual(ben.receive_json(), said)
        zoe.assertNothingReceived()

    def test_a_line_that_is_sent_twice_is_kept_once(self):
        ann = self.enter("ann")
        ann.receive_all_json()
        for _ in range(2):
            ann.send_json({"key": "1", "text": "hello"})
        self.assertEqual(len({one["line"]["id"] for one in ann.receive_all_json()}), 1)
        self.assertEqual(Line.objects.count(), 1)

    def test_a_newcomer_is_shown_what_was_said_and_who_came_and_left(self):
        ann = self.enter("ann")
        ann.send_json({"key": "1", "text": "is anybody here?"})
        ann.close()
        shown = self.enter("ben").receive_all_json()
        self.assertEqual([one["line"]["text"] for one in shown if "line" in one], ["is anybody here?"])
        visits = {one["visit"]["name"]: one["visit"]["left"] is None for one in shown if "visit" in one}
        self.assertEqual(visits, {"ann": False, "ben": True})

    def test_who_is_not_logged_in_is_sent_away(self):
        self.assertEqual(self.client.ws("/rooms/lobby/").status, 403)
        self.assertRedirects(self.client.get("/rooms/lobby/"), "/accounts/login/?next=/rooms/lobby/")
        self.assertFalse(Visit.objects.exists())

    def test_what_is_no_line_is_no_line(self):
        ann = self.enter("ann")
        for frame in ("no json", "[]", "{}", '{"key": "1", "text": "  "}', '{"text": "no key"}'):
            ann.send(frame)
        self.assertFalse(Line.objects.exists())
