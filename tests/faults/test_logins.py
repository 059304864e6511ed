"""Fault 25: a login ends, and with it the WebSockets that were opened by it, in five seconds; and 4, what is kept."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.endtoend.conftest import emptied, migrated, postgresql_database
from tests.harness import LiveSite, Served, Socket, until
from tests.soak.logins import CHANGES, PATHS, PROMISED, log_in, logins, who
from tests.soak.sites import options

pytestmark = pytest.mark.postgresql

LOOK = "from django.contrib.auth.models import User\n"


def forget_users(site: LiveSite) -> None:
    """Delete all users and their sessions."""
    for table in ("django_session", "auth_user"):
        site.rows(f"DELETE FROM {table}")


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with two workers for the tests that leave it at work."""
    site = migrated(postgresql_database("dbchannels_logins"), tmp_path_factory.mktemp("logins"))
    try:
        yield site.serve("--workers", "2")
    finally:
        site.end()


@pytest.fixture
def served(lasting: Served) -> Served:
    """That server, without users and without connections of earlier tests."""
    forget_users(emptied(lasting).site)
    return lasting


def code(socket: Socket) -> int | None:
    """Wait for the close of the connection, and no longer than is promised."""
    assert socket.receive(PROMISED) is None
    return socket.close_code


@pytest.mark.parametrize("path", ["/who/", "/quiet/"])
def test_a_logout_closes_that_sessions_sockets(served: Served, path: str) -> None:
    anna, again, bert = log_in(served, "anna"), log_in(served, "anna"), log_in(served, "bert")
    closed = [served.socket(path, Cookie=anna) for _ in range(2)]
    others = [served.socket(path, Cookie=cookie) for cookie in (again, bert)]
    if path == "/who/":
        assert [who(one) for one in (*closed, *others)] == ["anna", "anna", "anna", "bert"]
    assert served.get("/log-out", Cookie=anna).text == "out"
    assert [code(one) for one in closed] == [4401, 4401]
    assert [one.is_open() for one in others] == [True, True]


@pytest.mark.parametrize(
    "change",
    [
        "anna = User.objects.get(username='anna'); anna.is_active = False; anna.save()",
        "anna = User.objects.get(username='anna'); anna.set_password('another'); anna.save()",
        "User.objects.get(username='anna').delete()",
    ],
    ids=["deactivated", "password", "deleted"],
)
def test_a_change_of_the_user_closes_them_too_from_any_process(served: Served, change: str) -> None:
    sockets = [served.socket("/who/", Cookie=log_in(served, name)) for name in ("anna", "bert")]
    asked = served.socket("/who/", Cookie=log_in(served, "anna"))
    assert who(asked) == "anna"
    served.site.shell(LOOK + change)
    assert (code(sockets[0]), code(asked)) == (4401, 4401)
    assert who(sockets[1]) == "bert"


def test_of_several_who_change_at_once_each_is_closed(served: Served) -> None:
    found = logins(served, 3)
    assert found.codes == {4401: 3 * len(PATHS) * (1 + len(CHANGES))}
    assert (found.kept, found.forged) == (3 * len(PATHS), False)


def test_a_session_that_was_deleted_unsaid_is_seen_at_the_next_message(served: Served) -> None:
    socket = served.socket("/who/", Cookie=log_in(served, "anna"))
    assert who(socket) == "anna"
    served.site.rows("DELETE FROM django_session")
    socket.send("{}")
    assert code(socket) == 4401


def test_a_key_in_the_query_string_is_none(served: Served) -> None:
    key = log_in(served, "anna").partition("=")[2]
    assert who(served.socket(f"/who/?sessionid={key}")) == ""
    assert who(served.socket(f"/who/?sessionid={key}", Cookie="sessionid=another-key")) == ""


def test_what_was_kept_is_told_when_a_killed_server_is_found_and_then_gone(site: LiveSite) -> None:
    forget_users(site)
    served = site.serve("--workers", "0", settings=options(lease=1))
    site.work(settings=options(lease=1))
    socket = served.socket("/who/", Cookie=log_in(served, "anna"))
    assert [who(socket), who(socket)] == ["anna", "anna"]
    served.process.kill()
    until(lambda: [one for one in site.entries() if one.startswith("who")], "the disconnect consumer ran")
    assert 'who {"user": "anna", "count": 2, "code": 1006}' in site.entries()
    assert site.count("connection") == 0
