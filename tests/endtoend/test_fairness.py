"""Clients that keep their connections: none of them is served at the others' cost."""

from __future__ import annotations

import selectors
import socket

import pytest

from tests.harness import HOST, Served, connect

pytestmark = pytest.mark.postgresql

REQUEST = f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
END = b"\r\n\r\nhello"
CLIENTS, EACH = 32, 30
AHEAD = 20  # requests that a greedy client has sent before the first is answered


def ask_all(served: Served, ahead: list[int]) -> list[int]:
    """Let each client have so many requests on the way all the time; return the answers when all have some.

    It ends with the answer that makes them EACH on average, so all have asked all the time.
    """
    clients = {connect(served.port): number for number in ahead}
    answers, rests = dict.fromkeys(clients, 0), dict.fromkeys(clients, b"")
    with selectors.DefaultSelector() as selector:
        for client, number in clients.items():
            selector.register(client, selectors.EVENT_READ)
            client.sendall(REQUEST * number)
        while sum(answers.values()) < EACH * len(clients):
            for key, _ in selector.select(20):
                client = key.fileobj
                assert isinstance(client, socket.socket)
                *whole, rests[client] = (rests[client] + client.recv(65_536)).split(END)
                found = len(whole)
                answers[client] += found
                client.sendall(REQUEST * found)
    return list(answers.values())


def test_thirty_two_clients_get_about_the_same(served):
    answers = ask_all(served, [1] * CLIENTS)
    assert min(answers) >= EACH / 3, sorted(answers)


def test_one_that_sends_twenty_requests_at_once_has_no_more_than_its_turns(served):
    answers = ask_all(served, [AHEAD, *[1] * (CLIENTS - 1)])
    assert min(answers) >= EACH / 3, answers
    assert answers[0] <= 5 * EACH, answers  # its twenty to one would be 20 * EACH
