"""A host whose clock is wrong."""

import time
from datetime import timedelta

from django.utils import timezone


def shift(seconds):
    """Let this process's clock say so many seconds more, or less, than it is."""
    right_time, right_now = time.time, timezone.now
    time.time = lambda: right_time() + seconds
    timezone.now = lambda: right_now() + timedelta(seconds=seconds)
