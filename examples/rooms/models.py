from django.conf import settings
from django.db import models


class Visit(models.Model):
    room = models.SlugField()
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE)
    came_at = models.DateTimeField(auto_now_add=True)
    left_at = models.DateTimeField(null=True)

    def as_json(self):
        return {"id": self.pk, "name": str(self.user), "came": self.came_at, "left": self.left_at}


class Line(models.Model):
    room = models.SlugField()
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE)
    text = models.TextField()
    key = models.CharField(max_length=50, unique=True)

    def as_json(self):
        return {"id": self.pk, "key": self.key, "name": str(self.user), "text": self.text}
