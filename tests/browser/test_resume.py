"""Pages that lose the network while much is said, and come back: each line once, and in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.browser.conftest import Window
from tests.browser.pagesite import SETTINGS, new_site, serve
from tests.harness import HOST, LiveSite, until
from tests.proxy import Proxy

pytestmark = [pytest.mark.browser, pytest.mark.postgresql]

AWAY = 10  # seconds without a network, after which the page notices it; 30 shows the same, only later
SAY = "from dbchannels import Group\nfor number in range({}, {}): Group('news', history={}).send(text=str(number))"


@pytest.fixture(scope="module")
def live_site(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveSite]:
    """A site with the pages of these tests, nothing started."""
    site = new_site("dbchannels_resume", tmp_path_factory.mktemp("resume"))
    yield site
    site.end()


def say(site: LiveSite, first: int, last: int, history: int = 1000) -> None:
    """Say numbers, from a process of their own."""
    site.shell(SAY.format(first, last, history))


def heard(page: Page) -> list[Any]:
    """Return what the page has heard."""
    return [value for name, value in page.evaluate("events") if name == "text"]


def hears(page: Page, number: int) -> None:
    """Wait until the page has heard all numbers below this one; it has heard them once and in order."""
    until(
        lambda: len(heard(page)) >= number, lambda: f"{number} lines in {page.evaluate('events')}", every=0.05
    )
    assert heard(page) == [str(one) for one in range(number)]


def test_a_page_without_a_network_misses_nothing(
    live_site: LiveSite, new_window: Callable[[], Window]
) -> None:
    """The network falls silent, so that neither side sees an end."""
    path = live_site.folder / "socket"
    live_site.serve("--workers", "1", "--bind", f"unix:{path}", settings=SETTINGS, bind="")
    proxy, window = Proxy(str(path)), new_window()
    page = window.page
    page.goto(f"http://{HOST}:{proxy.port}/client/")
    page.evaluate(f"void connect('/news/', {{ resume: true, heartbeat: {AWAY} }})")
    until(lambda: page.evaluate("socket.lastId"), "the page has an id")
    say(live_site, 0, 3)
    hears(page, 3)
    proxy.fall_silent()
    say(live_site, 3, 103)
    until(lambda: page.evaluate("socket.state") == "waiting", "the page has noticed", every=0.1)
    proxy.speak()
    hears(page, 103)
    say(live_site, 103, 105)
    hears(page, 105)
    assert [name for name, _ in page.evaluate("events") if name == "gap"] == []
    window.forgive("WebSocket")
    proxy.end()
    live_site.end()


def test_a_stream_of_events_misses_nothing_when_its_server_was_killed(
    live_site: LiveSite, new_window: Callable[[], Window]
) -> None:
    served, window = serve(live_site), new_window()
    page = window.page
    page.goto(f"http://{HOST}:{served.port}/client/")
    page.evaluate("void listen('/news-events/')")
    until(lambda: ["open", {}] in page.evaluate("events"), "the stream is open")
    say(live_site, 0, 3)
    hears(page, 3)
    served.end()
    say(live_site, 3, 103)
    serve(live_site, served.port)
    hears(page, 103)
    for problem in ("news-events", "ERR_"):
        window.forgive(problem)
    live_site.end()
