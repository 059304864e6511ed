"""The admin in the browser: what waits while no worker runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Window
from tests.browser.demosite import Command, DemoSite
from tests.browser.test_chat import ATTACK, Person
from tests.harness import until

pytestmark = [pytest.mark.browser, pytest.mark.postgresql]


@pytest.fixture(scope="module")
def server(site: DemoSite) -> Command:
    """The examples without a worker: what needs one waits."""
    return site.demo("--workers", "0")


@pytest.fixture
def admin(site: DemoSite, server: Command, new_window: Callable[[], Window]) -> Page:
    """A window on the admin, which a second process serves that does not read the layer; logged in."""
    second = site.start("runchannels", "127.0.0.1:0", "--workers", "0", "--http", "direct", says="quit with")
    page = new_window().page
    page.goto(f"{second.url}/admin/")
    page.get_by_label("Username").fill("admin")
    page.get_by_label("Password").fill("admin")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_text("Welcome, admin")).to_be_visible()
    return page


def test_a_line_waits_in_the_admin_and_arrives_once_workers_run(
    site: DemoSite, server: Command, admin: Page, new_window: Callable[[], Window]
) -> None:
    worker = site.start("runworker", says="reads")
    ann, ben = (Person(new_window(), server, "garden", name).is_in() for name in ("Ann", "Ben"))
    worker.stop()
    ann.says(ATTACK)
    until(lambda: site.waiting("websocket.receive") == 1, "the line waits")

    admin.get_by_role("link", name="Protocol messages").first.click()
    rows = admin.locator("#result_list tbody tr")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text(["websocket.receive"])
    expect(rows).to_contain_text(['\'text\': \'{"type":"say","text":"<b>bold</b>'])
    rows.get_by_role("link").first.click()
    expect(admin.locator(".field-message")).to_contain_text("<script>alert(2)</script>")
    expect(admin.locator("#content :is(b, img), #content script:not([src], [type])")).to_have_count(0)

    site.start("runworker", says="reads")
    ben.sees(ATTACK)
    assert site.waiting("websocket.receive") == 0
    assert ann.close_codes() == ben.close_codes() == []
