"""Settings for trying the examples on one machine, without any changes.

They read from the environment: DJANGO_SECRET_KEY, DEBUG (0 turns it off), ALLOWED_HOSTS (separated by commas, in
addition to this machine's names), DATABASE_URL (instead of the PostgreSQL that the examples start themselves), and
DBCHANNELS_POSTGRES (system, wheel or sqlite: only that one, before DATABASE_URL).
"""

import os
from pathlib import Path

from demo.secret import secret_key
from examples import embedded_postgres

BASE_DIR = Path(__file__).resolve().parent.parent

SECRET_KEY = secret_key(BASE_DIR / ".secret_key")
DEBUG = os.environ.get("DEBUG", "1") != "0"
ALLOWED_HOSTS = ["localhost", "127.0.0.1", "[::1]", *os.environ.get("ALLOWED_HOSTS", "").split(",")]

INSTALLED_APPS = [
    "dbchannels",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "demo",
    "chat",
    "post2015",
    "rooms",
    "liveblog",
    "thumbnails",
    "longpoll",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "demo.urls"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

DATABASES = {"default": embedded_postgres.database(BASE_DIR / ".postgres", sqlite=BASE_DIR / "db.sqlite3")}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# The chat's consumers have decorators and need no line here. Those of 2015 have none, and are listed.
DBCHANNELS = {"default": {"ROUTING": "post2015.routing"}}

USE_TZ = True
TIME_ZONE = "UTC"
LOGIN_REDIRECT_URL = "/"
STATIC_URL = "/static/"
MEDIA_ROOT = BASE_DIR / ".media"  # the pictures that are uploaded
