"""A site as plain as a new one; LIVESITE_DATABASE and LIVESITE_SETTINGS (JSON) say what a test wants otherwise."""

import json
import os
from pathlib import Path

from livesite import clock

SECRET_KEY = "only for the tests"
DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
INSTALLED_APPS = [
    "dbchannels",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "livesite",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
DATABASES = {"default": json.loads(os.environ["LIVESITE_DATABASE"])}
ROOT_URLCONF = "livesite.urls"
STATIC_URL = "/static/"
MEDIA_ROOT = Path(os.environ.get("LIVESITE_FOLDER", "."))
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
globals().update(json.loads(os.environ.get("LIVESITE_SETTINGS", "{}")))

# So that pg_stat_activity says whose connection it is; those of the layer say it by themselves.
if DATABASES["default"]["ENGINE"].endswith("postgresql"):
    DATABASES["default"].setdefault("OPTIONS", {})["application_name"] = f"site {os.getpid()}"
if "CLOCK" in globals():
    clock.shift(CLOCK)  # noqa: F821  (of LIVESITE_SETTINGS)
