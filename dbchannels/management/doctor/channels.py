"""The checks of ``channels_doctor`` of the channels, and of the processes that serve them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import filterfalse

from django.conf import settings

from dbchannels.layers.operations import several_sites
from dbchannels.layers.overview import DEAD, DELAYED, READY, ChannelStatus, overview
from dbchannels.management.doctor.patient import NOTE, OK, WRONG, Finding, Patient
from dbchannels.management.output import consumers_of, counted, near, short
from dbchannels.models import Process
from dbchannels.names import is_protocol

WAITS = 300.0  # seconds that a message may wait on a channel that is not paused
SHOWN = 5  # channels of which the same is said, each on a line of its own
BUSY = 30.0  # and those after which all of its workers are said to be busy, as the server's log does


def routing(patient: Patient) -> Iterator[Finding]:
    """Whether the consumers can be imported."""
    patient.consumers = consumers_of(patient.layer.alias)
    yield Finding(OK, f"The routing has consumers of {counted(len(patient.consumers), 'channel')}.")


def processes(patient: Patient) -> Iterator[Finding]:
    """Who is alive, and where."""
    patient.overview = overview(patient.layer)
    found = patient.overview.processes
    alive = [one for one in found if one.alive]
    for kind, plural, start in (
        (Process.SERVER, "servers", "runchannels"),
        (Process.WORKER, "workers", "runchannels or runworker"),
        (Process.CHANNELS, "processes with Channels", ""),  # most sites have none
    ):
        by_host = Counter(one.host for one in alive if one.kind == kind)
        where = ", ".join(f"{host} ({number})" for host, number in sorted(by_host.items()))
        if by_host:
            yield Finding(OK, f"Alive {plural}: {where}.")
        elif start:
            yield Finding(WRONG, f"No {kind} is alive: start {start}.")
    if gone := [one.name for one in found if not one.alive]:
        yield Finding(
            NOTE,
            f"The lease of {listed(gone)} has expired: the next live process cleans up after it.",
        )
    versions = {one.reads for one in alive}
    if len(versions) > 1:
        yield Finding(NOTE, "Processes of two versions are alive: that is right while a deploy goes on.")
    if told := several_sites({one.name: one.work for one in alive}):
        yield Finding(WRONG, told)
    here = {one.host for one in alive}
    if len(here) > 1 and settings.SESSION_ENGINE.endswith("sessions.backends.file"):
        yield Finding(
            WRONG, "Sessions are in files, and processes run on several hosts: use another SESSION_ENGINE."
        )


def channels(patient: Patient) -> Iterator[Finding]:
    """Whether everything that waits is taken."""
    found = {one.channel: one for one in patient.overview.channels}
    consumers, wrong = patient.consumers or {}, False
    works = any(one.alive and one.kind == Process.WORKER for one in patient.overview.processes)
    idle = [name for name in sorted(consumers) if not found.get(name, ChannelStatus(name)).workers]
    if works and idle:  # without any worker the line about that says enough
        wrong = True
        what, whom = ("a consumer", "it") if len(idle) == 1 else ("consumers", "them")
        yield Finding(
            WRONG,
            f"{listed(idle)} {'has' if len(idle) == 1 else 'have'} {what}, and no live worker takes {whom}: start a "
            "worker, or change --only and --exclude.",
        )
    strays = [one for one in found.values() if one.channel not in consumers and one.ready + one.delayed]
    is_read = patient.consumers is not None
    none = [one for one in strays if is_read and one.durable]
    for one in none[:SHOWN]:
        yield Finding(
            WRONG,
            f"{one.channel} has {_number(one)} and no consumer: write one, or delete them by 'channels_cancel "
            f"{one.channel}'."
            f"{near(one.channel, filterfalse(is_protocol, consumers))}",
        )
    yield from _more(WRONG, none)
    left = [one for one in strays if works and one.unattended and not (is_read and one.durable)]
    for one in left[:SHOWN]:
        yield Finding(
            WRONG, f"{one.channel} has {_number(one)}, and no live worker takes it: start a worker."
        )
    yield from _more(WRONG, left)
    if works and not (wrong or none or left):
        yield Finding(OK, "A live worker takes each channel that has a consumer or a message.")


def _number(one: ChannelStatus) -> str:
    waits = one.ready + one.delayed
    return f"{waits:,}{'+' * bool(one.more & {READY, DELAYED})} message{'' if waits == 1 else 's'}"


def _more(level: str, found: Sequence[ChannelStatus]) -> Iterator[Finding]:
    """Yield a finding for those channels that were not shown."""
    if (more := len(found) - SHOWN) > 0:
        yield Finding(level, f"The same is true of {counted(more, 'more channel')}: run channels_status.")


def listed(parts: Sequence[str]) -> str:
    """Return the first five, and how many more there are."""
    first, more = list(parts[:SHOWN]), len(parts) - SHOWN
    last = f"{more:,} more" if more > 0 else first.pop()
    return f"{', '.join(first)} and {last}" if first else last


def pauses(patient: Patient) -> Iterator[Finding]:
    """Channels that somebody has paused."""
    paused = [one for one in patient.overview.channels if one.pause]
    for one in paused[:SHOWN]:
        assert one.pause is not None
        yield Finding(
            NOTE,
            f"{one.channel} is paused, by {one.pause.paused_by or 'somebody'}: run 'manage.py channels_resume "
            f"{one.channel}' to resume it.",
        )
    yield from _more(NOTE, paused)
    if not paused:
        yield Finding(OK, "No channel is paused.")


def oldest(patient: Patient) -> Iterator[Finding]:
    """The message that has waited for longest."""
    waiting = [one for one in patient.overview.channels if one.oldest and one.workers and not one.pause]
    first = max(waiting, key=lambda one: one.oldest or 0.0, default=None)
    if first is None or first.oldest is None:
        yield Finding(OK, "No message waits on a channel that a worker takes and that is not paused.")
        return
    runs = {one.name: one.work.get("runs") for one in patient.overview.processes}
    busy = [f"{name} ({runs[name]})" for name in first.workers if runs.get(name)]
    waits = f"{short(first.oldest)}, on {first.channel}"
    if len(busy) == len(first.workers) and first.oldest > BUSY:
        yield Finding(
            WRONG,
            f"The oldest message has waited for {waits}, and each worker that takes it is busy: {listed(busy)}. "
            "Start more workers, or cancel in the admin what hangs.",
        )
    elif first.oldest > WAITS:
        yield Finding(
            WRONG,
            f"The oldest message has waited for {waits}: add workers, or see why those there are slow.",
        )
    else:
        yield Finding(OK, f"The oldest message has waited for {waits}.")


def dead_letters(patient: Patient) -> Iterator[Finding]:
    """Messages that failed for good."""
    dead = [
        f"{one.channel} ({one.dead:,}{'+' * (DEAD in one.more)})"
        for one in patient.overview.channels
        if one.dead
    ]
    if dead:
        yield Finding(
            NOTE,
            f"There are dead letters of {listed(dead)}: see the admin, then 'manage.py replay' or channels_purge.",
        )
    else:
        yield Finding(OK, "There is no dead letter.")
