"""Routing of messages to consumers: routes, their patterns, options and schedules."""

from dbchannels import foreign

__getattr__ = foreign.module_names(__name__)
