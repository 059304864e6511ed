"""Django's tasks on each kind of layer: enqueue, run, retry, fail, and what is known of it."""

from __future__ import annotations

import asyncio
import re
import sys
import uuid
from datetime import timedelta

import pytest
from asgiref.sync import async_to_sync
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from dbchannels import Channel, other_libraries, route
from dbchannels.exceptions import InvalidMessage
from dbchannels.layers.operations import BatchResult
from dbchannels.layers.postgresql import sql_durable
from dbchannels.layers.tasks import MOST_ERRORS, error_line
from dbchannels.models import DurableMessage, TaskResult
from dbchannels.tasks import framework
from tests import kinds

if framework.AVAILABLE:
    from dbchannels.tasks.backend import new_id
    from dbchannels.tasks.framework import (
        InvalidTask,
        TaskResultDoesNotExist,
        TaskResultStatus,
        signals,
        task_backends,
    )


def status(result):
    result.refresh()
    return result.status


def errors(result):
    result.refresh()
    return [one.exception_class for one in result.errors]


def test_a_task_is_ready_then_running_then_successful(jobs, layer, run, new_link):
    result = jobs.add.enqueue(2, b=3)
    assert (result.status, result.is_finished, result.attempts) == (TaskResultStatus.READY, False, 0)
    assert status(result) == TaskResultStatus.READY
    link = new_link(layer)
    (claimed,) = link.claim(["tasks.default"], 1, "w1")
    assert (status(result), result.worker_ids) == (TaskResultStatus.RUNNING, ["w1"])
    assert result.started_at == result.last_attempted_at is not None
    link.finish("w1", BatchResult(returned=[claimed]))
    assert (status(result), result.worker_ids) == (TaskResultStatus.READY, [])
    worker = run()
    assert status(result) == TaskResultStatus.SUCCESSFUL
    assert (result.return_value, result.args, result.kwargs) == (5, [2], {"b": 3})
    assert (result.worker_ids, result.attempts, result.errors) == ([worker.name], 1, [])
    assert result.enqueued_at < result.started_at <= result.finished_at
    assert jobs.ran == [(2, 3)]


def test_the_result_is_found_by_its_id_alone(jobs, layer):
    result = jobs.add.enqueue(1)
    assert jobs.add.get_result(result.id) == result
    for unknown in (str(uuid.uuid4()), "no id", ""):
        with pytest.raises(TaskResultDoesNotExist):
            jobs.add.get_result(unknown)


def test_a_name_of_celery_is_told_its_name_here(jobs):
    for name, told in other_libraries.NAMES["task"].items():
        with pytest.raises(AttributeError, match=re.escape(f"has no attribute {name!r}: {told}.")):
            getattr(jobs.add, name)


def test_a_result_of_another_task_is_refused(jobs, layer):
    with pytest.raises(Exception, match="does not match"):
        jobs.later.get_result(jobs.add.enqueue(1).id)


def test_coroutines_run_and_take_part_in_everything(jobs, layer, run):
    async def enqueue():
        return await jobs.later.aenqueue("one")

    result = async_to_sync(enqueue)()
    run()
    assert (status(result), result.return_value) == (TaskResultStatus.SUCCESSFUL, ["one"])
    assert async_to_sync(jobs.later.aget_result)(result.id).return_value == ["one"]


def test_the_context_and_queue_and_priority_arrive(jobs, layer, run):
    low, high = jobs.greet.using(priority=-100).enqueue("low"), jobs.greet.using(priority=100).enqueue("high")
    middle = jobs.greet.enqueue("middle")
    run(only=["tasks.mail"])
    assert jobs.ran == [(1, "high"), (1, "middle"), (1, "low")]
    assert low.task.get_result(low.id).return_value == {"name": "low", "id": low.id, "attempt": 1}
    found = jobs.greet.get_result(high.id).task
    assert (found.priority, found.queue_name, found.backend) == (100, "mail", "default")
    assert jobs.greet.get_result(middle.id).task == jobs.greet


def test_run_after_delays(jobs, layer, run):
    when = timezone.now() + timedelta(hours=1)
    result = jobs.add.using(run_after=when).enqueue(1)
    run()
    assert (jobs.ran, status(result)) == ([], TaskResultStatus.READY)
    assert jobs.add.get_result(result.id).task.run_after == when
    jobs.add.using(run_after=timezone.now() - timedelta(hours=1)).enqueue(2)
    run()
    assert jobs.ran == [(2, 0)]


def test_a_task_that_raises_is_tried_again_and_fails_at_last(jobs, configure, layer, run):
    configure(retries=2, backoff=0)
    result = jobs.broken.enqueue("no")
    worker = run()
    assert jobs.ran == ["no"] * 3
    assert errors(result) == [ValueError] * 3
    assert (result.status, result.worker_ids) == (TaskResultStatus.FAILED, [worker.name] * 3)
    assert all("ValueError: no" in one.traceback for one in result.errors)
    assert "dbchannels" not in result.errors[0].traceback
    with pytest.raises(ValueError, match="Task failed"):
        result.return_value  # noqa: B018
    (letter,) = layer.dead_letter_ids(["tasks.default"])
    assert layer.replay([letter]) == 1
    assert (status(result), result.attempts, result.finished_at) == (TaskResultStatus.READY, 3, None)
    run()
    assert (status(result), result.attempts, len(result.errors)) == (TaskResultStatus.FAILED, 6, 6)


@kinds.on_databases
def test_of_many_errors_the_last_are_kept(jobs, configure, layer, run):
    configure(retries=1, backoff=0)
    result = jobs.broken.enqueue("no")
    run()
    line = error_line(KeyError, "x" * 10_000)
    layer.rows(TaskResult).update(errors=line * 200)
    assert layer.replay(layer.dead_letter_ids(["tasks.default"])) == 1
    run()
    assert MOST_ERRORS < len(layer.rows(TaskResult).get().errors) < MOST_ERRORS + 2 * len(line)
    found = errors(result)
    assert found[-2:] == [ValueError] * 2 and set(found[:-2]) == {KeyError}
    assert len(found) == MOST_ERRORS // len(line) + 2


def test_between_two_attempts_a_task_is_ready_with_its_error(jobs, configure, layer, run):
    configure(retries=1, backoff=3600)
    result = jobs.broken.enqueue("no")
    run()
    assert (errors(result), result.status, result.attempts) == ([ValueError], TaskResultStatus.READY, 1)
    assert result.started_at is not None and result.finished_at is None


def test_the_second_attempt_knows_of_the_first(jobs, layer, run, new_link):
    result = jobs.greet.enqueue("again")
    assert len(new_link(layer).claim(["tasks.mail"], 1, "w1")) == 1
    link = new_link(layer)
    link.register("w1", "worker")
    link.clean_up_after("w1")
    worker = run()
    assert (status(result), result.worker_ids) == (TaskResultStatus.SUCCESSFUL, ["w1", worker.name])
    assert result.return_value["attempt"] == 2


def test_a_task_of_which_each_attempt_kills_its_worker_fails(jobs, configure, layer, run, new_link):
    configure(retries=1)
    result, link = jobs.add.enqueue(1), new_link(layer)
    for name in ("w1", "w2"):
        link.register(name, "worker")
        assert len(link.claim(["tasks.default"], 1, name)) == 1
        link.clean_up_after(name)
    run()
    assert (status(result), jobs.ran) == (TaskResultStatus.FAILED, [])
    assert result.worker_ids == ["w1", "w2"]
    assert [one.exception_class.__name__ for one in result.errors] == ["WorkerKilled"]


def test_a_lost_claim_writes_nothing(jobs, layer, new_link):
    result, link = jobs.add.enqueue(1), new_link(layer)
    link.register("w1", "worker")
    (lost,) = link.claim(["tasks.default"], 1, "w1")
    link.clean_up_after("w1")
    (kept,) = link.claim(["tasks.default"], 1, "w2")
    assert not layer.acknowledge("w1", lost._replace(return_value="1"))
    assert (status(result), result.worker_ids) == (TaskResultStatus.RUNNING, ["w1", "w2"])
    assert layer.acknowledge("w2", kept._replace(return_value="2"))
    assert (status(result), result.return_value) == (TaskResultStatus.SUCCESSFUL, 2)


@pytest.mark.parametrize(
    ("kind", "error"), [("set", TypeError), ("long", None), ("bytes", "text"), ("tuple", [1, None])]
)
def test_what_a_task_returns(jobs, configure, layer, run, kind, error):
    configure(retries=0)
    result = jobs.returns.enqueue(kind)
    run()
    result.refresh()
    if result.status == TaskResultStatus.SUCCESSFUL:
        assert result.return_value == error
    else:
        assert result.errors[0].exception_class.__name__ == (error.__name__ if error else "MessageTooLarge")


@pytest.mark.parametrize(
    "path", ["tests.tasks.jobs.plain", "os.getcwd", "tests.tasks.jobs.missing", "gone.away", ""]
)
def test_only_tasks_are_called(jobs, new_layer, run, path):
    layer = new_layer(retries=0)  # without a task there is no route whose option counts
    layer.send("tasks.default", {"task": path, "backend": "default", "args": [], "kwargs": {}})
    run()
    assert len(layer.dead_letter_ids(["tasks.default"])) == 1


@kinds.only("postgresql")
def test_a_task_that_fails_at_once_costs_no_connection_of_djangos(jobs, configure, layer, run):
    configure(retries=0)
    result = jobs.broken.enqueue("no")
    with CaptureQueriesContext(connection) as queries:
        run()
    assert [one["sql"] for one in queries] == []
    assert status(result) == TaskResultStatus.FAILED


@pytest.mark.parametrize("atomic", [False, True])
def test_the_signals_come_once_each_and_their_receivers_change_nothing(jobs, configure, layer, run, atomic):
    configure(retries=1, backoff=0, atomic=atomic)
    said = []

    def note(signal, task_result, sender, **kwargs):
        stored = task_result.task.get_result(task_result.id)
        same = all(
            getattr(stored, name) == getattr(task_result, name) for name in ("status", "attempts", "errors")
        )
        said.append((names[signal], task_result.id, str(task_result.status) if same else stored))
        if signal is not signals.task_enqueued:
            raise RuntimeError

    names = {
        signals.task_enqueued: "enqueued",
        signals.task_started: "started",
        signals.task_finished: "finished",
    }
    for signal in names:
        signal.connect(note)
    try:
        good = jobs.add.enqueue(1)
        run()
        bad = jobs.broken.enqueue("no")
        run()
    finally:
        for signal in names:
            signal.disconnect(note)
    assert said == [
        ("enqueued", good.id, "READY"),
        ("started", good.id, "RUNNING"),
        ("finished", good.id, "SUCCESSFUL"),
        ("enqueued", bad.id, "READY"),
        ("started", bad.id, "RUNNING"),
        ("started", bad.id, "RUNNING"),
        ("finished", bad.id, "FAILED"),
    ]


@kinds.on_databases
def test_an_enqueue_is_part_of_the_callers_transaction(jobs, layer, run):
    with pytest.raises(KeyError), transaction.atomic(using=layer.database):
        gone = jobs.add.enqueue(1)
        assert jobs.add.get_result(gone.id).status == TaskResultStatus.READY
        raise KeyError
    with pytest.raises(TaskResultDoesNotExist):
        gone.refresh()
    with transaction.atomic(using=layer.database):
        kept = jobs.add.enqueue(2)
    run()
    assert (status(kept), jobs.ran) == (TaskResultStatus.SUCCESSFUL, [(2, 0)])


def test_a_task_that_is_atomic_commits_with_its_result(jobs, configure, layer, run):
    configure(atomic=True)
    result = jobs.add.enqueue(1)
    run()
    assert (status(result), result.return_value) == (TaskResultStatus.SUCCESSFUL, 1)


def test_a_task_has_options_of_its_own(jobs, configure, layer, run):
    configure(retries=5, queues={"mail": {"retries": 4}})
    from dbchannels.routing.tasks import task_routes
    from dbchannels.tasks.backend import ChannelTask

    own = ChannelTask(func=jobs.add.func, retries=1, hard_timeout=3)
    with pytest.raises(InvalidTask, match="retries = -1"):
        ChannelTask(func=jobs.add.func, retries=-1)
    default, mail = task_routes("default")
    assert (default.options.retries, mail.options.retries) == (5, 4)
    found = default._route_of(own)
    assert (found.options.retries, found.options.hard_timeout) == (1, 3)
    assert found.name == "tests.tasks.jobs.add"


@kinds.on_databases
def test_cancelled_tasks_have_failed(jobs, layer, run):
    result = jobs.add.enqueue(1)
    said = []

    def note(task_result, **kwargs):
        said.append((task_result.id, str(task_result.status)))

    ids = list(layer.rows(DurableMessage).values_list("id", flat=True))
    signals.task_finished.connect(note)
    with transaction.atomic(using=layer.database):
        assert layer.cancel(ids, "ann") == (1, 0)
        assert said == []
    signals.task_finished.disconnect(note)
    assert said == [(result.id, "FAILED")]
    result.refresh()
    assert (result.status, result.attempts) == (TaskResultStatus.FAILED, 0)
    assert result.errors[0].traceback == "ann cancelled this task before it ran."
    assert result.errors[0].exception_class is asyncio.CancelledError


@kinds.on_databases
def test_results_expire_a_batch_at_a_time(jobs, new_layer, run, new_link, monkeypatch):
    for module in ("postgresql.cleanup", "database.link"):
        monkeypatch.setattr(f"dbchannels.layers.{module}.BATCH", 2)
    layer = new_layer(result_ttl=1.0)
    expired = [jobs.add.enqueue(number) for number in range(5)]
    run()
    layer.rows(TaskResult).update(expires_at=timezone.now() - timedelta(seconds=1))
    kept = jobs.add.enqueue(5)
    run()
    layer.rows(TaskResult).filter(pk=kept.id).update(expires_at=timezone.now() + timedelta(hours=1))
    link = new_link(layer)
    with CaptureQueriesContext(connections[layer.database]) as queries:
        link.clean_up()
    assert list(layer.rows(TaskResult).values_list("pk", flat=True)) == [uuid.UUID(kept.id)]
    if connections[layer.database].vendor != "postgresql":
        assert sum("DELETE FROM" in one["sql"] and "taskresult" in one["sql"] for one in queries) == 3
    for result in expired:
        with pytest.raises(TaskResultDoesNotExist):
            result.refresh()


@kinds.only("postgresql")
def test_what_reads_results_goes_by_an_index(layer):
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO dbchannels_taskresult (id, channel, payload, priority, status, enqueued_at, expires_at,"
            " worker_ids, errors, return_value) SELECT gen_random_uuid(), 'tasks.default', '', 0, 'FAILED', now(),"
            " now() + g * interval '1 s', '', '', '' FROM generate_series(-10, 20000) AS g"
        )
        cursor.execute("ANALYZE dbchannels_taskresult")
        cursor.execute(f"EXPLAIN {sql_durable.EXPIRE_RESULTS}", {"limit": 5000})
        plan = "\n".join(row[0] for row in cursor.fetchall())
        assert "dbchannels_result_expires" in plan and "Seq Scan on dbchannels_taskresult" not in plan, plan
        cursor.execute("TRUNCATE dbchannels_taskresult")


def test_flush_forgets_results(jobs, layer, run):
    result = jobs.add.enqueue(1)
    run()
    layer.flush()
    with pytest.raises(TaskResultDoesNotExist):
        result.refresh()


def test_arguments_that_cannot_be_sent_are_refused_at_once(jobs, layer):
    with pytest.raises(TypeError):
        jobs.add.enqueue({1, 2})
    with pytest.raises(InvalidMessage):
        jobs.add.enqueue(2**70)


def test_a_task_that_no_worker_would_find_is_refused(jobs, layer, monkeypatch):
    for function in (jobs.plain, jobs.Report.make):
        with pytest.raises(InvalidTask, match="No worker would find the task tests"):
            jobs.task(function).enqueue()
    monkeypatch.setattr(jobs.add.func, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "add", jobs.add, raising=False)
    with pytest.raises(InvalidTask, match="No worker would find the task __main__"):
        jobs.add.enqueue()


def test_a_priority_may_be_what_django_takes_for_a_whole_number(jobs, layer):
    for priority in (5.0, True):
        task = jobs.add.using(priority=priority)
        assert task.get_result(task.enqueue(1).id).task.priority == priority


def test_results_outlive_a_change_of_the_setting(jobs, configure, layer, run):
    result = jobs.greet.using(priority=7).enqueue("bob")
    run()
    entry = {"BACKEND": "dbchannels.tasks.ChannelsBackend"}
    configure({"default": entry, "other": entry})  # there is no queue "mail" any more
    found = task_backends["other"].get_result(result.id)
    assert (found.status, found.backend, found.return_value["name"]) == ("SUCCESSFUL", "default", "bob")
    assert (found.task.queue_name, found.task.priority, found.task.backend) == ("mail", 7, "default")


@kinds.on_databases
def test_a_result_that_is_read_while_an_attempt_ends_has_it_once(jobs, layer, new_link, monkeypatch):
    result, link = jobs.add.enqueue(1), new_link(layer)
    (claimed,) = link.claim(["tasks.default"], 1, "w1")
    rows = layer.rows

    def between(model):
        if model is TaskResult:
            monkeypatch.undo()
            layer.acknowledge("w1", claimed._replace(return_value="1"))
        return rows(model)

    monkeypatch.setattr(layer, "rows", between)
    assert (status(result), result.worker_ids, result.return_value) == ("SUCCESSFUL", ["w1"], 1)


def test_any_queue_must_be_listed(jobs, configure, layer):
    with pytest.raises(InvalidTask, match="not valid"):
        jobs.add.using(queue_name="other")
    configure({"default": {"BACKEND": "dbchannels.tasks.ChannelsBackend", "QUEUES": []}})
    with pytest.raises(InvalidTask, match="no worker would read it"):
        jobs.add.using(queue_name="other")


def test_ids_grow_and_are_uuids():
    ids = [uuid.UUID(new_id()) for _ in range(1000)]
    assert {one.version for one in ids} == {7} and {one.variant for one in ids} == {uuid.RFC_4122}
    assert len(set(ids)) == 1000 and sorted(ids, key=lambda one: one.int >> 64) == ids


def test_other_messages_keep_no_result(jobs, layer, make_worker):
    Channel("own").send({})
    make_worker(route("own", lambda message: 5)).run_once()
    assert layer.channel_statistics("own")["messages_pending"] == 0
    if hasattr(layer, "rows"):
        assert not layer.rows(TaskResult).exists()
