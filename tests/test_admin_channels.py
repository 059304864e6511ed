"""The overview of the channels in the admin, the page of one, and pause and resume."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from dbchannels import measures, samples
from dbchannels.admin import channels
from dbchannels.exceptions import InvalidConfiguration
from dbchannels.layers import channel_layers
from dbchannels.models import ChannelState, DeadLetter, DurableMessage, Process, Sample
from dbchannels.worker.batch import Measures
from tests.test_admin import after, dead, durable, list_url, page, process, protocol, source, staff, url
from tests.test_admin_acts import confirm, one_url, said

pytestmark = pytest.mark.django_db

ERROR = 'Traceback (most recent call last):\n  File "/srv/shop.py", line 3, in make\nValueError: bad image\n'
OVERVIEW = "/admin/dbchannels/channelstate/"


def channel_url(channel: str, what: str = "change") -> str:
    return reverse(f"admin:dbchannels_channelstate_{what}", args=[channel])


def worker(name: str = "worker-1", *takes: str, lease: float = 10, **work: Any) -> Process:
    """Put a worker on record that takes these channels."""
    row = process(name, lease=lease)
    row.work = json.dumps({"takes": takes, "runs": "", "since": "", **work})
    row.save()
    return row


def row_of(client: Client, channel: str, query: str = "") -> list[str]:
    """Return the cells of a channel in the overview."""
    response = client.get(OVERVIEW + query)
    assert response.status_code == 200
    (row,) = [one for one in response.context["rows"] if one["channel"] == channel]
    return [row["ready"], row["delayed"], row["running"], row["dead"]]


# The overview.


def test_each_channel_is_a_row_with_its_numbers(admin_client: Client) -> None:
    durable(due_at=None), durable(due_at=None), durable(due_at=after(3600))
    durable(due_at=None, claimed_by="worker-1")
    dead()
    protocol({"text": "x"}, "websocket.receive")
    protocol({"text": "x"}, "reply.web!"), protocol({"text": "x"}, "reply.other!")
    worker("worker-1", "thumbnails", "websocket.receive")
    assert row_of(admin_client, "thumbnails") == ["2", "1", "1", "1"]
    assert row_of(admin_client, "websocket.receive") == ["1", "0", "0", "0"]
    assert row_of(admin_client, "reply.*!") == ["2", "0", "0", "0"]
    text = page(admin_client, OVERVIEW)
    assert "1 worker" in text and "nobody takes it" not in text and "servers" in text


def test_what_needs_a_person_comes_first(admin_client: Client) -> None:
    durable(channel="b", due_at=None), durable(channel="c", due_at=None), durable(channel="d", due_at=None)
    worker("worker-1", "a", "b", "c")
    channel_layers["default"].pause("c", "ann")
    response = admin_client.get(OVERVIEW)
    assert [row["channel"] for row in response.context["rows"]] == ["d", "c", "a", "b"]
    text = page(admin_client, OVERVIEW)
    assert "nobody takes it" in text and "paused by ann" in text
    assert "No worker takes the messages of 1 channel:" in text


def test_a_dead_worker_takes_nothing(admin_client: Client) -> None:
    durable(due_at=None)
    worker("worker-1", "thumbnails", lease=-10)
    assert "nobody takes it" in page(admin_client, OVERVIEW)


def test_channels_are_found_by_name_and_shown_by_pages(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "PER_PAGE", 10)
    worker("worker-1", *(f"channel-{number:02}" for number in range(25)))
    assert len(admin_client.get(OVERVIEW).context["rows"]) == 10
    assert "25 channels" in page(admin_client, OVERVIEW)
    assert admin_client.get(OVERVIEW + "?p=3").context["rows"][0]["channel"] == "channel-20"
    assert "?p=2&amp;q=channel" in source(admin_client, OVERVIEW + "?q=channel")
    assert len(admin_client.get(OVERVIEW + "?q=-07").context["rows"]) == 1
    for odd in ("?p=x", "?p=99", "?q=%00", "?q=%3Cscript%3Ealert"):
        assert "<script>alert" not in source(admin_client, OVERVIEW + odd)


def test_channels_with_a_consumer_are_there_before_their_first_message(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        channels, "consumers_of", lambda alias: {"invoices": ["shop.invoice"], "http.request": ["shop.view"]}
    )
    assert row_of(admin_client, "invoices") == ["0", "0", "0", "0"]
    assert "shop.invoice" in page(admin_client, channel_url("invoices"))


def test_an_empty_site(admin_client: Client) -> None:
    assert "No channel has a message, a consumer or a worker yet." in page(admin_client, OVERVIEW)


def test_rates_and_times_are_of_the_last_minutes(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = Measures()
    for _ in range(50):
        counts.started("thumbnails", 0.003)
        counts.ended("thumbnails", measures.DONE, 0.2)
    moment = int(after(-20).timestamp()) // 10 * 10
    layer = channel_layers["default"]
    Sample.objects.create(
        at=layer.moment(moment), source="worker-1", data=samples.sample(moment, counts.copy(), 10.0)
    )
    worker("worker-1", "thumbnails")
    response = admin_client.get(OVERVIEW)
    (row,) = response.context["rows"]
    assert row["out"] == "5.0"
    assert row["wait"].count("ms") == row["run"].count("ms") == 2


# The page of a channel.


def test_a_channel_shows_what_runs_what_comes_and_what_failed(admin_client: Client) -> None:
    running = durable(due_at=None, claimed_by="worker-1")
    behind = durable(due_at=None, claimed_by="worker-1")
    ready, delayed, failed = durable(due_at=None), durable(due_at=after(7300)), dead(error=ERROR)
    durable(channel="other", due_at=None)
    work = {"runs": "thumbnails", "since": "2026-01-01 03:00:00", "id": running.pk}
    worker("worker-1", "thumbnails", **work, soft_timeout=30.0, hard_timeout=600.0)
    response = admin_client.get(channel_url("thumbnails"))
    lines = {(one["kind"], one["pk"]): one for one in response.context["lines"]}
    assert set(lines) == {
        ("running", running.pk),
        ("running", behind.pk),
        ("ready", ready.pk),
        ("delayed", delayed.pk),
        ("dead", failed.pk),
    }
    text = page(admin_client, channel_url("thumbnails"))
    assert "since 2026-01-01 03:00:00, slow from 03:00:30 on, cut off at 03:10:00" in text
    assert f"thumbnails #{running.pk}" in text
    assert "behind another message" in lines["running", behind.pk]["note"]
    assert lines["dead", failed.pk]["note"] == "ValueError: bad image"
    assert "in 2 h" in text


@pytest.mark.parametrize(
    "work", ["", "[]", "{}", '{"takes": 7}', '{"takes": ["own"], "since": 7, "runs": {}}', "x"]
)
def test_what_another_version_has_recorded_is_no_error(admin_client: Client, work: str) -> None:
    durable(channel="own", due_at=None, claimed_by="worker-1")
    row = process("worker-1")
    Process.objects.filter(pk=row.pk).update(work=work)
    page(admin_client, channel_url("own"))
    page(admin_client, OVERVIEW)


def test_a_channel_leads_to_its_lists(admin_client: Client) -> None:
    html = source(admin_client, channel_url("thumbnails"))
    for model, query in ((DurableMessage, "&amp;state=ready"), (DeadLetter, "")):
        assert f'href="{list_url(model)}?channel=thumbnails{query}"' in html


@pytest.mark.parametrize("channel", ["http.request", "websocket.receive"])
def test_a_protocol_channel_cannot_be_paused(admin_client: Client, channel: str) -> None:
    protocol({"text": "x"}, channel)
    html = source(admin_client, channel_url(channel))
    assert "act/pause" not in html and "Ready" in html
    asked = admin_client.get(one_url(ChannelState(channel=channel), "pause"))
    assert "cannot be paused" in confirm(admin_client, asked).content.decode()
    assert not ChannelState.objects.exists()


@pytest.mark.parametrize("name", ["not a name", "x" * 101, "a!b!c"])
def test_a_name_that_no_channel_has_leads_back(admin_client: Client, name: str) -> None:
    response = admin_client.get(f"{OVERVIEW}{name}/change/")
    assert response.status_code == 302


def test_a_route_that_cannot_be_read_is_said(admin_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(alias: str) -> Any:
        raise InvalidConfiguration("The routing of 'default' is broken.")

    monkeypatch.setattr(channels, "consumers_of", fails)
    assert "The routing of 'default' is broken." in page(admin_client, channel_url("thumbnails"))
    page(admin_client, OVERVIEW)


# Pause and resume.


def test_a_channel_is_paused_and_resumed(client: Client) -> None:
    durable(due_at=None)
    staff(client, "view_channelstate", "pause_channelstate")
    row = ChannelState(channel="thumbnails")
    assert one_url(row, "pause") in source(client, channel_url("thumbnails"))
    asked = client.get(one_url(row, "pause"))
    assert "Ready now: 1. Running now: 0." in asked.content.decode()
    assert not ChannelState.objects.exists()
    done = confirm(client, asked)
    assert said(done) == ["Pause: 1 channel."]
    assert done.url == channel_url("thumbnails")
    assert ChannelState.objects.get().paused_by == "staff"
    text = page(client, channel_url("thumbnails"))
    assert "This channel is paused by staff" in text
    assert one_url(row, "pause") not in source(client, channel_url("thumbnails"))
    again = confirm(client, client.get(one_url(row, "pause")))
    assert said(again) == ["Pause: 0 of 1 channel (1 paused already)."]
    done = confirm(client, client.get(one_url(row, "resume")))
    assert said(done) == ["Resume: 1 channel."]
    assert not ChannelState.objects.exists()
    entries = LogEntry.objects.filter(object_id="thumbnails")
    assert [one.change_message.partition(":")[0] for one in entries.order_by("pk")] == [
        "Pause",
        "Pause",
        "Resume",
    ]
    assert "Resume: 1 channel" in page(client, channel_url("thumbnails", "history"))


def test_all_paused_channels_are_resumed(admin_client: Client) -> None:
    for name in ("a", "b"):
        channel_layers["default"].pause(name, "ann")
    address = f"{OVERVIEW}act/resume/"
    assert address in source(admin_client, OVERVIEW)
    asked = admin_client.get(address)
    assert "2 channels" in asked.content.decode()
    confirm(admin_client, asked)
    assert not ChannelState.objects.exists()
    assert address not in source(admin_client, OVERVIEW)
    assert admin_client.get(f"{OVERVIEW}act/pause/").status_code == 404  # which would they be?


def test_who_may_not_pause_sees_no_button(client: Client) -> None:
    row = ChannelState(channel="thumbnails")
    staff(client, "view_channelstate")
    assert "act/" not in source(client, channel_url("thumbnails"))
    assert client.get(one_url(row, "pause")).status_code == 403
    assert client.post(one_url(row, "pause"), {"state": "x"}).status_code == 403


def test_who_may_not_view_sees_no_channel(client: Client) -> None:
    staff(client, "pause_channelstate")
    row = ChannelState(channel="thumbnails")
    for address in (OVERVIEW, channel_url("thumbnails"), one_url(row, "pause")):
        assert client.get(address).status_code == 403


def test_pausing_needs_the_token(admin_user: User) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(admin_user)
    asked = client.get(one_url(ChannelState(channel="thumbnails"), "pause"))
    assert confirm(client, asked).status_code == 403
    assert not ChannelState.objects.exists()


def test_nothing_can_be_added_or_changed(admin_client: Client) -> None:
    channel_layers["default"].pause("own", "ann")
    before = list(ChannelState.objects.values())
    assert admin_client.get(f"{OVERVIEW}add/").status_code == 403
    admin_client.post(channel_url("own"), {"channel": "other", "_save": "Save"})
    admin_client.post(OVERVIEW, {"action": "pause"})
    assert admin_client.post(channel_url("own", "delete"), {"post": "yes"}).status_code == 403
    assert list(ChannelState.objects.values()) == before


@pytest.mark.django_db(databases=["default", "sqlite"])
def test_channels_of_another_database(settings: Any, admin_client: Client) -> None:
    settings.DBCHANNELS = {"default": {"DATABASE": "sqlite"}}
    channel_layers.clear()
    for number in range(15):
        DurableMessage(channel="there", payload=b"\x80", priority=number).save(using="sqlite")
    DeadLetter(channel="there", payload=b"\x80", attempts=1, error="x\nKeyError: 1", sent_at=after(-9)).save(
        using="sqlite"
    )
    durable(channel="here", due_at=None)
    assert row_of(admin_client, "there") == ["15", "0", "0", "1"]
    lines = admin_client.get(channel_url("there")).context["lines"]
    assert [one["kind"] for one in lines] == ["ready"] * 10 + ["dead"]
    assert "here" not in [row["channel"] for row in admin_client.get(OVERVIEW).context["rows"]]
    confirm(admin_client, admin_client.get(one_url(ChannelState(channel="there"), "pause")))
    assert ChannelState.objects.using("sqlite").get().channel == "there"
    assert not ChannelState.objects.exists()
    channel_layers.clear()


def test_a_layer_in_memory_says_so(settings: Any, admin_client: Client) -> None:
    settings.DBCHANNELS = {"default": {"BACKEND": "memory"}}
    channel_layers.clear()
    for address in (OVERVIEW, channel_url("own")):
        assert "memory of its process" in page(admin_client, address)
    rows = [durable(), durable(claimed_by="worker-1"), dead()]  # of a layer that the site had before
    for row in rows:
        page(admin_client, list_url(type(row))), page(admin_client, url(row))
    page(admin_client, list_url(DeadLetter) + "?failed=7")
    for row, act in (
        (rows[0], "cancel"),
        (rows[0], "due"),
        (rows[2], "replay"),
        (rows[2], "delete_selected"),
    ):
        asked = confirm(admin_client, admin_client.get(one_url(row, act)))
        assert "It stopped: The layer keeps its messages in the memory" in asked.content.decode()
    assert (DurableMessage.objects.count(), DeadLetter.objects.count()) == (2, 1)
    assert not LogEntry.objects.exists()
    channel_layers.clear()
