"""The headlines that readers wait for."""

from django.db import models


class Headline(models.Model):
    """One line of news."""

    text = models.CharField(max_length=200)

    class Meta:
        ordering = ("-id",)

    def __str__(self):
        return self.text

    def as_json(self):
        """Return the data for the page, and the id by which it asks for the next headline."""
        return {"id": self.pk, "text": self.text}
