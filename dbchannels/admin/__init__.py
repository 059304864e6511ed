"""The admin: messages, dead letters, groups, connections, schedules and processes.

Rows can be viewed; only waiting messages, dead letters, memberships and schedules can be deleted. No list makes a query
for each row or reads a long payload, so the lists open with a million waiting messages.
"""

from __future__ import annotations

from dbchannels.admin import messages, others

__all__ = ["messages", "others"]
