"""What clients may take of the interface server, as options of the command line."""

from __future__ import annotations

from typing import Any

from dbchannels.server.config import FLAGS, Options
from dbchannels.server.limits import HELP, Limits


def add_limit_options(parser: Any) -> None:
    """Add ``--max-body`` and the others for requests, ``--ws-max-size`` and the others for WebSockets."""
    for name, text in FLAGS.items():
        default = Options._field_defaults[name]
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=float if name.endswith("timeout") else int,
            default=None,
            metavar="S" if name.endswith("timeout") else "N",
            help=text if default is None else f"{text} ({default})",
        )
    parser.add_argument(
        "--ws-compression",
        action="store_true",
        help="compress messages of WebSockets, with clients that offer it (no)",
    )
    for name, default in Limits()._asdict().items():
        unit, text = HELP[name]
        parser.add_argument(
            f"--ws-{name.replace('_', '-')}",
            type=type(default),
            default=default,
            metavar=unit,
            help=f"{text} ({default:,})",
        )
