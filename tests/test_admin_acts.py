"""What an operator does in the admin: who may, what it asks, what it changes, and what Django's log says of it."""

from __future__ import annotations

import re
import threading
from html import unescape
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from django.contrib import admin
from django.contrib.admin.models import CHANGE, DELETION, LogEntry
from django.contrib.auth.models import User
from django.contrib.messages import get_messages
from django.db import OperationalError, connections
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from dbchannels import codec
from dbchannels.admin import acts
from dbchannels.admin.messages import SEARCHED
from dbchannels.exceptions import LayerUnavailable
from dbchannels.layers import channel_layers
from dbchannels.models import Connection, DeadLetter, DurableMessage, Membership, ProtocolMessage, Schedule
from tests.test_admin import after, dead, durable, list_url, member, page, protocol, source, staff, url

pytestmark = pytest.mark.django_db


def schedule(channel: str = "digest", every: str = "3600 s") -> Schedule:
    """Make a periodic message, due in an hour."""
    return Schedule.objects.create(channel=channel, every=every, next_at=after(3600), seen_at=timezone.now())


def socket(local: str = "abc") -> Connection:
    """Make an open connection."""
    return Connection.objects.create(reply_channel=f"reply.web!{local}", server="web", path="/chat/")


MAKERS: dict[type, Any] = {
    Connection: lambda: socket(str(Connection.objects.count())),
    DeadLetter: dead,
    DurableMessage: durable,
    Membership: lambda: member("chat", str(Membership.objects.count())),
    ProtocolMessage: lambda: protocol({"text": "hi"}, "websocket.receive"),
    Schedule: lambda: schedule(every=f"{Schedule.objects.count() + 1} s"),
}
#: What the form of an act is filled with.
FILLED = {
    "delay": {"delay": "1:00:00"},
    "priority": {"priority": "7"},
    "send": {"text": "hello"},
    "close": {"code": "4000"},
}
ACTS = [
    pytest.param(model, act.name, id=f"{model.__name__}-{act.name}")
    for model in MAKERS
    for act in admin.site.get_model_admin(model).acts
]


def act_of(model: type, name: str) -> acts.Act:
    return next(act for act in admin.site.get_model_admin(model).acts if act.name == name)


def codename(model: type, name: str) -> str:
    return f"{act_of(model, name).permission}_{model._meta.model_name}"


def act_url(model: type, name: str, query: str = "") -> str:
    return reverse(f"admin:dbchannels_{model._meta.model_name}_act", args=[name]) + query


def one_url(row: Any, name: str) -> str:
    address = f"admin:dbchannels_{row._meta.model_name}_act_one"
    return reverse(address, args=[admin.utils.quote(row.pk), name])


def choose(client: Client, name: str, *rows: Any) -> Any:
    """Choose an act for selected rows of a list; return the page that asks."""
    answer = {"action": name, "index": 0, "_selected_action": [row.pk for row in rows]}
    return client.post(list_url(type(rows[0])), answer)


def state(response: Any) -> str:
    """Return what a page has signed."""
    return re.search(r'name="state" value="([^"]*)"', response.content.decode())[1]


def target(response: Any) -> str:
    """Return where a page's form goes."""
    form = re.search(r'<form method="post" action="([^"]*)"', response.content.decode())
    return unescape(form[1])


def confirm(client: Client, response: Any, **fields: Any) -> Any:
    """Send the form of a page that asks."""
    return client.post(target(response), {"state": state(response), **fields})


def said(response: Any) -> list[str]:
    """Return what the admin says to the person."""
    return [str(one) for one in get_messages(response.wsgi_request)]


def everything() -> list[Any]:
    """Return all rows of all tables that an act may change."""
    return [list(model.objects.order_by("pk").values()) for model in MAKERS]


# Each act.


@pytest.mark.parametrize(("model", "name"), ACTS)
def test_without_its_permission_an_act_is_absent_and_refused(client: Client, model: type, name: str) -> None:
    row = MAKERS[model]()
    own = {f"{verb}_{model._meta.model_name}" for verb in ("view", "change", "add", "delete")}
    staff(client, *own - {codename(model, name)})
    before = everything()
    for address in (act_url(model, name), one_url(row, name)):
        assert client.get(address).status_code == 403
        assert client.post(address, {"state": "x", **FILLED.get(name, {})}).status_code == 403
    choose(client, name, row)
    assert f'value="{name}"' not in source(client, list_url(model))
    assert one_url(row, name) not in source(client, url(row))
    assert everything() == before
    assert not LogEntry.objects.exists()


@pytest.mark.parametrize(("model", "name"), ACTS)
def test_the_permission_of_an_act_needs_the_one_to_view(client: Client, model: type, name: str) -> None:
    row = MAKERS[model]()
    staff(client, codename(model, name))
    assert client.get(one_url(row, name)).status_code == 403


@pytest.mark.parametrize(("model", "name"), ACTS)
def test_a_page_that_asks_changes_nothing(admin_client: Client, model: type, name: str) -> None:
    row, other = MAKERS[model](), MAKERS[model]()
    before = everything()
    answers = [
        admin_client.get(act_url(model, name)),
        admin_client.get(one_url(row, name)),
        choose(admin_client, name, row, other),
        admin_client.post(act_url(model, name)),
        admin_client.post(act_url(model, name), {"state": "forged", **FILLED.get(name, {})}),
    ]
    assert [response.status_code for response in answers] == [200] * 5
    asking = act_of(model, name).explanation
    assert [asking in unescape(response.content.decode()) for response in answers] == [True] * 5
    assert everything() == before
    assert not LogEntry.objects.exists()


@pytest.mark.parametrize(("model", "name"), ACTS)
def test_an_act_needs_the_token(admin_user: User, model: type, name: str) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(admin_user)
    row = MAKERS[model]()
    response = client.get(one_url(row, name))
    before = everything()
    assert confirm(client, response, **FILLED.get(name, {})).status_code == 403
    assert everything() == before


@pytest.mark.parametrize(("model", "name"), ACTS)
def test_an_act_on_one_row(client: Client, model: type, name: str) -> None:
    row = MAKERS[model]()
    MAKERS[model]()
    staff(client, codename(model, name), f"view_{model._meta.model_name}")
    before = everything()
    response = client.get(one_url(row, name))
    assert "1 " + str(model._meta.verbose_name) in response.content.decode()
    done = confirm(client, response, **FILLED.get(name, {}))
    title, plural = act_of(model, name).title, model._meta.verbose_name
    assert said(done) == [f"{title}: 1 {plural}."]
    assert done.status_code == 302
    assert everything() != before
    entry = LogEntry.objects.get()
    assert (entry.user.username, entry.object_id) == ("staff", str(row.pk))
    assert entry.change_message.startswith(f"{title}: 1 {plural}")
    assert entry.action_flag == (DELETION if name in ("cancel", "delete_selected") else CHANGE)


@pytest.mark.parametrize(("model", "name"), ACTS)
def test_an_act_on_selected_rows(admin_client: Client, model: type, name: str) -> None:
    rows = [MAKERS[model]() for _ in range(3)]
    asked = choose(admin_client, name, *rows[:2])
    assert f"2 {model._meta.verbose_name_plural}" in asked.content.decode()
    done = confirm(admin_client, asked, **FILLED.get(name, {}))
    assert said(done) == [f"{act_of(model, name).title}: 2 {model._meta.verbose_name_plural}."]
    assert LogEntry.objects.count() == 1
    assert str(rows[0].pk) in LogEntry.objects.get().change_message


@pytest.mark.parametrize(("model", "name"), ACTS)
def test_an_act_on_all_that_match(
    admin_client: Client, model: type, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acts, "PART", 2)
    for _ in range(5):
        MAKERS[model]()
    asked = admin_client.post(list_url(model), {"action": name, "all": "1"}, follow=True)
    assert f"5 {model._meta.verbose_name_plural}" in asked.content.decode()
    done = confirm(admin_client, asked, **FILLED.get(name, {}))
    assert said(done) == [f"{act_of(model, name).title}: 5 {model._meta.verbose_name_plural}."]
    assert LogEntry.objects.get().change_message.endswith("; all.")


@pytest.mark.parametrize(("model", "name"), ACTS)
def test_rows_that_are_gone_are_not_counted(admin_client: Client, model: type, name: str) -> None:
    row = MAKERS[model]()
    asked = admin_client.get(one_url(row, name))
    model.objects.all().delete()
    done = confirm(admin_client, asked, **FILLED.get(name, {}))
    assert said(done)[0].startswith(f"{act_of(model, name).title}: 0 of 1 {model._meta.verbose_name} (1 ")
    assert admin_client.get(one_url(row, name)).status_code == 404


def test_an_unknown_act_is_not_found(admin_client: Client) -> None:
    assert admin_client.get(act_url(DeadLetter, "nonsense")).status_code == 404


# What each act does.


def test_dead_letters_run_again_on_their_channel_or_another(admin_client: Client) -> None:
    first, second = dead({"id": 1}), dead({"id": 2})
    confirm(admin_client, admin_client.get(one_url(first, "replay")))
    confirm(admin_client, admin_client.get(one_url(second, "replay")), to="slow")
    again = DurableMessage.objects.order_by("id")
    assert [(one.channel, one.content(), one.attempts) for one in again] == [
        ("thumbnails", {"id": 1}, 0),
        ("slow", {"id": 2}, 0),
    ]
    assert not DeadLetter.objects.exists()
    assert "; to: slow;" in LogEntry.objects.latest("pk").change_message


@pytest.mark.parametrize("to", ["http.request", "reply.a!b", "not a name", "x" * 101])
def test_dead_letters_do_not_go_where_nobody_looks(admin_client: Client, to: str) -> None:
    row = dead()
    response = confirm(admin_client, admin_client.get(one_url(row, "replay")), to=to)
    assert "errorlist" in response.content.decode()
    assert DeadLetter.objects.exists() and not DurableMessage.objects.exists()
    done = confirm(admin_client, response, to="")  # the page that complains still works
    assert said(done) == ["Run again: 1 dead letter."]


def test_what_waits_is_deleted_and_what_runs_is_marked(client: Client) -> None:
    waiting, running = durable(), durable(claimed_by="worker-1", due_at=None)
    staff(client, "view_durablemessage", "cancel_durablemessage")
    confirm(client, choose(client, "cancel", waiting, running))
    assert DurableMessage.objects.get().pk == running.pk
    assert DurableMessage.objects.get().cancelled_by == "staff"


@pytest.mark.parametrize(
    ("name", "fields", "column", "value"),
    [("priority", {"priority": "-3"}, "priority", -3), ("due", {}, "due_at", None)],
)
def test_messages_are_rescheduled(
    admin_client: Client, name: str, fields: Any, column: str, value: Any
) -> None:
    row, claimed = durable(due_at=after(3600)), durable(claimed_by="worker-1", due_at=None)
    done = confirm(admin_client, choose(admin_client, name, row, claimed), **fields)
    assert f"1 of 2 durable messages (1 {act_of(DurableMessage, name).missed})." in said(done)[0]
    assert getattr(DurableMessage.objects.get(pk=row.pk), column) == value


def test_messages_are_delayed(admin_client: Client) -> None:
    row = durable(due_at=None)
    confirm(admin_client, admin_client.get(one_url(row, "delay")), delay="2 0:00:00")
    due = DurableMessage.objects.get().due_at
    assert after(47 * 3600) < due < after(49 * 3600)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("delay", {"delay": ""}),
        ("delay", {"delay": "soon"}),
        ("delay", {"delay": "-1:00:00"}),
        ("delay", {"delay": "40000 0:00:00"}),
        ("delay", {"delay": "999999999999 0:00:00"}),
        ("priority", {"priority": "40000"}),
        ("priority", {"priority": "1.5"}),
        ("priority", {}),
    ],
)
def test_what_a_send_refuses_is_refused(admin_client: Client, name: str, fields: Any) -> None:
    row = durable()
    before = everything()
    response = confirm(admin_client, admin_client.get(one_url(row, name)), **fields)
    assert "errorlist" in response.content.decode()
    assert everything() == before


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("send", {"text": " hi\n"}, {"text": " hi\r\n"[:-2] + "\n"}),
        ("send", {"text": '{"a": 1}', "json": "on"}, {"text": '{"a": 1}'}),
        ("close", {"code": "4000"}, {"close": 4000}),
        ("close", {"code": "1000"}, {"close": 1000}),
    ],
)
def test_sockets_are_written_to_and_closed(
    admin_client: Client, name: str, fields: Any, message: Any
) -> None:
    row = socket("abc")
    confirm(admin_client, admin_client.get(one_url(row, name)), **fields)
    sent = ProtocolMessage.objects.get()
    assert (sent.channel, sent.recipients, sent.content()) == ("reply.web!", "abc", message)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("send", {"text": "{", "json": "on"}),
        ("send", {"text": "NaN", "json": "on"}),
        pytest.param("send", {"text": "[" * 100_000, "json": "on"}, id="send-deep"),
        ("send", {"text": ""}),
        ("close", {"code": "1006"}),
        ("close", {"code": "5000"}),
        ("close", {"code": ""}),
    ],
)
def test_what_no_socket_may_get_is_refused(admin_client: Client, name: str, fields: Any) -> None:
    row = socket()
    response = confirm(admin_client, admin_client.get(one_url(row, name)), **fields)
    assert "errorlist" in response.content.decode()
    assert not ProtocolMessage.objects.exists()


def test_a_periodic_message_is_sent_once_while_it_waits(admin_client: Client) -> None:
    row = schedule()
    for _ in range(2):
        confirm(admin_client, admin_client.get(one_url(row, "run")))
    sent = DurableMessage.objects.get()
    assert (sent.channel, sent.unique_key) == ("digest", "every 3600 s")
    assert sent.content().keys() == {"scheduled_at"}
    after_it = Schedule.objects.get()
    assert (after_it.next_at, row.sent_at) == (row.next_at, None)
    assert after_it.sent_at is not None and "ago" in page(admin_client, list_url(Schedule))


def test_a_claimed_message_is_not_deleted(admin_client: Client) -> None:
    claimed, waiting = durable(claimed_by="worker-1"), durable()
    done = confirm(admin_client, choose(admin_client, "delete_selected", claimed, waiting))
    assert said(done) == ["Delete: 1 of 2 durable messages (1 gone or claimed by then)."]
    assert DurableMessage.objects.get().pk == claimed.pk


def test_messages_that_are_too_old_are_deleted(admin_client: Client) -> None:
    rows = [dead(), dead()]
    DeadLetter.objects.filter(pk=rows[0].pk).update(failed_at=after(-8 * 86_400))
    asked = admin_client.get(act_url(DeadLetter, "delete_selected", "?failed=7"))
    assert "1 dead letter" in asked.content.decode()
    confirm(admin_client, asked)
    assert DeadLetter.objects.get().pk == rows[1].pk


# All that match.


def test_filters_and_search_stay_with_the_act(admin_client: Client) -> None:
    keep, take = durable(channel="keep"), durable(channel="take-this")
    durable(channel="take-that", claimed_by="worker-1")
    query = "?state=delayed&channel=take-this&q=take"
    asked = admin_client.get(act_url(DurableMessage, "delete_selected", query))
    assert "1 durable message" in asked.content.decode()
    for part in ("state <strong>delayed<", "channel <strong>take-this<", "search <strong>take<"):
        assert part in asked.content.decode()
    done = confirm(admin_client, asked)
    assert parse_qs(urlsplit(done.url).query) == parse_qs(query[1:])
    assert not DurableMessage.objects.filter(pk=take.pk).exists()
    assert DurableMessage.objects.filter(pk=keep.pk).exists()
    assert query[1:] in LogEntry.objects.get().change_message


def test_filters_that_the_form_does_not_know_are_asked_again(admin_client: Client) -> None:
    durable(channel="one"), durable(channel="two")
    asked = admin_client.get(act_url(DurableMessage, "delete_selected", "?channel=one"))
    again = admin_client.post(act_url(DurableMessage, "delete_selected"), {"state": state(asked)})
    assert "2 durable messages" in again.content.decode()
    assert DurableMessage.objects.count() == 2


@pytest.mark.parametrize("query", ["payload__contains=x", "id__gt=1", "channel__startswith=t"])
def test_filters_that_are_not_the_lists_are_refused(admin_client: Client, query: str) -> None:
    durable()
    assert admin_client.get(act_url(DurableMessage, "delete_selected", f"?{query}")).status_code == 400
    assert DurableMessage.objects.exists()


@pytest.mark.parametrize("query", ["q=%00", "channel=%00", "state=nonsense", "state=%00", "channel=nowhere"])
def test_what_cannot_be_found_is_not_everything(admin_client: Client, query: str) -> None:
    durable()
    asked = admin_client.get(act_url(DurableMessage, "delete_selected", f"?{query}"))
    assert "No row matches" in asked.content.decode()
    confirm(admin_client, asked)
    assert DurableMessage.objects.exists()


def test_rows_that_come_after_the_question_are_left_alone(admin_client: Client) -> None:
    dead()
    asked = admin_client.get(act_url(DeadLetter, "delete_selected"))
    later = dead()
    confirm(admin_client, asked)
    assert DeadLetter.objects.get().pk == later.pk


def test_an_act_goes_on_until_it_is_done(admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acts, "PART", 2)
    monkeypatch.setattr(acts, "SECONDS", 0.0)
    rows = [durable(channel="many") for _ in range(5)]
    durable(channel="other")
    response = admin_client.get(act_url(DurableMessage, "priority", "?channel=many"))
    response = confirm(admin_client, response, priority="7")
    for shown in ("2 of 5", "4 of 5"):
        text = unescape(response.content.decode())
        assert shown in text
        assert 'value="Continue"' in text and "dbchannels/admin.js" in text and 'name="priority"' not in text
        assert (
            f"Change priority: {shown[0]} durable messages; priority: 7"
            in LogEntry.objects.get().change_message
        )
        response = confirm(admin_client, response)
    assert said(response) == ["Change priority: 5 durable messages."]
    assert LogEntry.objects.get().change_message.startswith("Change priority: 5 durable messages;")
    assert set(DurableMessage.objects.filter(priority=7).values_list("pk", flat=True)) == {
        one.pk for one in rows
    }


def test_an_act_that_is_left_is_taken_up_anew(admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acts, "PART", 2)
    monkeypatch.setattr(acts, "SECONDS", 0.0)
    for _ in range(5):
        dead()
    confirm(admin_client, admin_client.get(act_url(DeadLetter, "replay")))
    assert (DeadLetter.objects.count(), DurableMessage.objects.count()) == (3, 2)
    monkeypatch.setattr(acts, "SECONDS", 60.0)
    done = confirm(admin_client, admin_client.get(act_url(DeadLetter, "replay")))
    assert said(done) == ["Run again: 3 dead letters."]
    assert (DeadLetter.objects.count(), DurableMessage.objects.count()) == (0, 5)


def test_more_rows_than_are_counted(admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("MOST", 3), ("PART", 2), ("SECONDS", 0.0)):
        monkeypatch.setattr(acts, name, value)
    for _ in range(6):
        dead()
    response = admin_client.get(act_url(DeadLetter, "delete_selected"))
    assert "more than 3 dead letters" in response.content.decode()
    response = confirm(admin_client, response)
    assert "2 so far, about 33 %" in response.content.decode()
    assert said(confirm(admin_client, confirm(admin_client, response))) == ["Delete: 6 dead letters."]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (LayerUnavailable("The database is away."), "The database is away."),
        (
            OperationalError("deadlock detected\nDETAIL: Process 1 waits for ..."),
            "The database refuses this: deadlock detected.",
        ),
    ],
)
def test_an_error_stops_an_act_with_a_sentence(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch, error: Exception, sentence: str
) -> None:
    dead()

    def fails(*args: Any, **kwargs: Any) -> int:
        DeadLetter.objects.all().delete()  # is rolled back
        raise error

    monkeypatch.setattr(acts.layer(), "replay", fails)
    response = confirm(admin_client, admin_client.get(act_url(DeadLetter, "replay")))
    assert f"It stopped: {sentence}" in response.content.decode()
    assert DeadLetter.objects.exists()
    assert "dbchannels/admin.js" not in response.content.decode()  # a person decides whether it goes on
    monkeypatch.undo()
    assert said(confirm(admin_client, response)) == ["Run again: 1 dead letter."]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("model", "name", "rows", "opposed"),
    [
        (DeadLetter, "replay", 300, "delete_selected"),
        (DeadLetter, "replay", 300, "replay"),
        (DeadLetter, "delete_selected", 300, "delete_selected"),
        (DurableMessage, "cancel", 300, "cancel"),
        (DurableMessage, "cancel", 300, "delete_selected"),
        (DurableMessage, "due", 300, "due"),
    ],
)
def test_two_people_at_once_act_on_each_row_once(
    admin_user: User, monkeypatch: pytest.MonkeyPatch, model: type, name: str, rows: int, opposed: str
) -> None:
    monkeypatch.setattr(acts, "PART", 7)
    for number in range(rows):
        if model is DeadLetter:
            dead()
        else:
            durable(
                claimed_by="worker-1" if number % 3 == 0 and opposed == "cancel" else None, due_at=after(60)
            )
    ready, counts = threading.Barrier(2), dict[str, list[int]]()

    def act(number: int, what: str) -> None:
        try:
            client = Client()
            client.force_login(admin_user)
            asked = client.get(act_url(model, what))
            ready.wait(60)
            response = confirm(client, asked)
            while not said(response):  # a slow machine does it in several requests
                response = confirm(client, response)
            (text,) = said(response)
            counts.setdefault(what, []).append(int(re.search(r": ([\d,]+) ", text)[1]))
        finally:
            connections.close_all()

    threads = [threading.Thread(target=act, args=one) for one in enumerate((name, opposed))]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sum(map(sum, counts.values())) == rows
    if name == "replay":
        assert DurableMessage.objects.count() == sum(counts["replay"])
    if name == "due":
        assert DurableMessage.objects.filter(due_at=None).count() == rows


def test_what_one_act_has_signed_is_not_for_another(admin_client: Client) -> None:
    row = durable()
    asked = admin_client.get(one_url(row, "due"))
    admin_client.post(act_url(DurableMessage, "delete_selected"), {"state": state(asked)})
    admin_client.post(act_url(DeadLetter, "delete_selected"), {"state": state(asked)})
    assert DurableMessage.objects.exists()


def test_errors_are_searched_in_the_newest_dead_letters(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dbchannels.admin.messages.SEARCHED", 2)
    rows = [dead(error=f"ValueError: needle {number}") for number in range(3)]
    response = admin_client.get(list_url(DeadLetter) + "?q=NEEDLE")
    assert [row.pk for row in response.context["cl"].result_list] == [rows[2].pk, rows[1].pk]
    assert f"the errors of the newest {SEARCHED:,}" in page(admin_client, list_url(DeadLetter))
    asked = admin_client.get(act_url(DeadLetter, "replay", "?q=needle+1"))
    assert "1 dead letter" in asked.content.decode()


def test_the_log_names_who_did_it_on_the_front_page(admin_client: Client) -> None:
    row = dead()
    confirm(admin_client, admin_client.get(one_url(row, "replay")))
    assert f"Dead letter {row.pk}".lower() in page(admin_client, reverse("admin:index")).lower()


# The layer's database may be another than the default one.


@pytest.mark.django_db(databases=["default", "sqlite"])
@pytest.mark.parametrize(("model", "name"), ACTS)
def test_acts_on_another_database(settings: Any, admin_client: Client, model: type, name: str) -> None:
    settings.DBCHANNELS = {"default": {"DATABASE": "sqlite"}}
    channel_layers.clear()
    here, other = MAKERS[model](), MAKERS[model]()
    other.delete()
    for number in range(2):
        there = type(here).objects.get(pk=here.pk)
        there.pk = f"reply.web!{number}" if model is Connection else None
        if model is Membership:
            there.recipient = f"there-{number}"
        if model is Schedule:
            there.channel = f"there-{number}"
        there.save(using="sqlite", force_insert=True)
    before = list(model.objects.values())
    asked = admin_client.get(act_url(model, name))
    assert f"2 {model._meta.verbose_name_plural}" in asked.content.decode()
    done = confirm(admin_client, asked, **FILLED.get(name, {}))
    assert said(done) == [f"{act_of(model, name).title}: 2 {model._meta.verbose_name_plural}."]
    assert list(model.objects.values()) == before
    assert LogEntry.objects.count() == 1
    channel_layers.clear()


def test_nothing_on_the_pages_needs_an_inline_script_or_style(admin_client: Client) -> None:
    durable(), dead()
    for address in (act_url(DurableMessage, "delay"), act_url(DeadLetter, "replay")):
        html = source(admin_client, address)
        own = html[html.index('<div id="content"') :]
        assert not re.search(r"<script(?![^>]*src)|<style|style=|\son\w+=", own)


def test_the_page_that_asks_names_the_rows_and_the_act(admin_client: Client) -> None:
    row, other = durable(channel="thumbnails"), durable(channel="other")
    html = source(admin_client, one_url(row, "cancel"))
    assert f"<strong>1 durable message</strong>: thumbnails #{row.pk}" in html
    assert 'value="Cancel the durable message"' in html and ">Go back</a>" in html
    assert f"{row}, {other}" in choose(admin_client, "cancel", row, other).content.decode()
    html = source(admin_client, act_url(DurableMessage, "priority", "?channel=other&q=oth"))
    assert (
        "<strong>1 durable message</strong> with channel <strong>other</strong>, search <strong>oth<" in html
    )
    assert 'value="Change priority"' in source(admin_client, act_url(DurableMessage, "priority"))


def test_a_payload_stays_as_it_is(admin_client: Client) -> None:
    row = DeadLetter.objects.create(
        channel="own", payload=b"\xc1odd", attempts=1, error="x", sent_at=timezone.now()
    )
    confirm(admin_client, admin_client.get(one_url(row, "replay")))
    assert bytes(DurableMessage.objects.get().payload) == b"\xc1odd"
    assert codec.encode({}) != b"\xc1odd"
