"""Tasks in the admin: what waits is a message with the task's name, what has ended is a result."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from dbchannels.models import DeadLetter, DurableMessage, TaskResult
from tests import kinds

pytestmark = kinds.only("postgresql")


@pytest.fixture
def admin(tables):
    client = Client()
    client.force_login(User.objects.create_superuser("olga"))
    return client


def page(client, model, *arguments):
    name = "change" if arguments else "changelist"
    response = client.get(reverse(f"admin:dbchannels_{model}_{name}", args=arguments))
    assert response.status_code == 200
    return response.content.decode()


def act(client, name, ids):
    """Do something to selected rows, by the page that asks first."""
    url = reverse("admin:dbchannels_taskresult_changelist")
    asked = client.post(url, {"action": name, "_selected_action": ids})
    context = asked.context_data
    return client.post(context["action"], {"state": context["state"]}, follow=True).content.decode()


def test_what_waits_shows_its_name_and_its_arguments(jobs, layer, admin):
    jobs.greet.enqueue("bob")
    jobs.add.enqueue(1, b={"password": "hunter2"})
    text = page(admin, "durablemessage")
    assert "tests.tasks.jobs.greet(&#x27;bob&#x27;)" in text
    assert "tests.tasks.jobs.add(1, b=" in text and "hunter2" not in text


def test_what_has_ended_shows_what_came_of_it(jobs, configure, layer, run, admin):
    configure(retries=0)
    good, bad = jobs.add.enqueue(20, b=1), jobs.broken.enqueue("<b>no</b>")
    run()
    text = page(admin, "taskresult")
    assert "tests.tasks.jobs.add(20, b=1)" in text and ">21</span>" in text and "successful" in text
    assert "ValueError: &lt;b&gt;no&lt;/b&gt;" in text and "<b>no</b>" not in text
    assert "raise ValueError(text)" in page(admin, "taskresult", bad.id)
    assert "21" in page(admin, "taskresult", good.id)


def test_results_are_filtered_by_the_path_of_the_task(jobs, layer, run, admin):
    short, long = jobs.add.enqueue(1), jobs.add.using(run_after=timezone.now()).enqueue("x" * 20_000)
    jobs.greet.enqueue("bob")
    run()
    text = page(admin, "taskresult")
    assert "?task=tests.tasks.jobs.add" in text and "tests.tasks.jobs.add (2)" in text
    assert "tests.tasks.jobs.add(...)" in text  # of the long one the list reads the beginning
    for path, found in (("tests.tasks.jobs.add", [long.id, short.id]), ("tests.tasks.jobs.ad", [])):
        rows = admin.get(reverse("admin:dbchannels_taskresult_changelist"), {"task": path})
        assert [str(row.pk) for row in rows.context_data["cl"].result_list] == found


def test_failed_tasks_run_again_and_waiting_ones_are_cancelled(jobs, configure, layer, run, admin):
    configure(retries=0)
    bad = jobs.broken.enqueue("no")
    run()
    assert "1" in act(admin, "replay", [bad.id])
    assert (DurableMessage.objects.count(), DeadLetter.objects.count()) == (1, 0)
    bad.refresh()
    assert bad.status == "READY"
    assert "ready" in page(admin, "taskresult")
    act(admin, "cancel", [bad.id])
    bad.refresh()
    assert (bad.status, len(bad.errors)) == ("FAILED", 2)
    assert bad.errors[1].traceback == "olga cancelled this task before it ran."
    act(admin, "delete_selected", [bad.id])
    assert not TaskResult.objects.exists()
