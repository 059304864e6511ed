"""The posts, written in the admin."""

from django.db import models


class Post(models.Model):
    """One entry of the blog."""

    title = models.CharField(max_length=120)
    text = models.TextField()
    posted_at = models.DateTimeField("posted", auto_now_add=True)

    class Meta:
        ordering = ("-id",)

    def __str__(self):
        return self.title

    def as_json(self):
        """Return the data for the page."""
        return {
            "id": self.pk,
            "title": self.title,
            "text": self.text,
            "posted_at": self.posted_at.isoformat(),
        }
