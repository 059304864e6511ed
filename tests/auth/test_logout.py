"""WebSockets are closed 4401 when the login that they were opened by has ended."""

from __future__ import annotations

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth import SESSION_KEY, alogout, login, logout
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.models import User
from django.contrib.auth.signals import user_logged_out
from django.contrib.sessions.models import Session
from django.db import transaction
from django.http import HttpRequest

from dbchannels import Channel, Message, route
from dbchannels.auth import logout as stale_logins
from dbchannels.routing.table import load_routing
from dbchannels.testing.contract.case import drain
from tests import kinds
from tests.visitors import Visitor, new_session, new_user, statements_about

pytestmark = kinds.only("postgresql", "sqlite", "memory")


@pytest.fixture
def visitor(layer, new_link):
    """Open WebSockets, of whose clients the record knows nothing yet."""
    link, made = new_link(layer), []

    def new(session=None):
        key = getattr(session, "session_key", session) or ""
        made.append(Visitor(layer, link, key, f"c{len(made)}").opens())
        return made[-1]

    yield new
    for one in made:
        one.ends()


@pytest.fixture
def work(work_off):
    """Let a worker look after what is asked for."""
    return lambda *routes: work_off(route(stale_logins.CHANNEL, stale_logins.close_stale), *routes)


def look(message):
    """A consumer that asks who it is."""
    return message.user


def closed(layer):
    """Return the local parts of the clients that are closed, and with which code."""
    found = []
    while (received := layer.receive(["reply.v1!"]))[0] is not None:
        channel, message = received
        if "close" in message:
            found.append((channel.partition("!")[2], message["close"]))
    return sorted(found)


def ask(layer, work, **content):
    """Do what a server does once a minute."""
    Channel(stale_logins.CHANNEL).send(content or {"server": "v1"})
    work()
    return closed(layer)


def records(layer):
    """Return who is on record, by client."""
    return [one.login for one in layer.connections(server=["v1"])]


# Logging out.


def log_out(session):
    """Log out as a view does."""
    request = HttpRequest()
    request.session = session
    logout(request)


def test_a_logout_closes_that_sessions_sockets_and_no_others(layer, visitor, anna):
    here, there = new_session(anna), new_session(anna)
    for session in (here, there, here, None):
        visitor(session)
    log_out(here)
    assert closed(layer) == [("c0", 4401), ("c2", 4401)]


def test_nothing_is_closed_before_the_session_is_gone(layer, visitor, anna):
    """Django sends its signal first: whoever was closed by then would come back as the same user."""
    session, seen = new_session(anna), []
    visitor(session)

    def receiver(**kwargs):
        seen.extend(closed(layer))

    user_logged_out.connect(receiver)  # after ours
    try:
        log_out(session)
    finally:
        user_logged_out.disconnect(receiver)
    assert seen == []
    assert closed(layer) == [("c0", 4401)]
    assert "flush" not in vars(session) and "aflush" not in vars(session)


def test_a_logout_that_is_told_of_twice_is_one(layer, visitor, anna):
    session = new_session(anna)
    visitor(session)
    request = HttpRequest()
    request.session, request.user = session, anna
    user_logged_out.send(sender=type(anna), request=request, user=anna)
    logout(request)
    assert {code for _, code in closed(layer)} == {4401}
    assert session.session_key is None and "flush" not in vars(session)


def test_sockets_are_closed_though_the_session_cannot_be_deleted(layer, visitor, anna, monkeypatch):
    session = new_session(anna)
    visitor(session)
    monkeypatch.setattr(type(session), "flush", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        log_out(session)
    assert closed(layer) == [("c0", 4401)]


def test_a_logout_of_an_async_view_closes_too(layer, visitor, anna):
    session = new_session(anna)
    visitor(session)
    request = HttpRequest()
    request.session = session

    async def auser():
        return anna

    request.auser = auser
    async_to_sync(alogout)(request)
    assert closed(layer) == [("c0", 4401)]


@pytest.mark.parametrize("rolled_back", [False, True])
def test_it_is_part_of_the_logouts_transaction(layer, visitor, anna, rolled_back):
    session = new_session(anna)
    key = session.session_key
    visitor(key)
    with transaction.atomic(using=layer.database):
        log_out(session)
        visitor(key)  # opened before the commit: others do not know of the logout yet
        transaction.set_rollback(rolled_back, using=layer.database)
    expected = set() if rolled_back else {("c0", 4401), ("c1", 4401)}
    assert set(closed(layer)) == (expected if layer.transactional else {("c0", 4401)})


def log_in(session, user):
    """Log in as a view does, in a browser that has this session."""
    request = HttpRequest()
    request.COOKIES["sessionid"] = session.session_key
    request.session = session
    login(request, user, backend="django.contrib.auth.backends.ModelBackend")
    return request


@pytest.mark.parametrize("other", [True, False], ids=["somebody else", "again"])
def test_a_login_as_somebody_else_ends_the_one_before(layer, visitor, work, anna, other):
    here, there = new_session(anna), new_session(anna)
    visitor(here), visitor(there)
    work(route("websocket.connect", look))
    log_in(here, new_user("bert") if other else anna)
    assert closed(layer) == ([("c0", 4401)] if other else [])


def test_a_login_leaves_strangers_alone(layer, visitor, work, anna):
    session = new_session(cart=3)
    visitor(session)
    work(route("websocket.connect", look))
    request = log_in(session, anna)
    assert closed(layer) == []
    visitor(request.session.session_key)
    log_in(request.session, anna)
    assert closed(layer) == []  # whoever has asked for nobody is told at the next look


def test_a_layer_that_fails_keeps_nobody_logged_in(layer, visitor, anna, monkeypatch, caplog):
    def fail(self, *arguments, **fields):
        raise RuntimeError("as asked for")

    monkeypatch.setattr(type(layer), "connections", fail)
    session = new_session(anna)
    log_out(session)
    assert not Session.objects.exists()
    assert "could not be closed now" in caplog.text


@pytest.mark.parametrize("request_", [None, HttpRequest()])
def test_a_logout_without_a_session_closes_nobody(layer, visitor, anna, request_):
    visitor(None)
    user_logged_out.send(sender=User, request=request_, user=anna)
    assert closed(layer) == []


# Users.


def deactivate(anna):
    anna.is_active = False
    anna.save()


def change_password(anna):
    anna.set_password("another")
    anna.save()


def delete(anna):
    User.objects.get(pk=anna.pk).delete()


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("change", [deactivate, change_password, delete])
def test_a_user_who_may_no_more_is_closed(layer, visitor, work, anna, change, known):
    bert = new_user("bert")
    for session in (new_session(anna), new_session(bert), new_session(anna), None, new_session(cart=3)):
        visitor(session)
    if known:
        work(route("websocket.connect", look))
    change(anna)
    work()
    assert closed(layer) == [("c0", 4401), ("c2", 4401)]
    assert records(layer)[1] == f"+{bert.pk}"


@pytest.mark.parametrize("change", [deactivate, change_password, delete])
def test_of_users_who_change_at_once_each_is_closed(layer, visitor, work, anna, change):
    """Who is looked at for the first one's sake has changed by then too, and the word about that comes next."""
    users = [anna, new_user("bert"), new_user("carl")]
    for user in users:
        visitor(new_session(user))
    for user in users:
        change(user)
    assert ask(layer, work) == [("c0", 4401), ("c1", 4401), ("c2", 4401)]


def test_an_old_cookie_stays_nobodys_whatever_becomes_of_the_user(layer, visitor, work, anna):
    deactivate(anna)
    work()
    visitor(new_session(anna)), visitor(new_session(cart=3))
    assert ask(layer, work) == []
    anna.first_name = "Anna"
    anna.save()
    work()
    assert (closed(layer), records(layer)) == ([], ["-", "-"])


def test_a_session_of_no_possible_user_keeps_nobody_logged_in(layer, visitor, work, anna):
    """As those from before a change of AUTH_USER_MODEL: all are looked at together."""
    old = new_session(anna)
    old[SESSION_KEY] = "0b6f8b5e-not-a-number"
    old.save()
    for session in (old, new_session(anna)):
        visitor(session)
    deactivate(anna)
    work()
    assert closed(layer) == [("c1", 4401)]


class Directory(ModelBackend):
    """It is away for one of the users."""

    def get_user(self, user_id):
        if User.objects.get(pk=user_id).username.startswith("away"):
            raise OSError("the directory is away")
        return super().get_user(user_id)


@pytest.mark.parametrize(("away", "ended"), [(1, True), (stale_logins.MOST_FAILED, False)])
def test_a_user_whom_a_backend_cannot_look_up_is_in_nobodys_way(
    layer, visitor, work, anna, settings, caplog, away, ended
):
    settings.AUTHENTICATION_BACKENDS = [f"{__name__}.Directory"]
    for number in range(away):
        visitor(new_session(new_user(f"away{number}")))
    visitor(new_session(anna))
    deactivate(anna)
    work()
    assert closed(layer) == ([(f"c{away}", 4401)] if ended else [])
    assert [one for one in records(layer) if one] == []
    assert caplog.text.count("could not be looked up") == 1


def test_a_user_who_was_saved_goes_on(layer, visitor, work, anna):
    visitor(new_session(anna))
    anna.first_name = "Anna"
    anna.save()
    work()
    assert (closed(layer), records(layer)) == ([], [f"+{anna.pk}"])


def test_a_save_inside_a_transaction_that_is_rolled_back_says_nothing(layer, visitor, work, anna):
    visitor(new_session(anna))
    with transaction.atomic():
        deactivate(anna)
        transaction.set_rollback(True)
    work()
    assert (closed(layer), records(layer)) == ([], [""])


def test_what_says_nothing_of_a_login_asks_nothing(layer, visitor, anna):
    visitor(new_session(anna))
    with statements_about("dbchannels_") as found:
        new_user("bert")
        anna.last_login = anna.date_joined
        anna.save(update_fields=["last_login"])
    assert (found, drain(layer, stale_logins.CHANNEL)) == ([], [])


def test_a_user_without_a_socket_sends_nothing(layer, anna):
    anna.save()
    assert drain(layer, stale_logins.CHANNEL) == []


def test_a_layer_that_fails_does_not_keep_a_user_from_being_saved(layer, anna, monkeypatch):
    def fail(self, *arguments, **fields):
        raise RuntimeError("as asked for")

    monkeypatch.setattr(type(layer), "connections", fail)
    deactivate(anna)
    assert not User.objects.get().is_active


# What sends no signal: the look once a minute.


@pytest.mark.parametrize(
    "end",
    [
        lambda anna: Session.objects.all().delete(),
        lambda anna: User.objects.update(is_active=False),
        lambda anna: User.objects.update(password="another"),
        lambda anna: Session.objects.update(expire_date="2020-01-01T00:00Z"),
    ],
    ids=["session", "active", "password", "expired"],
)
def test_a_login_that_ended_unsaid_is_found(layer, visitor, work, anna, end):
    for session in (new_session(anna), None, new_session(cart=3)):
        visitor(session)
    work(route("websocket.connect", look))
    assert ask(layer, work) == []
    assert records(layer) == [f"+{anna.pk}", "-", "-"]
    end(anna)
    assert ask(layer, work) == [("c0", 4401)]


def test_who_was_never_logged_in_is_left_alone(layer, visitor, work, anna):
    """A browser may send the cookie of a login that ended long ago."""
    User.objects.update(is_active=False)
    old = new_session(anna)
    visitor(old), visitor(new_session(cart=3)), visitor(None)
    Session.objects.filter(session_data="").delete()
    assert ask(layer, work) == []
    assert records(layer) == ["-"] * 3
    with statements_about("django_session", "auth_user") as found:
        assert ask(layer, work) == []
    assert found == []


def test_many_are_looked_at_a_page_at_a_time(layer, visitor, work, anna, monkeypatch):
    monkeypatch.setattr(stale_logins, "PAGE", 2)
    for _ in range(5):
        visitor(new_session(anna))
    work(route("websocket.connect", look))
    User.objects.update(is_active=False)
    assert ask(layer, work) == [(f"c{number}", 4401) for number in range(5)]


def test_the_connections_of_other_servers_are_theirs(layer, visitor, work, anna):
    visitor(new_session(anna))
    work(route("websocket.connect", look))
    Session.objects.all().delete()
    assert ask(layer, work, server="v2") == []


def test_a_site_without_sessions_or_users_is_not_looked_at(layer, settings, visitor, anna):
    visitor(new_session(anna))
    settings.INSTALLED_APPS = ["dbchannels", "django.contrib.auth", "django.contrib.contenttypes"]
    stale_logins.close_stale(Message(stale_logins.CHANNEL, {"server": "v1"}))
    settings.INSTALLED_APPS = ["dbchannels", "django.contrib.sessions"]
    stale_logins.close_stale(Message(stale_logins.CHANNEL, {"server": "v1"}))
    assert records(layer) == [""]


def test_workers_find_its_consumer(layer):
    assert [one.consumer for one in load_routing().routes() if one.channel == stale_logins.CHANNEL] == [
        stale_logins.close_stale
    ]
