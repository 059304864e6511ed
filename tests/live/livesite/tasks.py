"""The site's tasks; ``django.tasks`` or django-tasks, whichever is there."""

import os
import time

from livesite.models import Entry

try:
    from django.tasks import task
except ImportError:
    from django_tasks import task


@task
def note(text, sleep=0.0):
    """Write an entry, and take some time."""
    Entry.objects.create(text=text, pid=os.getpid())
    time.sleep(sleep)
    return len(text)
