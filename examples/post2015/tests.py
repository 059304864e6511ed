"""The post's chat, with messages as the interface server sends them."""

from demo.testing import ConsumerTestCase, Window

from dbchannels import Group

PATH = "/post-2015/"


def texts(window):
    """What has arrived, as text; the server takes ``content`` for ``text`` unless ``binary`` says otherwise."""
    arrived = window.received()
    assert not any(message["binary"] for message in arrived)
    return [message["content"] for message in arrived]


class Post2015(ConsumerTestCase):
    def test_everybody_gets_what_one_says_the_sender_as_well(self):
        ann, ben = Window(PATH), Window(PATH)
        ann.send("hello")
        ben.send("")
        self.assertEqual(texts(ann), ["hello", ""])
        self.assertEqual(texts(ben), ["hello", ""])

    def test_binary_messages_are_ignored(self):
        ann = Window(PATH)
        ann.send_binary(b"\0\1")
        self.assertEqual(texts(ann), [])

    def test_who_has_gone_gets_nothing(self):
        ann, ben = Window(PATH), Window(PATH)
        ben.close()
        ann.send("are you there?")
        self.assertEqual(texts(ben), [])
        self.assertEqual(Group("chatroom").channels(), [ann.reply_channel])

    def test_the_page_shows_the_code_that_serves_it(self):
        page = self.client.get(PATH)
        self.assertContains(page, "def ws_receive(channel, send_channel, content, binary, **kwargs):")
        self.assertContains(page, "Group(&quot;chatroom&quot;)")
