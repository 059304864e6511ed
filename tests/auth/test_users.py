"""``message.user``: as ``request.user``, and nobody any more once the login has ended."""

from __future__ import annotations

import pytest
from django.contrib.auth import get_user, get_user_model
from django.contrib.auth.models import AnonymousUser, User
from django.contrib.sessions.models import Session
from django.http import HttpRequest

from dbchannels import Message, NoClient, route
from dbchannels.auth import users
from tests import kinds
from tests.visitors import OF_CLIENTS, Visitor, new_session, new_user, statements_about

pytestmark = kinds.only("postgresql", "memory")


@pytest.fixture
def visitor(layer, new_link):
    """Make clients with WebSockets."""
    link, made = new_link(layer), []

    def new(session=None, local="c1"):
        made.append(Visitor(layer, link, session.session_key if session else "", local))
        return made[-1].opens()

    yield new
    for one in made:
        one.ends()


@pytest.fixture
def serve(work_off):
    """Run one consumer for all messages of WebSockets until nothing waits."""

    def run(consumer, **options):
        kinds = ("connect", "receive", "disconnect")
        work_off(*(route(f"websocket.{kind}", consumer, **options) for kind in kinds))

    return run


def test_every_message_of_a_websocket_has_its_user(serve, visitor, anna):
    seen = []
    client = visitor(new_session(anna))
    for step in (lambda: None, lambda: client.says("hi"), client.leaves):
        step()
        serve(lambda message: seen.append((message.channel.name, message.user)))
    assert seen == [(f"websocket.{kind}", anna) for kind in ("connect", "receive", "disconnect")]
    assert isinstance(seen[0][1], User)


@pytest.mark.parametrize("logged_in", [False, True])
def test_a_consumer_of_requests_has_one_too(layer, anna, visitor, logged_in):
    client = visitor(new_session(anna) if logged_in else None)
    message = Message(
        "http.request", {"reply_channel": "reply.a!b", "path": "/", "headers": client.headers()}
    )
    assert message.user == (anna if logged_in else AnonymousUser())
    message.save_sessions()


def test_who_is_not_logged_in_is_anonymous(serve, visitor, anna):
    seen = []
    visitor().says("hi").leaves()
    visitor(new_session(cart=3), "c2").says("hi").leaves()
    serve(lambda message: seen.append(message.user))
    assert seen == [AnonymousUser()] * 6


def test_it_is_loaded_once_for_a_message(layer, serve, visitor, anna):
    client = visitor(new_session(anna))
    serve(lambda message: message.user)
    client.says("hi")
    with statements_about(*OF_CLIENTS) as found:
        serve(lambda message: [message.user.username for _ in range(3)])
    assert found == list(
        OF_CLIENTS if layer.shared else OF_CLIENTS[1:]
    )  # a layer in memory has its own records


def test_the_record_learns_of_it_with_the_connect(layer, serve, visitor, anna):
    client, quiet = visitor(new_session(anna)), visitor(new_session(anna), "c2")
    serve(lambda message: message.user if message.reply_channel.name == client.channel else None)
    logins = [layer.connections(reply_channel=[one.channel])[0].login for one in (client, quiet)]
    assert logins == [f"+{anna.pk}", ""]


def test_async_consumers_await_it(serve, visitor, anna):
    seen = []
    client = visitor(new_session(anna, cart=3))

    async def consume(message):
        session, kept = await message.ahttp_session(), await message.achannel_session()
        kept["count"] = kept.get("count", 0) + 1
        seen.append((await message.auser(), await session.aget("cart"), kept["count"]))

    serve(consume)
    client.says("hi")
    serve(consume)
    assert seen == [(anna, 3, 1), (anna, 3, 2)]


# The end of a login.


def end_session(anna):
    Session.objects.all().delete()


def deactivate(anna):
    User.objects.update(is_active=False)


def change_password(anna):
    anna.set_password("another")
    User.objects.update(password=anna.password)


def delete(anna):
    User.objects.all().delete()


ENDS = [end_session, deactivate, change_password, delete]


@pytest.mark.parametrize("end", ENDS)
def test_the_next_message_that_asks_closes_the_connection(serve, visitor, anna, end):
    client, seen = visitor(new_session(anna)), []

    def consume(message):
        seen.append(message.user)
        message.reply_channel.send({"text": "secret"})

    serve(consume)
    assert client.told() == [{"text": "secret"}]
    end(anna)
    client.says("hi")
    serve(consume)
    assert (seen, client.told()) == ([anna], [{"close": 4401}])
    client.leaves(code=4401)
    serve(lambda message: seen.append(message.user))
    assert seen == [anna, AnonymousUser() if end is delete else anna]  # who was there


@pytest.mark.parametrize("end", ENDS)
def test_a_new_connection_is_anonymous(serve, visitor, anna, end):
    session, seen = new_session(anna), []
    end(anna)
    visitor(session).says("hi")
    serve(lambda message: seen.append(message.user))
    assert seen == [AnonymousUser()] * 2


# As Django says it.


def as_django_says(session):
    """Return ``request.user`` for a session."""
    request = HttpRequest()
    request.session = session
    return get_user(request)


def forget_hash(session):
    del session[users.HASH_SESSION_KEY]


def unknown_backend(session):
    session[users.BACKEND_SESSION_KEY] = "some.where.Else"


def nobodys_key(session):
    session[users.SESSION_KEY] = "123456789"


@pytest.mark.parametrize("change", [lambda session: None, forget_hash, unknown_backend, nobodys_key])
def test_it_says_what_django_says(anna, change):
    session = new_session(anna)
    change(session)
    before = dict(session.items())
    said = users.session_user(session)
    assert dict(session.items()) == before
    assert said == as_django_says(session)


def test_a_secret_that_was_changed_on_purpose_goes_on_for_a_while(anna, settings):
    session = new_session(anna)
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "another", [settings.SECRET_KEY]
    key, before = session.session_key, dict(session.items())
    assert users.session_user(session) == anna
    assert (session.session_key, dict(session.items())) == (key, before)  # Django would give it a new key
    assert as_django_says(session) == anna
    assert session.session_key != key


def test_many_sessions_take_one_query(anna):
    people = [anna, new_user("bert"), new_user("carl", is_active=False)]
    sessions = [new_session(user) for user in people]
    with statements_about("auth_user") as found:
        assert users.session_users([*sessions, {}]) == [*people[:2], None, None]
    assert found == ["auth_user"]


@pytest.mark.parametrize("path", ["AllowAllUsersModelBackend", "ModelBackend"])
def test_a_backend_of_the_sites_own_is_asked_itself(anna, settings, path):
    settings.AUTHENTICATION_BACKENDS = [f"django.contrib.auth.backends.{path}"]
    get_user_model().objects.update(is_active=False)
    expected = [anna, anna] if path.startswith("Allow") else [None, None]
    assert users.session_users([new_session(anna), new_session(anna)]) == expected


def test_a_site_without_users_says_so(layer, settings):
    message = Message("http.request", {"reply_channel": "reply.a!b", "headers": []})
    settings.INSTALLED_APPS = ["dbchannels", "django.contrib.sessions"]
    with pytest.raises(NoClient, match=r"put 'django.contrib.auth' into INSTALLED_APPS\.$"):
        message.user  # noqa: B018
