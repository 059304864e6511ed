"""What servers and workers tell each other, and that no other module writes it down a second time."""

from __future__ import annotations

from pathlib import Path

import pytest

import dbchannels
from dbchannels import protocol
from dbchannels.exceptions import WebSocketCloseException
from dbchannels.protocol import SENTENCES, failure_status, reason_phrase, status_reply
from dbchannels.server.http.messages import response_head

ROOT = Path(dbchannels.__file__).parent


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        ({"error": "consumer"}, 500),
        ({"lost": "worker died", "channel": "http.request"}, 502),
        ({"lost": "expired", "channel": "http.request"}, 504),
        ({"lost": "full", "channel": "http.request"}, 503),
        ({"status": 200}, None),
        ({"content": b"", "more_content": True}, None),
    ],
)
def test_replies_that_say_that_no_response_will_come(reply, status):
    assert failure_status(reply) == status


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
