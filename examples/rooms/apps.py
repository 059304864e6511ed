"""The chat of docs/tutorial.rst, whose models, consumers, views and addresses are what the tutorial ends with."""

from django.apps import AppConfig


class RoomsConfig(AppConfig):
    default_auto_field = "django.db.models.BigAutoField"
    name = "rooms"
