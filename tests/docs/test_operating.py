"""The pages on operating, troubleshooting and security: their commands print what they show, and their code runs."""

from __future__ import annotations

import logging
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
from django.apps import apps
from django.contrib import admin
from django.db import OperationalError, connection
from django.test import override_settings

from dbchannels import Channel, Group, Message, conf, protocol, redaction, route
from dbchannels.exceptions import ChannelFull, DenyConnection, LayerUnavailable
from dbchannels.layers.base import BaseLayer
from dbchannels.layers.health import LayerHealth
from dbchannels.models import DeadLetter
from dbchannels.routing.routes import Route
from dbchannels.routing.table import Routing
from dbchannels.server import connection_limits
from dbchannels.server.housekeeper import Overload
from dbchannels.server.http import body, dispatch, reader
from dbchannels.server.http.messages import Refused
from dbchannels.signals import consumer_finished
from dbchannels.testing import use_channels
from dbchannels.worker import executor
from tests import kinds
from tests.docs import pages
from tests.docs.project import Project
from tests.harness import Served, Socket, close_all, until

PAGES = ("operating", "troubleshooting", "security")
BLOCKS = {(page, one.caption): one.code for page in PAGES for one in pages.blocks(page)}
CONSOLE = [(page, one.code) for page in PAGES for one in pages.blocks(page, "console")]
SOURCE = Path(__file__).parents[2] / "dbchannels"
WRITTEN_EVERY = 0.5  # seconds between two writes of the workers' counts, in place of 5
#: What differs from one run to the next, and the word that stands for it on both sides of a comparison.
VOLATILE = [
    (r"127\.0\.0\.1:\d+", "ADDRESS"),
    (r"\d\d/\w{3}/\d{4}:[\d:]{8} [+-]\d{4}", "DATE"),
    (r"\[\d\d/\w{3}/\d{4} [\d:]{8}\]", "[TIME]"),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "TIME"),
    (r"(worker|server)-\d+(-[\w-]{22})?", "PROCESS"),
    (r"(?m)^\(\d+, '", "(PID, '"),
    (r"'messages_max_age': [\d.]+", "AGE"),
    (r"curl/[\d.]+", "CURL"),
    (r"(\" \d{3}) \d+ \"", r"\1 SIZE "),
    (r"\d+ ms", "MS"),
    (r"(for|after) [\d.]+ s\b", r"\1 SECONDS"),
    (r"line \d+", "LINE"),
]


def pattern(shown: str) -> re.Pattern[str]:
    """Return a pattern for what a page shows: three dots are any text, and alone on a line any number of lines."""
    text = re.escape(constant(shown).strip()).replace("\\.\\.\\.\\\n", "(?:.*?\\n)?")
    return re.compile(text.replace(r"\.\.\.", ".*?"), re.DOTALL)


def is_shown(text: str, caption: str) -> bool:
    """Whether a log has what a block shows. The page may break its lines anywhere."""
    shown = next(code for (_, one), code in BLOCKS.items() if one == caption)
    wanted = re.escape(joined(shown)).replace(r"\.\.\.\ ", "(?:.*? )?").replace(r"\.\.\.", ".*?")
    return re.search(wanted, joined(text)) is not None


def joined(text: str) -> str:
    return " ".join(constant(text).split())


def constant(text: str) -> str:
    """Return a text without what differs from run to run, without indentation and HTTP's carriage returns."""
    text = re.sub(r"^[ \t]+|[ \t]+$", "", text.replace("\r", ""), flags=re.MULTILINE)
    for volatile, word in VOLATILE:
        text = re.sub(volatile, word, text)
    return text


def transcript(code: str) -> list[tuple[str, str]]:
    """Return the commands of a console block, each with what it prints."""
    steps = re.split(r"^\$ (.*\n(?:    .*\n)*)", code, flags=re.MULTILINE)[
        1:
    ]  # a command may go on, indented
    commands = [re.sub(r"\s*\\?\n\s*", " ", step).strip() for step in steps[::2]]
    return list(zip(commands, steps[1::2], strict=True))


# The site of docs/operating.rst.


class Shop(Project):
    """A project with the files of the page, served by two workers."""

    served: Served
    probes: int

    def make(self) -> None:
        """Write it as a reader does."""
        self.run("django-admin startproject mysite")
        self.run("python manage.py startapp shop")
        settings = (
            "INSTALLED_APPS = ['dbchannels', 'shop', *INSTALLED_APPS]\n"
            "METRICS_TOKEN = 'change-me'\n"
            "DBCHANNELS = {'default': {'OPTIONS': {'lease': 2.0}}}\n"  # work is recorded every third of it
        )
        sqlite = BLOCKS["troubleshooting", "settings.py: SQLite for several processes"]
        self.add("mysite/settings.py", f"{settings}{sqlite}")
        self.add("mysite/plain.py", "from mysite.settings import *\nDATABASES['default']['OPTIONS'] = {}\n")
        for block in pages.blocks("operating", "python"):
            path = block.caption.partition(":")[0]
            if path in ("shop/models.py", "shop/apps.py"):  # startapp has made them
                (self.manage_py.parent / path).unlink()
            if "/" in path:
                self.add(path, block.code.replace("EVERY = 5 ", f"EVERY = {WRITTEN_EVERY} "))
        self.run("python manage.py makemigrations --verbosity 0 shop")
        self.run("python manage.py migrate --verbosity 0")

    def add(self, path: str, code: str) -> None:
        """Add code at the end of a file."""
        with (self.manage_py.parent / path).open("a") as file:
            file.write(f"\n{code}")

    def start(self) -> None:
        """Serve it, as it is now."""
        self.changes = False
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.probes = free.getsockname()[1]
        self.served = self.serve("--workers", "2", "--probe-port", str(self.probes))
        until(lambda: self.type("curl http://127.0.0.1:8001/readyz") == "Ready.\n", "it is ready", 60)

    def type(self, command: str, **environment: str) -> str:
        """Run a command as a page shows it; return what it prints."""
        command = command.replace("127.0.0.1:8000", f"127.0.0.1:{self.served.port}")
        words = shlex.split(command.replace("127.0.0.1:8001", f"127.0.0.1:{self.probes}"))
        if words[0] == "curl":
            words[1:1] = ["--silent", "--show-error", "--max-time", "20"]
        done = subprocess.run(
            [{"python": sys.executable}.get(words[0], words[0]), *words[1:]],
            cwd=self.manage_py.parent,
            env={**self.environment(), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        return done.stdout

    def logs(self, caption: str) -> None:
        """Wait until the server's log has what the page shows."""
        output = self.served.output
        until(lambda: is_shown(output(), caption), lambda: f"{caption} in {output()}", 60)

    def orders(self) -> Socket:
        """Open a WebSocket."""
        opened = self.served.socket("/orders/")
        assert opened.status == 101
        return opened

    def fail(self) -> None:
        """Make one dead letter."""
        self.rows("DELETE FROM dbchannels_deadletter")
        self.send("invoices", {"order": "seven"})
        until(lambda: self.count("deadletter") == 1, lambda: f"a dead letter in {self.served.output()}", 60)

    def wait(self, number: int, channel: str = "elsewhere", **options: Any) -> None:
        """Put messages on a channel that nobody takes, or not yet."""
        self.shell(
            f"from dbchannels import Channel\nfor n in range({number}): "
            f"Channel({channel!r}, **{options!r}).send({{'order': n}})"
        )


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    made = Shop(tmp_path_factory.mktemp("shop"))
    made.make()
    made.start()
    yield made
    close_all()
    made.end()


@pytest.fixture(autouse=True)
def no_messages(request: pytest.FixtureRequest) -> Iterator[None]:
    """Leave the shop without messages."""
    yield
    if "shop" in request.fixturenames:
        made = request.getfixturevalue("shop")
        for table in ("durablemessage", "deadletter"):
            made.rows(f"DELETE FROM dbchannels_{table} WHERE true")
        close_all()


# Commands.


def statistics(shop: Shop) -> None:
    shop.wait(4)
    shop.rows(
        "UPDATE dbchannels_durablemessage SET claimed_by = 'worker' "
        "WHERE id = (SELECT min(id) FROM dbchannels_durablemessage)"
    )


def an_export_runs(shop: Shop) -> None:
    shop.send("exports", {"seconds": 8})
    # The worker may still run the export of an earlier test, whose message is gone.
    until(
        lambda: (
            shop.rows("SELECT 1 FROM dbchannels_durablemessage WHERE claimed_by IS NOT NULL")
            and shop.rows("""SELECT 1 FROM dbchannels_process WHERE work LIKE '%"runs": "exports"%'""")
        ),
        "the export is on record",
        60,
    )


def a_consumer_elsewhere(shop: Shop) -> None:
    shop.add(
        "shop/tasks.py",
        "from dbchannels import consumer\n\n@consumer('thumbnails')\ndef make_thumbnail(message): ...\n",
    )


def a_failure_is_counted(shop: Shop) -> None:
    time.sleep(2 * WRITTEN_EVERY)  # the counts of earlier tests are written by then
    shop.rows("DELETE FROM shop_consumercount")
    shop.fail()
    until(lambda: shop.rows("SELECT 1 FROM shop_consumercount"), "the worker has written its counts", 60)


#: What must be there before the command of a console block that contains these words.
BEFORE: dict[str, Callable[[Shop], Any]] = {
    "manage.py replay": Shop.fail,
    "channels_status invoices": lambda shop: (shop.fail(), shop.wait(3, "invoices", delay=3600)),
    "global_statistics": statistics,
    "channels_status exports": an_export_runs,
    "filter(channel='exports')": an_export_runs,
    "/metrics/": a_failure_is_counted,
    "channels_cancel newsletters": lambda shop: shop.wait(3, "newsletters"),
    "channel_statistics('invoice')": lambda shop: shop.wait(1, "invoice"),
    "manage.py check\n": a_consumer_elsewhere,
    "Group('order": Shop.orders,
}


@pytest.mark.parametrize(
    ("page", "code"), CONSOLE, ids=[f"{page}-{number}" for number, (page, _) in enumerate(CONSOLE)]
)
def test_a_command_prints_what_the_page_shows(shop: Shop, page: str, code: str) -> None:
    kept = [prepare(shop) for words, prepare in BEFORE.items() if words in code]
    plain = {"DJANGO_SETTINGS_MODULE": "mysite.plain"} if "--database default" in code else {}
    try:
        for command, shown in transcript(code):
            assert shown.strip(), f"The page shows nothing of {command}"
            printed = run_worker(shop, command) if " runworker " in command else shop.type(command, **plain)
            assert pattern(shown).fullmatch(constant(printed).strip()), f"{command}\n{printed}"
    finally:
        (shop.manage_py.parent / "shop" / "tasks.py").unlink(missing_ok=True)
        kept.clear()


def run_worker(shop: Shop, command: str) -> str:
    """Run a worker until it reads; return what it printed."""
    worker = shop.work(*shlex.split(command)[3:])
    printed = worker.output()
    assert worker.terminate() == 0
    return printed


def test_each_preparation_is_for_a_command() -> None:
    assert all(any(words in code for _, code in CONSOLE) for words in BEFORE)


# Logs.


def test_the_log_of_a_dead_letter(shop: Shop) -> None:
    shop.fail()
    shop.logs("the log of a dead letter")


def test_the_log_of_a_slow_consumer(shop: Shop) -> None:
    shop.send("exports", {"seconds": 2})
    shop.logs("the log of a slow consumer")


def test_the_log_of_a_refused_handshake(shop: Shop) -> None:
    (code,) = (code for _, code in CONSOLE if "HTTP/1.1 404" in code)
    shop.type(transcript(code)[0][0])
    shop.logs("the access log of a refused handshake")


def test_the_log_of_a_handshake_that_a_proxy_has_dropped(shop: Shop) -> None:
    shop.type("curl --http1.0 http://127.0.0.1:8000/orders/")
    shop.logs("the access log behind a proxy that drops the handshake")


def test_the_log_of_a_reload_that_failed(shop: Shop) -> None:
    path = shop.manage_py.parent / "mysite" / "urls.py"
    before = path.read_text()
    try:
        path.write_text(f"import stripe\n{before}")
        shop.served.process.send_signal(1)
        shop.logs("the log of a reload that failed")
    finally:
        path.write_text(before)
    shop.served.process.send_signal(1)
    shop.served.wait_for_line("The workers run the new code.", 60)


def test_the_log_of_busy_workers(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    class Link:
        def heads(self, channels: list[str]) -> dict[str, tuple[int, int]]:
            return dict.fromkeys(channels, (1, 1))

    work = {"takes": ["invoices"], "runs": "exports", "since": "2026-11-28 21:14:02"}
    overload, link = Overload(), Link()
    overload.look(link, {"worker-2-Tn0Wq0qMrpSvHlL3VPrMEw": work})  # type: ignore[arg-type]
    monkeypatch.setattr(Overload, "PATIENCE", 0.0)
    overload.look(link, {"worker-2-Tn0Wq0qMrpSvHlL3VPrMEw": work})  # type: ignore[arg-type]
    (line,) = caplog.messages
    assert is_shown(line, "the log of busy workers")


def test_the_log_of_an_outage(caplog: pytest.LogCaptureFixture) -> None:
    health = LayerHealth(logging.getLogger("dbchannels.server"), "server-4306")
    for _ in range(2):
        health.failed(LayerUnavailable("connection refused"))
    health.worked()
    assert pattern(BLOCKS["operating", "the log of an outage"]).fullmatch(
        constant("\n".join(caplog.messages))
    )


def test_the_loop_in_a_test() -> None:
    def again(message: Message) -> None:
        Channel("invoices").send({})

    with use_channels() as channels, pytest.MonkeyPatch.context() as patched:
        routing = Routing([route("invoices", again)])
        patched.setattr("dbchannels.testing.channels.site_routing", lambda alias: routing)
        Channel("invoices").send({})
        with pytest.raises(AssertionError) as raised:
            channels.drain()
    assert is_shown(str(raised.value), "a loop in a test")


# Settings.


@pytest.mark.parametrize("caption", ["settings.py: a closed channel", "settings.py: past PgBouncer"])
def test_a_setting_is_valid(caption: str) -> None:
    names: dict[str, Any] = {}
    exec(next(code for (_, one), code in BLOCKS.items() if one == caption), names)
    with override_settings(DBCHANNELS=names["DBCHANNELS"]):
        assert conf.problems() == []


@kinds.only("memory")
def test_a_closed_channel_raises_as_shown(new_layer: Callable[..., BaseLayer]) -> None:
    names: dict[str, Any] = {}
    exec(BLOCKS["operating", "settings.py: a closed channel"], names)
    new_layer(**names["DBCHANNELS"]["default"]["OPTIONS"])
    with pytest.raises(ChannelFull):
        Channel("invoices").send({})
    assert is_shown(f"{ChannelFull.__module__}.ChannelFull: {ChannelFull('http.request')}", "the exception")


def test_the_logging_of_the_page_writes_all_lines(tmp_path: Path) -> None:
    code = BLOCKS["operating", "settings.py"].replace("/var/log/site", str(tmp_path))
    program = (
        f"{code}\nimport logging, logging.config\n"
        "from django.conf import settings\nsettings.configure()\nlogging.config.dictConfig(LOGGING)\n"
        "logging.getLogger('dbchannels.access').info('GET /')\n"
        "logging.getLogger('dbchannels.server').warning('refused')\n"
        "print([one.handlers for one in map(logging.getLogger, ['dbchannels.worker', 'dbchannels.server'])])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (tmp_path / "access.log").read_text() == "GET /\n"
    assert done.stderr.endswith("WARNING dbchannels.server: refused\n")
    assert done.stdout.startswith("[[<AdminEmailHandler (ERROR)>], []]")  # the server never mails


# Queries.


@pytest.mark.postgresql
@pytest.mark.django_db
@pytest.mark.parametrize("caption", [one.caption for page in PAGES for one in pages.blocks(page, "sql")])
def test_a_query_has_rows(caption: str) -> None:
    code = next(code for (_, one), code in BLOCKS.items() if one == caption)
    with connection.cursor() as cursor:
        cursor.execute(code)
        assert cursor.fetchall()


@kinds.on_databases
def test_a_message_can_be_cancelled(layer: BaseLayer) -> None:
    code = BLOCKS["troubleshooting", "cancel a reminder"]
    sent, deleted = code.rsplit("\n", 2)[0], code
    exec(sent, {})
    assert layer.channel_statistics("reminders")["messages_pending"] == 1
    exec(deleted.replace("DurableMessage.objects", f"DurableMessage.objects.using({layer.database!r})"), {})
    assert layer.channel_statistics("reminders")["messages_pending"] == 0


# The code of a site.


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Route]:
    """What the decorators of a page's code register."""
    routes: list[Route] = []
    monkeypatch.setattr("dbchannels.routing.table._decorated", routes)
    return routes


def consume(routes: list[Route], channel: str, **fields: Any) -> None:
    """Run the consumer of a message."""
    message = Message(channel, {"reply_channel": "reply.a!b", **fields})
    matched = Routing(routes).match(channel, message.content)
    assert matched is not None
    route, captures = matched
    route.run(message, captures)


@kinds.only("sqlite", "postgresql")
def test_old_dead_letters_are_deleted(layer: BaseLayer, found: list[Route]) -> None:
    names: dict[str, Any] = {"__name__": "shop.consumers"}
    exec(BLOCKS["operating", "shop/consumers.py"], names)
    exec(BLOCKS["operating", "shop/consumers.py: delete dead letters after 30 days"], names)
    now = names["timezone"].now()
    for days in (29, 31):
        DeadLetter.objects.create(
            channel="invoices",
            payload=b"\x80",
            attempts=6,
            error="",
            sent_at=now,
            failed_at=now - names["timedelta"](days=days),
        )
    consume(found, "old-dead-letters")
    assert DeadLetter.objects.count() == 1
    DeadLetter.objects.all().delete()


@kinds.only("memory")
def test_a_stranger_may_not_join_a_room(
    layer: BaseLayer, found: list[Route], monkeypatch: pytest.MonkeyPatch
) -> None:
    names: dict[str, Any] = {"__name__": "chat.consumers"}
    exec(BLOCKS["security", "chat/consumers.py"], names)
    monkeypatch.setattr(Message, "user", "ann")
    names["may_enter"] = lambda user, room: (user, room) == ("ann", "garden")
    with pytest.raises(DenyConnection):
        consume(found, "websocket.connect", path="/rooms/staff/")
    consume(found, "websocket.connect", path="/rooms/garden/")
    assert Group("room-garden").channels() == ["reply.a!b"]
    consume(found, "websocket.receive", path="/rooms/garden/", text='{"text": "hi", "room": "staff"}')
    assert layer.receive(["reply.a!"]) == ("reply.a!b", {"text": '{"text": "hi"}'})


@kinds.only("memory")
def test_the_connect_consumer_says_who_connects(
    layer: BaseLayer, found: list[Route], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = BLOCKS["troubleshooting", "shop/consumers.py: who connects?"]
    exec(f"from dbchannels import consumer\n{code}", {"__name__": "shop.consumers"})
    monkeypatch.setattr(Message, "user", "AnonymousUser")
    consume(found, "websocket.connect", path="/orders/", headers=[[b"origin", b""], [b"host", b""]])
    # Where an earlier test has loaded the site's routing, a warning about the late consumer comes first.
    assert caplog.messages[-1:] == ["['Host', 'Origin'], AnonymousUser"]


def test_what_the_admin_shows_of_secrets() -> None:
    imports, examples = BLOCKS["security", "what the admin shows"].split("\n\n")
    names: dict[str, Any] = {}
    exec(imports, names)
    lines = examples.strip().splitlines()
    assert len(lines) == 3
    for line in lines:
        code, shown = line.split("  # ")
        assert eval(code, names) == eval(shown)


def test_what_is_said_not_to_be_masked_is_not() -> None:
    names: dict[str, Any] = {}
    exec(BLOCKS["security", "what the admin shows"], names)
    encode, text = names["codec"].encode, names["message_text"]
    assert "s3cret" in text("websocket.receive", encode({"text": '{"password": "s3cret"}'}))
    assert "DE02" in text("invoices", encode({"iban": "DE02"}))


def test_words_can_be_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "SECRET_WORDS", redaction.SECRET_WORDS)
    names: dict[str, Any] = {}
    exec(BLOCKS["security", "shop/apps.py"], names)
    names["ShopConfig"].ready(None)
    assert redaction.is_secret("customerIban")
    assert redaction.is_secret("token")


# What the pages say of the code.


def words(page: str) -> str:
    """Return a page with single spaces, so that the ends of its lines do not matter."""
    return re.sub(r"\s+", " ", pages.text(page))


def rows(page: str, heading: str) -> list[list[str]]:
    """Return the cells of the table below a heading of its first column, each with its lines joined."""
    lines = pages.text(page).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(heading)) - 1
    spans = [found.span() for found in re.finditer("=+", lines[start])]
    cells: list[list[str]] = []
    for line in lines[start + 3 :]:
        if line.startswith("="):
            break
        parts = [line[begin : end if end < spans[-1][1] else None].strip() for begin, end in spans]
        if parts[0]:
            cells.append(parts)
        else:
            cells[-1] = [f"{one} {more}".strip() for one, more in zip(cells[-1], parts, strict=True)]
    return cells


def test_the_lists_of_the_admin_are_those_that_there_are() -> None:
    shown = {name: do for name, _, do in rows("operating", "list  ")}
    there = {
        str(model._meta.verbose_name_plural).capitalize(): one
        for model, one in admin.site._registry.items()
        if model._meta.app_label == "dbchannels"
    }
    assert shown.keys() == there.keys()
    for name, do in shown.items():
        acts = [act.title.lower() for act in there[name].acts]  # type: ignore[attr-defined]
        assert do == (", ".join(acts) or "look"), name


def test_the_permissions_of_the_admin_are_those_that_there_are() -> None:
    there = {
        f"``dbchannels.{act.permission}_{model._meta.model_name}``"
        for model, one in admin.site._registry.items()
        if model._meta.app_label == "dbchannels"
        for act in one.acts  # type: ignore[attr-defined]
    }
    assert {name for name, _ in rows("operating", "permission  ")} == there
    granted = {
        f"dbchannels.{codename}"
        for model in apps.get_app_config("dbchannels").get_models()
        for codename, _ in model._meta.permissions
    }
    assert granted <= {name.strip("`") for name in there}


def test_each_logger_is_listed() -> None:
    source = "".join(path.read_text() for path in SOURCE.rglob("*.py"))
    used = set(re.findall(r'[gG]etLogger\("(dbchannels\.\w+)"\)', source))
    assert {name.strip("`") for name, _ in rows("operating", "logger  ")} == used


def test_the_pauses_between_attempts_are_as_said() -> None:
    pauses = [executor.FIRST * executor.FACTOR**number for number in range(conf.OPTIONS["retries"])]
    *others, last = [f"{one:g}" for one in pauses]
    assert (
        f"after about {', '.join(others)} and {last} seconds, and is a dead letter after the sixth"
        in words("operating")
    )
    assert len(pauses) == 5


def test_the_defaults_are_as_said() -> None:
    page = words("operating")
    assert f"``soft_timeout`` ({conf.OPTIONS['soft_timeout']:g} seconds by default)" in page
    assert f"``hard_timeout`` ({conf.OPTIONS['hard_timeout']:g} seconds by default)" in page
    assert f'"lease expired" after {conf.OPTIONS["lease"]:g} seconds' in page
    assert f"holds {conf.OPTIONS['capacity']:,} messages (``capacity``" in page
    assert f"at most {conf.OPTIONS['capacity']:,} unread messages" in words("troubleshooting")


def test_the_answers_are_those_of_the_server() -> None:
    answers = {text: int(status) for status, text, _ in rows("troubleshooting", "status  ")}
    with pytest.raises(Refused) as no_room:
        body.BodyBudget(0, 0).store(1)
    others = {dispatch.CROWDED, no_room.value.sentence, reader._stopping().sentence}
    assert others <= set(answers)
    for text, status in answers.items():
        if status == 429:
            assert text.encode() in connection_limits.TOO_MANY
        elif text not in (*others, protocol.SENTENCES[status]):
            assert text.encode() in connection_limits.FULL + executor._NOT_YET["content"]
    said = set(answers.values())
    assert said == {429, 500, 502, 503, 504}
    assert protocol.SENTENCES[403] in words("troubleshooting")
    assert set(protocol.SENTENCES) - said == {403, 404}


def test_the_close_codes_are_all_there() -> None:
    listed = {int(code) for code, _ in rows("troubleshooting", "code  ") if code.isdigit()}
    constants = {value for value in vars(protocol).values() if isinstance(value, int)}
    sent = {one for one in constants if protocol.is_close_code(one)}
    assert sent <= listed
    assert all(map(protocol.is_close_code, listed))


@pytest.mark.parametrize("page", PAGES)
def test_the_sections_that_a_page_names_are_there(page: str) -> None:
    text = words(page)
    elsewhere = re.findall(r'"([^"]+)" in :doc:`([\w-]+)`', text)
    here = re.findall(r'[Ss]ee "([^"]+)"(?! in :doc:)|"([^"]+)" (?:above|below)', text)
    named = [*elsewhere, *((one or other, page) for one, other in here)]
    assert named
    assert [(name, other) for name, other in named if name not in sections(other)] == []


def sections(page: str) -> set[str]:
    """Return the headings of a page."""
    lines = pages.text(page).splitlines()
    return {line for line, rule in pairwise(lines) if re.fullmatch(r"([=~-])\1{2,}", rule)}


def test_the_secret_words_are_listed() -> None:
    assert set(BLOCKS["security", "secret words"].split()) == redaction.SECRET_WORDS


def test_every_text_is_compared_with_a_real_one() -> None:
    tests = Path(__file__).read_text()
    captions = [one.caption for page in PAGES for one in pages.blocks(page, "text")]
    assert [one for one in captions if f'"{one}"' not in tests] == []


def test_all_code_is_run() -> None:
    tests = Path(__file__).read_text()
    site = {
        one.caption for one in pages.blocks("operating", "python") if "/" in one.caption.partition(":")[0]
    }
    captions = [one.caption for page in PAGES for one in pages.blocks(page, "python")]
    assert all(captions)
    assert [one for one in captions if one not in site and f'"{one}"' not in tests] == []


def test_counts_that_the_database_does_not_take_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    written: Counter[str] = Counter()
    later: list[Callable[[], None]] = []

    class ConsumerCount:
        """A model whose table is away for the first write."""

        objects = mock.Mock()

    rows = ConsumerCount.objects.filter.return_value.update
    ConsumerCount.objects.get_or_create.return_value = mock.Mock(), False
    monkeypatch.setitem(sys.modules, "shop", ModuleType("shop"))
    monkeypatch.setitem(sys.modules, "shop.models", mock.Mock(ConsumerCount=ConsumerCount))
    monkeypatch.setattr("django.db.transaction.atomic", nullcontext)
    monkeypatch.setattr(threading, "Timer", lambda every, call: mock.Mock(start=lambda: later.append(call)))
    names: dict[str, Any] = {}
    exec(BLOCKS["operating", "shop/counting.py"], names)
    try:
        for _ in range(2):
            names["count"](executor.Executor.execute, seconds=0.5, error=None)
        assert len(later) == 1
        rows.side_effect = OperationalError("the database is away")
        with pytest.raises(OperationalError):
            later.pop()()
        assert len(later) == 1  # it tries again

        def write(runs: Any, seconds: Any) -> None:
            written["runs"] += runs.rhs.value
            names["count"](executor.Executor.execute, seconds=0.5, error=None)  # one more, meanwhile

        rows.side_effect = write
        later.pop()()
        assert written["runs"] == 2 and len(later) == 1
        rows.side_effect = lambda runs, seconds: written.update(runs=runs.rhs.value)
        later.pop()()
        assert written["runs"] == 3 and later == [] and not names["runs"] and not names["spent"]
    finally:
        consumer_finished.disconnect(names["count"])
