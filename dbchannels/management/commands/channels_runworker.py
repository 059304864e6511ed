"""``manage.py channels_runworker``: ``runworker``, for sites where the ``runworker`` of Channels takes its place."""

from dbchannels.management.commands.runworker import Command

__all__ = ["Command"]
