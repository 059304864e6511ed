"""``manage.py demo [addr:port]``: prepare the examples and run ``runchannels``."""

from __future__ import annotations

import ipaddress

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.db import OperationalError, connections

from dbchannels.exceptions import InvalidConfiguration
from dbchannels.server.listeners import Address

NAME = PASSWORD = "admin"


class Command(BaseCommand):
    help = "Prepares the database and starts the examples."
    # This process becomes the interface server, which imports no URLconf; runchannels runs the checks in a child.
    requires_system_checks = ()

    def add_arguments(self, parser):
        parser.add_argument("address", nargs="?", default="127.0.0.1:8000", metavar="[ADDR:]PORT")
        parser.add_argument("--workers", type=int, metavar="N", help="as for runchannels")

    def handle(self, *, address, workers, **options):
        try:
            host, port, _ = Address.parse(address)
            call_command("migrate", verbosity=0, interactive=False)
        except InvalidConfiguration as error:
            raise CommandError(str(error)) from None
        except OperationalError as error:
            reason = str(error).strip().partition("\n")[0]
            raise CommandError(
                f"The database cannot be used ({reason}): start it, or correct DATABASE_URL."
            ) from None
        self.prepare_admin(host)
        connections.close_all()  # the interface server opens its own
        shown = f"[{host}]" if ":" in host else host
        self.stdout.flush()  # before runchannels prints the address
        call_command("runchannels", f"{shown}:{port}", workers=workers)

    def prepare_admin(self, host):
        """Create a first user with a well-known password, but only where nobody else can reach the site."""
        users = get_user_model().objects
        if not is_loopback(host):
            admin = users.filter(username=NAME).first()
            if admin and admin.check_password(PASSWORD):
                raise CommandError(
                    f"The user {NAME} still has the password {PASSWORD}, and others can reach this address: "
                    f"run 'manage.py changepassword {NAME}' first, or use 127.0.0.1."
                )
        elif settings.DEBUG and not users.exists():
            users.create_superuser(NAME, password=PASSWORD)
            self.stdout.write(f"Created the user {NAME} with the password {PASSWORD} for /admin/.")


def is_loopback(host):
    """Whether only this machine can reach the address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
