"""The post's chat, as browsers use it."""

from dbchannels import Group
from dbchannels.testing import ChannelTestCase

PATH = "/post-2015/"


class Post2015(ChannelTestCase):
    def setUp(self):
        self.ann, self.ben = self.client.ws(PATH), self.client.ws(PATH)

    def test_everybody_gets_what_one_says_the_sender_as_well(self):
        self.ann.send("hello")
        self.ben.send("")
        self.assertEqual(self.ann.receive_all(), ["hello", ""])
        self.assertEqual(self.ben.receive_all(), ["hello", ""])

    def test_binary_messages_are_ignored(self):
        self.ann.send(b"\0\1")
        self.ann.assertNothingReceived()

    def test_who_has_gone_gets_nothing(self):
        self.ben.close()
        self.ann.send("are you there?")
        self.ben.assertNothingReceived()
        self.assertEqual(Group("chatroom").channels(), [self.ann.reply_channel])

    def test_the_page_shows_the_code_that_serves_it(self):
        page = self.client.get(PATH)
        self.assertContains(page, "def ws_receive(channel, send_channel, content, binary, **kwargs):")
        self.assertContains(page, "Group(&quot;chatroom&quot;)")
