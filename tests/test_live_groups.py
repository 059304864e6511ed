"""Live groups: which token opens which groups, for whom, until when; and what render_to_group sends."""

from __future__ import annotations

import re
import sys
import time
from html import unescape
from types import ModuleType, SimpleNamespace
from typing import ClassVar
from unittest import mock
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from django.conf import settings
from django.contrib.auth.models import AnonymousUser, User
from django.contrib.sessions.models import Session
from django.core import signing
from django.db import transaction
from django.http import HttpResponse
from django.template import engines
from django.test import RequestFactory, override_settings
from django.urls import path
from django.utils.functional import SimpleLazyObject

from dbchannels import Group, InvalidConfiguration, InvalidName, codec, render_to_group, route
from dbchannels.consumers import live_groups
from dbchannels.consumers.live_groups import LiveGroup
from dbchannels.redaction import log_field, message_text
from dbchannels.routing.table import load_routing
from dbchannels.server.http.messages import connect_message
from dbchannels.testing import ChannelClient, ChannelTestCase
from dbchannels.worker import executor
from tests.docs import pages

PAGE = '{% load dbchannels %}{{ user }}{% live_group "room-garden" "news" %}'


def render(source, request=None, **context):
    """Return a template, rendered."""
    return engines["django"].from_string(source).render(context, request)


def page(request, **captures):
    """A page with live groups; ``touched`` writes into the session first, ``keep`` keeps it out of the cache."""
    if "touched" in request.GET:
        request.session["seen"] = True
    return HttpResponse(render(PAGE, request))


urlpatterns = [path("garden/", page), path("garden/<str:name>/", page), path("café/", page)]


def url_in(response):
    """Return the URL of the socket that a page opens."""
    return unescape(re.search(r' connect="([^"]+)"', response.content.decode())[1])


def changed(url, **parameters):
    """Return the URL with other parameters."""
    parts = urlsplit(url)
    query = {key: values[0] for key, values in parse_qs(parts.query).items()}
    return f"{parts.path}?{urlencode({**query, **parameters})}"


def token_of(url):
    return parse_qs(urlsplit(url).query)["token"][0]


def templates_of(files, *processors):
    """Return an entry of TEMPLATES with these files."""
    loader = ("django.template.loaders.locmem.Loader", files)
    options = {"loaders": [loader], "context_processors": processors}
    return {"BACKEND": "django.template.backends.django.DjangoTemplates", "OPTIONS": options}


@pytest.mark.parametrize("around", ["{tag}", "{{% autoescape off %}}{tag}{{% endautoescape %}}"])
@pytest.mark.parametrize("tag", ['{% live_group "a" %}', '{% live_group "a" as live %}{{ live }}'])
def test_the_element_is_written_whether_or_not_templates_escape(around, tag):
    written = render("{% load dbchannels %}" + around.format(tag=tag), RequestFactory().get("/?a=<"))
    assert written.startswith(
        '<dbchannels-live groups="a" page="/?a=%3C" connect="/dbchannels/live/?page=%2F&amp;token='
    )


@pytest.mark.parametrize("name", ["_csp_nonce", "csp_nonce"])
def test_the_script_has_the_nonce_of_the_content_security_policy(name):
    request = RequestFactory().get("/")
    assert "nonce" not in str(LiveGroup(request, "news"))
    setattr(request, name, SimpleLazyObject(lambda: 'a"b'))
    assert 'live-group.js" nonce="a&quot;b"></script>' in str(LiveGroup(request, "news"))


@override_settings(ROOT_URLCONF=__name__)
class LiveCase(ChannelTestCase):
    def visit(self, client=None, address="/garden/"):
        """Fetch the page; return its socket's URL."""
        return url_in((client or self.client).get(address))

    def logged_in(self, name="ann", client=None):
        user, _ = User.objects.get_or_create(username=name)
        (client or self.client).force_login(user)
        return user

    def assertRefused(self, url, client=None, **options):
        """The socket is accepted and closed with the code that has a script fetch the page; it is in no group."""
        socket = (client or self.client).ws(url, **options)
        assert (socket.accepted, socket.close_code, socket.close_reason) == (True, 4410, live_groups.STALE)
        assert Group("room-garden").channels() == []

    def assertOpens(self, url, client=None, **options):
        socket = (client or self.client).ws(url, **options)
        assert (socket.accepted, socket.closed) == (True, False), socket.close_code
        assert socket.reply_channel in Group("room-garden").channels()
        return socket


class Pages(LiveCase):
    def test_the_page_opens_a_socket_that_is_in_its_groups(self):
        socket = self.assertOpens(self.visit())
        for name in ("room-garden", "news"):
            Group(name).send({"text": f"<p id=a>{name}</p>"})
        assert socket.receive_all() == ["<p id=a>room-garden</p>", "<p id=a>news</p>"]
        socket.close()
        assert Group("news").channels() == []

    def test_the_element_names_all_that_its_script_needs(self):
        response = self.client.get("/garden/?tag=%22a%22&b=1")
        text = response.content.decode()
        assert (
            ' groups="room-garden news" page="/garden/?tag=%22a%22&amp;b=1" connect="/dbchannels/live/?'
            in text
        )
        assert ' client="/static/dbchannels/dbchannels.js" hidden></dbchannels-live>' in text
        assert '<script type="module" src="/static/dbchannels/live-group.js"></script>' in text
        assert "<script>" not in text

    def test_it_can_be_kept_for_another_script(self):
        tag, use = '{% live_group "news" as live %}', '<b ws-connect="{{ live.url }}">{{ live.groups.0 }}</b>'
        text = render("{% load dbchannels %}" + tag + use, RequestFactory().get("/"))
        assert text.startswith('<b ws-connect="/dbchannels/live/?page=%2F&amp;token=') and text.endswith(
            ">news</b>"
        )

    def test_the_url_is_below_the_script_name(self):
        for prefix in ("/site", "/site/"):
            with override_settings(FORCE_SCRIPT_NAME=prefix):
                url = self.visit()
            assert url.startswith("/site/dbchannels/live/?page=%2Fsite%2Fgarden%2F&"), url
            self.assertOpens(url).close()  # with --root-path, the server hands on the whole path
            self.assertOpens(url.removeprefix("/site")).close()  # a proxy has taken it off

    def test_a_page_may_have_any_address(self):
        self.assertOpens(self.visit(address="/caf%C3%A9/?q=%C3%A4&next=/x%3Ftoken=1")).close()

    def test_a_route_of_the_site_that_takes_all_paths_does_not_take_the_socket(self):
        def take(message):
            raise AssertionError

        everything = [route(f"websocket.{kind}", take) for kind in ("connect", "receive", "disconnect")]
        with override_settings(DBCHANNELS={"default": {"ROUTING": everything}}):
            socket = self.assertOpens(self.visit())
            socket.send("hi")
            assert (socket.close_code, socket.close_reason) == (1008, live_groups.SENDS_NOTHING)

    def test_the_route_is_the_first(self):
        first = load_routing([route("websocket.connect", print)]).bound_routes()[0]
        assert first.route.name == "dbchannels.consumers.live_groups.LiveGroups"


class Bearers(LiveCase):
    """Who may use a token."""

    def test_a_visitor_without_a_session_gets_none(self):
        url = self.visit()
        assert (Session.objects.count(), dict(self.client.cookies)) == (0, {})
        self.assertOpens(url)
        assert Session.objects.count() == 0

    def test_a_token_without_a_session_is_of_no_use_in_one(self):
        url = self.visit()
        self.logged_in()
        self.assertRefused(url)

    def test_a_token_of_a_session_is_of_no_use_in_another_or_in_none(self):
        self.logged_in()
        url = self.visit()
        self.assertRefused(url, ChannelClient())
        other = ChannelClient()
        self.logged_in("ben", other)
        self.assertRefused(url, other)
        again = ChannelClient()
        self.logged_in("ann", again)  # the same user, in another browser
        self.assertRefused(url, again)
        self.assertOpens(url)

    def test_the_session_of_an_anonymous_visitor_counts_too(self):
        url = self.visit(address="/garden/?touched=1")
        self.assertRefused(url)  # the response has set the cookie: a new token is in the page
        self.assertOpens(self.visit()).close()
        self.assertRefused(self.visit(ChannelClient()))

    def test_a_cookie_that_leads_to_no_session_is_none(self):
        for key in ("x" * 32, "short"):
            client = ChannelClient()
            client.cookies["sessionid"] = key
            url = self.visit(client)
            client.cookies["sessionid"] = key  # the session's middleware may have deleted it
            self.assertOpens(url, client).close()
            self.assertOpens(url, ChannelClient()).close()

    def test_a_logout_closes_the_socket_and_ends_the_token(self):
        self.logged_in()
        url, cookie = self.visit(), self.client.cookies["sessionid"].value
        socket = self.assertOpens(url)
        self.client.logout()
        assert (socket.closed, socket.close_code) == (True, 4401)
        thief = ChannelClient()
        thief.cookies["sessionid"] = cookie
        self.assertRefused(url, thief)

    def test_a_user_who_is_deactivated_gets_in_no_more(self):
        user = self.logged_in()
        url = self.visit()
        socket = self.assertOpens(url)
        user.is_active = False
        with self.captureOnCommitCallbacks(execute=True):
            user.save()
        self.drain()
        assert socket.close_code == 4401
        self.assertRefused(url)
        # The page is shown to them as to everybody.
        response = self.client.get("/garden/")
        assert "AnonymousUser" in response.content.decode()
        self.assertOpens(url_in(response))

    def test_a_new_password_ends_the_token_in_other_browsers(self):
        user = self.logged_in()
        url = self.visit()
        user.set_password("new")
        user.save()
        self.assertRefused(url)

    def test_a_page_that_lets_nobody_in_by_its_session_is_for_the_session(self):
        self.logged_in()
        request = RequestFactory().get("/garden/")
        request.session = self.client.session
        for user in (AnonymousUser(), User(pk=12345), None):
            request.user = user
            self.assertOpens(LiveGroup(request, "room-garden").url).close()
        del request.user
        self.assertOpens(LiveGroup(request, "room-garden").url).close()

    def test_a_session_in_its_cookie_counts_by_its_login(self):
        backend = "django.contrib.sessions.backends.signed_cookies"
        with override_settings(SESSION_ENGINE=backend, SESSION_SAVE_EVERY_REQUEST=True):
            self.logged_in()
            url, before = self.visit(), self.client.cookies["sessionid"].value
            with mock.patch("time.time", return_value=time.time() + 5):
                self.client.get("/garden/")
            assert self.client.cookies["sessionid"].value != before
            self.assertOpens(url).close()
            self.assertRefused(url, ChannelClient())
            other = ChannelClient()
            self.logged_in("ben", other)
            self.assertRefused(url, other)
            anonymous = ChannelClient()
            self.assertOpens(self.visit(anonymous, "/garden/?touched=1"), anonymous)

    def test_a_site_without_sessions_has_live_groups(self):
        middleware = ["django.middleware.common.CommonMiddleware"]
        with (
            override_settings(MIDDLEWARE=middleware),
            mock.patch("dbchannels.auth.sessions.installed", return_value=False),
        ):
            self.client.cookies["sessionid"] = "of-another-site-of-this-domain"
            self.assertOpens(url_in(self.client.get("/garden/")))

    def test_a_response_varies_by_cookie(self):
        for client in (self.client, ChannelClient()):
            assert "Cookie" in client.get("/garden/")["Vary"]
        cached = [
            "django.middleware.cache.UpdateCacheMiddleware",
            *settings.MIDDLEWARE,
        ]
        cached.append("django.middleware.cache.FetchFromCacheMiddleware")
        with override_settings(MIDDLEWARE=cached):
            anonymous = self.visit(ChannelClient())
            assert self.visit(ChannelClient()) == anonymous  # from the cache
            self.logged_in()
            assert token_of(self.visit()) != token_of(anonymous)


class Attacks(LiveCase):
    def setUp(self):
        super().setUp()
        self.url = self.visit()

    def test_the_token_as_it_is_opens(self):
        self.assertOpens(self.url)

    def test_no_other_text_does(self):
        token = token_of(self.url)
        value, moment, signature = token.split(":")
        groups = signing.b64_encode(b'[["secret"],"",""]').decode()
        for other in (
            "",
            "x",
            ":",
            "::",
            ":::",
            "\0",
            "é",
            "\ud7ff",
            token[:-1],
            token + "A",
            f"{groups}:{moment}:{signature}",
            f".{value}:{moment}:{signature}",
            f"{value}:{moment}x:{signature}",
            f"{value}:zzzzzzzzz:{signature}",
            f"{value}:{signature}",
            token.upper(),
            "a" * 10_000,
            ":".join(["a"] * 5_000),
        ):
            self.assertRefused(changed(self.url, token=other))
        assert Group("secret").channels() == []

    def test_a_handshake_without_a_token_is_refused(self):
        for query in (
            "",
            "?",
            "?page=/garden/",
            "?token",
            "?%",
            "?token=%ff%fe",
            "?" + "&" * 3_000,
            "?groups=room-garden",
        ):
            self.assertRefused(f"/dbchannels/live/{query}")

    def test_no_other_parameter_names_a_group(self):
        socket = self.assertOpens(self.url + "&groups=secret&group=secret&token=x&page=/x/")
        assert Group("secret").channels() == []
        Group("secret").send({"text": "no"})
        socket.assertNothingReceived()

    def test_a_token_is_of_one_page(self):
        self.assertRefused(changed(self.url, page="/garden/shed/"))
        self.assertRefused(changed(self.url, page=""))

    def test_a_token_of_another_key_is_refused_and_of_a_former_one_not(self):
        with override_settings(SECRET_KEY="another"):
            self.assertRefused(self.url)
        with override_settings(SECRET_KEY="another", SECRET_KEY_FALLBACKS=["only for the tests"]):
            self.assertOpens(self.url)

    def test_a_token_that_was_signed_for_something_else_is_refused(self):
        for salt in ("django.core.signing", "dbchannels.live_group.1", "dbchannels.admin.live/garden/"):
            self.assertRefused(changed(self.url, token=signing.dumps([["room-garden"], "", ""], salt=salt)))

    def test_a_token_opens_for_an_hour_and_an_open_socket_stays(self):
        socket = self.assertOpens(self.url)
        now = time.time()
        with mock.patch("time.time", return_value=now + 3_590):
            self.assertOpens(self.url).close()
        with mock.patch("time.time", return_value=now + 3_610):
            late = self.client.ws(self.url)
            assert late.close_code == 4410
            assert Group("room-garden").channels() == [socket.reply_channel]
            self.assertOpens(self.visit())

    def test_a_page_of_another_site_is_refused(self):
        with self.assertLogs("dbchannels.server", "WARNING") as logged:
            assert self.client.ws(self.url, headers={"origin": "https://evil.example"}).status == 403
        assert token_of(self.url) not in "".join(logged.output)
        assert Group("room-garden").channels() == []

    def test_a_refusal_is_one_line_in_the_access_log_without_the_token(self):
        with self.assertLogs("dbchannels", "DEBUG") as logged:
            self.assertRefused(changed(self.url, token="not-a-token"))
        (line,) = logged.output
        assert '"WSDISCONNECT /dbchannels/live/?page=%2Fgarden%2F&token=*** HTTP/1.1" 4410' in line

    def test_what_the_client_sends_closes_the_socket(self):
        for frame in ("hi", b"hi", '{"HEADERS": {}}'):
            socket = self.client.ws(self.url)
            socket.send(frame)
            assert socket.close_code == 1008

    def test_an_event_of_the_group_runs_nothing(self):
        socket = self.assertOpens(self.url)
        with mock.patch.object(executor, "_unhandled", set()), self.assertLogs("dbchannels.worker") as logged:
            for event in ("chat.message", "connect", "chat.message"):
                Group("news").send_event(event)
            socket.assertNothingReceived()
        assert not socket.closed
        assert [record.getMessage() for record in logged.records] == [
            f"No consumer of {{% live_group %}} handles the event {event}: {live_groups.TAKES_NO_EVENTS}."
            for event in ("chat.message", "connect")
        ]

    def test_the_token_is_masked_in_logs_and_in_the_admin(self):
        token = token_of(self.url)
        assert log_field(f"GET {self.url} HTTP/1.1", 1_000) == (
            "GET /dbchannels/live/?page=%2Fgarden%2F&token=*** HTTP/1.1"
        )
        request = self.client._handshake(self.url, (), False, {}, None)
        text = message_text("websocket.connect", codec.encode(connect_message(request, "reply.a!b"), 100_000))
        assert "token=***" in text and token not in text and token.split(":")[0] not in text


class Fragments(LiveCase):
    def test_a_template_is_rendered_and_sent(self):
        socket = self.assertOpens(self.visit())
        with (
            override_settings(
                TEMPLATES=[templates_of({"line.html": "<li>{{ line }}</li>", "other.html": "other"})]
            ),
            self.assertNumQueries(0),
        ):
            render_to_group("room-garden", "line.html", {"line": "<script>&"})
            render_to_group(Group("news"), ["missing.html", "other.html"])
        assert socket.receive_all() == ["<li>&lt;script&gt;&amp;</li>", "other"]

    def test_it_is_sent_at_the_commit_and_never_after_a_rollback(self):
        socket = self.assertOpens(self.visit())
        with override_settings(TEMPLATES=[templates_of({"a.html": "{{ n }}"})]):
            with transaction.atomic():
                render_to_group("news", "a.html", {"n": 1})
                socket.assertNothingReceived()
            with pytest.raises(ValueError, match="as asked"), transaction.atomic():
                render_to_group("news", "a.html", {"n": 2})
                raise ValueError("as asked")
        assert socket.receive_all() == ["1"]

    def test_a_fragment_has_no_request(self):
        source = '{% load dbchannels %}{% live_group "news" %}'
        with (
            override_settings(
                TEMPLATES=[templates_of({"a.html": source, "b.html": "[{{ request }}{{ user }}]"})]
            ),
            self.captureMessages() as sent,
        ):
            render_to_group("news", "b.html")
            with pytest.raises(
                InvalidConfiguration, match=r"live_group %} needs the request: render the page by render"
            ):
                render_to_group("news", "a.html")
        assert [one["text"] for one in sent] == ["[]"]

    def test_a_wrong_name_is_refused(self):
        with override_settings(TEMPLATES=[templates_of({"a.html": "a"})]), pytest.raises(InvalidName):
            render_to_group("room garden", "a.html")


class Line:
    """The model of the page in the documentation."""

    made: ClassVar[list[Line]] = []

    class objects:
        @staticmethod
        def create(text):
            Line.made.append(SimpleNamespace(pk=1, text=text))
            return Line.made[-1]

        @staticmethod
        def order_by(field):
            return Line.made


class Documented(LiveCase):
    """The code of docs/live-fragments.rst, whose pages tests/browser looks at."""

    def test_its_test_passes(self):
        views, tests = (
            one.code
            for one in pages.blocks("live-fragments", "python")
            if one.caption in ("chat/views.py", "chat/tests.py")
        )
        html = {one.caption: one.code for one in pages.blocks("live-fragments", "html+django")}
        room = html["templates/chat/room.html"].replace('garden" %}', 'garden" as live %}{{ live }}')
        models, page = ModuleType("chat.models"), ModuleType("chat.page")
        models.Line = Line
        modules = {"chat": models, "chat.models": models, "chat.page": page}
        with mock.patch.dict(sys.modules, modules):
            exec(views, names := {"__name__": "chat.views"})
        page.urlpatterns = [path("", names["room"])]
        files = {"chat/room.html": room, "chat/line.html": html["templates/chat/line.html"]}
        exec(tests, cases := {"__name__": "chat.tests"})
        processors = ["django.template.context_processors.request"]
        with override_settings(TEMPLATES=[templates_of(files, *processors)], ROOT_URLCONF=page):
            cases["RoomTest"].test_a_line_reaches_the_page(self)
            assert "<li>&lt;tea&gt;</li>" in self.client.get("/").content.decode()


def test_jinja2_writes_it_as_it_is():
    made = LiveGroup(RequestFactory().get("/"), "news")
    assert made.__html__() == str(made) and str(made).startswith('<dbchannels-live groups="news" ')


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        ("{% live_group %}", InvalidConfiguration, "names no group: write"),
        ("{% live_group missing %}", InvalidName, "is empty: the variable is missing, or a filter"),
        (
            '{% live_group "news" "room-"|add:7 %}',
            InvalidName,
            "is empty: the variable is missing, or a filter",
        ),
        ("{% live_group 7 %}", InvalidName, "7"),
        ('{% live_group "room garden" %}', InvalidName, "room garden"),
    ],
)
def test_a_mistake_in_a_template_is_told(source, error, words):
    with pytest.raises(error, match=re.escape(words)):
        render("{% load dbchannels %}" + source, RequestFactory().get("/"))


def test_groups_that_make_the_url_too_long_are_told():
    request = RequestFactory().get("/")
    assert len(LiveGroup(request, *(f"{n:099}" for n in range(30))).url) < live_groups.MAX_URL
    with pytest.raises(
        InvalidConfiguration,
        match=r"its 60 live groups make a URL of 8\d\d\d characters, and the most is 6000",
    ):
        LiveGroup(request, *(f"{n:099}" for n in range(60)))
