"""The key of a client's HTTP session: the value of its session cookie, and of nothing else that it sends."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from django.conf import settings
from django.http.cookie import parse_cookie

# Keys of Django's have 32 letters and digits; a session in a cookie has up to 4 KiB of printable ASCII.
_KEY = re.compile(r"\A[!-~]{8,4096}\Z")


def session_key(headers: Iterable[Sequence[bytes]]) -> str:
    """Return the session's key by a request's headers, (lower-case name, value); "" when there is no usable one."""
    cookies = "; ".join(value.decode("latin-1") for name, value in headers if name == b"cookie")
    key = parse_cookie(cookies).get(settings.SESSION_COOKIE_NAME, "") if cookies else ""
    return key if _KEY.match(key) else ""
