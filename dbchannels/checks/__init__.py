"""System checks: likely mistakes and their fixes, listed in ``docs/checks.rst``.

``manage.py check``, ``runserver`` and ``runchannels`` run them; those of the database need ``check --database
default``.
"""

from dbchannels.checks import routes, site

__all__ = ["routes", "site"]
