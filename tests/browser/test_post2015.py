"""The chat of the 2015 post in the browser, at its own address."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Window
from tests.browser.demosite import DemoSite

pytestmark = [pytest.mark.browser, pytest.mark.postgresql]


def say(page: Page, text: str) -> None:
    """Write a line."""
    page.get_by_label("Message", exact=True).fill(text)
    page.get_by_role("button", name="Send").click()


def test_two_windows_talk_through_the_posts_own_functions(
    site: DemoSite, new_window: Callable[[], Window]
) -> None:
    address = site.demo("--workers", "2").url + "/post-2015/"
    windows = [new_window(), new_window()]
    pages = [window.page for window in windows]
    for page in pages:
        page.goto(address)
        expect(page.locator("#state")).to_have_text("Connected")
        expect(page.locator("pre")).to_contain_text("def ws_receive(channel, send_channel, content, binary")
    say(pages[0], "hello")
    expect(pages[1].locator("#lines li")).to_have_text(["hello"])
    say(pages[1], "<b>hello</b> yourself")
    for page in pages:
        expect(page.locator("#lines li")).to_have_text(["hello", "<b>hello</b> yourself"])
        expect(page.locator("#lines b")).to_have_count(0)
    assert [len(window.sockets()) for window in windows] == [1, 1]
