"""The lines of the access log: their form, and what a stranger can do to it."""

from __future__ import annotations

import json
import re
import time
from datetime import datetime

import pytest

from dbchannels.server import access_log
from dbchannels.server.access_log import FIELD, LINE, Access
from dbchannels.server.http.messages import Request

COMBINED = re.compile(
    r'(?P<client>\S+) - - \[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] "(?P<line>[^"]*)" (?P<status>\S+) '
    r'(?P<size>\S+) "(?P<referer>[^"]*)" "(?P<agent>[^"]*)" (?P<ms>\d+) ms'
)


def parsed(client="192.0.2.1", line="GET / HTTP/1.1", status=200, size=5, seconds=0.0123, headers=None):
    """Write a line and read it as programs do."""
    given = None if headers is None else Request("GET", "/", "1.1", headers, "http", (client, 1), ("", 0))
    found = COMBINED.fullmatch(Access(client, line, status, size, seconds, given).combined())
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


# As JSON.


def read(client="192.0.2.1", line="GET / HTTP/1.1", status=200, size=5, seconds=0.0123, headers=None):
    """Write a line as JSON and read it, as programs do that take a line for an object."""
    given = None if headers is None else Request("GET", "/", "1.1", headers, "http", (client, 1), ("", 0))
    text = Access(client, line, status, size, seconds, given).json()
    assert text.isascii() and text.isprintable()
    return json.loads(text)


def test_a_line_of_json_has_all_fields():
    headers = [
        (b"referer", b"http://a.example/?key=x"),
        (b"user-agent", b"curl/8"),
        (b"user-agent", b"second"),
    ]
    found = read(line="GET /a?token=x&b=c HTTP/1.1", headers=headers)
    assert abs(datetime.fromisoformat(found.pop("time")).timestamp() - time.time()) < 600
    assert found == {
        "event": "request",
        "client": "192.0.2.1",
        "method": "GET",
        "target": "/a?token=***&b=c",
        "version": "1.1",
        "status": 200,
        "bytes": 5,
        "ms": 12.3,
        "referer": "http://a.example/?key=***",
        "user_agent": "curl/8",
    }


def test_a_websocket_says_which_of_its_lines_it_is():
    found = read(line="WSDISCONNECT /chat/ HTTP/1.1", status=1001, size="-", headers=[])
    assert (found["event"], found["status"], found["bytes"]) == ("disconnect", 1001, None)
    assert read(line="WSCONNECT /chat/ HTTP/1.1", status="-")["event"] == "connect"


@pytest.mark.parametrize(
    "text",
    [
        '"}',
        "a\nb",
        "a\r\n{}",
        "\x1b[2J",
        "\x00",
        "\x7f",
        "\x85\x9b",
        "\xe9",
        "\\",
        "\ud800",
        "\udfff\ud800",
        "\u2028",
    ],
)
def test_no_client_can_break_a_line_of_json(text):
    found = read(
        client=text, line=f"GET /{text} HTTP/1.1", headers=[(b"referer", text.encode("utf-8", "replace"))]
    )
    assert found["method"] == "GET" and found["version"] == "1.1"
    assert found["client"] == text.encode("utf-8", "replace").decode()
    json.dumps(found).encode()


def test_what_is_not_known_is_null():
    found = read(client="", line="", headers=[])
    assert {name for name, value in found.items() if value is None} == {
        *("client", "method", "target", "version", "referer", "user_agent"),
    }


def test_long_texts_of_json_are_cut():
    found = read(line=f"GET /{'x' * 5_000} HTTP/1.1", headers=[(b"user-agent", b"y" * 5_000)])
    assert (len(found["target"]), len(found["user_agent"])) == (LINE, FIELD)


@pytest.mark.parametrize("form", [Access.combined, Access.json])
def test_a_websocket_keeps_what_its_lines_show_and_no_more(form):
    long = [(name, b"x" * 8_000) for name in (b"cookie", b"referer", b"user-agent", b"x-other")]
    target = "/chat/?token=" + "y" * 8_000
    request = Request("GET", target, "1.1", long, "http", ("192.0.2.1", 1), ("", 0))
    kept = access_log.log_fields(request)
    assert len(kept.target) + sum(len(value) for _, value in kept.headers) < 3_000

    def line(one):
        shown = form(Access("192.0.2.1", f"WSDISCONNECT {one.target} HTTP/1.1", 1001, "-", 0.1, one))
        return re.sub(r'\[.*?\]|"time": "[^"]*"', "", shown)

    assert line(kept) == line(request)


def test_the_format_is_chosen_once(monkeypatch, caplog):
    monkeypatch.setattr(access_log, "_format", Access.combined)
    access_log.use_format("json")
    with caplog.at_level("INFO", "dbchannels.access"):
        access_log.log_request("192.0.2.1", "GET / HTTP/1.1", 200, 5, 0.01, None)
    assert json.loads(caplog.messages[-1])["target"] == "/"
    assert set(access_log.FORMATS) == {"combined", "json"}
