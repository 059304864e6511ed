"""System checks: likely mistakes and their fixes, listed in ``docs/checks.rst``.

``manage.py check``, ``runserver`` and ``runchannels`` run them; those of the database need ``check --database
default``.
"""

from dbchannels.checks.routes import check_routing
from dbchannels.checks.site import (
    check_addresses,
    check_hosts,
    check_leftovers,
    check_modules,
    check_mysql,
    check_order,
    check_other_database,
    check_pooler,
    check_sessions,
    check_settings,
    check_sqlite,
    check_tables,
    check_tasks,
)

__all__ = [
    "check_addresses",
    "check_hosts",
    "check_leftovers",
    "check_modules",
    "check_mysql",
    "check_order",
    "check_other_database",
    "check_pooler",
    "check_routing",
    "check_sessions",
    "check_settings",
    "check_sqlite",
    "check_tables",
    "check_tasks",
]
