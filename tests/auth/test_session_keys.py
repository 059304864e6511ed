"""Where a session's key comes from, and where not."""

from __future__ import annotations

import pytest
from django.http import parse_cookie

from dbchannels.auth.sessions import read_cookies, session_key
from dbchannels.layers.operations import Connect, session_digest

KEY = "abcdefgh12345678"


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ([], ""),
        ([[b"cookie", b""]], ""),
        ([[b"cookie", b"sessionid=" + KEY.encode()]], KEY),
        ([[b"host", b"h"], [b"cookie", b"a=b; sessionid=" + KEY.encode() + b"; c=d"]], KEY),
        ([[b"cookie", b"a=b"], [b"cookie", b"sessionid=" + KEY.encode()]], KEY),
        ([(b"cookie", b"sessionid=" + b"x:y" * 100)], "x:y" * 100),
        ([[b"cookie", b"sessionid=short"]], ""),
        ([[b"cookie", b"sessionid=" + b"x" * 4097]], ""),
        ([[b"cookie", b"sessionid=abcdefgh\xff1234567"]], ""),
        ([[b"cookie", b"sessionid=abcdefgh\x001234567"]], ""),
        ([[b"x-cookie", b"sessionid=" + KEY.encode()]], ""),
        ([[b"referer", b"http://h/?sessionid=" + KEY.encode()]], ""),
        ([[b"cookie", b"Sessionid=" + KEY.encode()]], ""),
    ],
)
def test_it_is_the_cookies_value(headers, key):
    assert session_key(headers) == key


@pytest.mark.parametrize(
    "cookies",
    [
        'sessionid="abcdefgh12345678"',
        r'sessionid="abcd\"efgh\\1234\0565678\q"',
        r'sessionid="abcdefgh12345678\"',
        'sessionid="abcdefgh12345678',
        "sessionid=abcdefgh=12345678==",
        " sessionid = abcdefgh12345678 ; a",
        "sessionid=abcdefgh12345678; sessionid=later_12345678",
        "sessionid; sessionid=",
        "sessionid",
        ";;=;=a;",
        'sessionid="',
        'a="",b=""; c="" ; ="x"',
        '""',
        "",
    ],
)
def test_cookies_are_those_that_django_finds(cookies):
    assert read_cookies(cookies) == parse_cookie(cookies)


def test_the_cookie_has_the_sites_name_for_it(settings):
    settings.SESSION_COOKIE_NAME = "ours"
    assert session_key([[b"cookie", b"sessionid=12345678; ours=" + KEY.encode()]]) == KEY


def test_a_record_has_the_digest_beside_the_key():
    fields = Connect("reply.a!b", "s", "/", KEY).fields()
    assert (fields["session_key"], fields["login"]) == (KEY, "")
    assert fields["session_digest"] == session_digest(KEY) != session_digest(KEY + "x")
    assert len(fields["session_digest"]) == 64
    fields = Connect("reply.a!b", "s", "/").fields()
    assert (fields["session_key"], fields["session_digest"], fields["login"]) == ("", "", "-")
