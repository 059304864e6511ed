"""Fault 33: of messages sent at once, those with the lower ids are committed last, and none of them is missed."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import NamedTuple

from tests.harness import MANAGE, LiveSite
from tests.soak.row import Row, Seen
from tests.soak.sites import on_postgresql, scaled
from tests.soak.tally import Tally, drained, numbered, tally

# In each round every writer sends in turn, in a transaction of its own, and the last one commits first. After each
# commit the readers take all that they see: they have gone past the ids that are still to come.
WRITE = """
import json, sys, threading, time
from django.db import connection, transaction
from dbchannels import channel_layers, codec

writers, rounds, each = json.loads(sys.stdin.readline())
layer = channel_layers["default"]
link = layer.link("commits", listen=False)
turns = [(threading.Semaphore(0), threading.Semaphore(0)) for _ in range(writers)]
done = threading.Semaphore(0)
taken = []

def write(number):
    for one in range(rounds):
        turns[number][0].acquire()
        with transaction.atomic():
            first = (one * writers + number) * each
            for channel in ("stream", "body?commits"):
                layer.send_many([(channel, {"text": str(first + extra)}) for extra in range(each)])
            done.release()
            turns[number][1].acquire()
        done.release()
    connection.close()

def take():
    while found := link.receive_many(["body?commits"], 500):
        taken.extend(codec.decode(one.payload)["text"] for one in found)
    while layer.channel_statistics("stream")["messages_pending"]:
        time.sleep(0.002)

for number in range(writers):
    threading.Thread(target=write, args=(number,), daemon=True).start()
for one in range(rounds):
    for begin, _ in turns:
        begin.release()
        done.acquire()
    for _, commit in reversed(turns):
        commit.release()
        done.acquire()
        take()
link.close()
print(len(taken), len(set(taken)))
"""


class Commits(NamedTuple):
    """What readers took of what was committed in reverse."""

    durable: Tally
    taken: int  # protocol messages, by one reader
    different: int


def commits(site: LiveSite, writers: int, rounds: int, each: int) -> Commits:
    """Let writers send so many messages in each round; a worker and a reader take them."""
    site.work("--only", "stream")
    done = subprocess.run(
        [sys.executable, str(MANAGE), "shell", "--verbosity", "0", "-c", WRITE],
        env=site.environment(),
        input=json.dumps([writers, rounds, each]) + "\n",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    drained(site)
    taken, different = map(int, done.stdout.split())
    return Commits(tally(site, numbered(0, writers * rounds * each)), taken, different)


def _commits(scale: float) -> Seen:
    rounds = scaled(100, scale, 1)
    with on_postgresql() as (site, _):
        found = commits(site, 8, rounds, 100)
    exact = found.durable[1:] == (0, 0) and found.taken == found.different == found.durable.sent
    missed = found.durable.sent - found.different
    return Seen(f"durable: {found.durable}; protocol: {missed} of {found.durable.sent:,} missed", exact)


ROWS = [Row(33, "8 writers x 10,000, commits in reverse", "0 missed", _commits)]
