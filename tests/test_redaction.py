"""What is secret by its name, and what no client can do to a log."""

from __future__ import annotations

import ast
import importlib
import logging
import pkgutil
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest

import dbchannels
from dbchannels import codec, redaction
from dbchannels.redaction import SECRET_WORDS, UNREADABLE, Lines, escaped, is_secret, mask_query, message_text
from tests.clocks import patch_time

ROOT = Path(dbchannels.__file__).parent
TREES = {path: ast.parse(path.read_text()) for path in ROOT.rglob("*.py")}
LEVELS = {"debug", "info", "warning", "error", "exception", "critical", "log"}


# Names.


SECRET = """Authorization Cookie Proxy-Authorization Set-Cookie X-Api-Key X-Auth-Token X-CSRF-Token X-CSRFToken
    X-Amz-Security-Token Sec-WebSocket-Protocol Cf-Access-Jwt-Assertion accessToken resetToken token[] x%5Ftoken
    user[password] pass pin csrfmiddlewaretoken user_pass api.key APIKey SAMLResponse ID_TOKEN access-token token2
    sessionid code clientSecret x%5ftoken reset+token PRIVATEKEY mfa sessid sid"""
SHOWN = """passenger pinned postcode keyword monkey author tokens compass spin X-Forwarded-For Host state next q encoder
    authorName Content-Type sessions_count tokenizer"""


@pytest.mark.parametrize("name", SECRET.split())
def test_a_name_with_a_secret_word_is_secret(name):
    assert is_secret(name)
    assert "-" not in name or is_secret(name.lower())  # as the server hands on headers


@pytest.mark.parametrize("name", SHOWN.split())
def test_a_name_that_only_contains_one_is_not(name):
    assert not is_secret(name)


@pytest.mark.parametrize(
    ("address", "masked"),
    [
        ("/a?token=x", "/a?token=***"),
        ("/a?b=c&token=x&d=e HTTP/1.1", "/a?b=c&token=***&d=e HTTP/1.1"),
        ("/a?access_token=x", "/a?access_token=***"),
        ("/a?TOKEN=x", "/a?TOKEN=***"),
        ("/a?x%5Ftoken=x&token[]=y", "/a?x%5Ftoken=***&token[]=***"),
        ("/a?x-amz-signature=x", "/a?x-amz-signature=***"),
        ("/a?api.key=x;session-id=y", "/a?api.key=***;session-id=***"),
        ("/a?password=x=y", "/a?password=***"),
        ("/a?password=x?y#z&b=c", "/a?password=***&b=c"),
        ("/a?password=x y HTTP/1.1", "/a?password=*** HTTP/1.1"),
        ("/reset?code=1&state=2", "/reset?code=***&state=2"),
        ("/back#access_token=x", "/back#access_token=***"),
        ("/in?next=/a?token=x", "/in?next=/a?token=***"),
        ("/in?next=%2Fa%3Ftoken%3Dx&b=c", "/in?next=***&b=c"),
        ("/in?next=%252Fa%253Ftoken%253Dx", "/in?next=***"),
        ("/in?token%3Dx", "/in?***"),
        ("/in?next=%2Fa%3Fb%3Dx", "/in?next=%2Fa%3Fb%3Dx"),
        ("/a?keyword=x&postcode=1&tokens=2", "/a?keyword=x&postcode=1&tokens=2"),
        ("/a?b=token", "/a?b=token"),
        ("/a?token", "/a?token"),
        ("/a?token=", "/a?token="),
        ("/token=x", "/token=x"),
        ("/a", "/a"),
    ],
)
def test_what_is_secret_by_its_name_is_masked(address, masked):
    assert mask_query(address) == masked


@pytest.mark.parametrize(
    "message",
    [
        {"headers": [[b"x-api-key", b"pr1vate"], ["X-Auth-Token", "pr1vate"]]},
        {"headers": [[b"sec-websocket-protocol", b"chat, pr1vate"]]},
        {"headers": {"X-Amz-Security-Token": "pr1vate"}},
        {"headers": [[b"x-original-url", b"/a?resetToken=pr1vate"]]},
        {"form": {"csrfmiddlewaretoken": "pr1vate", "user_pass": "pr1vate", "pin": 47_11_08_15}},
        {"query_string": b"accessToken=pr1vate"},
        {"fields": [["password", "pr1vate"]], "auth": {"basic": "pr1vate"}},
    ],
)
def test_messages_and_dead_letters_are_masked(message):
    text = message_text("mails", codec.encode(message))
    assert "pr1vate" not in text and "47110815" not in text


def test_what_a_message_counts_is_shown():
    message = {"code": 4001, "order": 7, "key": 12, "token": None, "passenger": "Ada", "words": ["code"]}
    assert message_text("websocket.disconnect", codec.encode(message)) == repr(message)


@pytest.mark.parametrize("head", [b"\x91", b"\x92\xa1a", b"\x92\xa5token"])
def test_a_message_is_shown_as_deep_as_it_can_be_encoded(head):
    """Whatever the version of Python: its own limit is another one in each."""

    def shown(levels):
        return message_text("own", b"\x81\xa1a" + head * levels + b"\x01", pretty=False)

    secret = b"token" in head
    assert (UNREADABLE in shown(codec.MAX_DEPTH - 1)) is False
    assert (UNREADABLE in shown(codec.MAX_DEPTH)) is (not secret)  # what is masked is not looked into


# Logs.


EVIL = "a\r\n2026-11-28 ERROR forged\x1b[2J\x9b\u202e\x00"


class Evil(Exception):
    """What a consumer may raise about a text of its client's."""


@pytest.fixture
def log(caplog):
    """Return a logger of ours; its lines are what logging's own formatter makes."""
    caplog.handler.setFormatter(logging.Formatter())
    return logging.getLogger("dbchannels.server")


def is_harmless(text):
    return all(line.isprintable() for line in text.split("\n")) and not [
        line for line in text.split("\n")[1:] if not line.startswith("    ")
    ]


@pytest.mark.parametrize(
    "argument", [EVIL, Evil(EVIL), EVIL.encode(), Lines(f"one\n{EVIL}"), (EVIL,), Lines("")]
)
def test_no_text_of_a_client_begins_a_line_or_steers_a_terminal(log, caplog, argument):
    log.warning("Refused %s after %d.", argument, 7)
    assert is_harmless(caplog.text.rstrip("\n"))
    assert caplog.messages[0].startswith("Refused ") and caplog.messages[0].endswith(" after 7.")


def test_a_traceback_is_escaped(log, caplog):
    try:
        raise Evil(EVIL)
    except Evil:
        log.exception("The site's application raised an error.")
    assert is_harmless(caplog.text.rstrip("\n"))
    assert "    Traceback (most recent call last):" in caplog.text and "forged" in caplog.text


def test_what_prints_is_left_and_what_is_long_is_cut():
    assert escaped('Relation \xbbf\xfc\xab, "x"') == 'Relation \xbbf\xfc\xab, "x"'
    assert escaped("\x1b" + "x" * 5_000, 10) == "\\x1bxxx..."


def test_every_logger_of_ours_escapes():
    for module in pkgutil.walk_packages(dbchannels.__path__, "dbchannels."):
        if not module.name.startswith("dbchannels.testing.p"):
            optional = module.name.startswith(("dbchannels.tasks.", "dbchannels.layers.channels"))
            with suppress(ImportError) if optional else nullcontext():  # of an extra
                importlib.import_module(module.name)
    names = [name for name in logging.root.manager.loggerDict if f"{name}.".startswith("dbchannels.")]
    assert len(names) > 5
    for name in names:
        found = logging.getLogger(name)
        assert redaction._ESCAPE in found.filters, f"add {name} to redaction.escape_logs"


def log_calls():
    """Yield each log call of the package with its place."""
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in LEVELS
                and ast.unparse(node.func.value) in ("log", "logger", "logging")
            ):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def test_the_text_of_each_log_call_is_constant():
    """See dbchannels/redaction.py: what comes from a client is an argument, and so it is escaped."""
    calls = list(log_calls())
    assert len(calls) > 30
    for place, call in calls:
        text = call.args[0]
        constant = isinstance(text, ast.Constant) or (isinstance(text, ast.Name) and text.id.isupper())
        assert constant, f"{place}: pass what is not constant as an argument"


def test_the_list_of_words_is_one_of_words():
    assert all(redaction._WORD.findall(word) == [word] for word in SECRET_WORDS)


# One line for many events.


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""

    class Clock:
        now = 1000.0

    patch_time(monkeypatch, redaction, monotonic=lambda: Clock.now)
    return Clock


@pytest.fixture
def limited():
    return redaction.RateLimitedLog(
        logging.getLogger("tests"), "%d full, %d empty, the last %s.", "full", "empty", every=60.0
    )


def test_events_are_logged_once_by_two_threads_that_flush_at_once(limited, caplog):
    class Other(logging.Handler):
        def emit(self, record):  # while the one logs, as a worker's watchdog may while its main thread does
            limited.flush()

    other, log = Other(), logging.getLogger("tests")
    log.addHandler(other)
    limited.count("full", "a")
    log.removeHandler(other)
    assert caplog.messages == ["1 full, 0 empty, the last a."]


def test_the_first_event_is_logged_at_once_and_later_ones_together(clock, limited, caplog):
    limited.count("full", "a")
    assert caplog.messages == ["1 full, 0 empty, the last a."]
    for _ in range(50):
        clock.now += 1
        limited.count("full", "b")
        limited.count("empty", "c", number=2)
    assert len(caplog.messages) == 1
    clock.now += 10
    limited.count(number=0)
    assert caplog.messages[1:] == ["50 full, 100 empty, the last c."]
    clock.now += 100
    limited.count(number=0)
    assert len(caplog.messages) == 2


def test_after_a_quiet_time_the_next_event_is_logged_at_once(clock, limited, caplog):
    limited.count("full", "a")
    clock.now += 3600
    limited.count("full", "b")
    assert caplog.messages == ["1 full, 0 empty, the last a.", "1 full, 0 empty, the last b."]


def test_what_was_not_logged_is_logged_in_the_end(clock, limited, caplog):
    limited.count("full", "a")
    limited.count("full", "b")
    limited.flush()
    limited.flush()
    assert caplog.messages == ["1 full, 0 empty, the last a.", "1 full, 0 empty, the last b."]


def test_without_an_event_nothing_is_logged(clock, limited, caplog):
    limited.count(number=0)
    limited.flush()
    assert caplog.messages == []
