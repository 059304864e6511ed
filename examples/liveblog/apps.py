"""The app, which connects the receivers when it is ready."""

from django.apps import AppConfig


class LiveBlogConfig(AppConfig):
    default_auto_field = "django.db.models.BigAutoField"
    name = "liveblog"
    verbose_name = "live blog"

    def ready(self):
        from liveblog import receivers  # noqa: F401  (importing connects them)
