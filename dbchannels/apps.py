"""The application ``dbchannels``."""

from __future__ import annotations

from django.apps import AppConfig


class DBChannelsConfig(AppConfig):
    """One line in INSTALLED_APPS, ``"dbchannels"``, finds this."""

    name = "dbchannels"
    verbose_name = "Channels"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the system checks (consumers are found by workers only)."""
        from dbchannels import checks  # noqa: F401  (the import registers them)
