"""``manage.py channels_doctor`` on sites that are broken in one way each, and on one that is well."""

from __future__ import annotations

import io
import json
import resource
import threading
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.db import connections

from dbchannels import consumer
from dbchannels.management import doctor
from dbchannels.management.doctor import database, patient
from dbchannels.models import DurableMessage, Process
from dbchannels.routing import table
from tests import kinds
from tests.test_replay_many import letters

pytestmark = kinds.on_databases
KEY = "x7!kq0-w2m9$z1v8b4n6c3l5j7h9g2f4d6s8a0p1o3i5u7y9t2r4e6w8q0"


@pytest.fixture(autouse=True)
def healthy(monkeypatch, settings):
    """Settings with nothing to find, and one consumer."""
    settings.SECRET_KEY = KEY
    monkeypatch.setattr(database, "DEAD_ROWS", 10**9)  # other tests leave as many as they like
    monkeypatch.setattr(table, "_decorated", [])
    monkeypatch.setattr(table, "_loaded", True)
    table.site_routing.cache_clear()
    consumer("invoices")(make_invoice)
    yield
    table.site_routing.cache_clear()


def make_invoice(message):
    """A consumer."""


def findings(*arguments):
    """Run the doctor; return {check: [(status, text), ...]}, and whether it ended with an error."""
    out, failed = io.StringIO(), False
    try:
        call_command("channels_doctor", "--json", *arguments, stdout=out)
    except CommandError as error:
        failed = error.returncode == 1
    found = {}
    for number, one in enumerate(json.loads(out.getvalue()), 1):
        assert one["number"] == number and one["text"].endswith((".", "?")) and "\n" not in one["text"], one
        assert KEY not in one["text"]
        found.setdefault(one["check"], []).append((one["status"], one["text"]))
    assert failed == any(status == "wrong" for lines in found.values() for status, _ in lines)
    return found


def wrong(found):
    """Return the texts of what is wrong."""
    return [text for lines in found.values() for status, text in lines if status == "wrong"]


@pytest.fixture
def alive(layer, new_link):
    """A server and a worker that takes everything."""
    link = new_link(layer)
    link.register("s1", Process.SERVER, "reply.s1!")
    link.register("w1", Process.WORKER, "http.request")
    link.record_work("w1", json.dumps({"takes": ["invoices", "http.request", "websocket.receive"]}))
    return link


def test_the_processes_that_are_alive_are_listed_by_kind_and_host(layer, alive):
    host = layer.rows(Process).get(name="w1").host
    kinds_alive = [f"Alive {kind}: {host} (1)." for kind in ("servers", "workers")]
    assert [text for _, text in findings()["processes"]] == kinds_alive
    for name in ("asgi1", "asgi2"):
        alive.register(name, Process.CHANNELS, f"{name}!")
    assert findings()["processes"][2] == ("ok", f"Alive processes with Channels: {host} (2).")


def test_workers_of_two_projects_on_the_same_tables_are_wrong(layer, alive):
    work = {"takes": ["http.request"], "site": "a"}
    for name, found in (
        ("w1", work),
        ("w2", work),
        ("w3", {**work, "site": "b"}),
        ("w4", {"takes": [], "site": "c"}),
    ):
        alive.register(name, Process.WORKER)
        alive.record_work(name, json.dumps(found))
    (text,) = [text for status, text in findings()["processes"] if status == "wrong"]
    assert text.startswith(
        "The workers w1 and w3 answer the same requests with different SECRET_KEYs or ROOT_URLCONFs"
    )


# A site that is well.


def test_a_healthy_site_has_nothing_wrong(layer, alive):
    found = findings("--max-connections", "100")
    assert wrong(found) == []
    assert found["channels"] == [("ok", "A live worker takes each channel that has a consumer or a message.")]
    assert found["migrations"][0][1].startswith("All ")
    names = [check.__name__ for check, needs in doctor.CHECKS]
    on_server = ["clock", "server_sessions", "autovacuum", "dead_rows", "transactions"]
    skipped = [] if connections[layer.database].vendor == "postgresql" else on_server
    assert sorted(found) == sorted(set(names) - set(skipped))


def test_people_are_given_numbered_lines(layer):
    out = io.StringIO()
    with pytest.raises(CommandError, match="to put right"):
        call_command("channels_doctor", stdout=out, no_color=True)
    lines = out.getvalue().splitlines()
    assert lines[0] == " 1. OK    'manage.py check' finds no error."
    assert any(line.endswith("WRONG No server is alive: start runchannels.") for line in lines)


# Settings.


@pytest.mark.parametrize(
    ("check", "change", "said"),
    [
        ("debug", {"DEBUG": True}, "set it to False"),
        ("secret_key", {"SECRET_KEY": "django-insecure-" + KEY}, "startproject"),
        ("secret_key", {"SECRET_KEY": "secret"}, "SECRET_KEY is short"),
        ("hosts", {"ALLOWED_HOSTS": []}, "ALLOWED_HOSTS is empty"),
        ("hosts", {"ALLOWED_HOSTS": ["*"]}, "ALLOWED_HOSTS contains '*'"),
        ("hosts", {"CSRF_TRUSTED_ORIGINS": ["a.example"]}, "write 'https://a.example'"),
        ("proxy", {"SECURE_PROXY_SSL_HEADER": ("HTTP_X_FORWARDED_PROTO", "https")}, "--proxy-headers"),
        ("proxy", {"SECURE_SSL_REDIRECT": True}, "redirects for ever"),
        ("sessions", {"SESSION_ENGINE": "django.contrib.sessions.backends.cache"}, "workers do not share"),
        ("routing", {"DBCHANNELS": {"default": {"ROUTING": "no.such.routing"}}}, "cannot be imported"),
        ("system_checks", {"ROOT_URLCONF": "no.such.urls"}, "ModuleNotFoundError"),
        ("system_checks", {"STATIC_URL": "static"}, ""),
    ],
)
def test_a_setting_that_is_wrong_has_its_line(layer, settings, check, change, said):
    for name, value in change.items():
        setattr(settings, name, value)
    found = findings()[check]
    assert any(said in text and (status != "ok" or not said) for status, text in found), found


def test_too_few_descriptors_are_reported(layer):
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ((status, text),) = findings("--max-connections", str(hard))["descriptors"]
    assert status == "wrong" and f"not for {hard:,}" in text
    assert findings("--max-connections", "1")["descriptors"][0][0] == "ok"


# Processes and channels.


def test_a_site_without_processes_is_told_to_start_them(layer):
    found = wrong(findings())
    assert "No server is alive: start runchannels." in found
    assert "No worker is alive: start runchannels or runworker." in found
    assert not any("no live worker takes" in text for text in found)


def test_channels_that_no_worker_takes_are_listed_together(layer, alive):
    alive.record_work("w1", json.dumps({"takes": ["http.request"]}))
    (text,) = wrong(findings("--max-connections", "100"))
    assert text.startswith("invoices has a consumer, and no live worker takes it: start a worker")
    for number in range(7):
        consumer(f"own.{number}")(make_invoice)
    table.site_routing.cache_clear()
    (text,) = wrong(findings("--max-connections", "100"))
    assert text.startswith(
        "invoices, own.0, own.1, own.2, own.3 and 3 more have consumers, and no live worker takes them"
    )


def test_a_channel_without_a_consumer_is_named_with_its_neighbour(layer, alive):
    layer.send("invoice", {})
    (text,) = wrong(findings("--max-connections", "100"))
    assert text.startswith("invoice has 1 message and no consumer") and text.endswith(
        "Did you mean 'invoices'?"
    )


def test_of_a_thousand_channels_five_are_named(layer, alive):
    names = sorted(f"user.{number}" for number in range(1_000))
    layer.send_many([(name, {}) for name in names])
    for number in range(6):
        layer.pause(f"own.{number}", "ann")
    found = findings("--max-connections", "100")
    *named, more = wrong(found)
    assert [text.partition(" has ")[0] for text in named] == names[:5]
    assert more == "The same is true of 995 more channels: run channels_status."
    *named, (_, more) = found["pauses"]
    assert len(named) == 5 and more == "The same is true of 1 more channel: run channels_status."


def test_requests_that_nobody_takes_are_reported(layer, alive):
    layer.send("http.disconnect", {})
    (text,) = wrong(findings("--max-connections", "100"))
    assert text == "http.disconnect has 1 message, and no live worker takes it: start a worker."


def test_a_paused_channel_is_noted(layer, alive):
    layer.pause("invoices", "ann")
    found = findings("--max-connections", "100")
    assert wrong(found) == []
    ((status, text),) = found["pauses"]
    assert status == "note" and text.startswith("invoices is paused, by ann")


def test_old_messages_and_dead_letters_are_reported(layer, alive):
    layer.send("invoices", {})
    row = layer.rows(DurableMessage).get()
    layer.rows(DurableMessage).update(sent_at=row.sent_at.replace(year=row.sent_at.year - 1))
    letters(layer, 3, "invoices")
    found = findings("--max-connections", "100")
    (text,) = wrong(found)
    assert text.startswith("The oldest message has waited for 36") and ", on invoices: add workers" in text
    assert found["dead_letters"][0][1].startswith("There are dead letters of invoices (3)")


def test_workers_that_are_all_busy_are_named_with_what_they_run(layer, alive):
    layer.send("invoices", {})
    row = layer.rows(DurableMessage).get()
    layer.rows(DurableMessage).update(sent_at=row.sent_at - timedelta(seconds=45))
    work = {"takes": ["invoices", "http.request", "websocket.receive"]}
    alive.record_work("w1", json.dumps({**work, "runs": "exports"}))
    (text,) = wrong(findings("--max-connections", "100"))
    assert "and each worker that takes it is busy: w1 (exports). Start more workers" in text
    alive.record_work("w1", json.dumps(work))
    assert wrong(findings("--max-connections", "100")) == []


def test_a_lease_that_is_over_and_versions_that_differ_are_noted(layer, alive):
    alive.register("w2", Process.WORKER)
    layer.rows(Process).filter(name="w2").update(lease_until=layer.rows(Process).get(name="w2").started_at)
    layer.rows(Process).filter(name="s1").update(reads=2)
    notes = [text for status, text in findings()["processes"] if status == "note"]
    assert notes[0].startswith("The lease of w2 has expired") and "two versions" in notes[1]


# The database.


def test_missing_and_newer_migrations_are_reported(layer):
    with connections[layer.database].cursor() as cursor:
        cursor.execute(
            "INSERT INTO django_migrations (app, name, applied) VALUES ('dbchannels', '9999_later', '2026-01-01')"
        )
        try:
            assert "newer migration than this code, 9999_later" in findings()["migrations"][0][1]
            cursor.execute(
                "UPDATE django_migrations SET app = 'x' WHERE app = 'dbchannels' AND name LIKE '0003%'"
            )
            found = findings()
            advice = f"run 'manage.py migrate --database {layer.database}'."
            assert found["migrations"] == [
                ("wrong", f"The database lacks 1 migration of dbchannels: {advice}")
            ]
            assert "channels" not in found
        finally:
            cursor.execute("UPDATE django_migrations SET app = 'dbchannels' WHERE app = 'x'")
            cursor.execute("DELETE FROM django_migrations WHERE name = '9999_later'")


def test_a_check_that_hangs_costs_its_time_alone(layer, monkeypatch):
    never = threading.Event()
    monkeypatch.setattr(doctor, "TIME_LIMIT", 0.05)

    def hangs(patient):
        yield patient_finding
        never.wait(30)

    patient_finding = patient.Finding("ok", "The first.")
    found = doctor.in_time(hangs, patient.Patient(layer, 1))
    never.set()
    assert found[-1].level == "wrong" and found[-1].text.startswith("No answer within 0.05 s (hangs)")


def test_wakeups_are_tried(layer):
    ((status, text),) = findings()["wakeups"]
    if connections[layer.database].vendor == "sqlite":
        assert (status, text) == ("ok", "Readers are woken by datagrams.")
    else:
        assert text.startswith("A notification takes ")
