"""The access log, pure: what one line says, for the logger ``dbchannels.access``.

Lines have the combined log format of Apache and nginx, and end with the milliseconds that the request took. A WebSocket
has three: one when it asks (WSCONNECT), one with the answer, 101 or a refusal, as for any request, and one at its end
(WSDISCONNECT, with the close code in place of the status). With ``--access-log-format json`` each line is an object.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from datetime import datetime, timezone
from functools import lru_cache
from typing import NamedTuple

from dbchannels.redaction import log_field, mask_query
from dbchannels.server.http.messages import Request

log = logging.getLogger("dbchannels.access")

LINE, FIELD = 500, 200  # characters of a request line and of a header that a line may hold


class Access(NamedTuple):
    """What a line of the log says; each method returns the line in one format."""

    client: str
    line: str  # what the client sent
    status: object
    size: object  # bytes, or "-"
    seconds: float
    request: Request | None = None  # has the headers, if they were read

    def combined(self) -> str:
        """Return the line in the combined log format."""
        date = _date_at(int(time.time()))
        referer, agent = (self._header(name) or "-" for name in (b"referer", b"user-agent"))
        return (
            f'{log_field(self.client, FIELD) or "-"} - - [{date}] "{log_field(self.line, LINE)}" {self.status} '
            f'{self.size} "{log_field(referer, FIELD)}" "{log_field(agent, FIELD)}" {self.seconds * 1000:.0f} ms'
        )

    def json(self) -> str:
        """Return an object of JSON, in ASCII; what is not known is null.

        ``method`` is WSCONNECT or WSDISCONNECT for the first and the last line of a WebSocket, and ``event`` is
        ``connect``, ``disconnect`` or ``request``.
        """
        method, target, version = [*self.line.split(" ", 2), "", ""][:3]
        fields = {
            "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "event": {"WSCONNECT": "connect", "WSDISCONNECT": "disconnect"}.get(method, "request"),
            "client": _json_field(self.client, FIELD),
            "method": _json_field(method, FIELD),
            "target": _json_field(target, LINE),
            "version": _json_field(version.removeprefix("HTTP/"), FIELD),
            "status": self.status if isinstance(self.status, int) else None,
            "bytes": self.size if isinstance(self.size, int) else None,
            "ms": round(self.seconds * 1000, 1),
            "referer": _json_field(self._header(b"referer"), FIELD),
            "user_agent": _json_field(self._header(b"user-agent"), FIELD),
        }
        return json.dumps(fields).replace("\x7f", "\\u007f")

    def _header(self, name: bytes) -> str:
        headers = self.request.headers if self.request is not None else []
        return next((value for one, value in headers if one == name), b"").decode("latin-1")


def _json_field(text: str, most: int) -> str | None:
    """Return a text from a client, masked and cut; a lone surrogate, which no JSON may have, as a question mark."""
    masked = mask_query(text[: 2 * most])
    shown = masked if len(masked) <= most else f"{masked[: most - 3]}..."
    return shown.encode("utf-8", "replace").decode() or None


FORMATS: dict[str, Callable[[Access], str]] = {"combined": Access.combined, "json": Access.json}
_format: Callable[[Access], str] = Access.combined


def use_format(name: str) -> None:
    """Write all further lines in one of the FORMATS."""
    global _format
    _format = FORMATS[name]


def log_request(
    client: str, line: str, status: int, size: int, seconds: float, request: Request | None
) -> None:
    """Log the response to a request or a handshake; ``client`` and ``line`` serve where there is no Request."""
    if log.isEnabledFor(logging.INFO):
        if request is not None:
            client, line = request.client[0], f"{request.method} {request.target} HTTP/{request.http_version}"
        _write(_format(Access(client, line, status, size, seconds, request)))


def log_websocket(event: str, request: Request, status: object, seconds: float) -> None:
    """Log ``WSCONNECT`` or ``WSDISCONNECT``."""
    if log.isEnabledFor(logging.INFO):
        line = f"{event} {request.target} HTTP/{request.http_version}"
        _write(_format(Access(request.client[0], line, status, "-", seconds, request)))


def log_fields(request: Request) -> Request:
    """Return a request with no more than the log shows: a WebSocket keeps it as long as it is open."""
    shown = (b"referer", b"user-agent")
    headers = [(name, value[: 2 * FIELD]) for name, value in request.headers if name in shown]
    return request._replace(target=request.target[: 2 * LINE], headers=headers)


def _write(line: str) -> None:
    """Hand a line to the log, without the search for the place that it comes from: there is one."""
    log.handle(log.makeRecord(log.name, logging.INFO, __file__, 0, line, (), None))


@lru_cache(2)
def _date_at(second: int) -> str:
    return time.strftime("%d/%b/%Y:%H:%M:%S %z", time.localtime(second))


class TerminalFormatter(logging.Formatter):
    """Adds the date to each line of the log on the terminal, except to those of the access log, which have one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        return record.getMessage() if record.name == "dbchannels.access" else super().format(record)
