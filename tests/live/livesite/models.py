from django.db import models


class Entry(models.Model):
    """What a consumer did: tests count these."""

    text = models.TextField()
    pid = models.IntegerField(default=0)
