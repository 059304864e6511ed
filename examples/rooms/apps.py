"""The chat of docs/tutorial.rst: the models, consumers, views and URLs at its end."""

from django.apps import AppConfig


class RoomsConfig(AppConfig):
    default_auto_field = "django.db.models.BigAutoField"
    name = "rooms"
