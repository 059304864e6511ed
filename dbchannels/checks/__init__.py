"""System checks: what is likely meant otherwise, each with what to do.

``manage.py check`` runs them, and so do ``runserver`` and ``runchannels`` before they start; those of the database need
``check --database default``. ``docs/checks.rst`` lists them by their numbers.
"""

from dbchannels.checks.databases import check_other_database, check_pooler, check_sqlite, check_tables
from dbchannels.checks.modules import check_modules
from dbchannels.checks.routes import check_routing
from dbchannels.checks.site import check_hosts, check_leftovers, check_order, check_sessions, check_settings

__all__ = [
    "check_hosts",
    "check_leftovers",
    "check_modules",
    "check_order",
    "check_other_database",
    "check_pooler",
    "check_routing",
    "check_sessions",
    "check_settings",
    "check_sqlite",
    "check_tables",
]
