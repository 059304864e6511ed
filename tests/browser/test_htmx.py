"""htmx's extension for WebSockets against a consumer, as django-htmx ships both."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.conftest import Window
from tests.browser.pagesite import new_site, serve
from tests.harness import HOST, Served

pytestmark = [pytest.mark.browser, pytest.mark.postgresql]


@pytest.fixture(scope="module")
def server(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A site with the pages of these tests."""
    site = new_site("dbchannels_htmx", tmp_path_factory.mktemp("htmx"))
    try:
        yield serve(site)
    finally:
        site.end()


@pytest.mark.parametrize("version", [2, 4])
def test_a_form_is_sent_and_all_pages_get_the_html(
    server: Served, new_window: Callable[[], Window], version: int
) -> None:
    pages = [new_window().page for _ in range(2)]
    for page in pages:
        page.goto(f"http://{HOST}:{server.port}/htmx/{version}/")
        page.wait_for_function("sockets.length > 0 && sockets.every((one) => one.opened)")
    for number, page in enumerate(pages):
        page.get_by_label("Line").fill(f"<b>line</b> {number}")
        page.get_by_role("button", name="Send").click()
        for other in pages:
            expect(other.locator("#lines li")).to_have_text([f"<b>line</b> {n}" for n in range(number + 1)])
    assert [one["code"] for page in pages for one in page.evaluate("sockets")] == [None, None]
