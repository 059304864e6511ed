"""The smaller examples in the browser: the live blog, thumbnails, and the long poll, all from the front page."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Page, Route, expect

from tests.browser.conftest import Window
from tests.browser.demosite import Command, DemoSite

pytestmark = [pytest.mark.browser, pytest.mark.postgresql]


@pytest.fixture(scope="module")
def demo(site: DemoSite) -> Command:
    """The examples, started once. Windows that are closed leave requests behind that would have been answered later."""
    site.forgiven += [
        '/events/ HTTP/1.1" 499',
        '/events/ HTTP/1.1" 200',
        'after=3 HTTP/1.1" 499',
        'after=0 HTTP/1.1" 499',
        'upload/ HTTP/1.1" 400',
    ]
    return site.demo("--workers", "2")


@pytest.fixture
def open_window(demo: Command, new_window: Callable[[], Window]) -> Callable[[str], Window]:
    """Open an example by its link on the front page, in a window of its own."""

    def show(title: str) -> Window:
        window = new_window()
        window.page.goto(demo.url)
        window.page.get_by_role("link", name=title, exact=True).click()
        expect(window.page.locator("#state")).to_have_attribute("data-state", "open")
        return window

    return show


@pytest.fixture
def open_page(open_window: Callable[[str], Window]) -> Callable[[str], Page]:
    """Do the same where nothing goes wrong that must."""
    return lambda title: open_window(title).page


def log_in(page: Page, demo: Command) -> None:
    """Log in to the admin as the examples' first user."""
    page.goto(f"{demo.url}/admin/")
    page.get_by_label("Username").fill("admin")
    page.get_by_label("Password").fill("admin")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_text("Site administration")).to_be_visible()


def test_a_post_is_on_every_page_when_the_admin_has_saved_it(
    demo: Command, open_page: Callable[[str], Page], new_window: Callable[[], Window]
) -> None:
    reader, author = open_page("Live blog"), new_window().page
    expect(reader.get_by_text("Nothing has been posted yet.")).to_be_visible()
    log_in(author, demo)
    author.goto(f"{demo.url}/admin/liveblog/post/add/")
    author.get_by_label("Title").fill("Kick-<b>off</b>")
    author.get_by_label("Text").fill("It begins.")
    author.get_by_role("button", name="Save and continue editing").click()
    expect(reader.locator("#posts h2")).to_have_text(["Kick-<b>off</b>"])
    author.get_by_label("Text").fill("It begins, late.")
    author.get_by_role("button", name="Save and continue editing").click()
    expect(reader.locator("#posts .text")).to_have_text(["It begins, late."])
    expect(open_page("Live blog").locator("#posts h2")).to_have_text(["Kick-<b>off</b>"])
    author.get_by_role("link", name="Delete", exact=True).click()
    author.get_by_role("button", name="Yes, I").click()
    expect(reader.locator("#posts li")).to_have_count(0)
    expect(reader.get_by_text("Nothing has been posted yet.")).to_be_visible()


def test_the_tutorials_chat_shows_who_comes_what_is_said_and_who_leaves(
    demo: Command, new_window: Callable[[], Window]
) -> None:
    windows = [new_window() for _ in range(2)]
    pages = [window.page for window in windows]
    for page in pages:
        page.goto(demo.url)
        page.get_by_role("link", name="The chat of the tutorial").click()
        page.get_by_label("Username").fill("admin")
        page.get_by_label("Password").fill("admin")
        page.get_by_role("button", name="Log in").click()
        expect(page.locator("#state")).to_have_text("open")
    pages[0].get_by_label("Message").fill("Is <i>anybody</i> here?")
    pages[0].get_by_role("button", name="Say").click()
    for page in pages:
        expect(page.locator("#lines li")).to_have_text(["admin: Is <i>anybody</i> here?"])
        expect(page.locator("#visits li", has_text="to now")).to_have_count(2)
    windows[1].context.close()
    expect(pages[0].locator("#visits li", has_text="to now")).to_have_count(1)
    expect(pages[0].locator("#visits li")).to_have_count(2)
    admin = windows[0].context.new_page()
    admin.goto(f"{demo.url}/admin/")
    admin.get_by_role("button", name="Log out").click()
    expect(pages[0].get_by_role("button", name="Log in")).to_be_visible()
    assert windows[0].sockets() == []  # those of the page that the script has left


def picture(folder: Path, name: str, size: tuple[int, int]) -> Path:
    """Make a picture that has something to see."""
    path = folder / name
    Image.linear_gradient("L").resize(size).convert("RGB").save(path)
    return path


def test_each_size_of_an_upload_is_seen_to_be_made(
    demo: Command, open_window: Callable[[str], Window], tmp_path: Path
) -> None:
    windows = [open_window("Thumbnails") for _ in range(2)]
    page, other = (window.page for window in windows)
    files = [picture(tmp_path, "wide.png", (1800, 900)), picture(tmp_path, "tall.jpg", (300, 1500))]
    page.get_by_label("Pictures").set_input_files(files)
    page.get_by_role("button", name="Upload").click()
    for one in (page, other):
        expect(one.locator(".photo .name")).to_have_text(["tall.jpg", "wide.png"])
        expect(one.locator(".photo img:visible")).to_have_count(2)
        expect(one.locator(".photo progress").first).to_have_js_property("value", 100)
        expect(one.locator(".photo").last.get_by_role("link")).to_have_text(["1280 px", "640 px", "160 px"])
    address = page.locator(".photo img").last.get_attribute("src")
    assert address is not None
    sizes = {}
    for side in (1280, 640, 160):
        response = page.request.get(
            page.url.rstrip("/").removesuffix("/thumbnails") + address.replace("160", str(side))
        )
        sizes[side] = Image.open(io.BytesIO(response.body())).size
    assert sizes == {1280: (1280, 640), 640: (640, 320), 160: (160, 80)}
    page.get_by_role("button", name="Delete all").click()
    expect(page.locator(".photo")).to_have_count(0)
    windows[0].forgive("/thumbnails/events/ failed")  # of the page that was left


def test_what_is_no_picture_is_one_sentence(
    demo: Command, new_window: Callable[[], Window], tmp_path: Path
) -> None:
    window = new_window()
    window.page.goto(f"{demo.url}/thumbnails/")
    (tmp_path / "notes.png").write_text("these are notes")
    window.page.get_by_label("Pictures").set_input_files(tmp_path / "notes.png")
    window.page.get_by_role("button", name="Upload").click()
    expect(window.page.get_by_role("alert")).to_contain_text("notes.png: Upload a valid image.")
    expect(window.page.locator(".photo")).to_have_count(0)
    window.forgive("400")


#: What may come in the place of a view's answer, and what the page says of it.
ANSWERS = [
    (
        {"status": 413, "content_type": "text/plain", "body": "Too large: see --max-body."},
        "Too large: see --max-body.",
    ),
    (
        {"status": 500, "content_type": "text/html", "body": "<h1>Server Error</h1>"},
        "The server answered 500.",
    ),
    (
        {"status": 502, "content_type": "application/json", "body": "no JSON"},
        "The connection broke: try again.",
    ),
    (None, "The connection broke: try again."),
]


@pytest.mark.parametrize(
    ("path", "button", "target"),
    [("/thumbnails/", "Upload", "**/upload/"), ("/longpoll/", "Publish", "**/add/")],
)
def test_every_answer_is_a_sentence(
    demo: Command, new_window: Callable[[], Window], tmp_path: Path, path: str, button: str, target: str
) -> None:
    window = new_window()
    page = window.page
    page.goto(f"{demo.url}{path}")
    (tmp_path / "a.png").write_text("whatever")
    for answer, said in ANSWERS:
        page.route(target, partial(give, answer))
        if button == "Upload":
            page.get_by_label("Pictures").set_input_files(tmp_path / "a.png")
        else:
            page.get_by_label("A headline").fill("kept")
        page.get_by_role("button", name=button).click()
        expect(page.get_by_role("alert")).to_contain_text(said)
        page.unroute(target)
    for wrong in ("413", "500", "502", "failed", "ERR_FAILED"):
        window.forgive(wrong)


def give(answer: dict[str, Any] | None, route: Route) -> None:
    """Answer in the server's place, or break the connection."""
    if answer is None:
        route.abort()
    else:
        route.fulfill(**answer)


def test_whoever_waits_is_answered_when_there_is_a_headline(open_page: Callable[[str], Page]) -> None:
    pages = [open_page("Long poll") for _ in range(3)]
    for number, page in enumerate(pages, 1):
        page.get_by_label("A headline").fill(f"News <i>{number}</i>")
        page.get_by_role("button", name="Publish").click()
        for one in pages:
            expect(one.locator("#headlines li").first).to_have_text(f"News <i>{number}</i>")
    for page in pages:
        expect(page.locator("#headlines li")).to_have_count(3)
        expect(page.get_by_label("A headline")).to_have_value("")
    expect(open_page("Long poll").locator("#headlines li")).to_have_count(3)
