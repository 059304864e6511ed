"""The chat in the browser: what people in its rooms see, whatever happens to the processes behind it."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest
from playwright.sync_api import Locator, expect

from tests import kinds
from tests.browser.conftest import Window
from tests.browser.demosite import Command, DemoSite
from tests.harness import until

pytestmark = pytest.mark.browser

WORKER_DIED, NOT_ADMITTED = 1011, 4400
NAME_RULE = "Choose a name of 1 to 24 visible characters."
ATTACK = "<b>bold</b> <img src=/nowhere onerror=alert(1)> <script>alert(2)</script>"


class Person:
    """Somebody with a window on a room."""

    def __init__(self, window: Window, server: Command, room: str, name: str) -> None:
        self.window, self.page, self.name = window, window.page, name
        self.state, self.field = self.page.locator("#state"), self.page.locator("#text")
        self.page.goto(f"{server.url}/chat/{room}/")
        self.page.get_by_label("Your name").fill(name)
        self.page.get_by_role("button", name="Join").click()

    def is_in(self) -> Person:
        """Wait until the room has been entered."""
        expect(self.state).to_have_text("Connected")
        expect(self.field).to_be_enabled()
        return self

    def says(self, text: str) -> None:
        """Write a line."""
        self.field.fill(text)
        self.field.press("Enter")

    def sees(self, *texts: str) -> None:
        """Wait until these are all the lines of the log."""
        expect(self.page.locator("#lines .line .text")).to_have_text(list(texts))

    def notes(self) -> Locator:
        """Return who came and went, as the log has it."""
        return self.page.locator("#lines .note")

    def sees_here(self, *names: str) -> None:
        """Wait until these are the people who are here."""
        expect(self.page.locator("#here .name")).to_have_text(list(names))
        expect(self.page.locator("#count")).to_have_text(str(len(names)))

    def close_codes(self) -> list[int]:
        """Return the code of each socket that was open and was closed since the page was loaded."""
        return [one["code"] for one in self.window.sockets() if one["opened"] and one["code"] is not None]


@pytest.fixture(scope="module")
def server(site: DemoSite) -> Command:
    """The examples, with two workers."""
    return site.demo("--workers", "2")


@pytest.fixture(scope="module")
def sqlite_server(sqlite_site: DemoSite) -> Command:
    """The examples on SQLite, with two workers."""
    return sqlite_site.demo("--workers", "2")


@pytest.fixture
def join(server: Command, new_window: Callable[[], Window]) -> Callable[..., Person]:
    """Open a window and enter a room of the site on PostgreSQL."""
    return lambda room, name: Person(new_window(), server, room, name).is_in()


@pytest.fixture(params=kinds.parameters("postgresql", "sqlite"))
def join_either(
    request: pytest.FixtureRequest, new_window: Callable[[], Window]
) -> Callable[[str, str], Person]:
    """Open a window and enter a room, on each database in turn."""
    server = request.getfixturevalue({"postgresql": "server", "sqlite": "sqlite_server"}[request.param])
    return lambda room, name: Person(new_window(), server, room, name).is_in()


@contextmanager
def locked_room(site: DemoSite, room: str) -> Iterator[None]:
    """Lock a room, so that whoever speaks in it keeps a worker waiting in the middle of the frame."""
    with closing(site.connect()) as connection, connection.cursor() as cursor:
        connection.autocommit = False
        cursor.execute("SELECT id FROM chat_room WHERE name = %s FOR UPDATE", [room])
        assert cursor.rowcount == 1
        yield


# People.


def test_a_line_is_seen_in_its_room_and_in_no_other(join_either: Callable[..., Person]) -> None:
    ann, ben, zoe = join_either("garden", "Ann"), join_either("garden", "Ben"), join_either("kitchen", "Zoe")
    ann.says("hello")
    ben.sees("hello")
    ben.says("hello yourself")
    zoe.says("anybody?")
    zoe.sees("anybody?")
    for person in (ann, ben):
        person.sees("hello", "hello yourself")
        expect(person.page.locator("#lines .line .name")).to_have_text(["Ann", "Ben"])
    assert ann.close_codes() == ben.close_codes() == zoe.close_codes() == []


def test_who_is_here_is_told_as_people_come_and_go(join_either: Callable[..., Person]) -> None:
    ann = join_either("attic", "Ann")
    ann.sees_here("Ann")
    ben = join_either("attic", "Ben")
    join_either("cellar", "Zoe").sees_here("Zoe")
    ann.sees_here("Ann", "Ben")
    ben.sees_here("Ann", "Ben")
    ben.page.get_by_role("button", name="Leave").click()
    ann.sees_here("Ann")
    expect(ann.notes()).to_have_text(["Ben joined", "Ben left"])
    expect(ben.page.get_by_role("button", name="Join")).to_be_visible()


@pytest.mark.postgresql
def test_a_closed_window_has_left(join: Callable[..., Person]) -> None:
    ann, ben = join("porch", "Ann"), join("porch", "Ben")
    ben.page.close()
    ann.sees_here("Ann")
    expect(ann.notes()).to_have_text(["Ben joined", "Ben left"])


def test_a_reloaded_page_is_back_in_the_room_with_all_that_was_said(
    join_either: Callable[..., Person],
) -> None:
    ann, ben = join_either("library", "Ann"), join_either("library", "Ben")
    ann.says("first")
    ann.sees("first")
    ben.says("second")
    ann.sees("first", "second")
    ann.page.reload()
    ann.is_in().sees("first", "second")
    ann.sees_here("Ann", "Ben")
    ann.says("third")
    ben.sees("first", "second", "third")


@pytest.mark.postgresql
def test_markup_in_a_line_and_in_a_name_is_text(join: Callable[..., Person]) -> None:
    ann, ben = join("workshop", "Ann"), join("workshop", "<i>Ben</i>")
    ben.says(ATTACK)
    ann.sees(ATTACK)
    ann.sees_here("<i>Ben</i>", "Ann")
    expect(ann.notes()).to_have_text(["<i>Ben</i> joined"])
    expect(ann.page.locator("#chat :is(i, img, script), #lines :is(b:not(.name))")).to_have_count(0)


@pytest.mark.postgresql
def test_a_name_that_cannot_be_seen_is_refused_with_the_sentence(
    server: Command, new_window: Callable[[], Window]
) -> None:
    nobody = Person(new_window(), server, "garden", "\u200b\u200b")
    expect(nobody.page.get_by_role("alert")).to_have_text(NAME_RULE)
    expect(nobody.page.get_by_role("button", name="Join")).to_be_visible()
    until(lambda: nobody.close_codes() == [NOT_ADMITTED], "the socket closed for good")
    nobody.page.get_by_label("Your name").fill("Nora")
    nobody.page.get_by_role("button", name="Join").click()
    nobody.is_in()
    assert len(nobody.window.sockets()) == 2


@pytest.mark.postgresql
def test_the_lobby_leads_to_a_room_and_counts_who_is_there(
    server: Command, join: Callable[..., Person], new_window: Callable[[], Window]
) -> None:
    join("engine-room", "Ann"), join("engine-room", "Ben")
    page = new_window().page
    page.goto(server.url)
    page.get_by_role("link", name="Chat", exact=True).click()
    expect(page.get_by_role("link", name=re.compile("engine-room"))).to_contain_text("2 here")
    page.get_by_label("Enter a room").fill("Engine Room!")
    page.get_by_role("button", name="Enter").click()
    expect(page).to_have_url(f"{server.url}/chat/engine-room/")


# Processes.


@pytest.mark.postgresql
def test_a_worker_killed_in_the_middle_of_a_frame_costs_that_page_its_socket_alone(
    site: DemoSite, join: Callable[..., Person]
) -> None:
    ann, ben = join("bridge", "Ann"), join("bridge", "Ben")
    with locked_room(site, "bridge"):
        ann.says("lost on the way")
        holder = until(lambda: site.holder("websocket.receive"), "a worker in the middle of the frame")
        os.kill(holder, signal.SIGKILL)
        until(lambda: ann.close_codes() == [WORKER_DIED], "the page's socket closed")
        expect(ann.state).to_have_text(re.compile("^Offline|^Connecting"))  # it waits for the room as well
        expect(ann.field).to_have_value("lost on the way")
    ann.is_in().field.press("Enter")
    ben.sees("lost on the way")
    ann.sees("lost on the way")
    ben.sees_here("Ann", "Ben")
    assert len(ann.window.sockets()) == 2
    assert [(one["opened"], one["code"]) for one in ben.window.sockets()] == [(True, None)]


@pytest.mark.postgresql
def test_workers_are_stopped_and_started_again_and_no_socket_closes(
    site: DemoSite, join: Callable[..., Person]
) -> None:
    ann, zoe = join("harbour", "Ann"), join("lighthouse", "Zoe")
    site.restart_workers()
    for person in (ann, zoe):
        person.says("still here")
        person.sees("still here")
        assert [(one["opened"], one["code"]) for one in person.window.sockets()] == [(True, None)]


@pytest.mark.postgresql
def test_a_page_says_that_it_is_offline_and_comes_back_when_the_server_does(
    site: DemoSite, server: Command, join: Callable[..., Person]
) -> None:
    ann, ben = join("station", "Ann"), join("station", "Ben")
    ann.says("before")
    ben.sees("before")
    port = server.port
    server.stop()
    for person in (ann, ben):
        expect(person.state).to_have_text("Offline. Coming back…")
        expect(person.field).to_be_disabled()
        expect(person.page.locator("#here .name")).to_have_count(0)
    site.demo("--workers", "2", port=port)
    for person in (ann, ben):
        person.is_in().sees("before")
        person.sees_here("Ann", "Ben")
        person.window.forgive("WebSocket connection to")
    ann.says("after")
    ben.sees("before", "after")
    assert ann.close_codes() == ben.close_codes() == [1001]
