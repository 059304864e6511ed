"""Chromium, the examples that it looks at, and windows in which nothing may go wrong unseen."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Response, expect, sync_playwright

from tests.browser.demosite import DemoSite
from tests.endtoend.conftest import postgresql_database, sqlite_database

#: The shell has no windows, and takes much less of the processor's time.
CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
#: A page's sockets from its first script on, in ``sockets``: opened or not, and the code that each was closed with.
COUNT_SOCKETS = """
window.sockets = [];
window.WebSocket = class extends WebSocket {
  constructor(...given) {
    super(...given);
    const socket = { opened: false, code: null };
    window.sockets.push(socket);
    this.addEventListener("open", () => (socket.opened = true));
    this.addEventListener("close", (event) => (socket.code = event.code));
  }
};
"""
#: What an access log has of an answer that is an error, and what any log has of one that nobody expected.
WRONG = re.compile(r'HTTP/1\.[01]" [45]\d\d |Traceback', re.ASCII)

expect.set_options(timeout=60_000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium. For one module, because Django's ORM works in no test as long as Playwright runs."""
    if CHROMIUM is None:
        pytest.skip("no Chromium: install Debian's package chromium-headless-shell")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


def new_site(kind: str, folder: Path) -> Iterator[DemoSite]:
    """Lend a site on an empty database, and end its processes, whose log may not speak of anything wrong."""
    entry = sqlite_database(folder) if kind == "sqlite" else postgresql_database("dbchannels_browser")
    site = DemoSite(entry, folder)
    yield site
    site.end()
    printed = [line for command in site.commands for line in command.output().splitlines()]
    wrong = [line for line in printed if WRONG.search(line)]
    assert [line for line in wrong if not any(one in line for one in site.forgiven)] == []


@pytest.fixture(scope="module")
def site(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoSite]:
    """A site on the test run's PostgreSQL, nothing started."""
    yield from new_site("postgresql", tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def sqlite_site(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoSite]:
    """A site on SQLite, nothing started."""
    yield from new_site("sqlite", tmp_path_factory.mktemp("browser-sqlite"))


class Window:
    """A browser window of its own, with its own cookies and storage, and a record of all that went wrong."""

    def __init__(self, browser: Browser) -> None:
        self.context = browser.new_context(locale="en-GB")
        self.context.add_init_script(COUNT_SOCKETS)
        self.page: Page = self.context.new_page()
        self.problems: list[str] = []
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.problems.append(f"{self.page.url}: {error.stack}"))
        self.page.on("requestfailed", self._failed)
        self.page.on("response", self._answered)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(message.text)

    def _failed(self, request: Request) -> None:
        self.problems.append(f"{request.url} failed: {request.failure}")

    def _answered(self, response: Response) -> None:
        if response.status >= 400:
            self.problems.append(f"{response.url} was answered {response.status}")

    def forgive(self, problem: str) -> None:
        """Take what had to go wrong off the record."""
        self.problems = [one for one in self.problems if problem not in one]

    def sockets(self) -> list[dict[str, Any]]:
        """Return the sockets of the page: ``opened``, and the ``code`` of the closed ones."""
        return list(self.page.evaluate("window.sockets"))


@pytest.fixture
def new_window(browser: Browser) -> Iterator[Callable[[], Window]]:
    """Open windows; at the end of the test not one of them may have had a problem."""
    opened: list[Window] = []

    def new() -> Window:
        opened.append(Window(browser))
        return opened[-1]

    yield new
    problems = [problem for window in opened for problem in window.problems]
    for window in opened:
        window.context.close()
    assert problems == []
