"""What one WebSocket may ask of the server, and how long it may stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from dbchannels.exceptions import InvalidConfiguration
from dbchannels.waiting import check_timeout

LINGERING = (
    16_777_216  # bytes that a client may still send after its refusal, of any kind, so that it sees it
)


class Limits(NamedTuple):
    """Times in seconds, sizes in bytes; an ``idle_timeout`` or ``lifetime`` of 0 is none."""

    max_size: int = 1_048_576  # of one message, all fragments together; a larger one closes with 1009
    max_fragments: int = 4096  # of one message: an empty one costs its sender 6 bytes, us a call; 1009
    max_memory: int = 2_097_152  # of what it sent, and nobody has consumed; 1013, see budget.py
    message_timeout: float = 30.0  # from a message's first byte to its last, while the socket is read; 1008
    max_pings: int = 1000  # of the client's in ten seconds; a flood of them closes with 1008
    ping_interval: float = 20.0  # between our pings, with a tenth of jitter
    silence: float = 60.0  # without a byte from the client, pongs included: it is gone, 1006
    idle_timeout: float = 0.0  # without a message in either direction; 1001
    lifetime: float = 0.0  # from its opening; 1001
    send_timeout: float = 20.0  # in which a full socket must take something; 1013
    waiting_frames: int = 64  # for a client that does not read; one more, and it is dropped, 1013
    waiting_bytes: int = 1_048_576  # the same


#: What runchannels takes as an option, ``--ws-max-size`` for ``max_size``, with its unit and its help.
HELP = {
    "max_size": ("BYTES", "of one message"),
    "max_fragments": ("N", "frames of one message"),
    "max_memory": ("BYTES", "of memory for what it sent, and twice --ws-max-size at least"),
    "message_timeout": ("S", "seconds for one message, from its first byte to its last"),
    "max_pings": ("N", "pings of a client in ten seconds"),
    "ping_interval": ("S", "seconds between two pings of the server"),
    "silence": ("S", "seconds without a byte from a client, pongs included, until it counts as gone"),
    "idle_timeout": ("S", "seconds without a message until a socket is closed; 0: never"),
    "lifetime": ("S", "seconds that a socket may be open; 0: without end"),
    "send_timeout": ("S", "seconds in which a client that does not read must take something"),
    "waiting_frames": ("N", "frames that may wait for a client that does not read"),
    "waiting_bytes": ("BYTES", "bytes of them"),
}
MAY_BE_0 = {"idle_timeout", "lifetime"}


def checked_limits(given: Mapping[str, Any]) -> Limits:
    """Return the limits with those that were given, ``ws_max_size`` for ``max_size``; raises InvalidConfiguration."""
    limits = {name: given.get(f"ws_{name}", default) for name, default in Limits()._asdict().items()}
    for name, value in limits.items():
        option = f"--ws-{name.replace('_', '-')}"
        if isinstance(value, float):
            check_timeout(option, value)
        if value < 0 or (value == 0 and name not in MAY_BE_0):
            raise InvalidConfiguration(f"{option} takes a number above 0.")
    if limits["silence"] <= limits["ping_interval"]:
        raise InvalidConfiguration(
            "--ws-silence must be longer than --ws-ping-interval: only pongs break a silence."
        )
    limits["max_memory"] = max(limits["max_memory"], 2 * limits["max_size"])
    return Limits(**limits)
