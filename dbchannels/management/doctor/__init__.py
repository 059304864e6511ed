"""What ``channels_doctor`` looks at: each check says that something is in order, or what to do.

A check is a function that yields findings. Each runs in a thread of its own, with a database connection of its own, so
that one that hangs costs TIME_LIMIT and nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

from django.db import Error, ProgrammingError, connections

from dbchannels.exceptions import DBChannelsError
from dbchannels.management.doctor import channels, database, site
from dbchannels.management.doctor.patient import NOTE, OK, WRONG, Check, Finding, Patient
from dbchannels.management.output import sentence

__all__ = ["NOTE", "OK", "WRONG", "Finding", "Patient", "examine"]

TIME_LIMIT = 5.0  # seconds for one check

#: Each check, and the attribute of the patient that it needs.
CHECKS: tuple[tuple[Check, str], ...] = (
    (site.system_checks, ""),
    (site.debug, ""),
    (site.secret_key, ""),
    (site.hosts, ""),
    (site.proxy, ""),
    (site.sessions, ""),
    (site.descriptors, ""),
    (channels.routing, ""),
    (database.database, ""),
    (database.migrations, "reachable"),
    (database.wakeups, "migrated"),
    (database.clock, "server_reachable"),
    (database.server_sessions, "server_reachable"),
    (database.autovacuum, "server_reachable"),
    (database.dead_rows, "server_reachable"),
    (database.transactions, "server_reachable"),
    (channels.processes, "migrated"),
    (channels.channels, "migrated"),
    (channels.pauses, "migrated"),
    (channels.oldest, "migrated"),
    (channels.dead_letters, "migrated"),
)


def examine(patient: Patient) -> Iterator[tuple[str, Finding]]:
    """Run all checks in order; yield (name of the check, finding)."""
    for check, needs in CHECKS:
        if not needs or getattr(patient, needs):
            for finding in in_time(check, patient):
                yield check.__name__, finding
    if not patient.reachable:
        yield "database", Finding(NOTE, "What needs the database was left out.")


def in_time(check: Check, patient: Patient) -> list[Finding]:
    """Return what a check finds; if it does not end in time, what it has found by then and that it hangs."""
    found: list[Finding] = []

    def run() -> None:
        try:
            found.extend(check(patient))
        except ProgrammingError as error:
            if "permission denied" not in str(error):
                found.append(Finding(WRONG, sentence(error)))
            else:
                text = f"This role may not look: {sentence(error)} GRANT pg_monitor would let it."
                found.append(Finding(NOTE, text))
        except (DBChannelsError, Error) as error:
            found.append(Finding(WRONG, sentence(error)))
        except Exception as error:  # the site's code, which a check may import
            text = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            found.append(
                Finding(WRONG, f"This could not be looked at, because the site's code fails ({text}).")
            )
        finally:
            connections.close_all()

    thread = threading.Thread(target=run, name=f"doctor {check.__name__}", daemon=True)
    thread.start()
    thread.join(TIME_LIMIT)
    if not thread.is_alive():
        return found
    what = check.__name__.replace("_", " ")
    return [
        *found,
        Finding(WRONG, f"No answer within {TIME_LIMIT:g} s ({what}): see that the database is not stuck."),
    ]
