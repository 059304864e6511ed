"""Live groups: a page shows what is sent to a group, without a consumer of the site's own.

``{% live_group "room-garden" %}`` writes a token with the names of groups into the page. The page's script opens a
WebSocket with it, and ``LiveGroups``, its consumer, joins these groups and no others. ``render_to_group`` sends HTML.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qs, urlencode

from django.apps import apps
from django.core import signing
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.templatetags.static import static
from django.utils.html import format_html
from django.utils.safestring import SafeString

from dbchannels import names
from dbchannels.auth import sessions, users
from dbchannels.channel import Group
from dbchannels.consumers.websocket import WebsocketConsumer, route_class
from dbchannels.exceptions import InvalidConfiguration, InvalidName, WebSocketCloseException
from dbchannels.message import Message
from dbchannels.protocol import EVENT, POLICY_VIOLATION, STALE_TOKEN
from dbchannels.worker.executor import log_unhandled

PATH = "dbchannels/live/"
SALT = "dbchannels.live_group.1"  # the number is that of the token's format
MAX_AGE = 3_600  # seconds for which a token opens a socket
MAX_URL = 6_000  # characters; a server reads 8,192 bytes of a request's first line

ELEMENT = (
    '<dbchannels-live groups="{}" page="{}" connect="{}" client="{}" hidden></dbchannels-live>'
    '<script type="module" src="{}"{}></script>'
)
NO_REQUEST = (
    "{% live_group %} needs the request: render the page by render(request, ...), and have "
    "'django.template.context_processors.request' in TEMPLATES."
)
EMPTY = (
    "A name in {% live_group %} is empty: the variable is missing, or a filter gives nothing, as 'room-'|add:7 does "
    "with a number. Make the name in the view or in a method of the model."
)
STALE = "The token is too old, or belongs to another session."
SENDS_NOTHING = "A live group takes no frames: send them to a consumer of your own."
TAKES_NO_EVENTS = "send pages HTML by render_to_group, and events to a group without pages"


class LiveGroup(SafeString):
    """What a page needs to receive what is sent to groups: ``{% live_group "room-garden" %}``.

    As text it is an element and its script. ``url`` opens the socket from other scripts. Raises InvalidName for a name
    that no group can have, and InvalidConfiguration.
    """

    groups: list[str]
    page: str
    url: str

    def __new__(cls, request: HttpRequest | None, *groups: str) -> LiveGroup:
        if request is None:
            raise InvalidConfiguration(NO_REQUEST)
        if not groups:
            raise InvalidConfiguration(
                '{% live_group %} names no group: write {% live_group "room-garden" %}.'
            )
        if "" in groups:
            raise InvalidName(EMPTY)
        checked = [names.check_group_name(name) for name in groups]
        token = signing.dumps([checked, *_bearer(request)], salt=SALT + request.path)
        root = request.META.get("SCRIPT_NAME", "").rstrip("/")
        url = f"{root}/{PATH}?{urlencode({'page': request.path, 'token': token})}"
        if len(url) > MAX_URL:
            raise InvalidConfiguration(
                f"The address of this page and the names of its {len(groups)} live groups make a URL of "
                f"{len(url)} characters, and the most is {MAX_URL}: use fewer groups or shorter names."
            )
        page = request.get_full_path()
        files = (static(f"dbchannels/{name}.js") for name in ("dbchannels", "live-group"))
        # Of Django 6's ContentSecurityPolicyMiddleware, or of django-csp's.
        nonce = getattr(request, "_csp_nonce", getattr(request, "csp_nonce", None))
        allowed = "" if nonce is None else format_html(' nonce="{}"', nonce)
        made = super().__new__(cls, format_html(ELEMENT, " ".join(checked), page, url, *files, allowed))
        made.groups, made.page, made.url = checked, page, url
        return made


def _bearer(request: HttpRequest) -> tuple[str, str]:
    """Return who may use a token of this page: the session, and the user who is logged in to it; "" for none.

    The session is read, so that its middleware lets the response vary by Cookie.
    """
    session: Any = getattr(request, "session", None)
    if session is None:
        return "", ""
    identity, login = sessions.session_identity(session), users.claimed_login(session)
    user: Any = getattr(request, "user", None)
    # A page that has not let this user in may be shown to everybody who has the session.
    return identity, login if login and users.login_label(user) == login else ""


@route_class(path=rf"^/(?:.*/)?{PATH}$")
class LiveGroups(WebsocketConsumer):
    """The socket of live groups. A token is looked at when the socket opens: what ends later, ends by a logout."""

    def connect(self, message: Message) -> None:
        for name in _signed_groups(message):
            Group(name, layer=message.layer).add(self.reply_channel)

    def receive(self, text: str | None = None, bytes: bytes | None = None) -> None:
        raise WebSocketCloseException(POLICY_VIOLATION, SENDS_NOTHING)

    def consume_event(self) -> None:
        """Leave the event alone: a page has no handlers."""
        log_unhandled(self.message[EVENT], "{% live_group %}", TAKES_NO_EVENTS)


def _signed_groups(message: Message) -> list[str]:
    """Return the groups of the token in a handshake's URL; raise WebSocketCloseException if it may not be used.

    The script of the page then fetches the page, which has a new token, if its visitor may still see it.
    """
    refused = WebSocketCloseException(STALE_TOKEN, STALE)
    if len(message["query_string"]) > MAX_URL:
        raise refused
    query = parse_qs(message["query_string"].decode("latin-1"))
    page, token = (query.get(key, [""])[0] for key in ("page", "token"))
    try:
        groups, identity, login = signing.loads(token, salt=SALT + page, max_age=MAX_AGE)
    except signing.BadSignature:
        raise refused from None
    has_sessions = sessions.installed()
    # The user is read even if the token names none: it is recorded, so that a logout finds the socket.
    user = message.user if has_sessions and apps.is_installed("django.contrib.auth") else None
    if identity != (sessions.session_identity(message.http_session) if has_sessions else ""):
        raise refused
    if login and login != users.login_label(user):
        raise refused
    return groups  # type: ignore[no-any-return]


def render_to_group(
    group: Group | str,
    template: str | Sequence[str],
    context: dict[str, Any] | None = None,
    *,
    using: str | None = None,
) -> None:
    """Render a template once, and send the text to all members of a group, in the caller's transaction::

        render_to_group("room-garden", "chat/line.html", {"line": line})

    There is no request, and no context processor runs, because the members are different visitors. The rest is as in
    Django's ``render_to_string``. Raises InvalidName or MessageTooLarge, and what the template raises.
    """
    target = group if isinstance(group, Group) else Group(group)
    target.send({"text": render_to_string(template, context, using=using)})
