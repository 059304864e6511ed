"""The limits of a WebSocket as options of the command line: the fields of ``interface.limits.Limits``, by name."""

from __future__ import annotations

from typing import Any

from dbchannels.exceptions import InvalidConfiguration
from dbchannels.interface.limits import Limits
from dbchannels.waiting import check_timeout

_HELP = {
    "max_size": ("BYTES", "of one message"),
    "max_fragments": ("N", "frames of one message"),
    "max_pings": ("N", "pings of a client in ten seconds"),
    "ping_interval": ("S", "seconds between two pings of the server"),
    "silence": ("S", "seconds without a byte from a client, pongs included, until it counts as gone"),
    "idle_timeout": ("S", "seconds without a message until a socket is closed; 0: never"),
    "lifetime": ("S", "seconds that a socket may be open; 0: without end"),
    "send_timeout": ("S", "seconds in which a client that does not read must take something"),
    "waiting_frames": ("N", "frames that may wait for a client that does not read"),
    "waiting_bytes": ("BYTES", "bytes of them"),
}
_MAY_BE_0 = {"idle_timeout", "lifetime"}


def add_websocket_options(parser: Any) -> None:
    """Add ``--ws-max-size`` and the others."""
    for name, default in Limits()._asdict().items():
        unit, text = _HELP[name]
        parser.add_argument(
            _option(name), type=type(default), default=default, metavar=unit, help=f"{text} ({default:,g})"
        )


def websocket_limits(options: dict[str, Any]) -> Limits:
    """Return what the command line says; InvalidConfiguration for what cannot be meant."""
    given = {name: options.get(f"ws_{name}", default) for name, default in Limits()._asdict().items()}
    for name, value in given.items():
        if isinstance(value, float):
            check_timeout(_option(name), value)
        if value < 0 or (value == 0 and name not in _MAY_BE_0):
            raise InvalidConfiguration(f"{_option(name)} takes a number above 0.")
    if given["silence"] <= given["ping_interval"]:
        raise InvalidConfiguration(
            "--ws-silence must be longer than --ws-ping-interval: only pongs break a silence."
        )
    return Limits(**given)


def _option(name: str) -> str:
    return "--ws-" + name.replace("_", "-")
