"""The admin: what it shows, what it hides, and the little that it lets one delete."""

from __future__ import annotations

import json
import re
import time
from datetime import timedelta
from html import unescape
from typing import Any
from uuid import uuid4

import pytest
from django.contrib import admin
from django.contrib.auth.models import Permission, User
from django.contrib.messages import get_messages
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from dbchannels import codec
from dbchannels.admin.base import LINE, duration
from dbchannels.admin.messages import BYTES, ERROR, HEAD, SHOWN, reason_of
from dbchannels.models import (
    Audience,
    Connection,
    DeadLetter,
    DurableMessage,
    History,
    InFlight,
    Membership,
    Process,
    ProtocolMessage,
)
from dbchannels.redaction import UNREADABLE, message_text

pytestmark = pytest.mark.django_db

SHOWN_MODELS = [Connection, DeadLetter, DurableMessage, History, Membership, Process, ProtocolMessage]
DELETABLE = [DeadLetter, DurableMessage, Membership, ProtocolMessage]
HEADERS = [
    [b"host", b"example.com"],
    [b"Cookie", b"sessionid=c00kie"],
    ["authorization", "Basic b4sic"],
    [b"PROXY-AUTHORIZATION", b"pr0xy"],
    [b"x-csrftoken", b"t0ken"],
    [b"set-cookie", b"s3t"],
]
REQUEST = {
    "reply_channel": "reply.web!abc",
    "method": "POST",
    "path": "/orders/",
    "query_string": b"page=2",
    "headers": HEADERS,
    "body": b"card=4111",
}
SECRETS = ["c00kie", "b4sic", "pr0xy", "t0ken", "s3t", "4111"]


# What the tests say.


def after(seconds: float) -> Any:
    """Return the moment so many seconds from now."""
    return timezone.now() + timedelta(seconds=seconds)


def encoded(message: Any) -> bytes:
    """Return a payload: an encoded message, or the bytes given."""
    return message if isinstance(message, bytes) else codec.encode(message)


def protocol(message: Any, channel: str = "http.request", **fields: Any) -> ProtocolMessage:
    """Put a protocol message on a channel, sent 3.2 s ago."""
    times = {"sent_at": after(-3.2), "expires_at": after(50)}
    return ProtocolMessage.objects.create(channel=channel, payload=encoded(message), **{**times, **fields})


def durable(message: Any = None, channel: str = "thumbnails", **fields: Any) -> DurableMessage:
    """Put a durable message on a channel, sent 4 minutes ago."""
    times = {"sent_at": after(-250), "due_at": after(-250)}
    payload = encoded({"id": 7} if message is None else message)
    return DurableMessage.objects.create(channel=channel, payload=payload, **{**times, **fields})


def dead(message: Any = None, error: str = "Traceback:\nValueError: bad image") -> DeadLetter:
    """Make a dead letter."""
    payload = encoded({"id": 3} if message is None else message)
    times = {"sent_at": after(-100), "failed_at": after(-7300)}
    return DeadLetter.objects.create(channel="thumbnails", payload=payload, attempts=6, error=error, **times)


def member(group: str = "chat", local: str = "abc") -> Membership:
    """Put a channel into a group."""
    return Membership.objects.create(group=group, channel="reply.web!", recipient=local)


def process(name: str = "worker-1", kind: str = Process.WORKER, lease: float = 10) -> Process:
    """Make a process whose lease ends in so many seconds."""
    until = after(lease)
    return Process.objects.create(name=name, kind=kind, host="web1", pid=4312, lease_until=until)


def socket(local: str = "abc", path: str = "/chat/") -> Connection:
    """Make an open connection of the server ``web``."""
    return Connection.objects.create(reply_channel=f"reply.web!{local}", server="web", path=path)


def kept(group: str = "chat", text: str = "hi") -> History:
    """Make a message of a group's history."""
    fields = {"position": time.monotonic_ns(), "keep": 100, "expires_at": after(3600)}
    return History.objects.create(group=group, payload=encoded({"text": text}), **fields)


def row_of(model: type) -> Any:
    """Make one row of a model."""
    if model is ProtocolMessage:
        return protocol(REQUEST)
    makers = {Connection: socket, DeadLetter: dead, DurableMessage: durable, History: kept}
    return {**makers, Membership: member, Process: process}[model]()


def list_url(model: type) -> str:
    return reverse(f"admin:dbchannels_{model._meta.model_name}_changelist")


def url(row: Any, what: str = "change") -> str:
    name = f"admin:dbchannels_{row._meta.model_name}_{what}"
    return reverse(name, args=[admin.utils.quote(row.pk)])


def page(client: Client, address: str) -> str:
    """Return the text of a page as people read it: without tags, and with plain spaces."""
    response = client.get(address)
    assert response.status_code == 200
    return unescape(re.sub("<[^>]*>", " ", response.content.decode())).replace("\xa0", " ")


def source(client: Client, address: str) -> str:
    """Return the HTML of a page."""
    return client.get(address).content.decode()


def staff(client: Client, *permissions: str) -> Client:
    """Log a member of the staff in who may do this much: ``view_process`` and the like."""
    user = User.objects.create_user("staff", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client.force_login(user)
    return client


def delete_selected(client: Client, *rows: Any) -> Any:
    """Delete rows by the action of the list, which asks first."""
    answer = {"action": "delete_selected", "index": 0, "_selected_action": [row.pk for row in rows]}
    asked = client.post(list_url(type(rows[0])), answer)
    signed = re.search(r'name="state" value="([^"]*)"', asked.content.decode())
    return signed and client.post(f"{list_url(type(rows[0]))}act/delete_selected/", {"state": signed[1]})


# What is shown.


@pytest.mark.parametrize("model", SHOWN_MODELS)
def test_list_and_detail_answer(admin_client: Client, model: type) -> None:
    row = row_of(model)
    assert url(row) in source(admin_client, list_url(model))
    assert str(row) in page(admin_client, url(row))


def test_the_menu_has_each_kind_but_none_in_flight(admin_client: Client) -> None:
    text = page(admin_client, reverse("admin:app_list", args=["dbchannels"]))
    for model in SHOWN_MODELS:
        assert str(model._meta.verbose_name_plural).capitalize() in text
    assert str(InFlight._meta.verbose_name_plural).capitalize() not in text


def test_a_waiting_request(admin_client: Client) -> None:
    protocol(REQUEST)
    text = page(admin_client, list_url(ProtocolMessage))
    assert "'method': 'POST', 'path': '/orders/', 'query_string': b'page=2'" in text
    assert re.search(r"\b3\.[2-9] s\b", text)
    assert re.search(r"\bin (49|50) s\b", text)


def test_the_detail_has_the_decoded_message(admin_client: Client) -> None:
    row = durable({"name": "Mädchen 😀", "raw": b"\x89PNG\x00", "sizes": [1, 2], "ratio": 1.5, "no": None})
    text = page(admin_client, url(row))
    for part in ("'name': 'Mädchen 😀'", r"b'\x89PNG\x00'", "[1, 2]", "1.5", "'no': None"):
        assert part in text


def test_receivers_of_a_broadcast(admin_client: Client) -> None:
    row = protocol({"text": "hi"}, "reply.web!", recipients=" ".join(f"part{n}x" for n in range(250)))
    text = page(admin_client, url(row))
    assert "250: part0x part1x" in text
    assert "part99x ..." in text
    assert "part100x" not in text


def test_receivers_of_a_broadcast_to_an_audience(admin_client: Client) -> None:
    key = uuid4()
    row = protocol({"text": "hi"}, "reply.web!", audience=key)
    assert "Receivers: none" in re.sub(
        r"\s+", " ", page(admin_client, url(row))
    )  # its audience has been deleted
    for parts in ("", " ".join(f"part{n}x" for n in range(250))):  # seen once, then written
        Audience.objects.create(key=key, recipients=parts, expires_at=after(60))
    text = page(admin_client, url(row))
    assert "250: part0x part1x" in text
    assert "part100x" not in text


def test_durable_messages_say_who_has_them_and_when_they_are_due(admin_client: Client) -> None:
    durable(claimed_by="worker-1", attempts=2)
    durable(due_at=after(7300))
    text = page(admin_client, list_url(DurableMessage))
    assert "worker-1" in text
    assert "4 min ago" in text
    assert "in 2 h" in text


def test_dead_letters_show_the_error_and_the_traceback(admin_client: Client) -> None:
    row = dead(error="Traceback (most recent call last):\n  File <x>\nValueError: <b>bad</b>\n")
    listed, detail = source(admin_client, list_url(DeadLetter)), source(admin_client, url(row))
    assert "ValueError: &lt;b&gt;bad&lt;/b&gt;" in listed
    assert "Traceback (most recent call last):\n  File &lt;x&gt;\nValueError: &lt;b&gt;" in detail
    assert "2\xa0h\xa0ago" in listed


FRAME = '  File "/srv/site/shop.py", line 3, in make\n    load(message["id"])\n    ^^^^^^^^^^^^^^^^^^^\n'
HEADER = "Traceback (most recent call last):\n"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (f"{HEADER}{FRAME}ValueError: bad image\n", "ValueError: bad image"),
        (
            f"{HEADER}{FRAME}ProgrammingError: no relation\nLINE 1: SELECT\n        ^\n",
            "ProgrammingError: no relation",
        ),
        (
            f"{HEADER}{FRAME}KeyError: 'id'\n\nDuring handling of the above exception, another exception occurred:\n\n"
            f"{HEADER}{FRAME}shop.NoOrder: None\n",
            "shop.NoOrder: None",
        ),
        (
            f"This consumer had not ended after 60 s. It stood here:\n{FRAME}",
            "This consumer had not ended after 60 s. It stood here:",
        ),
        ("No consumer on invoices matches this message.", "No consumer on invoices matches this message."),
        (
            "  + Exception Group Traceback (most recent call last):\n"
            '  |   File "/srv/site/shop.py", line 3, in make\n'
            "  | ExceptionGroup: two failed (2 sub-exceptions)\n"
            "  +-+---------------- 1 ----------------\n"
            f"    | {HEADER}    | ValueError: 1\n"
            "    +------------------------------------\n",
            "ExceptionGroup: two failed (2 sub-exceptions)",
        ),
        (f"{FRAME * 200}RecursionError: too deep\n"[-ERROR:], "RecursionError: too deep"),
        ("  odd", "odd"),
        ("", ""),
    ],
)
def test_the_reason_is_the_line_that_says_what_happened(error: str, reason: str) -> None:
    assert reason_of(error) == reason


def test_a_dead_letter_begins_with_the_reason(admin_client: Client) -> None:
    row = dead(error=f"{HEADER}{FRAME}ValueError: bad image\n")
    text = page(admin_client, url(row))
    assert text.index("Error:") < text.index("ValueError: bad image") < text.index("Channel:")
    assert text.index("Channel:") < text.index("Traceback:") < text.index("Message:")


def test_a_worker_shows_what_it_holds(admin_client: Client) -> None:
    row = process("worker-1")
    lines = "http.request reply.a!b\nwebsocket.receive reply.a!c\nwebsocket.receive reply.a!d"
    InFlight.objects.create(worker="worker-1", messages=lines, since=after(-4.2))
    runs, _, _ = durable(claimed_by="worker-1"), durable(claimed_by="worker-1"), durable(claimed_by="another")
    work = {"takes": ["thumbnails"], "runs": "thumbnails", "since": "2026-01-01 03:00:00", "id": runs.pk}
    Process.objects.filter(pk=row.pk).update(work=json.dumps(work))
    for address in (list_url(Process), url(row)):
        text = page(admin_client, address)
        assert f"runs thumbnails #{runs.pk} since 2026-01-01 03:00:00, http.request: 1" in text
        assert re.search(r"websocket.receive: 2, received \d+\.\d s ago, claimed and not started: 1\b", text)


def test_the_page_of_a_message_says_only_what_there_is_to_say(admin_client: Client) -> None:
    text = page(admin_client, url(durable(due_at=None)))
    assert re.search(r"Due:\s+now", text)
    assert not any(label in text for label in ("Cancelled by:", "Unique key:", "Claimed alone:"))
    row = durable(due_at=after(7300), unique_key="key", alone=True, cancelled_by="ann")
    text = page(admin_client, url(row))
    assert re.search(r"Due:\s+in\s2\sh", text)
    assert all(label in text for label in ("Cancelled by:", "Unique key:", "Claimed alone:"))


def test_a_worker_shows_what_waits_for_somebodys_transaction(admin_client: Client) -> None:
    row = process("worker-1")
    InFlight.objects.create(worker="worker-1")
    InFlight.objects.create(
        worker=f"worker-1{InFlight.BLOCKED}", messages="websocket.receive reply.a!c\nhttp.request reply.a!d"
    )
    for address in (list_url(Process), url(row)):
        assert "done, but waiting for a transaction" in (text := page(admin_client, address))
        assert re.search(r"transaction of others: 2\b", text)


def test_a_server_shows_its_number_of_connections(admin_client: Client) -> None:
    row = process("web", Process.SERVER)
    process("other", Process.SERVER)
    socket("a"), socket("b")
    assert "connections: 2" in page(admin_client, url(row))
    assert page(admin_client, list_url(Process)).count("connections: ") == 1


@pytest.mark.parametrize(("lease", "state"), [(10, "alive"), (-10, "lease expired")])
def test_the_lease_says_who_lives(admin_client: Client, lease: float, state: str) -> None:
    assert state in page(admin_client, url(process(lease=lease)))


def test_an_idle_process_holds_nothing(admin_client: Client) -> None:
    InFlight.objects.create(worker="worker-1", messages="")
    assert "nothing" in page(admin_client, url(process("worker-1")))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (3.2, "3.2 s"), (42.4, "42 s"), (250, "4 min"), (7200, "2 h"), (300_000, "3 d")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(timedelta(seconds=seconds)).replace("\xa0", " ") == text


# Filters, searches and what a page costs.


def test_filter_by_channel_counts_and_narrows(admin_client: Client) -> None:
    durable(channel="thumbnails"), durable(channel="thumbnails"), durable(channel="digest")
    text = page(admin_client, list_url(DurableMessage) + "?channel=digest")
    assert "thumbnails (2)" in text
    assert "digest (1)" in text
    assert re.search(r"\b1 durable message\s", text)


def test_members_are_counted_by_group(admin_client: Client) -> None:
    member("chat", "a"), member("chat", "b"), member("news", "a")
    text = page(admin_client, list_url(Membership) + "?group=chat")
    assert "chat (2)" in text
    assert "news (1)" in text
    assert "2 memberships" in text
    assert "reply.web!b" in text


@pytest.mark.parametrize("query", ["?channel=nowhere", "?channel=%00", "?q=nowhere", "?channel=%27%22%3B"])
def test_odd_questions_get_a_page(admin_client: Client, query: str) -> None:
    durable()
    assert admin_client.get(list_url(DurableMessage) + query).status_code == 200


def test_search_finds_the_claims_of_a_worker(admin_client: Client) -> None:
    durable(claimed_by="worker-1", channel="mine"), durable(claimed_by="another", channel="not-this")
    response = admin_client.get(list_url(DurableMessage) + "?q=worker-1")
    assert [row.channel for row in response.context["cl"].result_list] == ["mine"]


@pytest.mark.parametrize("lookup", ["payload__contains", "payload__startswith", "payload__gt", "id__gt"])
def test_what_is_masked_cannot_be_guessed_by_a_query(admin_client: Client, lookup: str) -> None:
    protocol(REQUEST)
    assert admin_client.get(list_url(ProtocolMessage) + f"?{lookup}=a").status_code == 400


@pytest.mark.parametrize("model", SHOWN_MODELS)
def test_a_list_costs_the_same_for_one_row_and_for_many(
    admin_client: Client, model: type, django_assert_num_queries: Any, django_assert_max_num_queries: Any
) -> None:
    row = row_of(model)
    with django_assert_max_num_queries(8) as one:
        admin_client.get(list_url(model))
    for number in range(20):
        copy_of(row, number)
    with django_assert_num_queries(len(one)):
        assert admin_client.get(list_url(model)).context["cl"].result_count == 21


def copy_of(row: Any, number: int) -> None:
    """Insert the row once more."""
    names = {Connection: "reply_channel", Membership: "recipient", Process: "name"}
    if type(row) is not Connection:
        row.pk = None
    if type(row) in names:
        setattr(row, names[type(row)], f"copy-{number}")
    if type(row) is History:
        row.position = None
    row._state.adding = True
    row.save(force_insert=True)


@pytest.mark.parametrize("maker", [protocol, durable, dead])
def test_a_list_reads_no_whole_payload(
    admin_client: Client, maker: Any, django_assert_max_num_queries: Any
) -> None:
    row = maker({"text": "x" * 1_000_000})
    with django_assert_max_num_queries(8) as queries:
        text = page(admin_client, list_url(type(row)))
    assert "(too long for the list)" in text
    listed = [one["sql"] for one in queries if "ORDER BY" in one["sql"] and "head" in one["sql"]]
    column = f'"{row._meta.db_table}"."payload"'
    assert len(listed) == 1
    assert column not in re.sub(rf"(SUBSTR(ING)?|LENGTH)\({re.escape(column)}", "", listed[0])


# Masking.


@pytest.mark.parametrize("channel", ["http.request", "websocket.connect", "thumbnails"])
def test_secret_headers_and_the_body_are_masked(admin_client: Client, channel: str) -> None:
    row = protocol(REQUEST, channel)
    pages = page(admin_client, url(row)) + page(admin_client, list_url(ProtocolMessage))
    assert not [secret for secret in SECRETS if secret in pages]
    for part in (
        "[b'host', b'example.com']",
        "[b'Cookie', (masked, 16 bytes)]",
        "['authorization', (masked, 11 bytes)]",
        "[b'PROXY-AUTHORIZATION', (masked, 5 bytes)]",
        "'body': (masked, 9 bytes)",
        "'query_string': b'page=2'",
    ):
        assert part in pages


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ({"query_string": b"page=2&token=abc"}, "'query_string': b'page=2&token=***'"),
        ({"query_string": b"token=abc"}, "'query_string': b'token=***'"),
        ({"query_string": "access_token=abc"}, "'query_string': 'access_token=***'"),
        ({"query_string": b"\xff=1&key=abc"}, "b'\\xff=1&key=***'"),
        ({"query_string": None}, "'query_string': None"),
        ({"query_string": 7}, "'query_string': 7"),
        ({"headers": [[b"Referer", b"http://a/?code=abc"]]}, "[b'Referer', b'http://a/?code=***']"),
        ({"headers": [["Location", "/in?ticket=abc&b=c"]]}, "['Location', '/in?ticket=***&b=c']"),
    ],
)
def test_secrets_in_addresses_are_masked(message: dict[str, Any], shown: str) -> None:
    text = message_text("websocket.connect", codec.encode(message))
    assert shown in text
    assert "abc" not in text


@pytest.mark.parametrize(
    "message",
    [
        {"status": 200, "content": b"pr1vate"},
        {"content": b"pr1vate", "more_content": True},
        {"content": "pr1vate", "more_content": False},
        {"content": b"pr1vate"},
        {"status": 200, "content": b"pr1vate", "binary": True},
        {"later": {"list": [{"headers": [["Set-Cookie", "pr1vate"]]}]}},
        {"headers": {"Cookie": "pr1vate"}},
        {"session": b"pr1vate"},
        {"headers": [[b"COOKIE", b"pr1vate", "pr1vate"]]},
    ],
)
def test_answers_and_nested_headers_are_masked(message: dict[str, Any]) -> None:
    text = message_text("reply.web!", codec.encode(message))
    assert "pr1vate" not in text
    assert "(masked, 7 bytes)" in text


@pytest.mark.parametrize(
    ("channel", "message"),
    [
        ("reply.web!", {"text": "pl4in"}),
        ("reply.web!", {"content": "pl4in", "binary": False}),
        ("thumbnails", {"content": "pl4in"}),
        ("thumbnails", {"body": "pl4in", "subject": "x"}),
        ("thumbnails", {"headers": [[b"x-forwarded-for", b"pl4in"]]}),
    ],
)
def test_what_is_no_secret_is_shown(channel: str, message: dict[str, Any]) -> None:
    assert "pl4in" in message_text(channel, codec.encode(message))


@pytest.mark.parametrize("headers", [None, 7, "cookie", b"cookie", [], [[]], [None], [7], [["cookie"]], [{}]])
def test_headers_of_another_shape_are_no_error(headers: Any) -> None:
    assert "'headers'" in message_text("http.request", codec.encode({"headers": headers}))


# Escaping, cutting, and what cannot be decoded.

ATTACK = "<script>alert(1)</script></textarea></pre><img src=x onerror=alert(1)>"


def test_nothing_that_a_stranger_sent_becomes_html(admin_client: Client) -> None:
    rows = [
        protocol({"text": ATTACK}, ATTACK, recipients=ATTACK, reply_channel=ATTACK),
        durable({ATTACK: 1}, ATTACK, claimed_by=ATTACK),
        dead({"text": ATTACK}, ATTACK),
        Membership.objects.create(group=ATTACK, channel=ATTACK, recipient="x"),
        socket(path=ATTACK),
        Process.objects.create(
            name=ATTACK, kind="worker", host=ATTACK, pid=1, queue=ATTACK, lease_until=after(9)
        ),
    ]
    InFlight.objects.create(worker=ATTACK, messages=f"{ATTACK} x")
    for row in rows:
        for address in (list_url(type(row)), url(row)):
            text = source(admin_client, address)
            assert "<script>alert" not in text
            assert "<img src=x" not in text
            assert "</textarea>" not in text
            assert "&lt;script&gt;alert(1)" in text


def test_a_line_of_the_list_is_cut(admin_client: Client) -> None:
    durable({"text": "y" * 500})
    shown = re.search(r"({'text': 'y+) \.\.\.", page(admin_client, list_url(DurableMessage)))
    assert shown
    assert len(shown[1]) == LINE


@pytest.mark.parametrize("text", ["z" * 1_000_000, "<z>" * 350_000])
def test_a_page_is_cut_and_says_how_much_is_missing(admin_client: Client, text: str) -> None:
    html = source(admin_client, url(durable({"text": text})))
    pre = unescape(re.search("<pre[^>]*>(.*?)</pre>", html, re.DOTALL)[1])
    assert len(pre) == SHOWN
    assert len(html) < 60_000
    missing = len(repr({"text": text})) - SHOWN
    assert f"({missing:,} more characters)" in html


def test_a_million_small_values_are_cut_too(admin_client: Client) -> None:
    html = source(admin_client, url(durable({"numbers": [1] * 1_000_000})))
    assert "more characters)" in html
    assert len(html) < 60_000


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\x81",
        b"\x93\x01\x02\x03",  # a list
        b"\x07",
        codec.encode({"a": "b"})[:-1],
        codec.encode({"a": "b"}) + b"\x00",
        b"\x81\xa1a\xa1\xff",  # text that is not UTF-8
        b"\x81\x01\x02",  # a key that is a number
        b"\x81\xa1a" + b"\x91" * 900 + b"\x01",  # deeper than the encoder goes
        b"\x81\xa1a" + b"\x91" * 5000 + b"\x01",
        b"\x81\xa1a\xdd\xff\xff\xff\xff",  # a list that claims 4 thousand million items
    ],
)
def test_a_payload_that_cannot_be_decoded_is_one_sentence(admin_client: Client, payload: bytes) -> None:
    row = durable(payload)
    assert UNREADABLE in (text := page(admin_client, url(row)))
    assert not payload or f"0000  {payload[:16].hex(' ')}" in text
    assert UNREADABLE in page(admin_client, list_url(DurableMessage))


def test_the_bytes_that_are_shown_are_bounded_and_none_are_of_a_request(admin_client: Client) -> None:
    text = page(admin_client, url(durable(b"\xc1" + b"s3cret<b>" * 1000)))
    assert f"({9001 - BYTES:,} more bytes)" in text
    assert text.count("s3cret") < BYTES / 9 and "s3cret<b>" in text
    text = page(admin_client, url(protocol(b"\xc1Cookie: c00kie")))
    assert "c00kie" not in text and "0000  " not in text


# Workers and messages.


def test_a_message_that_no_worker_takes_is_marked(admin_client: Client) -> None:
    row = durable(channel="own_channel")
    for address in (list_url(DurableMessage), url(row)):
        assert "nobody takes it" in page(admin_client, address)
    takes = process("worker-1")
    for work, marked in (
        ('{"takes": ["own-channel", "own_channel_2"]}', True),  # neither a pattern nor a part of a name
        ('{"takes": ["other", "own_channel"]}', False),
        ("", False),  # just started
    ):
        Process.objects.filter(pk=takes.pk).update(work=work)
        assert ("nobody takes it" in page(admin_client, list_url(DurableMessage))) == marked, work
    Process.objects.filter(pk=takes.pk).update(lease_until=after(-1))
    assert "nobody takes it" in page(admin_client, list_url(DurableMessage))


def test_a_claimed_message_says_who_has_it_and_since_when(admin_client: Client) -> None:
    row = durable(claimed_by="worker-1")
    assert "worker-1, which is not alive" in page(admin_client, url(row))
    worker = process("worker-1")
    assert "worker-1, which has not started it" in page(admin_client, url(row))
    work = {"takes": ["thumbnails"], "runs": "thumbnails", "id": row.pk, "since": "2026-01-01 03:00:00"}
    Process.objects.filter(pk=worker.pk).update(work=json.dumps({**work, "hard_timeout": 600}))
    text = page(admin_client, url(row))
    assert "worker-1 on web1, which runs it since 2026-01-01 03:00:00, cut off at 03:10:00" in text
    assert "/act/cancel/" in source(admin_client, url(row)) and "/act/delay/" not in source(
        admin_client, url(row)
    )


def test_the_longest_payload_that_a_list_decodes(admin_client: Client) -> None:
    durable({"text": "x" * (HEAD - 9)}), durable({"text": "x" * (HEAD - 8)})
    text = page(admin_client, list_url(DurableMessage))
    assert text.count("{'text': 'xxx") == 1
    assert text.count("(too long for the list)") == 1


# Who may do what.


@pytest.mark.parametrize("model", SHOWN_MODELS)
def test_staff_without_permission_see_nothing(client: Client, model: type) -> None:
    row = row_of(model)
    staff(client)
    for address in (list_url(model), url(row), url(row, "history"), url(row, "delete")):
        assert client.get(address).status_code == 403
    assert "dbchannels" not in source(client, reverse("admin:index"))


@pytest.mark.parametrize("model", SHOWN_MODELS)
def test_permission_is_by_model(client: Client, model: type) -> None:
    rows = [row_of(one) for one in SHOWN_MODELS]
    staff(client, f"view_{model._meta.model_name}")
    for row in rows:
        assert client.get(url(row)).status_code == (200 if type(row) is model else 403)


@pytest.mark.parametrize("model", DELETABLE)
def test_who_may_only_view_cannot_delete(client: Client, model: type) -> None:
    row = row_of(model)
    staff(client, f"view_{model._meta.model_name}")
    assert client.post(url(row, "delete"), {"post": "yes"}).status_code == 403
    delete_selected(client, row)
    assert model.objects.filter(pk=row.pk).exists()
    assert "delete_selected" not in source(client, list_url(model))


@pytest.mark.parametrize("model", SHOWN_MODELS)
def test_nothing_can_be_added(admin_client: Client, model: type) -> None:
    address = reverse(f"admin:dbchannels_{model._meta.model_name}_add")
    assert admin_client.get(address).status_code == 403
    assert admin_client.post(address, {"channel": "a"}).status_code == 403
    assert not model.objects.exists()


@pytest.mark.parametrize("model", SHOWN_MODELS)
def test_nothing_can_be_changed(admin_client: Client, model: type) -> None:
    row = row_of(model)
    before = model.objects.filter(pk=row.pk).values().get()
    fields = {"channel": "x", "name": "x", "group": "x", "path": "x", "attempts": 9, "_save": "Save"}
    assert admin_client.post(url(row), fields).status_code == 403
    assert model.objects.filter(pk=row.pk).values().get() == before
    assert 'name="_save"' not in source(admin_client, url(row))


# Deleting.


@pytest.mark.parametrize("model", DELETABLE)
def test_delete_one(client: Client, model: type) -> None:
    row, other = row_of(model), member("other", "x") if model is Membership else row_of(model)
    staff(client, f"view_{model._meta.model_name}", f"delete_{model._meta.model_name}")
    assert client.get(url(row, "delete")).status_code == 200
    assert client.post(url(row, "delete"), {"post": "yes"}).status_code == 302
    assert [one.pk for one in model.objects.all()] == [other.pk]


@pytest.mark.parametrize("model", DELETABLE)
def test_delete_selected(admin_client: Client, model: type) -> None:
    rows = [row_of(model), member("b") if model is Membership else row_of(model)]
    kept = member("c") if model is Membership else row_of(model)
    assert delete_selected(admin_client, *rows).status_code == 302
    assert [one.pk for one in model.objects.all()] == [kept.pk]


@pytest.mark.parametrize("model", [Process, Connection])
def test_processes_and_connections_cannot_be_deleted(admin_client: Client, model: type) -> None:
    row = row_of(model)
    assert admin_client.post(url(row, "delete"), {"post": "yes"}).status_code == 403
    delete_selected(admin_client, row)
    assert model.objects.filter(pk=row.pk).exists()
    assert "deletelink" not in source(admin_client, url(row))


def test_a_claimed_message_cannot_be_deleted(admin_client: Client) -> None:
    claimed, waiting = durable(claimed_by="worker-1"), durable()
    assert admin_client.post(url(claimed, "delete"), {"post": "yes"}).status_code == 403
    assert "deletelink" not in source(admin_client, url(claimed))
    assert "deletelink" in source(admin_client, url(waiting))
    delete_selected(admin_client, claimed, waiting)
    assert DurableMessage.objects.get().pk == claimed.pk


def test_a_message_claimed_in_the_meantime_stays(rf: Any, admin_user: User) -> None:
    row = durable()
    request = rf.post("/")
    request.user, request.session = admin_user, {}
    request._messages = Notes()
    DurableMessage.objects.update(claimed_by="worker-1")
    admin.site.get_model_admin(DurableMessage).delete_model(request, row)
    assert DurableMessage.objects.filter(pk=row.pk).exists()
    assert list(get_messages(request)) == [
        "Nothing was deleted: the row is gone, or a worker has claimed it."
    ]


class Notes(list):
    """What the admin says to the person, without a session."""

    def add(self, level: int, message: str, extra_tags: str = "") -> None:
        self.append(message)


def test_a_list_offers_no_act_that_reads_all_pages(admin_client: Client) -> None:
    for _ in range(51):
        durable()
    html = source(admin_client, list_url(DurableMessage))
    assert "delete_selected" in html
    assert "Select all 51" not in html


# The layer's database may be another than the default one.


@pytest.fixture
def elsewhere(settings: Any) -> str:
    """Give the layer another database than the site's, and return its alias."""
    settings.DBCHANNELS = {"default": {"DATABASE": "sqlite"}}
    return "sqlite"


@pytest.mark.django_db(databases=["default", "sqlite"])
def test_rows_of_another_database_are_shown_and_deleted(elsewhere: str, admin_client: Client) -> None:
    times = {"sent_at": after(-3.2), "expires_at": after(50)}
    rows = [ProtocolMessage(channel="http.request", payload=encoded({"there": n}), **times) for n in range(3)]
    for row in rows:
        row.save(using=elsewhere)
    here = protocol({"here": 1})
    text = page(admin_client, list_url(ProtocolMessage))
    assert "http.request (3)" in text
    assert "'there': 2" in text
    assert "'here'" not in text
    assert re.search(r"\b3\.[2-9] s\b", text)
    assert "'there': 0" in page(admin_client, url(rows[0]))
    admin_client.post(url(rows[0], "delete"), {"post": "yes"})
    delete_selected(admin_client, rows[1])
    left = ProtocolMessage.objects.using(elsewhere).values_list("pk", flat=True)
    assert list(left) == [rows[2].pk]
    assert ProtocolMessage.objects.filter(pk=here.pk).exists()


@pytest.mark.django_db(databases=["default", "sqlite"])
def test_processes_of_another_database(elsewhere: str, admin_client: Client) -> None:
    Process(name="web", kind="server", host="h", pid=1, lease_until=after(9)).save(using=elsewhere)
    Connection(reply_channel="reply.web!a", server="web", path="/").save(using=elsewhere)
    text = page(admin_client, list_url(Process))
    assert "connections: 1" in text
    assert "alive" in text


def test_a_connection_says_whose_it_is(admin_client: Client) -> None:
    row = socket("abc")
    Connection.objects.filter(pk=row.pk).update(user_id="user-4711")
    assert "user-4711" in page(admin_client, list_url(Connection)) and "user-4711" in page(
        admin_client, url(row)
    )


# What groups keep.


def test_the_history_of_a_group_is_shown(admin_client: Client) -> None:
    row, other = kept("news", "<b>first</b>"), kept("chat", "second")
    assert "first" in page(admin_client, list_url(History)) and "second" in page(
        admin_client, list_url(History)
    )
    narrowed = page(admin_client, f"{list_url(History)}?group=news")
    assert "first" in narrowed and "second" not in narrowed
    shown = source(admin_client, url(row))
    assert "&lt;b&gt;first" in shown and "<b>first" not in shown
    assert admin_client.post(url(other, "delete"), {"post": "yes"}).status_code == 403
