"""What the readers wait for."""

from django.db import models


class Headline(models.Model):
    """One line of news."""

    text = models.CharField(max_length=200)

    class Meta:
        ordering = ("-id",)

    def __str__(self):
        return self.text

    def as_json(self):
        """Return what the page shows of it, and what it asks for the next one by."""
        return {"id": self.pk, "text": self.text}
