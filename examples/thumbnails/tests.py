"""Thumbnails: from the upload to the pictures."""

import io
import json
import shutil
import tempfile
from pathlib import Path

from django.conf import settings
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import override_settings
from PIL import Image

from dbchannels import Group
from dbchannels.testing import ChannelTestCase
from thumbnails.models import SIDES, Photo


def picture(width=400, height=200, kind="PNG"):
    """Return an upload."""
    file = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).save(file, kind)
    return SimpleUploadedFile("holiday.png", file.getvalue())


class Thumbnails(ChannelTestCase):
    def setUp(self):
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        media = override_settings(MEDIA_ROOT=folder)
        media.enable()
        self.addCleanup(media.disable)

    def files(self):
        return sorted(path.name for path in Path(settings.MEDIA_ROOT).rglob("*") if path.is_file())

    def upload(self, file):
        return self.client.post("/thumbnails/upload/", {"file": file})

    def test_an_upload_is_answered_before_the_work(self):
        answer = self.upload(picture())
        photo = Photo.objects.get()
        self.assertEqual(answer.json(), {"id": photo.pk, "name": "holiday.png", "progress": 0, "problem": ""})
        self.assertSent("thumbnails", photo=photo.pk)
        self.assertEqual(len(self.files()), 1)

    def test_each_size_is_made_and_told(self):
        events = self.client.get("/thumbnails/events/").later
        self.upload(picture())
        self.drain()
        photo = Photo.objects.get()
        self.assertEqual(photo.as_json()["progress"], 100)
        told = [json.loads(line[6:]) for line in events.content.splitlines() if line.startswith(b"data: ")]
        self.assertEqual([one["progress"] for one in told], [33, 67, 100])
        self.assertFalse(events.arrived)  # the stream stays open
        for side, size in zip(SIDES, [(400, 200), (400, 200), (160, 80)], strict=True):
            answer = self.client.get(f"/thumbnails/{photo.pk}/{side}.jpg")
            self.assertEqual(Image.open(io.BytesIO(b"".join(answer.streaming_content))).size, size)

    def test_an_attempt_that_was_killed_is_gone_on_with(self):
        self.upload(picture())
        photo = Photo.objects.get()
        Photo.objects.update(done=1)
        photo.original.storage.save(
            photo.path(SIDES[1]), io.BytesIO(b"half of a pic")
        )  # where the worker was killed
        self.drain()
        self.assertEqual(Photo.objects.get().done, len(SIDES))
        self.assertEqual(self.files()[1:], sorted(Path(photo.path(side)).name for side in SIDES[1:]))
        answer = self.client.get(f"/thumbnails/{photo.pk}/{SIDES[1]}.jpg")
        self.assertEqual(Image.open(io.BytesIO(b"".join(answer.streaming_content))).size, (400, 200))

    def test_a_picture_that_breaks_off_is_said_to(self):
        self.upload(picture())
        photo = Photo.objects.get()
        path = Path(photo.original.path)
        path.write_bytes(path.read_bytes()[:200])
        self.drain()
        photo.refresh_from_db()
        self.assertTrue(photo.problem.startswith("This picture cannot be read: "))
        self.assertSent(Group("thumbnails"), more_content=True)

    def test_a_photo_that_was_deleted_meanwhile_is_no_error(self):
        self.upload(picture())
        self.client.post("/thumbnails/clear/")
        self.assertEqual(self.drain(), 1)
        self.assertEqual(self.files(), [])

    def test_what_is_no_picture_is_refused_with_a_sentence(self):
        answer = self.upload(SimpleUploadedFile("notes.png", b"these are notes"))
        self.assertEqual(answer.status_code, 400)
        self.assertTrue(answer.json()["problem"].startswith("Upload a valid image."))
        self.assertNotSent("thumbnails")
        self.assertEqual(self.files(), [])

    def test_sizes_that_are_not_made_are_not_there(self):
        self.upload(picture())
        pk = Photo.objects.get().pk
        for side in (SIDES[0], 99):
            self.assertEqual(self.client.get(f"/thumbnails/{pk}/{side}.jpg").status_code, 404)
