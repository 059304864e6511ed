"""Workers: durable messages that come back, workers that stop and die, and what waits when there are none."""

from __future__ import annotations

import re
import signal
from typing import Any

from tests.harness import LiveSite, Served, Socket, connect, until


def options(**given: Any) -> dict[str, Any]:
    """Return the settings for these OPTIONS of the layer."""
    return {"DBCHANNELS": {"default": {"OPTIONS": given}}}


#: The lease decides nothing while a test runs: who is dead was seen to die.
LONG_LEASE = options(lease=600)
#: After these a worker takes many messages at once, so that some of the others lie behind a slow one in its hands.
QUICK = [{"text": f"quick {number}"} for number in range(40)]
BEHIND = [{"text": f"behind {number}"} for number in range(9)]


def ran(site: LiveSite, *texts: str) -> None:
    """Wait until these messages have run, each once, in whatever order."""
    until(lambda: len(site.entries()) >= len(texts), f"{len(texts)} messages have run")
    until(lambda: not site.count("durablemessage"), "all are acknowledged")
    assert sorted(site.entries()) == sorted(texts)


def claimed(site: LiveSite) -> None:
    """Wait until a message is in a worker's hands."""
    until(lambda: site.count("durablemessage", "claimed_by IS NOT NULL"), "a message is claimed")


# Durable messages.


def test_messages_run_once_each(any_served):
    any_served.site.send("ledger", *({"text": str(number)} for number in range(50)))
    ran(any_served.site, *map(str, range(50)))


def test_a_consumer_sends_on(any_served):
    any_served.site.send("ledger", {"text": "one", "more": 3})
    ran(any_served.site, "one", "one.0", "one.1", "one.2")


def test_a_message_comes_back_at_once_when_its_worker_is_killed(any_site):
    any_site.serve("--workers", "1", settings=LONG_LEASE)
    any_site.send("ledger", {"text": "deadly", "die-once": True})
    ran(any_site, "died of deadly", "deadly")


def test_a_message_comes_back_when_a_worker_without_parent_is_killed(any_site):
    short = options(lease=0.5)
    any_site.send("ledger", {"text": "deadly", "die-once": True})
    assert any_site.work(settings=short).process.wait(20) == -signal.SIGKILL
    any_site.work(settings=short)
    ran(any_site, "died of deadly", "deadly")
    until(lambda: any_site.count("process") == 1, "the dead one is off the record")


def test_a_message_that_fails_is_tried_again(any_served):
    before = len(any_served.output())
    any_served.site.send("ledger", {"text": "third time lucky", "raise": 1})
    ran(any_served.site, "third time lucky")
    assert any_served.output()[before:].count("ValueError: as asked for") == 1
    assert any_served.site.count("deadletter") == 0


def test_a_message_that_always_fails_ends_as_a_dead_letter(any_site):
    any_site.work(settings=options(retries=1))
    any_site.send("ledger", {"text": "bad", "raise": 9}, {"text": "good"})
    until(lambda: any_site.count("deadletter"), "a dead letter")
    ((channel, attempts, error),) = any_site.rows(
        "SELECT channel, attempts, error FROM dbchannels_deadletter"
    )
    assert (channel, attempts) == ("ledger", 2)
    assert error.endswith("ValueError: as asked for\n")
    ran(any_site, "good")


def test_what_waits_behind_a_slow_one_goes_to_another_worker(site):
    site.send("ledger", *QUICK, {"text": "slow", "sleep": 60, "announce": True}, *BEHIND)
    site.work(settings=LONG_LEASE)
    until(lambda: "started slow" in site.entries(), "the slow one runs")
    site.work(settings=LONG_LEASE)
    until(lambda: len(site.entries()) == 1 + len(QUICK) + len(BEHIND), "all others have run")
    assert site.entries()[-len(BEHIND) :] == [one["text"] for one in BEHIND]
    claimed = "SELECT attempts FROM dbchannels_durablemessage WHERE claimed_by IS NOT NULL"
    until(lambda: site.rows(claimed) == [(1,)], "the slow one alone is claimed")


# The end of a worker.


def test_a_worker_that_is_stopped_finishes_one_and_hands_back_the_rest(any_site):
    any_site.send("ledger", *QUICK, {"text": "slow", "sleep": 1.0, "announce": True}, *BEHIND)
    worker = any_site.work("--only", "ledger")
    until(lambda: "started slow" in any_site.entries(), "the slow one runs")
    assert worker.terminate() == 0
    assert any_site.entries()[len(QUICK) :] == ["started slow", "slow"]
    untouched = "claimed_by IS NULL AND attempts = 0 AND NOT alone"
    assert any_site.count("durablemessage", untouched) == any_site.count("durablemessage") == len(BEHIND)
    any_site.work()
    ran(any_site, "started slow", "slow", *(one["text"] for one in [*QUICK, *BEHIND]))


def test_a_worker_that_does_not_finish_in_time_is_ended(site):
    worker = site.work("--graceful-timeout", "0.1")
    site.send("ledger", {"text": "endless", "sleep": 60})
    claimed(site)
    assert worker.terminate() == 1
    assert site.entries() == []


def test_a_second_signal_ends_a_worker_now(site):
    worker = site.work()
    site.send("ledger", {"text": "endless", "sleep": 60})
    claimed(site)
    until(lambda: worker.process.poll() or worker.process.terminate(), "it has ended", 10)
    assert worker.process.returncode == 1
    assert site.count("durablemessage", "claimed_by IS NULL AND attempts = 0") == 1
    assert site.entries() == []


# Who is kept for what.


def test_long_consumers_and_slow_views_leave_the_others_a_worker(site):
    served = site.serve("--http-timeout", "600", "--graceful-timeout", "0")
    site.send("stream", {"text": "long", "sleep": 3600})
    until(lambda: "long" in site.entries(), "it runs")
    site.send("stream", {"text": "another"})
    until(lambda: "another" in site.entries(), "other background work runs")
    site.send("stream", {"text": "as long", "sleep": 3600})
    until(lambda: "as long" in site.entries(), "it runs too")
    assert served.get("/").text == "hello"
    raw = connect(served.port)
    raw.sendall(b"GET /sleep/3600000 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    until(lambda: site.count("inflight", "messages LIKE 'http.request %'"), "a slow view runs")
    assert served.socket("/echo/").ask("tea") == "tea"


# Which channels a worker reads.


def test_only_what_it_is_told_to_read_and_all_but_what_it_is_told_to_leave(site):
    worker = site.work("--only", "led*")
    assert re.search(r"Worker worker-\S+ reads ledger from PostgreSQL", worker.output())
    served = site.serve("--workers", "0", "--http-timeout", "2")
    site.send("ledger", {"text": "read"})
    ran(site, "read")
    assert served.get("/").status == 504
    assert worker.terminate() == 0
    worker = site.work("--exclude", "ledger", "--exclude", "websocket.*")
    (read,) = re.findall(r"reads (.*) from ", worker.output())
    assert "http.request" in read and "ledger" not in read and "websocket" not in read
    site.send("ledger", {"text": "left"})
    assert served.get("/").text == "hello"
    assert (site.entries(), site.count("durablemessage", "attempts = 0")) == (["read"], 1)


def test_long_work_never_holds_up_a_page(site):
    served = site.serve("--workers", "2", settings=LONG_LEASE)
    site.send("ledger", *({"text": "long", "sleep": 60} for _ in range(3)))
    claimed(site)
    assert [served.get("/").text for _ in range(10)] == ["hello"] * 10
    assert served.socket("/echo/").ask("tea") == "tea"
    assert site.entries() == []


# Without workers.


def second_process(site: LiveSite) -> Served:
    """Start a server whose views run in itself, and which takes no messages."""
    return site.serve("--http", "direct", "--workers", "0")


def admin_page(served: Served, path: str) -> str:
    """Log in as a browser does; return a page of the admin."""
    token = served.get("/admin/login/").cookies()["csrftoken"]
    body = f"csrfmiddlewaretoken={token}&username=admin&password=secret"
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Cookie": f"csrftoken={token}"}
    session = served.request("POST", "/admin/login/", body, headers).cookies()["sessionid"]
    answer = served.get(path, Cookie=f"sessionid={session}")
    assert answer.status == 200, answer.text
    return answer.text


def test_what_waits_is_in_the_admin_of_another_process_until_workers_start(any_site):
    served = any_site.serve("--workers", "0")
    request = connect(served.port)
    request.sendall(
        b"GET /seen?tea HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Twice: shown\r\n"
        b"Authorization: Basic c2VjcmV0\r\nCookie: sessionid=a-cookie\r\n\r\n"
    )
    handshake = Socket(served.port, "/room/tea/", {"Cookie": "sessionid=a-cookie"})
    any_site.send("ledger", {"text": "a durable one"})
    until(lambda: any_site.count("protocolmessage") == 2, "a request and a handshake wait")
    other = second_process(any_site)
    page = admin_page(other, "/admin/dbchannels/protocolmessage/")
    ((number,),) = any_site.rows("SELECT id FROM dbchannels_protocolmessage WHERE channel = 'http.request'")
    page += admin_page(other, f"/admin/dbchannels/protocolmessage/{number}/change/")
    for shown in ("http.request", "websocket.connect", "/room/tea/", "/seen", "tea", "shown"):
        assert shown in page
    assert "masked" in page
    assert "c2VjcmV0" not in page and "a-cookie" not in page
    assert "a durable one" in admin_page(other, "/admin/dbchannels/durablemessage/")
    any_site.work()
    assert request.recv(15) == b"HTTP/1.1 200 OK"
    assert handshake.handshake().status == 101
    ran(any_site, "a durable one")


# Workers that die.


def test_a_worker_that_dies_at_its_start_is_started_ever_more_slowly(site):
    broken = site.folder / "broken"
    broken.touch()
    try:
        served = site.serve("--workers", "1")
        line = re.compile(r"Worker 1 ended with status 3; starting another in (\d+\.\d) s\.")
        until(lambda: len(line.findall(served.output())) >= 3, "it has died three times", 30)
        delays = [float(seconds) for seconds in line.findall(served.output())[:3]]
    finally:
        broken.unlink()
    for delay, middle in zip(delays, (0.1, 0.2, 0.4), strict=True):
        assert middle / 2 - 0.05 <= delay <= middle * 1.5 + 0.05
    assert served.get("/").text == "hello"
    assert served.process.poll() is None


# Periodic messages, and limits.


def test_what_comes_every_second_comes_once_however_many_workers_there_are(any_site):
    settings = {"TICKING": True}
    served = any_site.serve("--workers", "3", settings=settings)
    until(lambda: any_site.count("process", "kind = 'worker'") == 3, "all are on record")
    assert len(served.workers(3)) == 3
    any_site.work("--only", "tick", settings=settings)
    until(lambda: len(any_site.entries()) >= 4, "it came four times")
    moments = any_site.entries()
    assert sorted(set(moments)) == moments
    assert any_site.count("schedule") == 1


def test_no_more_run_at_a_time_than_their_consumer_says(any_served):
    site = any_served.site
    others = site.crew(2, "--only", "narrow")
    site.send("narrow", *({} for _ in range(8)))
    until(lambda: len(site.entries()) == 16, "all have run")
    assert site.entries() == ["in", "out"] * 8
    assert [other.terminate() for other in others] == [0, 0]
