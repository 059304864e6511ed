"""Routing of messages to consumers: routes, their patterns, options and schedules."""

from dbchannels import other_libraries

__getattr__ = other_libraries.module_names(__name__)
