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

from dbchannels.redaction import log_field, mask_query
from dbchannels.server.http.messages import Request

log = logging.getLogger("dbchannels.access")

LINE, FIELD = 500, 200  # characters of a request line and of a header that a line may hold


def access_line(
    client: str,
    line: str,
    status: object,
    size: object,
    seconds: float,
    request: Request | None = None,
) -> str:
    """Return one line of the log. ``line`` is what the client sent; ``request`` has its headers, if they were read."""
    headers = dict(reversed(request.headers)) if request is not None else {}  # the first of each name
    referer, agent = (headers.get(name, b"-").decode("latin-1") for name in (b"referer", b"user-agent"))
    date = _date_at(int(time.time()))
    return (
        f'{log_field(client, FIELD) or "-"} - - [{date}] "{log_field(line, LINE)}" {status} {size} '
        f'"{log_field(referer, FIELD)}" "{log_field(agent, FIELD)}" {seconds * 1000:.0f} ms'
    )


def json_line(
    client: str,
    line: str,
    status: object,
    size: object,
    seconds: float,
    request: Request | None = None,
) -> str:
    """Return the same as an object of JSON, in ASCII; what is not known is null.

    ``method`` is WSCONNECT or WSDISCONNECT for the first and the last line of a WebSocket, and ``event`` is
    ``connect``, ``disconnect`` or ``request``.
    """
    headers = dict(reversed(request.headers)) if request is not None else {}
    method, target, version = [*line.split(" ", 2), "", ""][:3]
    fields = {
        "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        "event": {"WSCONNECT": "connect", "WSDISCONNECT": "disconnect"}.get(method, "request"),
        "client": _json_field(client, FIELD),
        "method": _json_field(method, FIELD),
        "target": _json_field(target, LINE),
        "version": _json_field(version.removeprefix("HTTP/"), FIELD),
        "status": status if isinstance(status, int) else None,
        "bytes": size if isinstance(size, int) else None,
        "ms": round(seconds * 1000, 1),
    }
    for name in (b"referer", b"user-agent"):
        fields[name.decode().replace("-", "_")] = _json_field(headers.get(name, b"").decode("latin-1"), FIELD)
    return json.dumps(fields).replace("\x7f", "\\u007f")


def _json_field(text: str, most: int) -> str | None:
    """Return a text from a client, masked and cut; a lone surrogate, which no JSON may have, as a question mark."""
    masked = mask_query(text[: 2 * most])
    shown = masked if len(masked) <= most else f"{masked[: most - 3]}..."
    return shown.encode("utf-8", "replace").decode() or None


FORMATS: dict[str, Callable[..., str]] = {"combined": access_line, "json": json_line}
_format = access_line


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
        _write(_format(client, line, status, size, seconds, request))


def log_websocket(event: str, request: Request, status: object, seconds: float) -> None:
    """Log ``WSCONNECT`` or ``WSDISCONNECT``."""
    if log.isEnabledFor(logging.INFO):
        line = f"{event} {request.target} HTTP/{request.http_version}"
        _write(_format(request.client[0], line, status, "-", seconds, request))


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
