"""docs/consumers.rst, docs/sessions.rst and the consumers of docs/javascript.rst run, and do what the pages say."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path

import pytest

import dbchannels
import dbchannels.consumers
from dbchannels import Group, exceptions
from dbchannels.routing.table import Routing
from dbchannels.worker.worker import Worker
from tests import kinds
from tests.visitors import Visitor, new_session

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {name: (DOCS / f"{name}.rst").read_text() for name in ("consumers", "javascript", "sessions")}
BLOCK = re.compile(r"\.\. code-block:: python\n   :caption: (.*)\n\n((?:   .*\n|\n)+)")
CODE = {(page, caption): code for page, text in PAGES.items() for caption, code in BLOCK.findall(text)}

pytestmark = kinds.only("memory")


@pytest.fixture
def play(layer, new_link, monkeypatch):
    """Run a page's code: ``play(page, caption, path)`` gives a function that does one step of a client's."""
    found, ended = [], []
    monkeypatch.setattr("dbchannels.routing.table._decorated", found)

    def start(page, caption, path, *keys):
        names = {"__name__": "portal.consumers"}
        exec(textwrap.dedent(CODE[page, caption]), names)
        one = Worker(layer, Routing(found))
        one._register()
        clients = [
            Visitor(layer, new_link(layer), key, f"c{number}") for number, key in enumerate(keys or [""])
        ]
        ended.extend([one.link.close, *(client.ends for client in clients)])

        def step(number, name, *given):
            getattr(clients[number], name)(*given, path=path)
            while one.run_once():
                pass
            return [told.get("text", told) for told in clients[number].told()]

        return step, names

    yield start
    for end in ended:
        end()


def test_the_chat_as_functions(play):
    step, _ = play("consumers", "chat/consumers.py", "/chat/tea/")
    assert step(0, "opens") == []
    assert step(0, "says", "hi") == ["hi"]


def test_the_form_of_the_post_of_2015(play):
    step, _ = play("consumers", "echo/consumers.py", "/echo/")
    step(0, "opens")
    assert step(0, "says", "hi") == [{"content": "hi"}]


def test_an_async_consumer_knows_its_user(play, anna):
    step, _ = play("consumers", "names/consumers.py", "/name/", new_session(anna).session_key, "")
    for number, name in enumerate(("anna", "somebody")):
        step(number, "opens")
        assert step(number, "says", "who am I?") == [name]


def test_strangers_are_kept_away_by_a_code_of_the_sites_own(play, anna):
    step, _ = play("javascript", "clubs/consumers.py", "/club/", new_session(anna).session_key, "")
    assert step(0, "opens") == []
    assert step(1, "opens") == [{"accept": True, "close": 4400, "reason": "Members only."}]


def test_the_chat_as_a_class(play, anna):
    step, _ = play(
        "consumers", "chat/consumers.py, as a class", "/chat/tea/", new_session(anna).session_key, ""
    )
    assert step(0, "opens") == step(1, "opens") == []
    assert step(0, "says", "hi") == ["anna: hi"] * 2
    assert step(1, "says", "hi") == ["somebody: hi"] * 2
    assert step(1, "leaves") == ["somebody left."] * 2


def test_the_votes(play):
    step, names = play("consumers", "votes/consumers.py", "/votes/")
    assert step(0, "opens") == []
    assert step(0, "says", '{"choice": "tea"}') == ['{"vote": "tea"}']
    (error,) = step(0, "says", '{"choice": "milk"}')
    assert json.loads(error)["error"]["code"] == "invalid_choice"
    (error,) = step(0, "says", "tea")
    assert json.loads(error)["error"]["code"] == "invalid_json"
    Group("votes").send(names["Votes"].frame({"vote": "tea"}))
    assert step(0, "says", "[]")[0] == '{"vote": "tea"}'


def test_the_streams(play):
    step, names = play("consumers", "portal/consumers.py", "/socket/")
    assert step(0, "opens") == []
    Group("news").send(names["News"].frame({"title": "..."}, stream="news"))
    told = step(0, "says", '{"stream": "search", "payload": {"start": "te"}}')
    assert [json.loads(one) for one in told] == [
        {"stream": "news", "payload": {"title": "..."}},
        {"stream": "search", "payload": {"found": ["tea", "teapot"]}},
    ]


def test_the_chat_of_those_who_are_logged_in(play, anna):
    step, _ = play("sessions", "chat/consumers.py", "/chat/", new_session(anna).session_key, "")
    assert step(1, "opens") == [{"accept": False, "status": 403}]
    assert step(0, "opens") == []
    assert step(0, "says", "hi") == ["anna: hi"]
    assert step(0, "leaves") == ["anna leaves after 1 messages."]


def test_the_error_codes_are_all_there(layer):
    package = Path(dbchannels.consumers.__file__).parent
    said = {
        code
        for path in package.glob("*.py")
        for code in re.findall(r'send_error\(\s*"(\w+)"', path.read_text())
    }
    assert said == set(re.findall(r"^``(\w+)``  +", PAGES["consumers"], re.MULTILINE))


@pytest.mark.parametrize(
    "name", ["DenyConnection", "WebSocketCloseException", "ConsumeLater", "ResponseLater", "LoginEnded"]
)
def test_what_a_consumer_may_raise_is_explained(layer, name):
    assert getattr(dbchannels, name) is getattr(exceptions, name)
    assert re.search(rf"^``{name}(\(code, reason\))?``$", PAGES["consumers"], re.MULTILINE)
