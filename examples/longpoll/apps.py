"""The app."""

from django.apps import AppConfig


class LongPollConfig(AppConfig):
    default_auto_field = "django.db.models.BigAutoField"
    name = "longpoll"
    verbose_name = "long poll"
