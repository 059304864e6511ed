"""A site with the pages of ``pages.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.endtoend.conftest import migrated, postgresql_database
from tests.harness import HOST, LiveSite, Served

SETTINGS = {
    "DEBUG": True,  # static files are served
    "ROOT_URLCONF": "tests.browser.pages",
    "DBCHANNELS": {"default": {"ROUTING": "tests.browser.pages"}},
    "INSTALLED_APPS": ["dbchannels", "django.contrib.staticfiles", "django_htmx", "livesite"],
    "MIDDLEWARE": [],
    "TEMPLATES": [{"BACKEND": "django.template.backends.django.DjangoTemplates"}],
}


def new_site(name: str, folder: Path) -> LiveSite:
    """Return a site on a PostgreSQL database of this name, nothing started."""
    return migrated(postgresql_database(name), folder)


def serve(site: LiveSite, port: int = 0, **settings: Any) -> Served:
    """Start its server with one worker."""
    return site.serve("--workers", "1", settings={**SETTINGS, **settings}, bind=f"{HOST}:{port}")
