"""What an operator does in the admin, in the browser, on a site that runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import Window
from tests.endtoend.conftest import migrated, postgresql_database
from tests.harness import HOST, LiveSite, Served, until

pytestmark = [pytest.mark.browser, pytest.mark.postgresql]

SETTINGS = {
    "DEBUG": True,  # static files are served
    "ROOT_URLCONF": "tests.browser.steering",
    "DBCHANNELS": {"default": {"ROUTING": "tests.browser.steering"}},
    "MIDDLEWARE": [
        "tests.browser.steering.forbid_inline",
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ],
}
ADMIN = "/admin/dbchannels/"
SCHEMES: list[Literal["light", "dark"]] = ["light", "dark"]


@pytest.fixture(scope="module")
def steered(browser: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveSite]:
    """A site with an administrator, nothing started."""
    site = migrated(postgresql_database("dbchannels_steered"), tmp_path_factory.mktemp("steered"))
    site.shell(
        "from django.contrib.auth.models import User; User.objects.create_superuser('olga', password='olga')"
    )
    yield site
    site.end()


@pytest.fixture(scope="module")
def served(steered: LiveSite) -> Served:
    """The site, with a worker that answers requests and another one that runs the rest."""
    return steered.serve("--workers", "2", settings=SETTINGS)


def url(served: Served, path: str) -> str:
    return f"http://{HOST}:{served.port}{path}"


@pytest.fixture
def admin(served: Served, new_window: Callable[[], Window]) -> Page:
    """A window on the admin, logged in."""
    page = new_window().page
    page.goto(url(served, "/admin/"))
    page.get_by_label("Username").fill("olga")
    page.get_by_label("Password").fill("olga")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_text("Welcome, olga")).to_be_visible()
    return page


def send(site: LiveSite, channel: str, *numbers: int) -> None:
    """Send messages to a channel."""
    messages = [(channel, {"number": number}) for number in numbers]
    site.shell(f"from dbchannels import channel_layers; channel_layers['default'].send_many({messages!r})")


def press(page: Page, title: str) -> None:
    """Press an act's button on the page of a row, and the one on the page that asks."""
    page.locator(".object-tools").get_by_role("link", name=title).click()
    page.locator(".submit-row").get_by_role("button", name=title).click()


def test_a_paused_channel_stands_still(steered: LiveSite, served: Served, admin: Page) -> None:
    admin.goto(url(served, f"{ADMIN}channelstate/notes/change/"))
    press(admin, "Pause")
    expect(admin.get_by_text("This channel is paused by olga")).to_be_visible()
    send(steered, "notes", 1, 2)
    send(steered, "orders", 1)
    until(
        lambda: steered.count("deadletter") == 1, "another channel goes on"
    )  # a worker has looked since then
    admin.reload()
    expect(admin.locator("#messages tbody tr")).to_have_count(2)
    assert steered.entries() == []
    admin.goto(url(served, f"{ADMIN}channelstate/"))
    expect(admin.locator("tr.dbchannels-attention")).to_contain_text("paused by olga")
    admin.get_by_role("link", name="notes").click()
    press(admin, "Resume")
    until(lambda: sorted(steered.entries()) == ["ran 1", "ran 2"], "the messages run")
    steered.rows("DELETE FROM livesite_entry; DELETE FROM dbchannels_deadletter")


def test_a_consumer_that_hangs_is_ended(steered: LiveSite, served: Served, admin: Page) -> None:
    send(steered, "hangs", 1)
    until(lambda: steered.entries() == ["hangs"], "it hangs")
    admin.goto(url(served, f"{ADMIN}durablemessage/?channel=hangs&state=running"))
    admin.locator("#result_list tbody th a").click()
    expect(admin.locator(".field-holder")).to_contain_text("worker-")
    press(admin, "Cancel")
    expect(admin.get_by_text("Cancel: 1 durable message.")).to_be_visible()
    until(lambda: steered.count("deadletter") == 1, "the message is a dead letter")
    admin.goto(url(served, f"{ADMIN}deadletter/"))
    expect(admin.locator("#result_list")).to_contain_text("olga cancelled this message")
    assert steered.count("durablemessage") == 0
    steered.rows("DELETE FROM livesite_entry; DELETE FROM dbchannels_deadletter")


def test_a_socket_is_written_to_and_closed(
    steered: LiveSite, served: Served, admin: Page, new_window: Callable[[], Window]
) -> None:
    watched = new_window().page
    watched.goto(url(served, "/page/"))
    watched.evaluate(
        """() => {
            window.texts = [];
            window.own = new WebSocket("/watched/".replace(/^/, location.origin.replace("http", "ws")));
            own.onmessage = (event) => texts.push(event.data);
            own.onclose = (event) => (window.code = event.code);
        }"""
    )
    until(lambda: steered.count("connection") == 1, "it is on record")
    admin.goto(url(served, f"{ADMIN}connection/"))
    admin.locator("#result_list tbody th a").click()
    admin.locator(".object-tools").get_by_role("link", name="Send text").click()
    admin.locator("textarea").fill('{"hello": "you"}')
    admin.get_by_label("It is JSON").check()
    admin.get_by_role("button", name="Send text").click()
    expect(admin.get_by_text("Send text: 1 connection.")).to_be_visible()
    until(lambda: watched.evaluate("texts") == ['{"hello": "you"}'], "the page has it")
    admin.locator("#result_list tbody th a").click()
    admin.locator(".object-tools").get_by_role("link", name="Close").click()
    admin.locator("#id_code").fill("4000")
    admin.get_by_role("button", name="Close").click()
    until(lambda: watched.evaluate("window.code") == 4000, "the page sees the code")
    until(lambda: steered.count("connection") == 0, "its record is gone")


def test_all_that_match_run_again(steered: LiveSite, served: Served, admin: Page) -> None:
    send(steered, "orders", 1, 2, 3)
    until(lambda: steered.count("deadletter") == 3, "they are dead letters")
    steered.rows("INSERT INTO livesite_entry (text, pid) VALUES ('mended', 0)")
    admin.goto(url(served, f"{ADMIN}deadletter/?channel=orders"))
    admin.locator("select[name=action]").select_option("replay")
    admin.get_by_role("button", name="For all that match").click()
    expect(admin.get_by_text("3 dead letters")).to_be_visible()
    admin.get_by_role("button", name="Run again").click()
    expect(admin.get_by_text("Run again: 3 dead letters.")).to_be_visible()
    until(lambda: sorted(steered.entries()) == ["mended", "ran 1", "ran 2", "ran 3"], "they run")
    assert steered.count("deadletter") == 0


@pytest.mark.parametrize("scripts", [True, False])
def test_an_act_on_many_rows_goes_on(
    browser: Browser, steered: LiveSite, served: Served, admin: Page, scripts: bool
) -> None:
    many = 150_000
    steered.rows(
        "INSERT INTO dbchannels_deadletter (channel, payload, attempts, sent_at, error) "
        f"SELECT 'old', '\\x80', 1, now(), 'x' FROM generate_series(1, {many})"
    )
    page = admin
    if not scripts:
        context = admin.context.browser.new_context(
            java_script_enabled=False, storage_state=admin.context.storage_state()
        )
        page = context.new_page()
    page.goto(url(served, f"{ADMIN}deadletter/act/delete_selected/?channel=old"))
    expect(page.get_by_text("more than 100,000 dead letters")).to_be_visible()
    page.get_by_role("button", name="Delete").click()
    while not scripts and page.get_by_role("button", name="Continue").is_visible():
        page.get_by_role("button", name="Continue").click()
    expect(page.get_by_text(f"Delete: {many:,} dead letters.")).to_be_visible(timeout=120_000)
    assert steered.count("deadletter", "channel = 'old'") == 0
    if not scripts:
        page.context.close()


def test_the_pages_fit_a_phone(steered: LiveSite, served: Served, admin: Page) -> None:
    paths = ("channelstate/", "channelstate/notes/change/", "channelstate/notes/act/pause/")
    for path, width, scheme in product(paths, (1280, 375), SCHEMES):
        admin.set_viewport_size({"width": width, "height": 800})
        admin.emulate_media(color_scheme=scheme)
        admin.goto(url(served, ADMIN + path))
        expect(admin.locator("#content")).to_be_visible()
        assert admin.evaluate("document.documentElement.scrollWidth") == width, (path, scheme)
