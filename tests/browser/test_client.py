"""The JavaScript client in a browser, on a page that writes down all its events."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Error, Page, expect

import dbchannels
from tests.browser.conftest import Window
from tests.browser.pagesite import new_site, serve
from tests.harness import HOST, LiveSite, Served, until

pytestmark = [pytest.mark.browser, pytest.mark.postgresql]

FILE = Path(dbchannels.__file__).parent / "static" / "dbchannels" / "dbchannels.js"
DOCUMENT = (Path(__file__).parents[2] / "docs" / "javascript.rst").read_text()


@pytest.fixture(scope="module")
def live_site(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveSite]:
    """A site with the pages of these tests, nothing started."""
    site = new_site("dbchannels_client", tmp_path_factory.mktemp("client"))
    yield site
    site.end()


@pytest.fixture(scope="module")
def server(live_site: LiveSite) -> Served:
    """Its server with one worker, for all tests that leave it as it was."""
    return serve(live_site)


class Client:
    """A page with one socket."""

    def __init__(self, window: Window, server: Served) -> None:
        self.window, self.page = window, window.page
        self.page.goto(f"http://{HOST}:{server.port}/client/")

    def connect(self, url: str, options: str = "{}") -> Client:
        """Make the socket."""
        self.page.evaluate(f"void connect({url!r}, {options})")
        return self

    def do(self, code: str) -> Any:
        """Run code with the socket."""
        return self.page.evaluate(code)

    def events(self) -> list[list[Any]]:
        """Return all events until now: name and detail of each."""
        return list(self.page.evaluate("events"))

    def names(self) -> list[str]:
        """Return their names."""
        return [name for name, _ in self.events()]

    def saw(self, *wanted: list[Any]) -> None:
        """Wait until these events came, in this order, whatever came between."""

        def found() -> bool:
            left = iter(self.events())
            return all(any(one == event for event in left) for one in wanted)

        _wait(self.page, found, lambda: f"{wanted} in {self.events()}")

    def reached(self, *names: str) -> None:
        """Wait until the events are these."""
        _wait(self.page, lambda: self.names() == list(names), lambda: f"{names}, but {self.events()}")


def _wait(page: Page, condition: Callable[[], bool], what: Callable[[], str]) -> None:
    until(condition, what, every=0.05)


@pytest.fixture
def client(server: Served, new_window: Callable[[], Window]) -> Client:
    """A page on the server."""
    return Client(new_window(), server)


def test_it_is_small_and_one_file() -> None:
    assert FILE.stat().st_size < 6_000
    assert "import " not in FILE.read_text()


def test_a_relative_address_is_one_on_the_page_s_server(client: Client) -> None:
    client.connect("echo/").reached("connecting", "open")
    assert client.do("socket.state") == "open"
    client.do("socket.send('hi')")
    client.saw(["text", "hi"])


def test_json_and_what_is_none(client: Client) -> None:
    client.connect("/echo/").reached("connecting", "open")
    client.do(
        "socket.sendJSON({ a: [1, null] }) && socket.send('{') && socket.send('null') && socket.send('')"
    )
    client.saw(
        ["text", '{"a":[1,null]}'], ["json", {"a": [1, None]}], ["text", "{"], ["json", None], ["text", ""]
    )
    assert client.names().count("json") == 2


def test_an_event_that_never_comes_is_refused(client: Client) -> None:
    client.connect("/echo/").reached("connecting", "open")
    with pytest.raises(Error, match="There is no event message, but connecting,open,"):
        client.do("socket.on('message', () => 0)")


def test_binary(client: Client) -> None:
    client.connect("/echo/").reached("connecting", "open")
    client.do("socket.send(new Uint8Array([0, 255, 10]))")
    client.saw(["binary", [0, 255, 10]])


def errors(client: Client) -> list[Any]:
    """Return the frames that say what was wrong."""
    return [value for name, value in client.events() if name == "json" and "error" in value]


def test_streams(client: Client) -> None:
    client.connect("/streams/").reached("connecting", "open")
    client.do("socket.stream('chat').on((payload) => events.push(['chat', payload])).send({ text: 'hi' })")
    client.saw(["chat", {"chat": {"text": "hi"}}])
    client.do("socket.sendJSON({ stream: 'other', payload: { text: 'ho' } })")
    client.saw(["json", {"stream": "other", "payload": {"chat": {"text": "ho"}}}])
    client.do("socket.stream('chat').send('no object')")
    client.do("socket.stream('toString').send({})")
    until(lambda: len(errors(client)) == 2, lambda: str(client.events()), every=0.05)
    assert [error["error"]["code"] for error in errors(client)] == ["invalid_content", "unknown_stream"]
    assert client.do("socket.stream('chat') === socket.stream('chat')")


@pytest.mark.parametrize("code", [1000, 1008, 4400, 4401])
def test_it_stays_away_after_a_code_that_says_so(client: Client, code: int) -> None:
    client.connect("/echo/").reached("connecting", "open")
    client.do(f"socket.send('close {code}')")
    detail = {"code": code, "reason": ""}
    last = [["unauthorized", detail]] if code == 4401 else []
    client.saw(*last, ["closed", detail])
    assert client.names() == ["connecting", "open", *(name for name, _ in last), "closed"]
    assert client.do("[socket.send('lost'), socket.state, socket.timer]") == [False, "closed", None]


@pytest.mark.parametrize("code", [1001, 1011, 1012, 1013])
def test_it_comes_back_after_all_others(client: Client, code: int) -> None:
    client.connect("/echo/").reached("connecting", "open")
    client.do(f"socket.send('close {code}')")
    client.reached("connecting", "open", "waiting", "connecting", "open")
    assert client.events()[2] == ["waiting", {"seconds": 1}]


def test_the_page_may_know_better(client: Client) -> None:
    client.connect("/echo/", "{ again: (code) => code === 4000 }").reached("connecting", "open")
    client.do("socket.send('close 4000')")
    client.reached("connecting", "open", "waiting", "connecting", "open")
    client.do("socket.send('close 1001')")
    client.saw(["closed", {"code": 1001, "reason": ""}])


@pytest.mark.parametrize("end", [Served.terminate, Served.end], ids=["stopped", "killed"])
def test_it_comes_back_when_the_server_does_and_brings_what_was_queued(
    live_site: LiveSite, new_window: Callable[[], Window], end: Callable[[Served], Any]
) -> None:
    first = serve(live_site)
    client = Client(new_window(), first).connect("/echo/", "{ queue: 2, longest: 600 }")
    client.reached("connecting", "open")
    end(first)
    client.saw(["waiting", {"seconds": 1}])
    assert client.do("['one', 'two', 'three'].map((text) => socket.send(text))") == [True, True, False]
    serve(live_site, first.port)
    client.saw(["open", {}], ["waiting", {"seconds": 1}], ["open", {}], ["text", "one"], ["text", "two"])
    client.window.forgive("WebSocket connection to")


def test_a_refused_connection_is_tried_again_after_longer_and_longer(client: Client) -> None:
    client.do("Math.random = () => 1, globalThis.setTimeout = (act, ms) => setInterval(act, ms / 100)")
    client.connect("/refused/")
    until(lambda: client.names().count("waiting") >= 7, lambda: str(client.events()), every=0.05)
    client.do("socket.close()")
    seconds = [detail["seconds"] for name, detail in client.events() if name == "waiting"]
    assert seconds[:7] == [1, 2, 4, 8, 10, 10, 10]
    client.window.forgive("WebSocket connection to")
    client.window.forgive("was answered 403")
    client.window.forgive("/refused/ failed")


def test_a_wait_is_part_chance_and_cut_short_when_the_page_is_online_again(client: Client) -> None:
    client.do("Math.random = () => 0.5")
    client.connect("/echo/").reached("connecting", "open")
    client.do("window.late = [], globalThis.setTimeout = (act, ms) => late.push(ms)")
    client.do("socket.send('close 1012')")
    client.reached("connecting", "open", "waiting")
    assert client.do("late.at(-1)") == 750
    client.do("dispatchEvent(new Event('online'))")
    client.reached("connecting", "open", "waiting", "connecting", "open")
    client.do("dispatchEvent(new Event('online')), document.dispatchEvent(new Event('visibilitychange'))")
    client.do("socket.send('still the same')")
    client.saw(["text", "still the same"])
    assert client.names().count("open") == 2


def test_silence_is_a_lost_connection(server: Served, new_window: Callable[[], Window]) -> None:
    client = Client(new_window(), server)
    client.do(
        "window.late = [], window.set = setTimeout, "
        "globalThis.setTimeout = (act, ms, ...more) => "
        "ms >= 500 ? late.push([ms, () => act(...more)]) : set(act, ms, ...more)"
    )
    client.connect("/echo/?a=b", "{ heartbeat: 1 }").reached("connecting", "open")
    assert client.do("late.map(([ms]) => ms)") == [10_000] * 2
    client.do("socket.send('hi')")
    client.saw(["text", "hi"])
    assert client.do("late.map(([ms]) => ms)") == [10_000] * 3
    client.do("window.old = socket.socket, late.at(-1)[1]()")
    client.saw(["waiting", {"seconds": 1}])
    client.do("late.at(-1)[1]()")
    client.reached("connecting", "open", "text", "waiting", "connecting", "open")
    assert client.do("old.url").endswith("/echo/?a=b&dbchannels-heartbeat=5")
    assert client.do("old.readyState > 1")


def test_a_handshake_that_nobody_answers_is_tried_again(
    server: Served, new_window: Callable[[], Window]
) -> None:
    client = Client(new_window(), server)
    client.do(
        "window.set = setTimeout, globalThis.setTimeout = (act, ms, ...more) => set(act, ms / 100, ...more)"
    )
    with socket.create_server((HOST, 0)) as silent:
        client.connect(f"ws://{HOST}:{silent.getsockname()[1]}/", "{ heartbeat: 10 }")
        client.saw(["connecting", {}], ["waiting", {"seconds": 1}], ["connecting", {}])
        client.do("socket.close()")
    client.window.forgive("WebSocket is closed before the connection is established")


def test_heartbeats_are_kept_from_the_page(client: Client) -> None:
    client.connect("/echo/").reached("connecting", "open")
    client.do("socket.send('\\0heartbeat'), socket.send('hi')")
    client.reached("connecting", "open", "text")


@pytest.mark.parametrize("options", ["{}", "{ resume: true }"])
def test_a_text_that_looks_like_an_id_is_a_text(client: Client, options: str) -> None:
    """Whoever may write into a group could make other pages reload otherwise."""
    client.connect("/echo/", options)
    client.saw(["open", {}])
    for text in ("\0gap 1", "\0start 999999999999999999", "\0id 2", "hi"):
        client.do(f"socket.send({text!r})")
        client.saw(["text", text])
    assert "gap" not in client.names() and client.do("socket.lastId") not in ("1", "9" * 18)


def test_it_is_closed_by_the_page_and_opened_again(client: Client) -> None:
    client.connect("/room/").reached("connecting", "open")
    client.do("socket.close(4001, 'bye')")
    client.saw(["closed", {"code": 4001, "reason": "bye"}])
    assert client.do("socket.send('lost')") is False
    client.do("socket.open()")
    client.reached("connecting", "open", "closed", "connecting", "open")


def test_one_that_was_closed_before_it_began_never_connects(client: Client) -> None:
    client.do("connect('/echo/').close()")
    client.reached("closed")
    assert client.window.sockets() == []


def test_one_that_is_closed_as_it_begins_stays_closed(client: Client) -> None:
    client.do("{ const one = connect('/echo/'); one.on('connecting', () => one.close()); }")
    client.reached("connecting", "closed")
    assert client.do("[socket.state, socket.socket]") == ["closed", None]
    until(lambda: [one["opened"] for one in client.window.sockets() if one["code"]] == [False], "its end")
    client.window.forgive("closed before the connection is established")


def test_a_page_that_is_gone_has_left(
    client: Client, server: Served, new_window: Callable[[], Window]
) -> None:
    client.connect("/room/").reached("connecting", "open")
    other = Client(new_window(), server).connect("/room/")
    client.saw(["text", "came"])
    other.page.close()
    client.saw(["text", "left 1001"])


def test_the_page_of_the_documentation(server: Served, new_window: Callable[[], Window]) -> None:
    pages = [new_window().page for _ in range(2)]
    for page in pages:
        page.goto(f"http://{HOST}:{server.port}/docs/")
        expect(page.locator("#state")).to_have_text("Connected")
    pages[0].get_by_label("Line").fill("<b>hello</b>")
    pages[0].get_by_label("Line").press("Enter")
    for page in pages:
        expect(page.locator("#lines li")).to_have_text(["<b>hello</b>"])
    expect(pages[0].get_by_label("Line")).to_have_value("")
    pages[1].get_by_label("Line").fill("log out")
    pages[1].get_by_label("Line").press("Enter")
    for page in pages:
        page.wait_for_url("**/login/")


def test_the_documentation_names_every_event_and_option() -> None:
    words = set(re.findall(r"``(\w+)``", DOCUMENT))
    code = FILE.read_text()
    assert set(re.findall(r"#(?:tell|become)\(\"(\w+)\"", code)) <= words
    options = re.search(r"url, \{ (.*) \} = \{\}", code)
    assert options
    assert (
        {one.split(" = ")[0] for one in options[1].split(", ")}
        == {"protocols", "queue", "longest", "again", "heartbeat", "resume"}
        <= words
    )
