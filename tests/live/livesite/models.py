from django.db import models


class Entry(models.Model):
    """What a consumer did: tests count these."""

    text = models.TextField()
    pid = models.IntegerField(default=0)


class Document(models.Model):
    """A file that somebody uploads in the admin."""

    name = models.CharField(max_length=100)
    file = models.FileField(upload_to="documents")

    def __str__(self):
        return self.name
