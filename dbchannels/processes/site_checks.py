"""``manage.py check`` in a child: it imports the site's URLs and views, and the interface server must not."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

from dbchannels.conf import layer_settings
from dbchannels.exceptions import InvalidConfiguration
from dbchannels.processes.plan import Plan
from dbchannels.processes.supervisor import manage_command

Write = Callable[[str], Any]


def start_checks(plan: Plan) -> subprocess.Popen[str]:
    """Start the checks."""
    # With the database, or the check that warns of SQLite's deferred transactions would not run.
    database = layer_settings(plan.layer).database
    command = [*manage_command(), "check", "--database", database, *plan.passed_on]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def await_checks(checks: subprocess.Popen[str], write: Write) -> None:
    """Show what the checks found; raises InvalidConfiguration when they found an error."""
    output = checks.communicate()[0].strip()
    if checks.returncode:
        raise InvalidConfiguration(f"{output}\nThe system check found errors: correct them, and start again.")
    if "no issues" not in output:
        write(output)


def complaint(output: str) -> str:
    """Return the line that says most of what ``manage.py check`` printed: an error's own, or a traceback's last."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["it said nothing"]
    found = lines[lines.index("ERRORS:") + 1 :] if "ERRORS:" in lines else lines[-1:]
    return found[0][:300]
