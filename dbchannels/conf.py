"""The DBCHANNELS setting: its shape, its defaults and its checks.

The setting may be left out. These are the defaults::

    DBCHANNELS = {
        "default": {
            "BACKEND": None,        # chosen by the database: the PostgreSQL layer, or polling for any other database
            "DATABASE": "default",  # an alias of DATABASES
            "ROUTING": None,        # a module with a list ``routes``, or the dotted name of a list
            "OPTIONS": {},          # see OPTIONS below
        },
    }

DATABASE should be the alias of the site's own models: a send is then part of the transaction that saves them. On
another alias, sends and group changes made while transactions are open on other databases, and none on the layer's,
are written in order after all those transactions have committed, and dropped if one rolls back. They are lost if the
process dies, or the layer cannot be written to, between the commit and the write; check W002 warns of this. A group's
members are those at the time of the write. ChannelFull is raised at the end of the ``atomic()`` block, after the
commit.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from django.conf import settings
from django.utils.crypto import salted_hmac

from dbchannels.exceptions import InvalidConfiguration, safe_repr

SHORT_BACKENDS = {
    "postgresql": "dbchannels.layers.postgresql.PostgreSQLLayer",
    "database": "dbchannels.layers.database.DatabaseLayer",
    "memory": "dbchannels.layers.memory.MemoryLayer",
}
TEN_YEARS = 10 * 365 * 86_400  # seconds; the timestamps of all databases reach further
MAX_MESSAGES = 2**31 - 1  # PostgreSQL's int
MAX_BYTES = 2**28  # PostgreSQL takes a statement of 1 GiB, in which bytes take twice their number
MAX_RETRIES = 32_000  # PostgreSQL stores the attempts as a smallint
#: The keys of an entry of DATABASES that say where the server is.
CONNECTION_KEYS = ("NAME", "USER", "PASSWORD", "HOST", "PORT", "OPTIONS")


class Rule(NamedTuple):
    """An option's default, a test for its values, what to write instead of a value that fails it, and its meaning."""

    default: Any
    fits: Callable[[Any], bool]
    write: str
    meaning: str


def _whole(least: int, most: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _seconds(least: float, most: float) -> Callable[[Any], bool]:
    # NaN fails the comparisons.
    return lambda value: (
        isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most
    )


def _or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


def _is_capacities(value: Any) -> bool:
    fits = _or_none(_whole(0, MAX_MESSAGES))
    return isinstance(value, dict) and all(
        isinstance(key, str) and key and fits(one) for key, one in value.items()
    )


def _is_connection(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) <= set(CONNECTION_KEYS)
        and all(isinstance(one, dict if key == "OPTIONS" else (str, int)) for key, one in value.items())
    )


RULES = {
    "expiry": Rule(
        60.0,
        _seconds(0.001, TEN_YEARS),
        "seconds, more than 0 and at most ten years, such as 60",
        "How long an unread protocol message is kept.",
    ),
    "group_expiry": Rule(
        86_400.0,
        _seconds(0.001, TEN_YEARS),
        "seconds, more than 0 and at most ten years, such as 86400",
        "How long a membership lasts after the last ``add``, if its channel belongs to no live server.",
    ),
    "history_expiry": Rule(
        604_800.0,
        _seconds(0.001, TEN_YEARS),
        "seconds, more than 0 and at most ten years, such as 604800",
        "How long a message is kept that was sent with ``history=N``, if no newer ones take its place.",
    ),
    "capacity": Rule(
        10_000,
        _or_none(_whole(1, MAX_MESSAGES)),
        f"a whole number from 1 to {MAX_MESSAGES}, such as 10000, or None for no limit",
        "How many unread messages a protocol channel may hold.",
    ),
    "channel_capacity": Rule(
        {},
        _is_capacities,
        "a dict of names or patterns with whole numbers from 0 on, or None for no limit, such as {'http.request': 200}",
        "The same for single channels, your own among them. The first name or pattern that matches counts; 0 closes a "
        "channel.",
    ),
    "max_message_size": Rule(
        1_048_576,
        _whole(1, MAX_BYTES),
        f"bytes, a whole number from 1 to {MAX_BYTES}, such as 1048576",
        "The largest ``text``, ``bytes`` or ``content`` of a message. The whole message, encoded, may be 64 KiB "
        "larger.",
    ),
    "poll_interval": Rule(
        None,
        _or_none(_seconds(0.001, 86_400)),
        "seconds, more than 0 and at most a day, such as 0.5, or None",
        "How often a reader looks for messages without being woken. None: every second where readers are woken, else "
        "every 0.05 seconds.",
    ),
    "wakeups": Rule(
        True,
        lambda value: isinstance(value, bool),
        "True or False",
        "Whether readers are woken: on PostgreSQL by NOTIFY, on SQLite by a datagram. Otherwise they only poll.",
    ),
    "direct": Rule(
        {},
        _is_connection,
        f"a dict with some of {', '.join(CONNECTION_KEYS)}, as in DATABASES, such as {{'PORT': 5432}}",
        "PostgreSQL only: where the layer's own connections go, to bypass a pooler.",
    ),
    "lease": Rule(
        15.0,
        _seconds(0.5, 86_400),
        "seconds, from 0.5 to a day, such as 15",
        "A process that has not renewed its lease for this time, and holds no lock, is dead.",
    ),
    "retries": Rule(
        5,
        _whole(0, MAX_RETRIES),
        f"a whole number from 0 to {MAX_RETRIES}, such as 5",
        "How many more attempts a durable message has after the first, before it becomes a dead letter.",
    ),
    "result_ttl": Rule(
        86_400.0,
        _seconds(1, TEN_YEARS),
        "seconds, from 1 to ten years, such as 86400",
        "How long the result of a task is kept after its end.",
    ),
    "soft_timeout": Rule(
        30.0,
        _seconds(0, TEN_YEARS),
        "seconds, such as 30, at most ten years, or 0 for never",
        "How long a consumer runs before its worker logs where it stands. Progress of a streamed response starts the "
        "time again.",
    ),
    "hard_timeout": Rule(
        600.0,
        _seconds(0, TEN_YEARS),
        "seconds, such as 600, at most ten years, or 0 for never",
        "How long a consumer runs before its message fails and its worker is replaced. Progress of a streamed response "
        "starts the time again.",
    ),
}
#: The options of a consumer, of a queue of tasks, and of a single task; a task has no ``concurrency``.
TASK_RULES = {
    **{name: RULES[name] for name in ("retries", "soft_timeout", "hard_timeout")},
    "backoff": Rule(
        None,
        lambda value: callable(value) or _seconds(0, TEN_YEARS)(value),
        "seconds, such as 60, at most ten years, or a function that takes the number of the failed attempt",
        "How long a failed task waits for its next attempt. By default 1, 5, 25 ... seconds.",
    ),
    "atomic": Rule(
        False,
        lambda value: isinstance(value, bool),
        "True or False",
        "Whether what a task writes, what it sends and its result are committed together, so that it takes effect "
        "exactly once.",
    ),
    "concurrency": Rule(
        None,
        _whole(1, MAX_RETRIES),
        f"a whole number from 1 to {MAX_RETRIES}, such as 4",
        "How many tasks of the queue run at a time, in all workers together. By default as many as there are workers.",
    ),
}
#: The options of a layer and their defaults.
OPTIONS: dict[str, Any] = {name: rule.default for name, rule in RULES.items()}
#: CONFIG of an entry of CHANNEL_LAYERS whose BACKEND is ours, with the defaults of Channels' layers.
CHANNEL_LAYER_BACKEND = "dbchannels.layers.channels.ChannelLayer"
CHANNEL_LAYER: dict[str, Any] = {
    "expiry": 60,
    "group_expiry": 86_400,
    "capacity": 100,
    "channel_capacity": {},
    "layer": "default",
}
_TASKS_KEYS = ("BACKEND", "QUEUES", "OPTIONS", "ENQUEUE_ON_COMMIT")  # the last is an older django-tasks'
_KEYS: dict[str, Any] = {"BACKEND": None, "DATABASE": "default", "ROUTING": None, "OPTIONS": {}}


class LayerSettings(NamedTuple):
    """One entry of DBCHANNELS, with every default filled in."""

    alias: str
    backend: str | None
    database: str
    routing: Any
    options: dict[str, Any]


def layer_aliases() -> list[str]:
    """Return the aliases of all layers."""
    return list(_configured() or ["default"])


def layer_settings(alias: str = "default") -> LayerSettings:
    """Return the settings of one layer; raises InvalidConfiguration with the first problem."""
    for problem in problems():
        raise InvalidConfiguration(problem)
    if alias not in _configured() and alias != "default":
        raise InvalidConfiguration(f"DBCHANNELS has no layer {alias!r}: add it, or use 'default'.")
    entry = {**_KEYS, **_configured().get(alias, {})}
    backend = SHORT_BACKENDS.get(entry["BACKEND"], entry["BACKEND"])
    return LayerSettings(alias, backend, entry["DATABASE"], entry["ROUTING"], {**OPTIONS, **entry["OPTIONS"]})


def problems() -> list[str]:
    """Return one sentence for each mistake in the DBCHANNELS setting."""
    configured = _configured()
    if not isinstance(configured, dict) or not all(isinstance(one, dict) for one in configured.values()):
        return ["DBCHANNELS must be a dict of dicts, as CACHES is: {'default': {...}}."]
    found: list[str] = []
    for alias, entry in configured.items():
        where = f"DBCHANNELS[{alias!r}]"
        found += _unknown(entry, _KEYS, where)
        backend, database = entry.get("BACKEND"), entry.get("DATABASE", "default")
        if not (
            backend is None or (isinstance(backend, str) and (backend in SHORT_BACKENDS or "." in backend))
        ):
            found.append(
                f"{where}['BACKEND'] is {safe_repr(backend)}: write one of {', '.join(SHORT_BACKENDS)}, or the dotted "
                "name of a layer class."
            )
            backend = None
        routing = entry.get("ROUTING")
        if not (routing is None or isinstance(routing, (str, list, tuple))):
            found.append(
                f"{where}['ROUTING'] is {safe_repr(routing)}: write the dotted name of a module with a list called "
                "'routes', or the list itself."
            )
        options = entry.get("OPTIONS", {})
        if isinstance(options, dict):
            # A layer of the site's own may have other options too.
            if backend is None or backend in SHORT_BACKENDS:
                found += _unknown(options, OPTIONS, f"{where}['OPTIONS']")
            given = [name for name in options if name in RULES]
            wrong = (value_problem(name, options[name], f"{where}['OPTIONS']") for name in given)
            found += filter(None, wrong)
        else:
            found.append(f"{where}['OPTIONS'] must be a dict, such as {{'capacity': 1000}}.")
        if not isinstance(database, str) or database not in settings.DATABASES:
            found.append(f"{where}['DATABASE'] is {safe_repr(database)}: write an alias of DATABASES.")
    return found


def task_problems(where: str, options: Any, queues: Collection[Any], keys: Collection[str] = ()) -> list[str]:
    """Return one sentence for each mistake in a backend of tasks; ``where`` is its entry of TASKS, with these keys."""
    if found := _unknown(dict.fromkeys(keys), dict.fromkeys(_TASKS_KEYS), where):
        return found
    if not queues:
        return [
            f"{where}['QUEUES'] is empty, so no worker would read a queue: list the queues, or leave it out."
        ]
    where = f"{where}['OPTIONS']"
    if not isinstance(options, dict):
        return [f"{where} must be a dict, such as {{'retries': 3}}."]
    found = _unknown(options, dict.fromkeys(("layer", "queues", *TASK_RULES)), where)
    layer, own = options.get("layer", "default"), options.get("queues", {})
    if layer not in layer_aliases():
        found.append(f"{where}['layer'] is {safe_repr(layer)}: write a key of DBCHANNELS.")
    parts = [(where, {name: value for name, value in options.items() if name in TASK_RULES})]
    if isinstance(own, dict) and all(isinstance(one, dict) for one in own.values()):
        found += _unknown(own, dict.fromkeys(queues), f"{where}['queues']")
        for queue, given in own.items():
            found += _unknown(given, TASK_RULES, f"{where}['queues'][{queue!r}]")
            parts.append((f"{where}['queues'][{queue!r}]", given))
    else:
        found.append(f"{where}['queues'] must be a dict of dicts, such as {{'mail': {{'retries': 3}}}}.")
    for place, given in parts:
        found += filter(None, (task_value_problem(name, value, place) for name, value in given.items()))
    return found


def task_value_problem(name: str, value: object, where: str) -> str:
    """Return a sentence for a value that an option of a consumer or a task cannot have; "" for a value that fits."""
    rule = TASK_RULES.get(name)
    if rule is None or rule.fits(value):
        return ""
    return f"{where} has {name} = {safe_repr(value)}: write {rule.write}."


def channel_layer_problems(where: str, config: object) -> list[str]:
    """Return one sentence for each mistake in the CONFIG of a channel layer for Channels; see CHANNEL_LAYER."""
    if not isinstance(config, dict):
        return [f"{where} must be a dict, such as {{'capacity': 100}}."]
    found = _unknown(config, CHANNEL_LAYER, where)
    # Channels takes compiled patterns too, and None for no capacities.
    capacities = config.get("channel_capacity") or {}
    if isinstance(capacities, dict):
        capacities = {str(key): one for key, one in capacities.items()}
    given = {**config, "channel_capacity": capacities}
    for name in ("expiry", "group_expiry", "capacity", "channel_capacity"):
        if name in given:
            found += filter(None, [value_problem(name, given[name], where)])
    alias = config.get("layer", "default")
    if alias != "default" and alias not in _configured():
        found.append(f"{where}['layer'] is {safe_repr(alias)}: write an alias of DBCHANNELS.")
    elif not problems() and layer_settings(alias).backend == SHORT_BACKENDS["memory"]:
        found.append(
            f"DBCHANNELS[{alias!r}] is in the memory of one process: use channels.layers.InMemoryChannelLayer, or a "
            "layer on a database."
        )
    return found


def _configured() -> Any:
    return getattr(settings, "DBCHANNELS", {})


def value_problem(name: str, value: object, where: str) -> str:
    """Return a sentence for a value that an option cannot have; "" for a value that fits."""
    rule = RULES[name]
    if rule.fits(value):
        return ""
    # A wrong value of "direct" may hold a password.
    given = safe_repr(value) if name != "direct" else f"a {type(value).__name__} with something else in it"
    return f"{where}[{name!r}] is {given}: write {rule.write}."


def _unknown(given: dict[str, Any], known: dict[str, Any], where: str) -> list[str]:
    found = []
    for key in (key for key in given if key not in known):
        near = difflib.get_close_matches(str(key).lower(), [name.lower() for name in known], n=1, cutoff=0.5)
        spelled = [name for name in known if name.lower() in near]
        advice = f"write {spelled[0]!r}" if spelled else f"it takes {', '.join(known)}"
        found.append(f"{where} has the unknown key {key!r}: {advice}.")
    return found


def site_mark() -> str:
    """Return a text that differs from that of a site with another SECRET_KEY or ROOT_URLCONF."""
    return salted_hmac(
        "dbchannels.site", getattr(settings, "ROOT_URLCONF", ""), algorithm="sha256"
    ).hexdigest()[:12]
