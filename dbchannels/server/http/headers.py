"""Header fields, pure: what names, values and hosts look like (RFC 9110 section 5), and how lists of fields are read.

A pattern of a name, a value or a host is a function that returns a match or None for a whole text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

#: As a client sent them, and messages hold them: names in lower case, order and duplicates kept.
RawHeaders = Sequence[tuple[bytes, bytes]]
Headers = Iterable[tuple[str, str]]

TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # section 5.6.2
is_token = re.compile(TOKEN).fullmatch
is_token_bytes = re.compile(TOKEN.encode()).fullmatch

# One line. Any other control character could end it, and begin another header or answer.
_VALUE = r"[\t\x20-\x7e\x80-\xff]*"
is_value = re.compile(_VALUE).fullmatch
is_value_bytes = re.compile(_VALUE.encode("latin-1")).fullmatch

#: A host as browsers and proxies name it, and perhaps a port. User information, a path and a query are refused.
HOST = r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{0,5}))?"
match_host = re.compile(HOST).fullmatch


def values(headers: RawHeaders, name: bytes) -> list[bytes]:
    return [value for key, value in headers if key == name]


def split_list(values: Iterable[bytes]) -> list[bytes]:
    """Return the items of a header that is a list, and of its repetitions, in order. Some may be empty."""
    return [item.strip(b" \t") for value in values for item in value.split(b",")]


def items(headers: RawHeaders, name: bytes) -> list[bytes]:
    """Return the items of a header that is a list. Empty ones do not count (RFC 9110 section 5.6.1)."""
    return list(filter(None, split_list(values(headers, name))))


def words(headers: RawHeaders, name: bytes) -> list[bytes]:
    return [item.lower() for item in items(headers, name)]


def validate(headers: Headers, reserved: re.Pattern[str]) -> list[tuple[str, str]]:
    """Return the headers. Raise ValueError for one that is not a single line, or is the server's own to send."""
    headers = list(headers)
    for name, value in headers:
        if not isinstance(name, str) or not is_token(name):
            raise ValueError(f"A header cannot be called {name!a:.60}: use letters, digits and hyphens.")
        if reserved.fullmatch(name):
            raise ValueError(f"The header {name} is the server's own to send: leave it out.")
        if not isinstance(value, str) or not is_value(value):
            raise ValueError(f"The header {name} is not one line of latin-1 text: encode its value first.")
    return headers
