import gc

from django.apps import AppConfig


class LiveSiteConfig(AppConfig):
    name = "livesite"

    def ready(self) -> None:
        """End what manage.py began."""
        gc.enable()
