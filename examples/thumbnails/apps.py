"""The app."""

from django.apps import AppConfig


class ThumbnailsConfig(AppConfig):
    default_auto_field = "django.db.models.BigAutoField"
    name = "thumbnails"
