"""What the layers keep in the database: one model for each kind of row.

The hot statements are raw SQL in ``layers/postgresql``; the models serve migrations, the admin, and the layer for other
databases. There are no foreign keys: a membership may name a channel that no process has, a logged table cannot
reference an UNLOGGED one, and the row locks of a key would let an open transaction of the site block the server that
cleans up.
"""

from __future__ import annotations

from typing import Any

from django.db import models
from django.db.models.functions import Now

from dbchannels import codec
from dbchannels.names import MAX_LENGTH, MAX_LOGIN, MAX_USER_ID
from dbchannels.protocol import FAILED, READY, SUCCESSFUL

QUEUE = "of a reply channel, the part up to and including the '!'"
MAX_USER = 200  # characters of who did something in the admin or by a command
HAS_TASK = models.Q(task__isnull=False)


class WithPayload(models.Model):
    """A row with an encoded message."""

    payload = models.BinaryField("payload")

    class Meta:
        abstract = True

    def content(self) -> dict[str, Any]:
        """Return the decoded message."""
        return codec.decode(bytes(self.payload))


class ProtocolMessage(WithPayload):
    """A message on ``http.*``, ``websocket.*`` or a reply channel: taken once, deleted when it expires.

    UNLOGGED on PostgreSQL: such traffic means nothing after a crash of the database, which empties the table and
    restarts its identity at 1. So ``id`` orders the messages of a channel and serves no other purpose.
    """

    id = models.BigAutoField(primary_key=True)
    channel = models.CharField("channel", max_length=MAX_LENGTH, help_text=QUEUE)
    recipients = models.TextField(
        "recipients",
        default="",
        blank=True,
        help_text="what follows the '!', for each recipient, separated by spaces",
    )
    audience = models.UUIDField(
        "audience",
        null=True,
        blank=True,
        help_text="the key of the Audience that lists the recipients, if they are many",
    )
    reply_channel = models.CharField("reply channel", max_length=MAX_LENGTH, default="", blank=True)
    sent_at = models.DateTimeField("sent", db_default=Now())
    expires_at = models.DateTimeField("expires")

    class Meta:
        verbose_name = "protocol message"
        indexes = (models.Index(fields=["channel", "id"], name="dbchannels_protocol_queue"),)

    def __str__(self) -> str:
        return f"{self.channel} #{self.pk}"


class Audience(models.Model):
    """The members of a group on one server, written once for all broadcasts to exactly these members.

    UNLOGGED on PostgreSQL, like the messages that name it. The key is a hash of the members' tally, so that it never
    stands for other members, even after a crash, which empties the table. Nothing is unique, because a sender's open
    transaction would make others wait; two equal rows do no harm. A row without recipients notes that these members
    were seen once; it is not an audience yet.
    """

    id = models.BigAutoField(primary_key=True)
    key = models.UUIDField("key", help_text="the first half of the SHA-256 of the members' number and digest")
    recipients = models.TextField("recipients", default="", blank=True, help_text="separated by spaces")
    expires_at = models.DateTimeField("expires", help_text="later than any message that names the audience")

    class Meta:
        verbose_name = "audience"
        indexes = (
            models.Index(fields=["key"], name="dbchannels_audience_key"),
            models.Index(fields=["expires_at"], name="dbchannels_audience_expires"),
        )


class DurableMessage(WithPayload):
    """A message on one of the site's own channels: claimed, run at least once, then deleted.

    Readers look at messages with neither ``claimed_by`` nor ``due_at``. Delayed messages are in another index, so that
    even a million of them cost a reader nothing.
    """

    id = models.BigAutoField(primary_key=True)
    channel = models.CharField("channel", max_length=MAX_LENGTH)
    attempts = models.PositiveSmallIntegerField("attempts", default=0, db_default=0)
    sent_at = models.DateTimeField("sent", db_default=Now())
    due_at = models.DateTimeField(
        "due", null=True, blank=True, help_text="empty for a message that is due now"
    )
    priority = models.SmallIntegerField(
        "priority", default=0, db_default=0, help_text="the highest is taken first"
    )
    unique_key = models.CharField("unique key", max_length=MAX_LENGTH, default="", db_default="", blank=True)
    claimed_by = models.CharField(
        "claimed by", max_length=MAX_LENGTH, null=True, blank=True, help_text="the name of the worker"
    )
    alone = models.BooleanField(
        "claimed alone",
        default=False,
        db_default=False,
        help_text="yes after a worker has died while it ran the message",
    )
    ready_at = models.DateTimeField(
        "ready", null=True, blank=True, help_text="of a message that was delayed: when it became due"
    )
    cancelled_by = models.CharField(
        "cancelled by",
        max_length=MAX_USER,
        default="",
        db_default="",
        blank=True,
        help_text="who cancelled the message while a worker had it: it becomes a dead letter",
    )
    claimed_at = models.DateTimeField("claimed", null=True, blank=True, help_text="for the last time")
    task = models.UUIDField(
        "task", null=True, blank=True, help_text="the id of the task that the message runs"
    )

    class Meta:
        verbose_name = "durable message"
        permissions = (
            ("cancel_durablemessage", "Can cancel durable messages"),
            ("reschedule_durablemessage", "Can change when durable messages run"),
        )
        indexes = (
            models.Index(
                fields=["channel", "-priority", "id"],
                condition=models.Q(claimed_by__isnull=True, due_at__isnull=True),
                name="dbchannels_durable_queue",
            ),
            models.Index(
                fields=["due_at", "channel"],
                condition=models.Q(due_at__isnull=False),
                name="dbchannels_durable_due",
            ),
            models.Index(
                fields=["channel", "unique_key", "id"],
                condition=models.Q(claimed_by__isnull=True) & ~models.Q(unique_key=""),
                name="dbchannels_durable_unique",
            ),
            models.Index(
                fields=["claimed_by", "channel"],
                condition=models.Q(claimed_by__isnull=False),
                name="dbchannels_durable_claims",
            ),
            models.Index(fields=["task"], condition=HAS_TASK, name="dbchannels_durable_task"),
        )

    def __str__(self) -> str:
        return f"{self.channel} #{self.pk}"


class DeadLetter(WithPayload):
    """A durable message that failed at every attempt, with the last traceback."""

    id = models.BigAutoField(primary_key=True)
    channel = models.CharField("channel", max_length=MAX_LENGTH)
    attempts = models.PositiveSmallIntegerField("attempts")
    sent_at = models.DateTimeField("sent")
    failed_at = models.DateTimeField("failed", db_default=Now())
    error = models.TextField("traceback", help_text="the last 16 KiB")
    task = models.UUIDField(
        "task", null=True, blank=True, help_text="the id of the task that the message ran"
    )

    class Meta:
        verbose_name = "dead letter"
        permissions = (("replay_deadletter", "Can run dead letters again"),)
        indexes = (
            models.Index(fields=["channel", "id"], name="dbchannels_dead_channel"),
            models.Index(fields=["task"], condition=HAS_TASK, name="dbchannels_dead_task"),
        )

    def __str__(self) -> str:
        return f"{self.channel} #{self.pk}"


class TaskResult(WithPayload):
    """What came of a task: written when an attempt ends, and kept for ``result_ttl`` seconds.

    While a durable message has the task's id, the task is ready or running, whatever stands here of earlier attempts.
    The ids grow with the time of the enqueue.
    """

    id = models.UUIDField(primary_key=True)
    channel = models.CharField("channel", max_length=MAX_LENGTH)
    priority = models.SmallIntegerField("priority")
    status = models.CharField(
        "status", max_length=10, choices=[(one, one.lower()) for one in (READY, FAILED, SUCCESSFUL)]
    )
    enqueued_at = models.DateTimeField("enqueued")
    started_at = models.DateTimeField("started", null=True)
    last_attempted_at = models.DateTimeField("last attempted", null=True)
    finished_at = models.DateTimeField("ended", null=True)
    expires_at = models.DateTimeField("expires")
    worker_ids = models.TextField(
        "workers", default="", help_text="the worker of each attempt, each followed by a space"
    )
    errors = models.TextField("errors", default="", help_text="a line of JSON for each error")
    return_value = models.TextField("return value", default="", help_text="as JSON")

    class Meta:
        verbose_name = "task result"
        permissions = (
            ("replay_taskresult", "Can run failed tasks again"),
            ("cancel_taskresult", "Can cancel tasks"),
        )
        indexes = (models.Index(fields=["expires_at"], name="dbchannels_result_expires"),)

    def __str__(self) -> str:
        return f"task {self.pk}"


class Schedule(models.Model):
    """When a periodic message is due next. The worker that moves the time on sends the message."""

    id = models.BigAutoField(primary_key=True)
    channel = models.CharField("channel", max_length=MAX_LENGTH)
    every = models.CharField("every", max_length=255)
    next_at = models.DateTimeField("next")
    seen_at = models.DateTimeField("seen", help_text="when a running worker last had it in its routing")
    sent_at = models.DateTimeField("last sent", null=True, blank=True)

    class Meta:
        verbose_name = "schedule"
        permissions = (("run_schedule", "Can send periodic messages now"),)
        constraints = (models.UniqueConstraint(fields=["channel", "every"], name="dbchannels_schedule_once"),)

    def __str__(self) -> str:
        return f"{self.channel} every {self.every}"


class Membership(models.Model):
    """One channel in one group; it does not expire while a live server has the channel."""

    id = models.BigAutoField(primary_key=True)
    group = models.CharField("group", max_length=MAX_LENGTH)
    channel = models.CharField("channel", max_length=MAX_LENGTH, help_text=QUEUE)
    recipient = models.CharField("recipient", max_length=MAX_LENGTH, default="", blank=True)
    added_at = models.DateTimeField("added", db_default=Now())
    since = models.BigIntegerField(
        "since", null=True, blank=True, help_text="after which position messages count as missed; empty: any"
    )
    expires_at = models.DateTimeField("expires", null=True, blank=True)

    class Meta:
        verbose_name = "membership"
        constraints = (
            models.UniqueConstraint(
                fields=["group", "channel", "recipient"], name="dbchannels_membership_once"
            ),
        )
        indexes = (
            models.Index(fields=["channel", "recipient"], name="dbchannels_membership_channel"),
            models.Index(
                fields=["expires_at"],
                name="dbchannels_membership_expires",
                condition=models.Q(expires_at__isnull=False),
            ),
        )

    def __str__(self) -> str:
        return f"{self.channel}{self.recipient} in {self.group}"


class Tally(models.Model):
    """By how many the members of a group on one server changed, and the sum of their hashes.

    The rows of a group add up to its memberships: PostgreSQL writes one for each statement that changes memberships, so
    that a broadcast can tell whether the members have changed without reading them. Clean-ups merge the rows.
    """

    id = models.BigAutoField(primary_key=True)
    group = models.CharField("group", max_length=MAX_LENGTH)
    channel = models.CharField("channel", max_length=MAX_LENGTH, help_text=QUEUE)
    members = models.BigIntegerField("members")
    expiring = models.BigIntegerField("members that expire")
    digest = models.DecimalField("digest", max_digits=60, decimal_places=0)
    merged = models.BooleanField("merged")

    class Meta:
        verbose_name = "tally"
        verbose_name_plural = "tallies"
        indexes = (
            models.Index(fields=["group", "channel"], name="dbchannels_tally_group"),
            models.Index(fields=["id"], name="dbchannels_tally_fresh", condition=models.Q(merged=False)),
        )


class Process(models.Model):
    """A live server, worker or process with Channels' layer: its lease. Its id is the number of its advisory lock."""

    SERVER, WORKER, CHANNELS = "server", "worker", "channels"

    id = models.BigAutoField(primary_key=True)
    name = models.CharField("name", max_length=MAX_LENGTH, unique=True)
    kind = models.CharField(
        "kind",
        max_length=10,
        choices=[(SERVER, "interface server"), (WORKER, "worker"), (CHANNELS, "process with Channels")],
    )
    queue = models.CharField(
        "reply queue",
        max_length=MAX_LENGTH,
        default="",
        blank=True,
        help_text="where replies to a server wait, such as reply.NAME!",
    )
    host = models.CharField("host", max_length=255)
    pid = models.IntegerField("process id")
    started_at = models.DateTimeField("started", db_default=Now())
    lease_until = models.DateTimeField("lease until")
    work = models.TextField(
        "work",
        default="",
        db_default="",
        blank=True,
        help_text="of a worker: the channels that it reads and what it runs, as JSON",
    )
    reads = models.PositiveSmallIntegerField(
        "reads format", default=1, db_default=1, help_text="the newest format of messages that it can read"
    )

    class Meta:
        verbose_name = "process"
        verbose_name_plural = "processes"
        indexes = (models.Index(fields=["queue"], name="dbchannels_process_queue"),)

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


class InFlight(models.Model):
    """What one worker has popped and not finished: a line ``CHANNEL REPLY_CHANNEL`` for each message.

    UNLOGGED on PostgreSQL. The statement that pops the messages writes the row, so when the worker is killed, the
    row names the clients to notify. On PostgreSQL a worker may have a second row, for messages whose consumers have
    run and whose results wait for another transaction.
    """

    BLOCKED = " (blocked)"  # follows the worker's name in that second row

    worker = models.CharField("worker", max_length=MAX_LENGTH, primary_key=True)
    messages = models.TextField("messages", default="", blank=True)
    since = models.DateTimeField("since", db_default=Now())

    class Meta:
        verbose_name = "messages in flight"
        verbose_name_plural = "messages in flight"

    def lines(self) -> list[tuple[str, str]]:
        """Return (channel, reply channel) for each message in flight."""
        pairs = [line.partition(" ") for line in self.messages.splitlines()]
        return [(channel, reply_channel) for channel, _, reply_channel in pairs]


class Connection(models.Model):
    """An open WebSocket: what its disconnect consumers need when its server is killed."""

    reply_channel = models.CharField("reply channel", max_length=MAX_LENGTH, primary_key=True)
    server = models.CharField("server", max_length=MAX_LENGTH, db_index=True)
    path = models.TextField("path")
    user_id = models.CharField(
        "user",
        max_length=MAX_USER_ID,
        default="",
        db_default="",
        blank=True,
        help_text="the user's primary key",
    )
    connected_at = models.DateTimeField("connected", db_default=Now())
    # The key is the session cookie's value, and is never shown. The digest is short enough for an index.
    session_key = models.TextField("session key", default="", db_default="", blank=True)
    session_digest = models.CharField(
        "session digest", max_length=64, default="", db_default="", db_index=True
    )
    login = models.CharField("login", max_length=MAX_LOGIN, default="", db_default="", db_index=True)
    session = models.BinaryField("channel session", null=True)

    class Meta:
        verbose_name = "connection"
        permissions = (
            ("send_connection", "Can send to WebSockets"),
            ("close_connection", "Can close WebSockets"),
        )

    def __str__(self) -> str:
        return self.reply_channel


class ChannelState(models.Model):
    """What an operator has set for a channel: a row while it is paused. Workers look at each claim."""

    channel = models.CharField("channel", max_length=MAX_LENGTH, primary_key=True)
    paused_at = models.DateTimeField("paused", db_default=Now())
    paused_by = models.CharField("paused by", max_length=MAX_USER, default="", db_default="", blank=True)

    class Meta:
        verbose_name = "channel"
        default_permissions = ("view",)
        permissions = (("pause_channelstate", "Can pause and resume channels"),)

    def __str__(self) -> str:
        return self.channel


class Sample(models.Model):
    """What was measured in ten seconds, kept for an hour: of one worker, or of the whole site.

    UNLOGGED on PostgreSQL.
    """

    id = models.BigAutoField(primary_key=True)
    at = models.DateTimeField("at", help_text="the end of the ten seconds")
    source = models.CharField(
        "source", max_length=MAX_LENGTH, default="", db_default="", help_text="a worker; empty: the site"
    )
    data = models.TextField("data", help_text="as JSON")

    class Meta:
        verbose_name = "sample"
        default_permissions = ()
        constraints = (models.UniqueConstraint(fields=["at", "source"], name="dbchannels_sample_once"),)


class History(WithPayload):
    """A message that was sent to a group with ``history``, kept so that clients that come back get what they missed.

    Senders insert rows without a position. Servers give the positions when the rows are committed, one server at a
    time, so the positions become visible in their order, which is the order of delivery in all groups. A position is
    the database's clock in microseconds since 1970, or one more than the last: so it is never used again, not even
    after the database was restored from a backup.
    """

    id = models.BigAutoField(primary_key=True)
    group = models.CharField("group", max_length=MAX_LENGTH)
    sent_at = models.DateTimeField("sent", db_default=Now())
    position = models.BigIntegerField(
        "position", null=True, blank=True, unique=True, help_text="empty until a server has given it"
    )
    keep = models.PositiveIntegerField(
        "messages kept", null=True, blank=True, help_text="of the group; empty: as many as there are"
    )
    expires_at = models.DateTimeField("expires", db_index=True)

    class Meta:
        verbose_name = "kept message"
        indexes = (
            models.Index(fields=["group", "position"], name="dbchannels_history_group"),
            models.Index(
                fields=["id"], condition=models.Q(position__isnull=True), name="dbchannels_history_new"
            ),
        )

    def __str__(self) -> str:
        return f"{self.group} #{self.position or 'new'}"


class Trimmed(models.Model):
    """Up to which position a group's history was deleted. The group "" stands for all groups."""

    group = models.CharField("group", max_length=MAX_LENGTH, primary_key=True)
    position = models.BigIntegerField("position", db_index=True)

    class Meta:
        verbose_name = "trimmed history"
        verbose_name_plural = "trimmed histories"
        default_permissions = ()
