"""The admin in the browser: what waits while no worker runs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import pytest
from playwright.sync_api import Page, expect

from dbchannels import codec
from tests.browser.conftest import Window
from tests.browser.demosite import Command, DemoSite
from tests.browser.test_chat import ATTACK, Person
from tests.harness import until

pytestmark = [pytest.mark.browser, pytest.mark.postgresql]


@pytest.fixture(scope="module")
def server(site: DemoSite) -> Command:
    """The examples without a worker: what needs one waits."""
    return site.demo("--workers", "0")


@pytest.fixture(scope="module")
def second(site: DemoSite, server: Command) -> Command:
    """A second server, which runs the views itself and does not read the layer."""
    return site.start("runchannels", "127.0.0.1:0", "--workers", "0", "--http", "direct", says="quit with")


@pytest.fixture
def admin(second: Command, new_window: Callable[[], Window]) -> Page:
    """A window on the admin of the second server; logged in."""
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


TRACEBACK = """Traceback (most recent call last):
  File "/srv/site/thumbnails/consumers.py", line 41, in make
    image = open_picture(message["picture"])
ValueError: cannot identify the file of picture 7, which is not of the kind that the form of the page promised
"""


@pytest.fixture(scope="module")
def rows(site: DemoSite, server: Command) -> None:
    """Two dead letters, and two durable messages that are due tomorrow: long ones."""
    payload = codec.encode({"picture": 7, "text": "long words " * 40})
    channel = "thumbnails.of.the.pictures.of.a.very.long.journey"
    letter = (
        "INSERT INTO dbchannels_deadletter (channel, payload, attempts, sent_at, failed_at, error) "
        "VALUES (%s, %s, 6, now(), now(), %s)"
    )
    message = (
        "INSERT INTO dbchannels_durablemessage (channel, payload, sent_at, due_at, claimed_by) "
        "VALUES (%s, %s, now(), now() + interval '1 day', NULL)"
    )
    with closing(site.connect()) as connection, connection, connection.cursor() as cursor:
        for _ in range(2):
            cursor.execute(letter, [channel, payload, TRACEBACK])
            cursor.execute(message, [channel, payload])


@pytest.mark.parametrize("width", [1280, 375])
@pytest.mark.parametrize("name", ["deadletter", "durablemessage", "process"])
def test_a_row_of_a_list_is_one_line(rows: None, admin: Page, name: str, width: int) -> None:
    admin.set_viewport_size({"width": width, "height": 800})
    admin.goto(f"{admin.url}dbchannels/{name}/")
    shown = admin.locator("#result_list tbody tr")
    expect(shown).not_to_have_count(0)
    heights = shown.evaluate_all("rows => rows.map((row) => row.offsetHeight)")
    assert max(heights) < 40, heights  # two lines take 49 pixels
    assert admin.evaluate("document.documentElement.scrollWidth") == width
    if name != "process":  # the text is there, and wider than its cell
        cell = admin.locator("td.field-line").first
        assert cell.evaluate("cell => cell.scrollWidth > cell.clientWidth && cell.clientWidth > 100")


@pytest.mark.parametrize("width", [1280, 375])
def test_the_page_of_a_dead_letter_begins_with_the_reason(rows: None, admin: Page, width: int) -> None:
    admin.set_viewport_size({"width": width, "height": 800})
    admin.goto(f"{admin.url}dbchannels/deadletter/")
    admin.locator("#result_list tbody a").first.click()
    fields = admin.locator("#content .form-row")
    expect(fields.first).to_contain_text("ValueError: cannot identify the file of picture 7")
    expect(fields.first).to_be_in_viewport(ratio=1)
    expect(admin.locator(".field-traceback")).to_contain_text("Traceback (most recent call last):")
    assert admin.evaluate("document.documentElement.scrollWidth") == width
