"""The admin's live page in the browser: a line of the chat passes, a hidden tab stands still."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product
from typing import Literal

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Window
from tests.browser.demosite import Command, DemoSite
from tests.browser.test_chat import Person
from tests.harness import until

pytestmark = [pytest.mark.browser, pytest.mark.postgresql]
LIVE = "/admin/dbchannels/channelstate/live/"


@pytest.fixture(scope="module")
def server(site: DemoSite) -> Command:
    """The examples, with two workers."""
    return site.demo("--workers", "2")


@pytest.fixture
def live(server: Command, new_window: Callable[[], Window]) -> Window:
    """A window on the live page, logged in."""
    window = new_window()
    window.page.goto(f"{server.url}/admin/login/?next={LIVE}")
    window.page.get_by_label("Username").fill("admin")
    window.page.get_by_label("Password").fill("admin")
    window.page.get_by_role("button", name="Log in").click()
    expect(window.page.get_by_role("status")).to_contain_text("As of")
    return window


def hide(page: Page, hidden: bool) -> None:
    """Let the page believe that its tab is hidden, or seen again."""
    page.evaluate(
        """(hidden) => {
          Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
          document.dispatchEvent(new Event("visibilitychange"));
        }""",
        hidden,
    )


def test_a_line_of_the_chat_passes(server: Command, live: Window, new_window: Callable[[], Window]) -> None:
    page = live.page
    Person(new_window(), server, "garden", "Ann").is_in().says("Hello")
    row = page.locator("tbody tr", has=page.get_by_role("link", name="websocket.receive", exact=True))
    expect(row).to_contain_text("workers")
    page.get_by_label("Show").select_option("websocket.receive")
    rates = page.locator("#chart-rates svg")
    passed = re.compile(r"Messages a second: in [\d.]*[1-9]\d*/s, out [\d.]*[1-9]\d*/s")
    expect(rates).to_have_attribute("aria-label", passed, timeout=60_000)
    expect(page.locator("#chart-wait")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_hidden_tab_asks_for_nothing(live: Window) -> None:
    page = live.page
    hide(page, True)
    until(lambda: [one["code"] for one in live.sockets()] == [1000], "the socket is closed")
    said = page.get_by_role("status").inner_text()
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.wait_for_timeout(3000)  # longer than the page waits between two answers
    assert (page.get_by_role("status").inner_text(), requests, len(live.sockets())) == (said, [], 1)
    hide(page, False)
    until(lambda: page.get_by_role("status").inner_text() != said, "it goes on")
    assert [one["opened"] for one in live.sockets()] == [True, True]


def test_it_fits_the_screen(live: Window) -> None:
    schemes: list[Literal["light", "dark"]] = ["light", "dark"]
    for scheme, width in product(schemes, (375, 1280)):
        live.page.emulate_media(color_scheme=scheme)
        live.page.set_viewport_size({"width": width, "height": 900})
        expect(live.page.locator("figure:visible").first).to_be_visible(timeout=60_000)
        assert live.page.evaluate("document.documentElement.scrollWidth") == width, scheme
