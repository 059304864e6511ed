"""A process of the site that does nothing but send: thousands of messages from one ``manage.py shell``."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tests.harness import MANAGE, LiveSite

# One line of JSON, (channel, messages), is one `send_many`; the line that answers is its acknowledgement. What
# an outage refuses is sent again, as a site's own code would: a send that was not acknowledged may be there twice.
LOOP = """
import json, sys, time
from django.db import DatabaseError, InterfaceError, connection
from dbchannels import channel_layers

def send(channel, messages):
    while True:
        try:
            return channel_layers["default"].send_many([(channel, one) for one in messages])
        except (DatabaseError, InterfaceError):  # of a server that was killed psycopg2 says no more
            connection.close()
            time.sleep(0.02)

print("ready", flush=True)
for line in sys.stdin:
    send(*json.loads(line))
    print("sent", flush=True)
"""


class Sender:
    """Sends, and returns when the layer has taken it."""

    def __init__(self, site: LiveSite, prefix: Sequence[str] = ()) -> None:
        self.process = subprocess.Popen(
            [*prefix, sys.executable, str(MANAGE), "shell", "--verbosity", "0", "-c", LOOP],
            env=site.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._answered("ready")

    def send(self, channel: str, messages: Sequence[dict[str, Any]]) -> None:
        """Send messages in one transaction, through an outage too."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps([channel, messages]) + "\n")
        self.process.stdin.flush()
        self._answered("sent")

    def _answered(self, word: str) -> None:
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line.strip() == word, f"The sender has ended, after {line!r}."

    def end(self) -> None:
        """End the process; it reads the end of its input, and is killed only if that does not help."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


@contextmanager
def sender(site: LiveSite, prefix: Sequence[str] = ()) -> Iterator[Sender]:
    """Lend a sender for the block; ``prefix`` is a command that starts it elsewhere."""
    one = Sender(site, prefix)
    try:
        yield one
    finally:
        one.end()
