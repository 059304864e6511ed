"""The live blog: every saved post reaches all readers."""

from django.contrib.auth.models import User
from django.db import transaction

from dbchannels.testing import ChannelTestCase
from liveblog.consumers import SHOWN
from liveblog.models import Post


class LiveBlog(ChannelTestCase):
    def reader(self):
        """Open the blog, and read the current posts."""
        window = self.client.ws("/liveblog/")
        self.assertEqual(window.receive_json()["type"], "all")
        return window

    def test_a_reader_is_shown_the_newest_posts_first(self):
        for number in range(SHOWN + 1):
            Post.objects.create(title=f"Post {number}", text="...")
        posts = self.client.ws("/liveblog/").receive_json()["posts"]
        self.assertEqual([post["title"] for post in posts[:2]], [f"Post {SHOWN}", f"Post {SHOWN - 1}"])
        self.assertEqual(len(posts), SHOWN)

    def test_a_post_a_correction_and_a_deletion_reach_every_reader(self):
        readers = [self.reader(), self.reader()]
        post = Post.objects.create(title="Kick-off", text="It begins.")
        number = post.pk
        post.text = "It begins, late."
        post.save()
        post.delete()
        for reader in readers:
            created, corrected, gone = reader.receive_all_json()
            self.assertEqual((created["type"], created["post"]["text"]), ("post", "It begins."))
            self.assertEqual(corrected["post"]["text"], "It begins, late.")
            self.assertEqual(gone, {"type": "gone", "id": number})

    def test_what_the_admin_saves_is_told(self):
        reader = self.reader()
        self.client.force_login(User.objects.create_superuser("admin"))
        self.client.post("/admin/liveblog/post/add/", {"title": "Half-time", "text": "0 : 0"})
        self.assertEqual(reader.receive_json()["post"]["title"], "Half-time")

    def test_of_a_post_that_is_rolled_back_nobody_hears(self):
        reader = self.reader()
        with transaction.atomic():
            Post.objects.create(title="Goal", text="No, it was not.")
            transaction.set_rollback(True)
        reader.assertNothingReceived()
