"""The lines of the access log: their form, and what a stranger can do to it."""

from __future__ import annotations

import re

import pytest

from dbchannels.server.access_log import FIELD, LINE, access_line
from dbchannels.server.http.messages import Request

COMBINED = re.compile(
    r'(?P<client>\S+) - - \[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] "(?P<line>[^"]*)" (?P<status>\S+) '
    r'(?P<size>\S+) "(?P<referer>[^"]*)" "(?P<agent>[^"]*)" (?P<ms>\d+) ms'
)


def parsed(client="192.0.2.1", line="GET / HTTP/1.1", status=200, size=5, seconds=0.0123, headers=None):
    """Write a line and read it as programs do."""
    given = None if headers is None else Request("GET", "/", "1.1", headers, "http", (client, 1), ("", 0))
    found = COMBINED.fullmatch(access_line(client, line, status, size, seconds, given))
    assert found
    return found.groupdict()


def test_a_line_has_the_combined_format_and_the_milliseconds():
    headers = [(b"referer", b"http://a.example/"), (b"user-agent", b"curl/8"), (b"user-agent", b"second")]
    assert parsed(headers=headers) == {
        "client": "192.0.2.1",
        "line": "GET / HTTP/1.1",
        "status": "200",
        "size": "5",
        "referer": "http://a.example/",
        "agent": "curl/8",
        "ms": "12",
    }


def test_what_is_not_known_is_a_hyphen():
    assert parsed(client="", headers=[]) | {"ms": ""} == parsed(client="-") | {"ms": ""}
    assert (parsed()["referer"], parsed()["agent"]) == ("-", "-")


@pytest.mark.parametrize(
    "text",
    ['" 200 5 "', "a\nb", "a\r\n192.0.2.9 - -", "\x1b[2J", "\x00", "\x7f", "\x85\x9b", "\xe9", "\\x22", "\\"],
)
def test_no_client_can_leave_its_field_or_its_line(text):
    data = text.encode("latin-1")
    found = parsed(line=text, headers=[(b"referer", data), (b"user-agent", data)])
    assert found["line"] == found["referer"] == found["agent"]
    assert found["line"].isprintable() and found["line"].isascii() and found["line"] != text


def test_a_long_text_is_cut():
    found = parsed(line="x" * 5_000, headers=[(b"referer", b"\x01" * 5_000), (b"user-agent", b"y" * 5_000)])
    assert [len(found[name]) for name in ("line", "referer", "agent")] == [LINE, FIELD, FIELD]
    assert found["line"].endswith("...")
    assert parsed(line="x" * LINE)["line"] == "x" * LINE


def test_an_address_has_no_secrets():
    found = parsed(line="GET /a?token=x&b=c HTTP/1.1", headers=[(b"referer", b"http://a/?key=x")])
    assert (found["line"], found["referer"]) == ("GET /a?token=***&b=c HTTP/1.1", "http://a/?key=***")
