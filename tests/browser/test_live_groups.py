"""Live groups in the browser: the examples of the page, every way into the page, and tokens that are refused."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Route, expect

import dbchannels
from tests.browser.conftest import Window
from tests.docs import pages
from tests.endtoend.conftest import migrated, postgresql_database
from tests.harness import HOST, Served, until

pytestmark = [pytest.mark.browser, pytest.mark.postgresql]

FILE = Path(dbchannels.__file__).parent / "static" / "dbchannels" / "live-group.js"
TURBO = "@hotwired/turbo@8.0.23"
#: The examples of docs/live-fragments.rst, by how the captions of their templates go on.
EXAMPLES = {"plain": "", "turbo": ", with Turbo", "htmx": ", with htmx"}
#: Writes down the events of the page.
LISTEN = """
window.events = [];
for (const name of ["connecting", "open", "waiting", "unauthorized", "closed", "text", "json"])
  addEventListener(`dbchannels:${name}`, (event) => {
    events.push([name, event.detail]);
    if (event.detail === "<p id=a>not shown</p>") event.preventDefault();
  });
"""


def templates() -> dict[str, str]:
    """Return the templates of the examples, by their names here."""
    blocks = {one.caption: one.code for one in pages.blocks("live-fragments", "html+django")}
    return {
        f"{kind}/{name}.html": blocks[f"templates/chat/{name}.html{more}"].replace(
            "room-garden", f"room-{kind}"
        )
        for kind, more in EXAMPLES.items()
        for name in ("room", "line")
    }


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site's own static files."""
    folder = tmp_path_factory.mktemp("static")
    (script,) = (one for one in pages.blocks("live-fragments") if one.caption == "static/chat/room.js")
    (folder / "chat").mkdir()
    (folder / "chat" / "room.js").write_text(script.code)
    (folder / "listen.js").write_text(LISTEN)
    return folder


@pytest.fixture(scope="module")
def server(browser: Browser, static: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A site with these pages."""
    site = migrated(postgresql_database("dbchannels_live"), tmp_path_factory.mktemp("live"))
    middleware = ["sessions.middleware.SessionMiddleware", "auth.middleware.AuthenticationMiddleware"]
    loader = ["django.template.loaders.locmem.Loader", templates()]
    processors = ["django.template.context_processors.request"]
    settings = {
        "DEBUG": True,  # static files are served
        "ROOT_URLCONF": "tests.browser.live_pages",
        "STATICFILES_DIRS": [str(static)],
        "MIDDLEWARE": ["tests.browser.live_pages.csp", *(f"django.contrib.{one}" for one in middleware)],
        "INSTALLED_APPS": [
            "dbchannels",
            *(f"django.contrib.{one}" for one in ("auth", "contenttypes", "sessions", "staticfiles")),
            "django_htmx",
            "livesite",
        ],
        "TEMPLATES": [
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "OPTIONS": {"loaders": [loader], "context_processors": processors},
            }
        ],
    }
    try:
        yield site.serve("--workers", "1", settings=settings)
    finally:
        site.end()


class LivePage:
    """A window on a page with a live group."""

    def __init__(self, window: Window, server: Served, address: str, state: str = "open") -> None:
        self.window, self.page, self.server = window, window.page, server
        self.url = f"http://{HOST}:{server.port}"
        self.element = self.page.locator("dbchannels-live")
        self.page.goto(self.url + address)
        expect(self.element).to_have_attribute("state", state)

    def send(self, *texts: str) -> LivePage:
        """Send texts to the group, and wait until the page has the last of them."""
        for text in texts:
            assert self.server.request("POST", "/send/", text.encode()).status == 204
        until(lambda: ["text", texts[-1]] in self.events(), lambda: f"{texts[-1]} in {self.events()}")
        return self

    def events(self) -> list[list[Any]]:
        """Return the events until now: name and detail of each."""
        return list(self.page.evaluate("events"))

    def names(self) -> list[str]:
        return [name for name, _ in self.events()]

    def codes(self) -> list[int | None]:
        """Return the codes with which the page's sockets were closed."""
        return [one["code"] for one in self.window.sockets()]


Visit = Callable[..., LivePage]


@pytest.fixture
def visit(server: Served, new_window: Callable[[], Window]) -> Visit:
    """Open a page in a window of its own, and wait until its live group has a state."""
    return lambda address="/client/", state="open", window=None: LivePage(
        window or new_window(), server, address, state
    )


def test_it_is_small_and_needs_no_other_file() -> None:
    text = FILE.read_text()
    assert FILE.stat().st_size < 8_192
    assert "eval(" not in text and "\nimport " not in text


# The examples.


def says_to_all(windows: list[Window]) -> None:
    """Say a line in each window: all of them get all lines."""
    for number, window in enumerate(windows):
        window.page.get_by_label("Line").fill(f"<b>line</b> {number}")
        window.page.get_by_role("button", name="Say").click()
        for other in windows:
            lines = [f"<b>line</b> {n}" for n in range(number + 1)]
            expect(other.page.locator("#lines li")).to_have_text(lines)
        window.forgive("ERR_ABORTED")  # a 204 leaves the page where it is


def clear(server: Served) -> None:
    server.site.rows("DELETE FROM livesite_entry")


def test_the_plain_example(server: Served, visit: Visit) -> None:
    clear(server)
    live = [visit("/plain/") for _ in range(2)]
    says_to_all([one.window for one in live])
    live[0].page.reload()  # it shows what it was sent
    expect(live[0].page.locator("#lines li")).to_have_count(2)
    assert [one.codes() for one in live] == [[None], [None]]


def test_the_example_of_htmx(server: Served, new_window: Callable[[], Window]) -> None:
    clear(server)
    windows = [new_window() for _ in range(2)]
    for window in windows:
        window.page.goto(f"http://{HOST}:{server.port}/htmx/")
        window.page.wait_for_function("sockets.length > 0 && sockets.every((one) => one.opened)")
    says_to_all(windows)
    assert [one["code"] for window in windows for one in window.sockets()] == [None, None]


def test_the_example_of_htmx_is_loaded_again_when_its_token_is_too_old(
    server: Served, new_window: Callable[[], Window]
) -> None:
    window = new_window()
    window.page.goto(f"http://{HOST}:{server.port}/htmx/")
    opened = "sockets.length > 0 && sockets.every((one) => one.opened)"
    window.page.wait_for_function(opened)
    detail = "{ detail: { event: { code: 4410 } } }"
    close = f"void document.dispatchEvent(new CustomEvent('htmx:wsClose', {detail}))"
    with window.page.expect_navigation():
        window.page.evaluate(close)
    window.page.wait_for_function(opened)
    window.page.evaluate(f"window.mark = 1; {close}")  # a page from a cache would be loaded for ever
    window.page.evaluate(
        "fetch(location.href).then((answer) => answer.text())"
    )  # after what a reload would fetch
    assert window.page.evaluate("mark") == 1


def test_the_example_of_turbo_without_turbo(server: Served, visit: Visit) -> None:
    clear(server)
    live = [visit("/turbo/") for _ in range(2)]
    for one in live:
        one.window.forgive("turbo.es2017-esm.js")
        one.window.forgive("Failed to load resource")
    says_to_all([one.window for one in live])


@pytest.mark.npm
def test_the_example_of_turbo(
    server: Served, static: Path, tmp_path: Path, new_window: Callable[[], Window], visit: Visit
) -> None:
    npm = shutil.which("npm")
    command = [npm or "npm", "pack", "--silent", TURBO]
    if not npm or subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60).returncode:
        pytest.skip(f"no Turbo: npm cannot fetch {TURBO}")
    (package,) = tmp_path.glob("*.tgz")
    with tarfile.open(package) as files:
        script = files.extractfile("package/dist/turbo.es2017-esm.js")
        assert script is not None
        (static / "turbo.es2017-esm.js").write_bytes(script.read())
    clear(server)
    live = [visit("/turbo/") for _ in range(2)]
    for one in live:
        one.page.wait_for_function("!!customElements.get('turbo-stream')")
    says_to_all([one.window for one in live])
    assert live[0].page.locator("turbo-stream").count() == 0  # Turbo has applied them all


# Into the page.


@pytest.mark.parametrize(
    ("fragment", "shown"),
    [
        ('<p id="a">b</p>', "b[first]"),
        ('<p id="a" hx-swap-oob="true">b</p>', "b[first]"),
        ('\n <b id="a" data-hx-swap-oob="outerHTML">b</b> text', "b[first]"),
        ('<i id="a" hx-swap-oob="innerHTML">b<b>c</b></i>', "bc[first]"),
        ('<i id="lines" hx-swap-oob="beforeend"><li>b</li><li>c</li></i>', "a[first|b|c]"),
        ('<i id="lines" hx-swap-oob="afterbegin"><li>b</li><li>c</li></i>', "a[b|c|first]"),
        ('<i id="first" hx-swap-oob="beforebegin"><li>b</li></i>', "a[b|first]"),
        ('<i id="first" hx-swap-oob="afterend"><li>b</li></i>', "a[first|b]"),
        ('<i id="first" hx-swap-oob="delete"></i>', "a[]"),
        ('<i hx-swap-oob="delete:#lines > li"></i><p id="a">b</p>', "b[]"),
        ('<li id="first">b</li><i id="missing">x</i><p id="a">c</p>', "c[b]"),
        (
            '<turbo-stream action="append" target="lines"><template><li>b</li></template></turbo-stream>',
            "a[first|b]",
        ),
        (
            '<turbo-stream action="append" target="lines"><template><li>b</li><li id="first">c</li></template>'
            "</turbo-stream>",
            "a[b|c]",
        ),
        (
            '<turbo-stream action="prepend" target="lines"><template><li>b</li></template></turbo-stream>',
            "a[b|first]",
        ),
        (
            '<turbo-stream action="replace" target="first"><template><li>b</li></template></turbo-stream>',
            "a[b]",
        ),
        ('<turbo-stream action="update" targets="p, #first"><template>b</template></turbo-stream>', "b[b]"),
        ('<turbo-stream action="remove" target="first"></turbo-stream><p id="a">b</p>', "b[]"),
        (
            '<turbo-stream action="before" target="first"><template><li>b</li></template></turbo-stream>',
            "a[b|first]",
        ),
        (
            '<turbo-stream action="after" target="first"><template><li>b</li></template></turbo-stream>',
            "a[first|b]",
        ),
        ("a <p id=a>b</p>", "a[first]"),
        ('{"html": "<p id=a>b</p>"}', "a[first]"),
        ("<p id=a>not shown</p>", "a[first]"),
    ],
)
def test_a_fragment_goes_where_it_says(visit: Visit, fragment: str, shown: str) -> None:
    live = visit().send(fragment)
    code = "a.textContent + '[' + [...lines.children].map((one) => one.textContent).join('|') + ']'"
    element = "const a = document.querySelector('#a'), lines = document.querySelector('#lines');"
    assert live.page.evaluate(f"(() => {{ {element} return {code}; }})()") == shown


def test_scripts_do_not_run_and_errors_are_told(visit: Visit) -> None:
    live = visit().send(
        '<p id="a">b<script>window.ran = true</script></p>',
        '<p id="a" hx-swap-oob="sideways">c</p><li id="first">d</li>',
        "<p>e</p>",
        '<turbo-stream action="dance" target="a"></turbo-stream>',
    )
    expect(live.page.locator("#first")).to_have_text("d")
    assert live.page.evaluate("window.ran") is None
    assert [one for one in live.window.problems if one.startswith("dbchannels")] == [
        'dbchannels cannot show <p id="a" hx-swap-oob="sideways"></p>: there is no such swap or action.',
        "dbchannels cannot show <p></p>: it has neither an id nor a selector.",
        'dbchannels cannot show <turbo-stream action="dance" target="a"></turbo-stream>: '
        "there is no such swap or action.",
    ]
    live.window.forgive("")


def test_what_is_new_is_given_to_htmx(visit: Visit) -> None:
    live = visit()
    live.page.evaluate("window.htmx = { process: (one) => (window.processed ??= []).push(one.outerHTML) }")
    live.send('<p id="a">b</p><i id="lines" hx-swap-oob="beforeend"><li>c</li></i>')
    assert live.page.evaluate("processed") == ['<p id="a">b</p>', "<li>c</li>"]


def test_json_is_an_event(visit: Visit) -> None:
    live = visit().send('{"online": 7}')
    assert live.events()[-1] == ["json", {"online": 7}]
    assert live.names() == ["connecting", "open", "text", "json"]


def test_what_a_page_missed_comes_later_if_the_group_keeps_it(visit: Visit) -> None:
    live = visit()
    lines = [f'<i id="lines" hx-swap-oob="beforeend"><li>{n}</li></i>' for n in range(20)]
    for text in (lines[0], "close 1012", *lines[1:]):
        assert live.server.request("POST", "/send/?keep=1", text.encode()).status == 204
    expect(live.page.locator("#lines li")).to_have_text(["first", *map(str, range(20))])
    assert live.codes() == [1012, None]


def test_an_element_that_leaves_the_page_closes_its_socket(visit: Visit) -> None:
    live = visit()
    live.page.evaluate("window.element = document.querySelector('dbchannels-live'); void element.remove()")
    until(lambda: live.codes() == [1000], lambda: f"{live.codes()}")
    live.page.evaluate("document.body.append(element)")
    expect(live.element).to_have_attribute("state", "open")
    live.send("<p id=a>b</p>")
    assert live.page.locator("#a").inner_text() == "b"


def test_an_element_that_is_moved_keeps_its_socket(visit: Visit) -> None:
    live = visit()
    live.page.evaluate("document.body.prepend(document.querySelector('dbchannels-live'))")
    live.send("<p id=a>b</p>")
    assert live.codes() == [None] and live.element.get_attribute("state") == "open"


def test_an_element_that_becomes_that_of_another_page_takes_its_groups(visit: Visit) -> None:
    """As Turbo and htmx do it when they morph a page."""
    live = visit()
    live.page.evaluate("document.querySelector('dbchannels-live').removeAttribute('state')")
    assert live.element.get_attribute("state") == "open"
    live.page.evaluate("""async () => {
        const page = new DOMParser().parseFromString(await (await fetch("/client/?other")).text(), "text/html");
        const before = document.querySelector("dbchannels-live"), now = page.querySelector("dbchannels-live");
        for (const { name, value } of now.attributes) before.setAttribute(name, value);
    }""")
    until(lambda: live.codes() == [1000, None], lambda: f"{live.codes()}")
    expect(live.element).to_have_attribute("state", "open")
    assert live.server.request("POST", "/send/?group=other", b"<p id=a>other</p>").status == 204
    expect(live.page.locator("#a")).to_have_text("other")


def test_a_page_that_turbo_shows_from_its_cache_opens_no_socket(visit: Visit) -> None:
    live = visit()
    live.page.evaluate("""() => {
        document.documentElement.setAttribute("data-turbo-preview", "");
        document.body.append(document.querySelector("dbchannels-live").cloneNode(true));
        document.documentElement.removeAttribute("data-turbo-preview");
    }""")
    live.send("<p id=a>b</p>")
    assert live.codes() == [None]


def test_the_focus_stays_in_a_field_that_is_replaced(visit: Visit) -> None:
    live = visit()
    live.page.locator("#field").fill("abc")
    live.page.evaluate("document.querySelector('#field').setSelectionRange(1, 2)")
    live.send('<div id="box"><input id="field" value="defg"></div>')
    code = "(({ id, selectionStart, selectionEnd }) => [id, selectionStart, selectionEnd])(document.activeElement)"
    assert live.page.evaluate(code) == ["field", 1, 2]
    live.send('<div id="box">no field</div>')


# Tokens.


def test_a_token_that_is_too_old_is_renewed_from_the_page(visit: Visit) -> None:
    live = visit("/client/?old=1&q=%C3%A4")
    until(lambda: live.codes() == [4410, None], lambda: f"{live.codes()}")
    live.send("<p id=a>b</p>")
    expect(live.page.locator("#a")).to_have_text("b")
    assert [one for one in live.names() if one == "closed"] == []
    assert ["waiting", {"seconds": 0}] in live.events()  # it is the page's first try


@pytest.mark.parametrize("then", ["403", "404", "204", "login", "sso"])
def test_a_page_that_refuses_ends_it(visit: Visit, then: str) -> None:
    live = visit(f"/client/?old=1&then={then}", "closed")
    assert live.events()[-1] == [
        "closed",
        {"code": 4410, "reason": "The token is too old, or belongs to another session."},
    ]
    assert live.codes() == [4410]
    for problem in ("403", "404", "ERR_ABORTED"):  # the last is a redirect that is not followed
        live.window.forgive(problem)


def test_a_new_token_that_is_refused_too_ends_it(visit: Visit) -> None:
    live = visit("/client/?old=1&always=1", "closed")
    assert live.codes() == [4410, 4410]
    assert "a new token was refused too" in live.window.problems[0]
    live.window.forgive("a new token was refused too")


def test_a_server_that_cannot_answer_is_asked_again(visit: Visit, new_window: Callable[[], Window]) -> None:
    window, answers = new_window(), [503, 0, 429]  # 0: the network fails

    def answer(route: Route) -> None:
        if not answers or route.request.resource_type != "fetch":
            route.continue_()
        elif status := answers.pop():
            route.fulfill(status=status)
        else:
            route.abort()

    window.context.route("**/client/*", answer)
    window.context.add_init_script(
        "{ const later = window.setTimeout; window.setTimeout = (f, ms, ...a) => later(f, Math.min(ms, 1000), ...a); }"
    )
    live = visit("/client/?old=1", window=window)
    until(lambda: live.codes() == [4410, None], lambda: f"{live.codes()}")
    assert answers == []
    for problem in ("503", "429", "ERR_FAILED", "ERR_ABORTED"):  # nobody reads the rest of these answers
        window.forgive(problem)


def test_a_login_in_another_window_gives_the_page_a_new_token(server: Served, visit: Visit) -> None:
    live = visit()
    other = live.window.context.new_page()
    other.goto(f"{live.url}/login/ann/")
    assert live.codes() == [None]
    assert live.server.request("POST", "/send/", b"close 1012").status == 204
    until(lambda: live.codes() == [1012, 4410, None], lambda: f"{live.codes()}")
    live.send("<p id=a>for ann</p>")
    waits = [detail["seconds"] for name, detail in live.events() if name == "waiting"]
    assert len(waits) == 2 and 1 <= waits[1] <= 5  # many pages may have lost their connections at once


def test_a_logout_in_another_window_closes_it(
    visit: Visit, new_window: Callable[[], Window], server: Served
) -> None:
    window = new_window()
    window.page.goto(f"http://{HOST}:{server.port}/login/ann/")
    live = visit("/members/", window=window)
    live.send("<p id=a>b</p>")
    other = window.context.new_page()
    other.goto(f"{live.url}/logout/")
    expect(live.element).to_have_attribute("state", "closed")
    assert live.codes() == [4401]
    assert live.names()[-2:] == ["unauthorized", "closed"]
