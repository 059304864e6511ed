"""The front page, the secret key, and the command ``demo``."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from unittest import mock

from django.contrib.auth import authenticate, get_user_model
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.db import OperationalError
from django.test import SimpleTestCase, TestCase, override_settings
from django.urls import reverse

from demo import secret
from demo.management.commands.demo import is_loopback
from demo.views import EXAMPLES

COMMAND = "demo.management.commands.demo"


class FrontPage(SimpleTestCase):
    def test_every_example_is_on_it(self):
        page = self.client.get("/")
        for example in EXAMPLES:
            self.assertContains(page, example.title)
            self.assertContains(page, f'href="{reverse(example.url)}"')

    def test_a_browser_that_looks_for_an_icon_by_itself_finds_it(self):
        icon = self.client.get("/favicon.ico")
        self.assertRedirects(icon, "/static/demo/icon.svg", fetch_redirect_response=False)


class SecretKey(SimpleTestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / ".secret_key"
        environment = mock.patch.dict("os.environ")
        environment.start()
        self.addCleanup(environment.stop)
        secret.os.environ.pop("DJANGO_SECRET_KEY", None)

    def test_it_is_made_once_and_for_its_owner_alone(self):
        key = secret.secret_key(self.path)
        self.assertEqual(len(key), 50)
        self.assertEqual(secret.secret_key(self.path), key)
        self.assertEqual(self.path.stat().st_mode & 0o077, 0)
        self.assertEqual(list(self.path.parent.iterdir()), [self.path])

    def test_of_two_processes_that_make_it_both_use_the_first_ones(self):
        secret._create(self.path)
        first = self.path.read_text()
        secret._create(self.path)
        self.assertEqual(secret.secret_key(self.path), first)

    def test_the_environment_goes_first(self):
        with mock.patch.dict("os.environ", DJANGO_SECRET_KEY="from the environment"):
            self.assertEqual(secret.secret_key(self.path), "from the environment")
        self.assertFalse(self.path.exists())

    def test_a_folder_that_cannot_be_written_to_is_told_in_one_sentence(self):
        with self.assertRaisesMessage(ImproperlyConfigured, "set DJANGO_SECRET_KEY instead"):
            secret.secret_key(self.path.parent / "missing" / ".secret_key")


class Demo(TestCase):
    """The command without migrate, which has run, and without runchannels, which would not return."""

    def demo(self, *arguments):
        with mock.patch(f"{COMMAND}.call_command") as called, mock.patch(f"{COMMAND}.connections"):
            output = io.StringIO()
            call_command("demo", *arguments, stdout=output)
        self.started = called.call_args_list
        return output.getvalue()

    @override_settings(DEBUG=True)
    def test_a_new_database_gets_a_user_and_says_so(self):
        output = self.demo()
        self.assertIn("Created the user admin with the password admin", output)
        self.assertNotIn("http://", output)  # runchannels prints the address
        self.assertTrue(authenticate(username="admin", password="admin").is_superuser)
        migrate, runchannels = self.started
        self.assertEqual(migrate, mock.call("migrate", verbosity=0, interactive=False))
        self.assertEqual(runchannels, mock.call("runchannels", "127.0.0.1:8000", workers=None))

    @override_settings(DEBUG=True)
    def test_the_address_and_the_workers_are_passed_on(self):
        self.demo("[::1]:8001", "--workers", "3")
        self.assertEqual(self.started[-1], mock.call("runchannels", "[::1]:8001", workers=3))

    @override_settings(DEBUG=True)
    def test_where_there_are_users_none_is_made(self):
        get_user_model().objects.create_user("ann")
        self.assertNotIn("Created", self.demo())
        self.assertEqual(get_user_model().objects.count(), 1)

    def test_without_debug_none_is_made(self):
        self.demo()
        self.assertFalse(get_user_model().objects.exists())

    @override_settings(DEBUG=True)
    def test_nor_where_others_reach_the_server(self):
        self.demo("0.0.0.0:8000")
        self.assertFalse(get_user_model().objects.exists())

    @override_settings(DEBUG=True)
    def test_a_password_that_everybody_knows_is_not_put_on_the_network(self):
        self.demo()
        with self.assertRaisesMessage(CommandError, "changepassword admin"):
            self.demo("0.0.0.0:8000")

    def test_a_database_that_is_down_is_one_sentence(self):
        down = OperationalError("connection refused\nIs the server running?")
        with (
            mock.patch(f"{COMMAND}.call_command", side_effect=down),
            self.assertRaisesMessage(
                CommandError, "(connection refused): start it, or correct DATABASE_URL."
            ),
        ):
            call_command("demo")

    def test_what_is_no_address_is_refused_before_anything_is_done(self):
        with self.assertRaisesMessage(CommandError, "is not an address"):
            self.demo("somewhere")

    def test_loopback(self):
        for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"):
            self.assertTrue(is_loopback(host), host)
        for host in ("0.0.0.0", "::", "192.0.2.1", "example.org", ""):
            self.assertFalse(is_loopback(host), host)
