"""Whoever saves or deletes a post tells every reader: the admin, the shell, a script, a consumer.

To send is to insert a row in the transaction that saves the post: readers hear of it at the commit, and of a post that
is rolled back they never hear.
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
