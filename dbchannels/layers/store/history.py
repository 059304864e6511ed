"""The histories of groups in tables. A message has its position as soon as it is sent."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from dbchannels.layers import operations as ops
from dbchannels.layers.store.rows import HistoryRow, history_rows

if TYPE_CHECKING:
    from dbchannels.layers.store import StoreLayer


def keep(layer: StoreLayer, send: ops.SendGroup) -> None:
    """Add a message to the history of its group."""
    now, numbers = layer.clock(), layer.table("numbers")
    numbers["position"] = position = max(numbers.get("position", 0) + 1, int(now * 1_000_000))
    row = HistoryRow(position, send.group, send.payload, now, send.keep, now + send.lasts)
    layer.table("history")[str(position)] = row


def last_position(layer: StoreLayer) -> int:
    """Return the position of the newest message."""
    with layer.locked():
        return max(map(int, [0, *layer.table("history"), *layer.table("trimmed").values()]))


def read(layer: StoreLayer, queue: str, after: int, limit: int) -> list[ops.Kept]:
    """See ``Link.read_history``."""
    with layer.locked():
        found = [row for row in history_rows(layer.table("history")) if row.position > after][:limit]
        members = {
            group: tuple(
                one.removeprefix(queue) for one in layer.group_channels(group) if one.startswith(queue)
            )
            for group in {row.group for row in found}
        }
        return [ops.Kept(row.position, row.payload, members[row.group]) for row in found]


def missed(layer: StoreLayer, channel: str, after: int, limit: int, size: int) -> ops.Missed:
    """See ``Link.missed``, for one channel; inside ``locked()``."""
    start = -1 if after > last_position(layer) else after
    starts = {"": start}
    for group in layer.table_names("members"):
        if channel in layer.group_channels(group):
            starts[group] = max(start, layer.table("members", group)[channel][1])
    messages = [
        (row.position, row.payload)
        for row in history_rows(layer.table("history"))
        if row.position > starts.get(row.group, row.position)
    ]
    trimmed = layer.table("trimmed")
    gaps = [gone for group, after in starts.items() if (gone := trimmed.get(group, 0)) > after]
    return ops.missed(messages, max(gaps, default=None), limit, size)


def trim(layer: StoreLayer) -> None:
    """Delete what no history keeps any more, inside ``locked()``; what servers may not have read yet stays."""
    kept, history, trimmed = Counter[str](), layer.table("history"), layer.table("trimmed")
    now, limits = layer.clock(), dict[str, "int | None"]()
    for row in list(history_rows(history))[::-1]:
        limit = limits.setdefault(row.group, row.keep)  # of its newest message
        kept[row.group] += 1
        is_beyond = limit is not None and kept[row.group] > limit
        if row.sent <= now - layer.options["expiry"] and (is_beyond or row.end <= now):
            del history[str(row.position)]
            trimmed[row.group] = max(row.position, trimmed.get(row.group, 0))
    old = int((now - layer.options["history_expiry"]) * 1_000_000)
    for group in [one for one, position in trimmed.items() if one and position < old]:
        trimmed[""] = max(trimmed.pop(group), trimmed.get("", 0))
