"""A response that is a regular file, from a worker to the server of its process tree: as a descriptor of the file.

The server then reads it at its client's pace. So it does not go through the layer, and the worker is free at once.
"""

from __future__ import annotations

import os
import socket
import stat
from io import BufferedRandom, BufferedReader, FileIO
from typing import Any
from wsgiref.util import FileWrapper

from dbchannels import names
from dbchannels.protocol import CHUNK, FROM_DESCRIPTOR, chunk

SEND_WITHIN = 1.0  # seconds in which the server takes the descriptors before this one


class FileSender:
    """Sends descriptors over a socket that the server has made and its workers have inherited."""

    def __init__(self, queue: str, descriptor: int) -> None:
        """``queue``: the server's, so that of the reply channels of its requests."""
        self._queue = queue
        self._socket = socket.socket(fileno=descriptor)
        self._socket.set_inheritable(False)
        self._socket.settimeout(SEND_WITHIN)

    def send(self, reply_channel: str, head: dict[str, Any], content: object) -> dict[str, Any] | None:
        """Send the file of a response; return the head that goes with it, or None when it is to be sent in chunks."""
        found = regular_file(content) if names.split(reply_channel)[0] == self._queue else None
        if found is None:
            return None
        descriptor, position, size = found
        lengths = [value for name, value in head["headers"] if name.lower() == b"content-length"]
        if len(lengths) > 1 or not all(map(bytes.isdigit, lengths)):
            return None
        length = int(lengths[0]) if lengths else size
        if not CHUNK < length <= size:
            return None
        try:
            socket.send_fds(self._socket, [reply_channel.encode()], [descriptor])
        except OSError:  # the server takes none now
            return None
        added = [] if lengths else [[b"Content-Length", str(length).encode()]]
        head = {**head, "headers": [*head["headers"], *added], **chunk(b"")}
        return {**head, FROM_DESCRIPTOR: [position, length]}


def regular_file(content: object) -> tuple[int, int, int] | None:
    """Return the descriptor, the position and the bytes left of a file that a response consists of.

    None unless these bytes are what would be read: a class of somebody's own, or gzip's, may read something else.
    """
    if type(content) is not FileWrapper:
        return None
    try:
        file: Any = content.filelike.read.__self__  # type: ignore[attr-defined]  # also of what hands on to another's
        raw = file if type(file) is FileIO else file.raw
        if type(file) not in (FileIO, BufferedReader, BufferedRandom) or type(raw) is not FileIO:
            return None
        file.flush()
        position, status = file.tell(), os.fstat(raw.fileno())
        if not raw.readable() or not stat.S_ISREG(status.st_mode):
            return None
    except (AttributeError, OSError, ValueError):
        return None
    return raw.fileno(), position, status.st_size - position
