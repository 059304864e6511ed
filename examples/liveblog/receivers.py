"""Send each saved or deleted post to all readers, whether the admin, the shell, a script or a consumer saves it.

Sending inserts a row in the transaction that saves the post: readers receive it at commit, and never after a rollback.
"""

import json

from django.db.models.signals import post_delete, post_save
from django.dispatch import receiver

from dbchannels import Group
from liveblog.models import Post

READERS = Group("liveblog")


@receiver(post_save, sender=Post)
def tell_of_post(instance, **kwargs):
    READERS.send({"text": json.dumps({"type": "post", "post": instance.as_json()})})


@receiver(post_delete, sender=Post)
def tell_of_deletion(instance, **kwargs):
    READERS.send({"text": json.dumps({"type": "gone", "id": instance.pk})})
