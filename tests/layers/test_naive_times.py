"""USE_TZ = False: naive times are local times, as everywhere in Django."""

from __future__ import annotations

from datetime import datetime, time, timedelta, timezone

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from dbchannels import Channel
from dbchannels.layers.database import link as database_link
from dbchannels.layers.operations import BatchResult, Failure
from dbchannels.models import DeadLetter, DurableMessage, Process, ProtocolMessage, Schedule
from dbchannels.routing.interval import Entry, parse_interval
from dbchannels.testing.contract.case import drain, wait_until
from dbchannels.worker.schedule import Timetable
from tests import kinds
from tests.soak.schedules import CHANGES


@pytest.fixture(autouse=True)
def naive(settings):
    settings.USE_TZ, settings.TIME_ZONE = False, "Asia/Kolkata"  # half an hour beside every other


@pytest.fixture
def link(layer, new_link):
    return new_link(layer)


def in_seconds(seconds):
    """Return a naive local time."""
    return datetime.now() + timedelta(seconds=seconds)


def test_a_moment_that_has_come_and_one_that_has_not(layer, link):
    Channel("own", deliver_at=in_seconds(-5)).send({"number": 1})
    Channel("own", deliver_at=in_seconds(30)).send({"number": 2})
    Channel("own", deliver_at=datetime.now(timezone.utc) + timedelta(seconds=60)).send({"number": 3})
    assert [one["number"] for one in drain(layer, "own")] == [1]
    Channel("own", deliver_at=in_seconds(0.2)).send({"number": 4})
    wait_until(lambda: link.claim(["own"], 1, "w1"))
    assert link.claim(["own"], 5, "w1") == []
    assert 20 < (link.next_due() or 25) <= 30  # a layer in memory does not say


def test_a_delay_and_another_attempt(layer, link):
    Channel("own", delay=0.1).send({})
    taken = []
    for attempt in (1, 2):
        wait_until(lambda: taken.extend(link.claim(["own"], 1, "w1")) or taken)
        delivery = taken.pop()
        assert delivery.attempt == attempt
        link.finish("w1", BatchResult(failures=[Failure(delivery, "text", 0.1 if attempt == 1 else None)]))
    assert len(layer.dead_letter_ids(["own"])) == 1


def test_a_crontab_line_is_due_in_local_time(layer, link):
    worker = Timetable([Entry("own", parse_interval("30 7 * * *", "own"))], link)
    worker.keep(drop=True)
    worker.send_due()
    due, now = link.next_time("own", "30 7 * * *")
    assert due.astimezone(timezone.utc).time() == time(2, 0) and now < due
    passed = now - timedelta(minutes=1)
    assert link.move_time("own", "30 7 * * *", due, passed, [])
    worker = Timetable([Entry("own", parse_interval("30 7 * * *", "own"))], link)
    worker.send_due()
    worker.send_due()
    assert len(drain(layer, "own")) == 1


def test_nobody_is_declared_dead(layer, link):
    link.register("worker-1", "worker", "http.request")
    link.clean_up()
    assert link.renew("worker-1") and link.count_live("http.request") == (1, 0)
    link.unregister("worker-1")


@kinds.only("postgresql", "sqlite")
def test_the_admin_says_how_long_ago(layer, link, settings):
    settings.DBCHANNELS = {"default": {"DATABASE": layer.database}}
    layer.send("http.request", {})
    Channel("own", deliver_at=in_seconds(600)).send({})
    link.register("worker-1", "worker", "http.request")
    link.move_time("own", "1 s", None, datetime.now(timezone.utc) + timedelta(seconds=600), [])
    Channel("dead").send({})
    (delivery,) = link.claim(["dead"], 1, "worker-1")
    link.finish("worker-1", BatchResult(failures=[Failure(delivery, "text", None)]))
    root = User.objects.create_superuser("how-long-ago", password="")
    try:
        client = Client()
        client.force_login(root)
        for model, said in {
            ProtocolMessage: "0.",
            DurableMessage: "in\xa010\xa0min",
            DeadLetter: "ago",
            Process: "ago",
            Schedule: "in\xa010\xa0min",
        }.items():
            page = client.get(reverse(f"admin:dbchannels_{model._meta.model_name}_changelist"))
            assert said in page.text.partition("result_list")[2], model
    finally:
        User.objects.all().delete()
    link.unregister("worker-1")


@kinds.only("sqlite")
@pytest.mark.parametrize("change", CHANGES["Europe/Berlin"])
def test_nobody_is_declared_dead_when_clocks_are_changed(layer, link, settings, monkeypatch, change):
    settings.TIME_ZONE = "Europe/Berlin"
    now = change - timedelta(seconds=20)
    monkeypatch.setattr(database_link, "datetime", type("Clock", (datetime,), {"now": lambda zone: now}))
    link.register("worker-1", "worker", "http.request")
    alive = []
    for seconds in (-10, 0, 20, 80):
        now = change + timedelta(seconds=seconds)
        link.clean_up()
        alive.append((link.count_live("http.request"), set(link.workers())))
    assert alive == [((1, 0), {"worker-1"})] * 3 + [((0, 0), set())]
