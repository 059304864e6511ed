"""What servers and workers tell each other, and that no other module writes it down a second time."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import dbchannels
from dbchannels import protocol
from dbchannels.exceptions import WebSocketCloseException
from dbchannels.protocol import SENTENCES, failure_reply, is_failure, reason_phrase, status_reply
from dbchannels.server.http.messages import response_head

ROOT = Path(dbchannels.__file__).parent


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        ({"error": "consumer"}, 500),
        ({"lost": "worker died", "channel": "http.request"}, 502),
        ({"lost": "expired", "channel": "http.request"}, 504),
        ({"lost": "full", "channel": "http.request"}, 503),
    ],
)
def test_replies_that_say_that_no_response_will_come(reply, status):
    assert is_failure(reply) and failure_reply(reply) == status_reply(status)


@pytest.mark.parametrize("reply", [{"status": 200}, {"content": b"", "more_content": True}])
def test_a_response_is_no_failure(reply):
    assert not is_failure(reply)


@pytest.mark.parametrize("status", [400, 500, 502, 503, 504])
def test_a_failure_is_one_sentence_of_plain_text(status):
    failure = status_reply(status)
    head = response_head(failure, "GET")
    assert head.status == f"{status} {reason_phrase(status)}"
    assert dict(head.headers)["Content-Type"] == "text/plain; charset=utf-8"
    assert failure["content"].endswith(b".\n") and failure["content"].count(b"\n") == 1
    assert failure["content"].decode().strip() == SENTENCES.get(status, "Bad Request.")


def test_what_passes_says_when_to_try_again():
    retry = {
        status: dict(response_head(status_reply(status), "GET").headers).get("Retry-After")
        for status in SENTENCES
        if status >= 500
    }
    assert retry == {500: None, 502: None, 503: "5", 504: "5"}


def test_a_failure_can_have_a_sentence_of_its_own():
    assert status_reply(400, "No é.")["content"] == "No é.\n".encode()


def test_codes_that_a_close_may_carry():
    sendable = [code for code in range(6000) if protocol.is_close_code(code)]
    assert sendable == [*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)]
    with pytest.raises(ValueError, match="1006"):
        WebSocketCloseException(protocol.VANISHED)


# --- nobody writes it down a second time

WORDS = {
    protocol.LOST,
    protocol.FINISHED,
    protocol.AGAIN,
    protocol.MORE_CONTENT,
    protocol.FROM_DESCRIPTOR,
    protocol.WORKER_DIED,
    protocol.SERVER_STOPS,
    protocol.DECLARED_DEAD,
    protocol.BROKEN_OFF,
    protocol.flow_channel(""),
    protocol.body_channel(""),
}
#: Words that mean something else in other places: looked for where a message's keys stand, in servers and workers.
KEYS = {
    protocol.LATER,
    protocol.TAKEN,
    protocol.ERROR,
    protocol.CLOSED,
    protocol.UNTIL,
    protocol.OFFSET,
}
#: 1000 is a common number, and looked for only as a code.
CODES = {
    value
    for name, value in vars(protocol).items()
    if name.isupper() and isinstance(value, int) and 1000 < value < 5000
}
SIZES = {"CHUNK", "WINDOW", "STALLED", "REPORT_EVERY", "REPORT_AFTER", "FULL_PAUSE"}


def constants(node, kind):
    """Yield the constants of a type in a node."""
    return (one for one in ast.walk(node) if isinstance(one, ast.Constant) and type(one.value) is kind)


def written_again(source, sides):
    """Yield the lines that have in them what the protocol defines; ``sides``: it is a server's or a worker's."""
    tree = ast.parse(source)
    for one in constants(tree, str):
        if one.value in WORDS or (sides and one.value in protocol.KINDS):
            yield one.lineno
    for one in constants(tree, int):
        if one.value in CODES or (sides and one.value == protocol.CHUNK):
            yield one.lineno
    for node in ast.walk(tree):
        if isinstance(node, ast.arguments):
            arguments = [*node.posonlyargs, *node.args][::-1]
            for argument, default in zip(arguments, node.defaults[::-1], strict=False):
                if argument.arg == "code" and getattr(default, "value", None) == 1000:
                    yield default.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in SIZES:
            yield node.lineno
    if sides:
        yield from (key.lineno for key in message_keys(tree) if getattr(key, "value", None) in KEYS)


def message_keys(tree):
    """Yield what stands where the key of a message can: in a dict, in brackets, in ``get`` and in front of ``in``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            yield from filter(None, node.keys)
        elif isinstance(node, ast.Subscript):
            yield node.slice
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "get":
            yield from node.args[:1]
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.In, ast.NotIn)):
            yield node.left


@pytest.mark.parametrize(
    "source",
    [
        'reply = {"lost": why}',
        'if why == "worker died": pass',
        'channel = f"http.flow?{local}"',
        'self.close(1011, "")',
        'def close(self, code: int = 1000, reason=""): pass',
        "WINDOW = 2 * 1024",
        "part = read(131_072)",
        'if report.get("closed"): pass',
        'if "later" in message: pass',
        'message["taken"]',
        'wake({"d"})',
    ],
)
def test_what_is_written_again_is_found(source):
    assert list(written_again(source, sides=True)) == [1]


@pytest.mark.parametrize(
    "source",
    ['if state == "closed": pass', '"""Closed with 1011: the worker died."""', "limit = 1000", "use(WINDOW)"],
)
def test_what_only_looks_like_it_is_not(source):
    assert list(written_again(source, sides=True)) == []


def test_no_other_module_writes_it_again():
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        part = path.relative_to(ROOT)
        if part.parts[0] != "protocol.py" and not {"migrations", "contract"} & set(part.parts):
            sides = part.parts[0] in ("server", "worker", "layers", "processes")
            found += [f"{part}:{line}" for line in written_again(path.read_text(), sides)]
    assert found == []
