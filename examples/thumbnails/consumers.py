"""Work that no request should wait for, and events for the page that watches it."""

import json

from django.core.files.base import ContentFile
from PIL import Image, ImageOps

from dbchannels import Group, consumer
from thumbnails.images import smaller
from thumbnails.models import SIDES, Photo


@consumer("thumbnails", retries=2)
def make_thumbnails(message):
    """Make one size after another. If the worker is killed, another one continues where it stopped."""
    photo = Photo.objects.filter(pk=message["photo"]).first()
    if photo is None:  # deleted meanwhile
        return
    try:
        with photo.original.open() as file, Image.open(file) as image:
            upright = ImageOps.exif_transpose(image)
            for side in SIDES[photo.done :]:
                photo.original.storage.delete(photo.path(side))  # left over from a killed attempt
                photo.original.storage.save(photo.path(side), ContentFile(smaller(upright, side)))
                photo.done += 1
                photo.save(update_fields=["done"])
                tell(photo)
    except (OSError, Image.DecompressionBombError) as error:  # another attempt would fail too
        photo.problem = f"This picture cannot be read: {error}"[:200]
        photo.save(update_fields=["problem"])
        tell(photo)


def tell(photo):
    """Send the progress at once, not when the consumer returns."""
    Group("thumbnails", immediately=True).send({"content": event(photo.as_json()), "more_content": True})


def event(data):
    """Return one server-sent event (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""
    return f"data: {json.dumps(data)}\n\n".encode()
