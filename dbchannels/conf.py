"""The DBCHANNELS setting: its shape, its defaults, and what is said of a wrong one.

None is needed. The whole of it, with the defaults::

    DBCHANNELS = {
        "default": {
            "BACKEND": None,        # by the database: the PostgreSQL layer, or the polling one for any other
            "DATABASE": "default",  # an alias of DATABASES
            "ROUTING": None,        # a module with `routes`, or the dotted name of a list
            "OPTIONS": {},          # see OPTIONS below
        },
    }

DATABASE is best the alias of the site's own models: a send is then one transaction with what the code saves. On
another alias, what is sent (added, discarded) while transactions are open on other databases and none on the layer's
is written, in order, after they have all committed, and dropped when one is rolled back. It is lost when the process
dies, or the layer cannot be written to, between the commit and the write: check W002 says so. Members of a group are
those at the write, and ChannelFull is raised at the end of the ``atomic()`` block, which has committed by then.
"""

from __future__ import annotations

import difflib
from typing import Any, NamedTuple

from django.conf import settings

from dbchannels.exceptions import InvalidConfiguration, safe_repr
from dbchannels.option_rules import value_problem

SHORT_BACKENDS = {
    "postgresql": "dbchannels.layers.postgresql.PostgreSQLLayer",
    "database": "dbchannels.layers.database.DatabaseLayer",
    "memory": "dbchannels.layers.memory.MemoryLayer",
}

#: The options of a layer and their defaults; times are seconds, sizes bytes.
OPTIONS: dict[str, Any] = {
    "expiry": 60.0,  # an unread protocol message is dropped after this
    "group_expiry": 86_400.0,  # a membership without a live server ends this long after the last add
    "capacity": 10_000,  # unread messages a protocol channel may hold; None: no limit
    "channel_capacity": {},  # {"http.request": 200, "reports.*": 1000}: by name or pattern, first match wins
    "max_message_size": 1_048_576,  # of one encoded message
    "poll_interval": None,  # how often a reader looks without being woken: 1 s with wakeups, 0.05 s without
    "wakeups": True,  # wake the readers: by NOTIFY, on SQLite by a datagram; False leaves it to the poll
    "direct": {},  # PostgreSQL: HOST, PORT or the like of the layer's own connections, to go round a pooler
    "lease": 15.0,  # a process that has not renewed its lease for so long, and holds no lock, is dead
    "retries": 5,  # attempts of a durable message after the first, before it becomes a dead letter
    "soft_timeout": 30.0,  # a consumer that runs for so long: the worker logs where it stands; 0: never
    "hard_timeout": 600.0,  # ... its message has failed, and its worker is replaced; 0: never
}
_KEYS: dict[str, Any] = {"BACKEND": None, "DATABASE": "default", "ROUTING": None, "OPTIONS": {}}


class LayerSettings(NamedTuple):
    """One entry of DBCHANNELS, every default filled in."""

    alias: str
    backend: str | None
    database: str
    routing: Any
    options: dict[str, Any]


def problems() -> list[str]:
    """Return one sentence for each thing in the DBCHANNELS setting that cannot be meant."""
    configured = getattr(settings, "DBCHANNELS", {})
    if not isinstance(configured, dict) or not all(isinstance(one, dict) for one in configured.values()):
        return ["DBCHANNELS is a dict of dicts, {'default': {...}}, in the manner of CACHES."]
    return [sentence for alias, entry in configured.items() for sentence in _entry_problems(alias, entry)]


def _entry_problems(alias: str, entry: dict[str, Any]) -> list[str]:
    where = f"DBCHANNELS[{alias!r}]"
    found = _unknown(entry, _KEYS, where)
    backend, database = entry.get("BACKEND"), entry.get("DATABASE", "default")
    if not (backend is None or isinstance(backend, str)):
        found.append(
            f"{where}['BACKEND'] is {safe_repr(backend)}: write one of {', '.join(SHORT_BACKENDS)}, or the dotted "
            "name of a layer class."
        )
        backend = ""
    elif backend and "." not in backend and backend not in SHORT_BACKENDS:
        found.append(
            f"{where}['BACKEND'] names {safe_repr(backend)}, which is no layer: write one of "
            f"{', '.join(SHORT_BACKENDS)}, or the dotted name of a layer class."
        )
    routing = entry.get("ROUTING")
    if not (routing is None or isinstance(routing, (str, list, tuple))):
        found.append(
            f"{where}['ROUTING'] is {safe_repr(routing)}: write the dotted name of a module with a list called "
            "'routes', or the list itself."
        )
    options = entry.get("OPTIONS", {})
    if not isinstance(options, dict):
        found.append(f"{where}['OPTIONS'] is a dict, such as {{'capacity': 1000}}.")
    else:
        found += _option_problems(
            options, f"{where}['OPTIONS']", own=bool(backend and backend not in SHORT_BACKENDS)
        )
    if not isinstance(database, str) or database not in settings.DATABASES:
        found.append(
            f"{where}['DATABASE'] names {safe_repr(database)}, which DATABASES does not hold: name one of its aliases."
        )
    return found


def _option_problems(options: dict[str, Any], where: str, own: bool) -> list[str]:
    """Look at the options; a layer of the site's ``own`` may have others beside ours."""
    problems = [value_problem(name, value, where) for name, value in options.items() if name in OPTIONS]
    return ([] if own else _unknown(options, OPTIONS, where)) + [one for one in problems if one]


def layer_aliases() -> list[str]:
    """Return the aliases of all layers."""
    return list(getattr(settings, "DBCHANNELS", {}) or ["default"])


def layer_settings(alias: str = "default") -> LayerSettings:
    """Return the settings of one layer; raises InvalidConfiguration with the first problem's sentence."""
    for sentence in problems():
        raise InvalidConfiguration(sentence)
    configured = getattr(settings, "DBCHANNELS", {})
    if alias not in configured and alias != "default":
        raise InvalidConfiguration(f"DBCHANNELS has no layer {alias!r}: add it, or use 'default'.")
    entry = {**_KEYS, **configured.get(alias, {})}
    backend = SHORT_BACKENDS.get(entry["BACKEND"], entry["BACKEND"])
    return LayerSettings(alias, backend, entry["DATABASE"], entry["ROUTING"], {**OPTIONS, **entry["OPTIONS"]})


def _unknown(given: dict[str, Any], known: dict[str, Any], where: str) -> list[str]:
    return [
        f"{where} has the unknown key {key!r}{_nearest(key, known)}." for key in given if key not in known
    ]


def _nearest(key: object, known: dict[str, Any]) -> str:
    near = difflib.get_close_matches(str(key).lower(), [name.lower() for name in known], n=1, cutoff=0.5)
    spelled = [name for name in known if near and name.lower() == near[0]]
    return f": write {spelled[0]!r}" if spelled else f": it takes {', '.join(known)}"
