"""Rooms, the people in them, and the lines they wrote."""

from django.core.validators import RegexValidator
from django.db import connections, models

ROOM_NAME = "[a-z0-9-]{1,40}"
ROOM_RULE = "A room's name has 1 to 40 characters: the letters a to z, digits and hyphens."
NAME_LIMIT = 24
TEXT_LIMIT = 2000


class RoomManager(models.Manager):
    def enter(self, name):
        """Return the room, created if necessary, and locked until the transaction ends."""
        return self.select_for_update().get_or_create(name=name)[0]


class Room(models.Model):
    """One room, created when the first person enters."""

    name = models.CharField(
        max_length=40, unique=True, validators=[RegexValidator(rf"\A{ROOM_NAME}\Z", ROOM_RULE)]
    )

    objects = RoomManager()

    class Meta:
        ordering = ("name",)

    def __str__(self):
        return self.name


class PresenceManager(models.Manager):
    def speaking(self, reply_channel):
        """Return the person on a reply channel, or None; lock the room until the transaction ends."""
        # MariaDB cannot leave out the person's own row.
        of = ("room",) if connections[self.db].features.has_select_for_update_of else ()
        people = self.select_related("room").select_for_update(of=of)
        return people.filter(reply_channel=reply_channel.name).first()


class Presence(models.Model):
    """One person in one room: one open WebSocket."""

    room = models.ForeignKey(Room, models.CASCADE, related_name="people")
    reply_channel = models.CharField(max_length=100, unique=True)
    name = models.CharField(max_length=NAME_LIMIT)

    objects = PresenceManager()

    class Meta:
        ordering = ("name", "id")
        verbose_name_plural = "presences"

    def __str__(self):
        return f"{self.name} in {self.room}"


class Line(models.Model):
    """One line, with the name that its author had at that time."""

    room = models.ForeignKey(Room, models.CASCADE, related_name="lines", db_index=False)
    name = models.CharField(max_length=NAME_LIMIT)
    text = models.TextField(max_length=TEXT_LIMIT)
    said_at = models.DateTimeField("said", auto_now_add=True)

    class Meta:
        indexes = (models.Index(fields=["room", "id"], name="chat_line_history"),)
        ordering = ("id",)

    def __str__(self):
        return f"{self.name}: {self.text[:60]}"
