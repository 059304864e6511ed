"""What one WebSocket may ask of the server, and how long it may stay."""

from __future__ import annotations

from typing import NamedTuple


class Limits(NamedTuple):
    """Times in seconds, sizes in bytes; an ``idle_timeout`` or ``lifetime`` of 0 is none."""

    max_size: int = 1_048_576  # of one message, all fragments together; a larger one closes with 1009
    max_fragments: int = 4096  # of one message: an empty one costs its sender 6 bytes, us a call; 1009
    max_pings: int = 1000  # of the client's in ten seconds; a flood of them closes with 1008
    ping_interval: float = 20.0  # between our pings, with a tenth of jitter
    silence: float = 60.0  # without a byte from the client, pongs included: it is gone, 1006
    idle_timeout: float = 0.0  # without a message in either direction; 1001
    lifetime: float = 0.0  # from its opening; 1001
    send_timeout: float = 20.0  # in which a full socket must take something; 1013
    waiting_frames: int = 64  # for a client that does not read; one more, and it is dropped, 1013
    waiting_bytes: int = 1_048_576  # the same
