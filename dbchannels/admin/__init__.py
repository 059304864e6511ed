"""The admin: channels, messages, dead letters, tasks, groups, connections, schedules and processes.

Nobody can add or edit a row; ``acts`` is what can be done to them. No list makes a query for each row, reads a long
payload or counts without end, so all of them open with a million waiting messages.
"""

from __future__ import annotations

from dbchannels.admin import channels, messages, others, tasks

__all__ = ["channels", "messages", "others", "tasks"]
