"""``message.http_session`` and ``message.channel_session``: what is found, what is saved, and what it costs."""

from __future__ import annotations

import logging

import pytest
from django.contrib.sessions.models import Session
from django.core.cache import cache

from dbchannels import (
    Channel,
    InvalidMessage,
    Message,
    NoClient,
    WebSocketCloseException,
    channel_layers,
    route,
)
from dbchannels.auth import sessions
from dbchannels.auth.sessions import ChannelSession, stored_sessions
from dbchannels.routing.table import Routing
from dbchannels.testing.contract.case import drain
from dbchannels.worker.worker import Worker
from tests import kinds
from tests.visitors import OF_CLIENTS, Visitor, new_session, statements_about

BACKENDS = "django.contrib.sessions.backends"


@pytest.fixture
def stored(tables):
    """Forget what sessions were stored."""
    yield
    cache.clear()


@pytest.fixture
def serve(work_off, stored):
    """Run consumers until nothing waits: ``serve(connect=..., receive=..., disconnect=..., **options)``."""

    def run(**given):
        kind = {name: given.pop(name) for name in ("connect", "receive", "disconnect") if name in given}
        work_off(*(route(f"websocket.{name}", consumer, **given) for name, consumer in kind.items()))

    return run


@pytest.fixture
def visitor(layer, new_link):
    """Make clients with WebSockets: ``visitor(key, local)``."""
    link = new_link(layer)
    made = []

    def new(key="", local="c1"):
        made.append(Visitor(layer, link, key, local))
        return made[-1]

    yield new
    for one in made:
        one.ends()


@pytest.fixture(params=["db", "cached_db", "cache", "file"])
def engine(request, settings, tmp_path):
    """Each of Django's engines that keep sessions on the server's side."""
    settings.SESSION_ENGINE = f"{BACKENDS}.{request.param}"
    settings.SESSION_FILE_PATH = str(tmp_path)
    return request.param


everywhere = kinds.only("postgresql", "sqlite", "memory")
once = kinds.only("memory")


# The session of the browser.


@once
def test_each_message_of_a_websocket_has_the_session_of_its_cookie(serve, visitor, engine):
    seen = []
    client = visitor(new_session(cart=3).session_key)

    def look(message):
        seen.append((message.channel.name, message.http_session.get("cart")))

    for step in (client.opens, lambda: client.says("hi"), client.leaves):
        step()
        serve(connect=look, receive=look, disconnect=look)
    assert seen == [(f"websocket.{kind}", 3) for kind in ("connect", "receive", "disconnect")]
    assert client.told() == []


@everywhere
def test_what_a_consumer_changes_is_saved_at_its_end(layer, serve, visitor):
    session = new_session(cart=3)
    visitor(session.session_key).opens().says("hi")

    def consume(message):
        message.http_session["cart"] += 1
        assert stored_sessions([session.session_key])[session.session_key]["cart"] == 3
        Channel("out").send({"number": 1})

    serve(receive=consume)
    assert stored_sessions([session.session_key]) == {session.session_key: {"cart": 4}}
    assert drain(layer, "out") == [{"number": 1}]


@once
def test_each_engine_saves_it(serve, visitor, engine):
    session = new_session(cart=3)
    visitor(session.session_key).opens().says("hi")
    serve(receive=lambda message: message.http_session.update({"cart": 4}))
    assert stored_sessions([session.session_key])[session.session_key] == {"cart": 4}


@pytest.mark.parametrize("atomic", [False, True])
@kinds.only("postgresql")
def test_what_a_consumer_that_raises_has_changed_is_not_saved(layer, serve, visitor, atomic):
    session = new_session(cart=3)
    client = visitor(session.session_key).opens().says("hi")

    def consume(message):
        message.http_session["cart"] = 4
        message.channel_session["name"] = "Anna"
        raise WebSocketCloseException(4000)

    serve(receive=consume, atomic=atomic)
    assert stored_sessions([session.session_key]) == {session.session_key: {"cart": 3}}
    assert layer.connections(reply_channel=[client.channel])[0].session == b""
    assert client.told() == [{"close": 4000}]


@once
def test_a_session_that_was_only_read_is_not_written(serve, visitor):
    visitor(new_session(cart=3).session_key).opens().says("hi")
    with statements_about('UPDATE "django_session"', "INSERT INTO") as found:
        serve(receive=lambda message: message.http_session["cart"])
    assert found == []


@once
def test_a_consumer_of_requests_has_the_session_too(layer, stored, visitor):
    session = new_session(cart=3)
    client, seen = visitor(session.session_key), []
    message = Message(
        "http.request", {"reply_channel": "reply.a!b", "path": "/", "headers": client.headers()}
    )
    seen.append(message.http_session["cart"])
    message.http_session["cart"] = 4
    message.save_sessions()
    assert seen == [3]
    assert stored_sessions([session.session_key])[session.session_key] == {"cart": 4}
    with pytest.raises(NoClient, match="belongs to no WebSocket"):
        message.channel_session  # noqa: B018


@once
def test_a_request_whose_session_was_deleted_meanwhile_is_answered_400(layer, stored, visitor, caplog):
    """The user has logged out in another window: nobody's fault, so no traceback."""

    def consume(message):
        message.http_session["cart"] = 4
        Session.objects.all().delete()

    client = visitor(new_session(cart=3).session_key)
    layer.send("http.request", {"reply_channel": client.channel, "path": "/", "headers": client.headers()})
    worker = Worker(channel_layers["default"], Routing([route("http.request", consume)]))
    worker._register()
    worker.run_once()
    worker.link.close()
    assert [one["status"] for one in client.told()] == [400]
    assert not Session.objects.exists() and caplog.records == []


@pytest.mark.parametrize("key", ["", "an-unknown-key-of-nobody"])
@once
def test_who_has_no_session_is_given_none(serve, visitor, key, caplog):
    sessions._warn.cache_clear()
    seen = []
    visitor(key).opens().says("one").says("two")

    def consume(message):
        seen.append(message.http_session.get("cart"))
        message.http_session["cart"] = 1

    with caplog.at_level(logging.WARNING, "dbchannels.worker"):
        serve(connect=lambda message: None, receive=consume)
    assert seen == [None, None]
    assert not Session.objects.exists()
    (record,) = caplog.records  # once: a stranger does not fill the log
    assert "message.channel_session" in record.getMessage()


@once
def test_a_session_in_a_cookie_is_for_reading(serve, visitor, settings, caplog):
    sessions._warn.cache_clear()
    settings.SESSION_ENGINE = f"{BACKENDS}.signed_cookies"
    seen = []
    visitor(new_session(cart=3).session_key).opens().says("one").says("two")

    def consume(message):
        seen.append(message.http_session["cart"])
        message.http_session["cart"] = 4

    with caplog.at_level(logging.WARNING, "dbchannels.worker"):
        serve(receive=consume)
    assert seen == [3, 3]
    assert "stored in its cookie" in caplog.text


@once
def test_a_session_that_was_deleted_meanwhile_is_not_made_again(serve, visitor):
    client = visitor(new_session(cart=3).session_key).opens().says("hi")

    def consume(message):
        message.http_session["cart"] = 4
        Session.objects.all().delete()
        message.reply_channel.send({"text": "never seen"})

    serve(receive=consume)
    assert not Session.objects.exists()
    assert client.told() == [{"close": 4401}]


@pytest.mark.parametrize("method", ["flush", "cycle_key"])
@once
def test_a_key_that_its_cookie_names_no_more_closes_the_sessions_sockets(serve, visitor, method):
    key = new_session(cart=3).session_key
    clients = [visitor(key, local).opens() for local in ("c1", "c2")]
    other = visitor(new_session().session_key, "c3").opens()
    clients[0].says("hi")
    serve(connect=lambda message: None, receive=lambda message: getattr(message.http_session, method)())
    assert clients[0].told() == [{"close": 4401}] * 2  # one for each
    assert other.told() == []


@kinds.only("postgresql")
def test_it_closes_them_all_however_many_and_on_every_layer(layer, serve, visitor, settings, monkeypatch):
    """Two are looked at a time, and the site has another layer, on which the session has two more."""
    look, key, closed = type(layer).connections, new_session(cart=3).session_key, []

    def two(self, after="", limit=2, **criteria):
        return look(self, after, limit, **criteria)

    monkeypatch.setattr(type(layer), "connections", two)
    monkeypatch.setattr(
        type(layer),
        "close_connections",
        lambda self, channels, code: closed.extend((self.alias, one[-2:], code) for one in channels),
    )
    settings.DBCHANNELS = {"default": {}, "second": {}}
    clients = [visitor(key, f"c{number}").opens() for number in range(5)]
    clients[0].says("hi")
    serve(connect=lambda message: None, receive=lambda message: message.http_session.flush())
    assert closed == [(alias, f"c{n}", 4401) for alias in ("default", "second") for n in range(5)]


@pytest.mark.parametrize("name", ["http_session", "channel_session", "user"])
@everywhere
def test_a_frame_that_was_left_behind_is_consumed_by_nobody(serve, visitor, name):
    """Its server was killed, or its connection has ended: who it was is known no more."""
    seen, client = [], visitor(new_session(cart=3).session_key).opens().says("hi")
    client.ends()
    serve(receive=lambda message: seen.append(getattr(message, name)))
    assert (seen, client.told()) == ([], [{"close": 1001}])


@once
def test_the_key_is_never_taken_from_elsewhere(serve, visitor):
    """Not from the query string (which Visitor sends with each connect), and not from a payload."""
    seen, key = [], new_session(cart=3).session_key
    forged = {"session_key": key, "headers": [[b"cookie", f"sessionid={key}".encode()]], "session": b"x"}
    visitor().opens().says("hi", **forged)

    def look(message):
        seen.append(message.http_session.session_key)

    serve(connect=look, receive=look)
    assert seen == [None, None]


@pytest.mark.parametrize("name", ["http_session", "channel_session", "user"])
@once
def test_a_message_of_the_sites_own_has_no_client(layer, name):
    """Whatever it says: a consumer may have put a client's words into it."""
    message = Message("own", {"reply_channel": "reply.a!b", "headers": [[b"cookie", b"sessionid=12345678"]]})
    with pytest.raises(NoClient, match="own belongs to no WebSocket"):
        getattr(message, name)
    assert getattr(message, name, "default") == "default"


@once
def test_a_site_without_sessions_says_so(layer, settings):
    message = Message("http.request", {"reply_channel": "reply.a!b", "headers": []})
    settings.INSTALLED_APPS = [one for one in settings.INSTALLED_APPS if "session" not in one]
    with pytest.raises(NoClient, match=r"put 'django.contrib.sessions' into INSTALLED_APPS\.$"):
        message.http_session  # noqa: B018
    settings.SESSION_ENGINE = f"{BACKENDS}.cache"
    assert message.http_session.get("cart") is None


# What it costs.


@kinds.only("postgresql")
def test_who_asks_for_nothing_pays_for_nothing(serve, visitor):
    visitor(new_session(cart=3).session_key).opens().says("one").says("two").leaves()
    with statements_about(*OF_CLIENTS) as found:
        serve(connect=lambda message: None, receive=lambda message: None, disconnect=lambda message: None)
    assert found == []


@kinds.only("postgresql")
def test_who_asks_pays_once_for_a_message(serve, visitor):
    visitor(new_session(cart=3).session_key).opens().says("one")
    with statements_about(*OF_CLIENTS) as found:
        serve(receive=lambda message: [message.http_session["cart"] for _ in range(3)])
    assert found == ["dbchannels_connection", "django_session"]


# The session of the connection.


@everywhere
def test_a_consumer_sees_what_the_one_before_has_saved(layer, serve, visitor):
    seen = []
    anna, bert = visitor(local="c1"), visitor(local="c2")

    def name(message):
        message.channel_session["name"] = message.reply_channel.name[-2:]

    def count(message):
        message.channel_session["count"] = message.channel_session.get("count", 0) + 1
        message.reply_channel.send({"text": "last word"})

    def look(message):
        seen.append(dict(message.channel_session))

    for step in (
        anna.opens,
        bert.opens,
        lambda: anna.says("1"),
        lambda: bert.says("1"),
        lambda: anna.says("2"),
    ):
        step()
        serve(connect=name, receive=count)
    anna.leaves()
    serve(disconnect=look)
    assert seen == [{"name": "c1", "count": 2}]
    assert ChannelSession(layer.connections(reply_channel=[bert.channel])[0].session) == {
        "name": "c2",
        "count": 1,
    }
    anna.ends()
    assert layer.connections(reply_channel=[anna.channel]) == []


@everywhere
def test_keeping_something_takes_no_reply_of_its_own(layer, serve, visitor):
    visitor().opens().says("one")

    def consume(message):
        message.channel_session["name"] = "Anna"
        message.reply_channel.send({"text": "hi"})

    serve(receive=consume)
    assert {"text": "hi", "finished": 1} in drain(layer, "reply.v1!")


@pytest.mark.parametrize("changes", [True, False])
@kinds.only("postgresql")
def test_it_is_written_only_when_it_was_changed(serve, visitor, changes):
    visitor().opens().says("one")

    def consume(message):
        names = message.channel_session.setdefault("names", [])
        names.append("Anna")
        message.channel_session.modified = changes

    with statements_about("UPDATE dbchannels_connection", alias="default") as found:
        serve(receive=consume)
    assert found == []  # by the worker's own connection, with the end of the message
    seen = []
    visitor().says("two")
    serve(receive=lambda message: seen.append(message.channel_session.get("names")))
    assert seen == [["Anna"] if changes else None]


@everywhere
def test_inside_a_transaction_it_is_part_of_it(layer, serve, visitor):
    client = visitor().opens().says("one")

    def consume(message):
        message.channel_session["name"] = "Anna"
        Channel("out").send({})

    serve(receive=consume, atomic=True)
    assert ChannelSession(layer.connections(reply_channel=[client.channel])[0].session)["name"] == "Anna"
    assert drain(layer, "out") == [{}]


@kinds.only("postgresql", "sqlite")
def test_the_disconnect_of_a_killed_server_has_it_still(layer, serve, visitor, new_link):
    seen = []
    link = new_link(layer)
    link.register("v1", "server", "reply.v1!")
    visitor(new_session(cart=3).session_key).opens()

    def name(message):
        message.channel_session["name"] = "Anna"

    serve(connect=name)
    link.clean_up_after("v1")
    serve(
        disconnect=lambda message: seen.append(
            (message.channel_session["name"], message.http_session["cart"])
        )
    )
    assert seen == [("Anna", 3)]


@once
def test_it_holds_what_messages_hold(layer, serve, visitor, caplog):
    visitor().opens().says("one")
    with caplog.at_level(logging.ERROR, "dbchannels.worker"):
        serve(receive=lambda message: message.channel_session.update(bad={1, 2}))
    assert "InvalidMessage: channel_session['bad'] contains a set: send sorted(...)" in caplog.text


def test_it_is_a_dict_that_knows_whether_it_was_changed():
    session = ChannelSession()
    assert (session.get("name"), "name" in session, len(session), session.modified) == (None, False, 0, False)
    session["name"] = "Anna"
    assert (session["name"], dict(session), session.modified) == ("Anna", {"name": "Anna"}, True)
    again = ChannelSession(session.payload(1000))
    assert (dict(again), again.modified) == ({"name": "Anna"}, False)
    assert repr(again) == "<ChannelSession: name>"
    del again["name"]
    assert (dict(again), again.modified) == ({}, True)
    with pytest.raises(KeyError):
        again["name"]
    with pytest.raises(InvalidMessage, match="channel_session"):
        ChannelSession(session.payload(1000)).__class__.payload(_with(1j), 1000)


def _with(value):
    session = ChannelSession()
    session["name"] = value
    return session
