"""The settings of the tests: one run on an embedded PostgreSQL ("default") and a SQLite file ("sqlite").

Processes that a test starts import this module too: what the first one put into the environment brings them to
the same folder, the same server and the same test databases. Each worker of pytest-xdist has a folder of its own in
that of the run, and so its own server and its own files; where DATABASE_URL names one server for all, its test database
has the worker's name at its end.
"""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

from examples import embedded_postgres

if "DBCHANNELS_TEST_FOLDER" not in os.environ:
    os.environ["DBCHANNELS_TEST_FOLDER"] = tempfile.mkdtemp(prefix="dbchannels-tests-")
    atexit.register(shutil.rmtree, os.environ["DBCHANNELS_TEST_FOLDER"], ignore_errors=True)
if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
    # Without bytecode each of the processes that tests start would compile the package anew: a quarter of its start.
    os.environ["PYTHONPYCACHEPREFIX"] = os.path.join(os.environ["DBCHANNELS_TEST_FOLDER"], "bytecode")
    sys.dont_write_bytecode, sys.pycache_prefix = False, os.environ["PYTHONPYCACHEPREFIX"]
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")  # "gw0", or "" for a run in one process
FOLDER = Path(os.environ["DBCHANNELS_TEST_FOLDER"]) / WORKER
FOLDER.mkdir(exist_ok=True)


def sqlite(name: str) -> dict:
    """Return an entry for a SQLite file, set as the documentation asks for; the tests use that very file."""
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": FOLDER / name,
        "OPTIONS": {
            "timeout": 20,
            "transaction_mode": "IMMEDIATE",
            "init_command": "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL",
        },
        "TEST": {"NAME": FOLDER / name},
    }


DATABASES = {
    "default": embedded_postgres.database(
        FOLDER / "postgres", sqlite=FOLDER / "default.sqlite3", settings={"fsync": "off", "timezone": "UTC"}
    ),
    "sqlite": sqlite("sqlite.sqlite3"),
}
if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
    DATABASES["default"] = sqlite("default.sqlite3")
if WORKER and DATABASES["default"]["ENGINE"].endswith("postgresql"):
    DATABASES["default"]["TEST"] = {"NAME": f"test_{DATABASES['default']['NAME']}_{WORKER}"}
if "DBCHANNELS_TEST_BINDING" in os.environ:  # psycopg 3's option; see tests/layers/test_psycopg3.py
    DATABASES["default"]["OPTIONS"] = {
        "server_side_binding": os.environ["DBCHANNELS_TEST_BINDING"] == "server"
    }
if "DBCHANNELS_TEST_NAME" in os.environ:
    DATABASES["default"]["NAME"] = os.environ["DBCHANNELS_TEST_NAME"]

INSTALLED_APPS = [
    "dbchannels",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "tests.blog",
]
MIDDLEWARE = [
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
ROOT_URLCONF = "tests.urls"
SECRET_KEY = "only for the tests"
STATIC_URL = "/static/"
ALLOWED_HOSTS = ["localhost", "127.0.0.1", "testserver"]
USE_TZ = True
MAILERS = {"default": {"BACKEND": "django.core.mail.backends.locmem.EmailBackend"}}  # Django 6.1 wants one
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # fast, which is all a test asks of it
