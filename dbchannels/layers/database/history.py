"""The histories of groups on any database: positions, what a channel has missed, and what is trimmed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django.db import connections
from django.db.models import Exists, Max, OuterRef, Q
from django.utils import timezone

from dbchannels.layers import operations as ops
from dbchannels.models import History, Membership, Trimmed

if TYPE_CHECKING:
    from dbchannels.layers.database import DatabaseLayer

BATCH = 500  # messages that get positions, or are trimmed, in one transaction


class Histories:
    """One layer's; its transactions are short, and one process at a time gives positions or trims."""

    def __init__(self, layer: DatabaseLayer) -> None:
        self._layer = layer
        self._looked_up_to = 0  # the position up to which `trim` has looked at the groups

    def position(self) -> int:
        """Return the position of the newest message in any history; 0 if there was none."""
        newest = (
            self._layer.rows(model).aggregate(last=Max("position"))["last"] for model in (History, Trimmed)
        )
        return max(one or 0 for one in newest)

    def number(self) -> None:
        """Give positions to messages that were committed since."""
        fresh = self._layer.rows(History).filter(position=None)
        if not fresh.exists():  # a look costs SQLite no lock
            return
        with self._layer.atomic():
            self._lock()
            ids = list(fresh.order_by("id").values_list("id", flat=True)[:BATCH])
            first = max(self.position() + 1, int(time.time() * 1_000_000))
            for position, row_id in enumerate(ids, first):
                self._layer.rows(History).filter(id=row_id).update(position=position)

    def _lock(self) -> None:
        """Let one process at a time give positions; SQLite's transaction has locked the whole database already."""
        if connections[self._layer.database].features.has_select_for_update:
            self._layer.rows(Trimmed).get_or_create(group="", defaults={"position": 0})
            list(self._layer.rows(Trimmed).select_for_update().filter(group=""))

    def read(self, queue: str, after: int, limit: int) -> list[ops.Kept]:
        """Return messages after a position, in order, with the members of the queue."""
        found = list(self._layer.rows(History).filter(position__gt=after).order_by("position")[:limit])
        members: dict[str, list[str]] = {row.group: [] for row in found}
        current = self._current().filter(channel=queue, group__in=members)
        for group, recipient in current.values_list("group", "recipient"):
            members[group].append(recipient)
        return [ops.Kept(row.position, bytes(row.payload), tuple(members[row.group])) for row in found]

    def missed(self, queue: str, after: Mapping[str, int], limit: int, size: int) -> dict[str, ops.Missed]:
        """See ``Link.missed``. The trimmed positions are read last, so that they cover what was not found."""
        found, last = {}, self.position()
        for recipient, position in after.items():
            start = -1 if position > last else position
            member = self._current().filter(channel=queue, recipient=recipient)
            groups = list(member.values_list("group", flat=True))
            # Of groups that it has joined later only what came after that.
            later = Exists(member.filter(group=OuterRef("group"), since__gte=OuterRef("position")))
            rows = self._layer.rows(History).filter(~later, group__in=groups, position__gt=start)
            pairs = rows.order_by("position").values_list("position", "payload")[: limit + 1]
            messages = [(one, bytes(payload)) for one, payload in pairs]
            trimmed = self._layer.rows(Trimmed).filter(~later, group__in=["", *groups])
            gone = trimmed.aggregate(last=Max("position"))["last"] or 0
            found[recipient] = ops.missed(messages, gone if gone > start else None, limit, size)
        return found

    def _current(self) -> Any:
        unexpired = Q(expires_at__isnull=True) | Q(expires_at__gt=timezone.now())
        return self._layer.rows(Membership).filter(unexpired)

    def trim(self) -> None:
        """Delete what no history keeps any more; what servers may not have read yet stays.

        A site without a server has nobody else to give the positions.
        """
        self.number()
        now, options = timezone.now(), self._layer.options
        rows = self._layer.rows(History).filter(sent_at__lte=now - timedelta(seconds=options["expiry"]))
        rows = rows.filter(position__isnull=False)
        unseen = rows.filter(position__gt=self._looked_up_to).order_by("position")
        looked_at = list(unseen.values_list("position", "group")[:BATCH])
        expired = rows.filter(expires_at__lte=now).order_by("expires_at")
        doomed = list(expired.values_list("id", flat=True)[:BATCH])
        for group in {group for _, group in looked_at}:
            newest = (
                self._layer.rows(History).filter(group=group, position__isnull=False).order_by("-position")
            )
            keep = newest.values_list("keep", flat=True).first()
            if keep is not None and (
                beyond := newest.values_list("position", flat=True)[keep : keep + 1].first()
            ):
                doomed += (
                    rows.filter(group=group, position__lte=beyond)
                    .order_by("position")
                    .values_list("id", flat=True)[:BATCH]
                )
        old = int((time.time() - options["history_expiry"]) * 1_000_000)
        past = self._layer.rows(Trimmed).exclude(group="").filter(position__lt=old)
        if doomed or past.exists():
            with self._layer.atomic():
                self._lock()
                for row in self._layer.rows(History).filter(id__in=doomed):
                    self._note(row.group, row.position)
                    row.delete()
                for mark in past:
                    self._note("", mark.position)
                    mark.delete()
        if looked_at and len(doomed) < BATCH:
            self._looked_up_to = looked_at[-1][0]

    def _note(self, group: str, position: int) -> None:
        mark, created = self._layer.rows(Trimmed).get_or_create(group=group, defaults={"position": position})
        if not created and mark.position < position:
            self._layer.rows(Trimmed).filter(group=group).update(position=position)
