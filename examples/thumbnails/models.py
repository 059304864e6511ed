"""A picture and the progress of its thumbnails."""

from django.db import models

SIDES = (1280, 640, 160)  # pixels on the longer side of each thumbnail


class Photo(models.Model):
    """One upload. ``done`` counts the finished sizes; ``problem`` says why there will be no more."""

    name = models.CharField(max_length=100)
    original = models.ImageField(upload_to="photos/")
    done = models.PositiveSmallIntegerField(default=0)
    problem = models.CharField(max_length=200, blank=True)
    uploaded_at = models.DateTimeField("uploaded", auto_now_add=True)

    class Meta:
        ordering = ("-id",)

    def __str__(self):
        return self.name

    def path(self, side):
        """Return the path of a size, in the storage of the original."""
        return f"{self.original.name}.{side}.jpg"

    def as_json(self):
        """Return the data for the page."""
        return {
            "id": self.pk,
            "name": self.name,
            "progress": round(100 * self.done / len(SIDES)),
            "problem": self.problem,
        }
