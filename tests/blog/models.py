import uuid

from django.db import models


class Tag(models.Model):
    """What posts are about."""

    name = models.CharField(max_length=50)


class Post(models.Model):
    """With fields of the kinds that JSON does not have."""

    title = models.CharField(max_length=50)
    blog = models.CharField(max_length=50, default="tea")
    secret = models.CharField(max_length=50, default="")
    public = models.BooleanField(default=True)
    author = models.ForeignKey("auth.User", models.CASCADE, null=True, db_constraint=False)
    reads = models.IntegerField(default=0)
    score = models.FloatField(default=0)
    price = models.DecimalField(max_digits=6, decimal_places=2, default=0)
    published = models.DateTimeField(null=True)
    took = models.DurationField(null=True)
    extra = models.JSONField(default=dict)
    raw = models.BinaryField(default=b"")
    tags = models.ManyToManyField(Tag, related_name="posts")
    friends = models.ManyToManyField("self")


class Draft(Post):
    """The same rows, by another name."""

    class Meta:
        proxy = True


class Review(Post):
    """A post, and a row of its own."""

    stars = models.IntegerField(default=1)


class Photo(models.Model):
    """With a key that is there before the row is."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    post = models.ForeignKey(Post, models.CASCADE, null=True)
    file = models.FileField(null=True)
