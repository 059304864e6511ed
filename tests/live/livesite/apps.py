import gc

from django.apps import AppConfig


class LiveSiteConfig(AppConfig):
    name = "livesite"

    def ready(self) -> None:
        """End what manage.py began: the first collection need not walk through all that was imported."""
        gc.freeze()
        gc.enable()
