"""The fixtures, in projects of their own: with pytest-django, and in one that has nothing to do with Django."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SETTINGS = """
SECRET_KEY = "x"
INSTALLED_APPS = [
    "dbchannels", "django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions", "shop",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware", "django.middleware.common.CommonMiddleware",
]
ROOT_URLCONF = "shop.urls"
ALLOWED_HOSTS = []  # as startproject leaves it
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "site.sqlite3", "TEST": {"NAME": TEST}}}
"""
URLS = """
from django.contrib.auth.models import Group
from django.http import HttpResponse
from django.urls import path

urlpatterns = [path("", lambda request: HttpResponse(str(Group.objects.count())))]
"""
CONSUMERS = """
from dbchannels import Channel, consumer

@consumer("websocket.receive", path="^/echo/$")
def echo(message):
    message.reply_channel.send({"text": message["text"]})

@consumer("orders")
def order(message):
    Channel("bills").send({"order": message["order"]})
"""
TESTS = """
import urllib.request
import pytest
from django.contrib.auth.models import Group, User
from dbchannels import Channel, channel_layers

def test_channels(channels, channel_layer):
    assert channel_layers["default"] is channel_layer
    Channel("orders").send({"order": 7})
    assert channels.drain() == 1
    channels.assertSent("bills", order=7)

def test_ws_client(ws_client):
    with ws_client.ws("/echo/") as socket:
        socket.send("hi")
        assert socket.receive() == "hi"

@pytest.mark.django_db
def test_login(ws_client, channels):
    ws_client.force_login(User.objects.create_user("ann"))
    assert ws_client.ws("/echo/").accepted
    Channel("orders").send({"order": 8})
    channels.assertSent("orders", order=8)

def test_live(live_channels):
    Group.objects.create(name="of the test")
    assert urllib.request.urlopen(live_channels.url, timeout=30).read() == b"1"
    assert live_channels.ws_url.startswith("ws://localhost:")
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pytest in a folder."""
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("DJANGO", "DBCHANNELS", "PYTEST"))
    }
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A project whose test database is a file."""
    (tmp_path / "shop").mkdir()
    for name, text in (("__init__", ""), ("urls", URLS), ("consumers", CONSUMERS)):
        (tmp_path / "shop" / f"{name}.py").write_text(text)
    (tmp_path / "config.py").write_text(SETTINGS.replace("TEST}", "'test.sqlite3'}"))
    (tmp_path / "test_shop.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nDJANGO_SETTINGS_MODULE = config\npythonpath = .\n")
    return tmp_path


def test_the_fixtures_of_a_site(shop: Path) -> None:
    done = run(shop)
    assert "4 passed" in done.stdout, done.stdout + done.stderr


def test_live_channels_on_a_database_in_memory_say_what_to_do(shop: Path) -> None:
    (shop / "config.py").write_text(SETTINGS.replace("TEST}", "None}"))
    done = run(shop)
    assert "3 passed, 1 error" in done.stdout, done.stdout + done.stderr
    assert "set DATABASES['default']['TEST'] = {'NAME': BASE_DIR / 'test.sqlite3'}" in done.stdout


def test_a_project_without_django_does_not_notice(tmp_path: Path) -> None:
    code = "import sys\n\ndef test_it():\n    assert 'dbchannels.testing.channels' not in sys.modules\n"
    (tmp_path / "test_it.py").write_text(code)
    assert "1 passed" in run(tmp_path).stdout
    (tmp_path / "test_it.py").write_text("def test_it(live_channels):\n    pass\n")
    without = run(tmp_path, "-p", "no:django")
    assert "fixture 'transactional_db' not found" in without.stdout
