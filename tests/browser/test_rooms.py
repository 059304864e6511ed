"""The chat of the tutorial in the browser: how it looks in the demo, and what becomes of lines in an outage."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Window
from tests.browser.demosite import Command, DemoSite

pytestmark = [pytest.mark.browser, pytest.mark.postgresql]


@pytest.fixture(scope="module")
def server(site: DemoSite) -> Command:
    """The examples, whose only worker is a process of its own."""
    return site.demo("--workers", "0")


@pytest.fixture(scope="module")
def workers(site: DemoSite, server: Command) -> list[Command]:
    """The workers of the site; the last one runs."""
    return [site.start("runworker", says="reads")]


@pytest.fixture
def window(server: Command, workers: list[Command], new_window: Callable[[], Window]) -> Window:
    """A window on a room, logged in."""
    window = new_window()
    window.page.goto(f"{server.url}/rooms/lobby/")
    window.page.get_by_label("Username").fill("admin")
    window.page.get_by_label("Password").fill("admin")
    window.page.get_by_role("button", name="Log in").click()
    return window


def say(page: Page, text: str) -> None:
    """Write a line."""
    page.get_by_label("Message", exact=True).fill(text)
    page.get_by_role("button", name="Say").click()


def test_a_line_of_an_outage_waits_on_the_page_and_is_sent_once(
    site: DemoSite, server: Command, workers: list[Command], window: Window
) -> None:
    page = window.page
    lines, waiting = page.locator("#lines li"), page.locator("#waiting li")
    expect(page.locator("#state")).to_have_text("open")
    say(page, "one")
    expect(lines).to_have_text(["admin: one"])
    expect(waiting).to_have_count(0)

    workers[-1].stop()
    say(page, "two")  # the server has it, and no worker saves it
    expect(waiting).to_have_text(["two (waiting)"])
    server.stop()
    expect(page.locator("#state")).to_have_text("waiting")
    say(page, "three")
    say(page, "  ")
    expect(waiting).to_have_text(["two (waiting)", "three (waiting)"])

    site.demo("--workers", "0", port=server.port)
    workers.append(site.start("runworker", says="reads"))
    expect(lines).to_have_text(["admin: one", "admin: two", "admin: three"])
    expect(waiting).to_have_count(0)
    expect(page.locator("#state")).to_have_text("open")
    assert site.rows("SELECT text FROM rooms_line ORDER BY id") == [("one",), ("two",), ("three",)]
    window.forgive("WebSocket connection to")


@pytest.mark.parametrize("width", [1280, 375])
def test_the_page_is_a_page_of_the_demo(window: Window, width: int) -> None:
    page = window.page
    page.set_viewport_size({"width": width, "height": 800})
    grounds = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert grounds == ["rgb(244, 246, 245)", "rgb(15, 21, 19)"]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    expect(page.get_by_role("main")).to_contain_text("You are admin.")
    page.get_by_role("navigation").get_by_role("link", name="All examples").click()
    expect(page.get_by_role("heading", name="The chat of the tutorial")).to_be_visible()
