"""The first tables of the chat."""

import django.core.validators
import django.db.models.deletion
from django.db import migrations, models

ROOM_RULE = "A room's name has 1 to 40 characters: the letters a to z, digits and hyphens."


def key():
    """The primary key of every table in here."""
    return models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")


class Migration(migrations.Migration):
    initial = True

    dependencies = ()

    operations = (
        migrations.CreateModel(
            name="Room",
            fields=[
                ("id", key()),
                (
                    "name",
                    models.CharField(
                        max_length=40,
                        unique=True,
                        validators=[django.core.validators.RegexValidator(r"\A[a-z0-9-]{1,40}\Z", ROOM_RULE)],
                    ),
                ),
            ],
            options={"ordering": ("name",)},
        ),
        migrations.CreateModel(
            name="Presence",
            fields=[
                ("id", key()),
                ("reply_channel", models.CharField(max_length=100, unique=True)),
                ("name", models.CharField(max_length=24)),
                (
                    "room",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="people", to="chat.room"
                    ),
                ),
            ],
            options={"verbose_name_plural": "presences", "ordering": ("name", "id")},
        ),
        migrations.CreateModel(
            name="Line",
            fields=[
                ("id", key()),
                ("name", models.CharField(max_length=24)),
                ("text", models.TextField(max_length=2000)),
                ("said_at", models.DateTimeField(auto_now_add=True, verbose_name="said")),
                (
                    "room",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="lines",
                        to="chat.room",
                    ),
                ),
            ],
            options={
                "ordering": ("id",),
                "indexes": [models.Index(fields=["room", "id"], name="chat_line_history")],
            },
        ),
    )
