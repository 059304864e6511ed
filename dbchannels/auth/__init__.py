"""The sessions and the user of a client, and the closing of WebSockets at logout."""

from dbchannels import foreign

__getattr__ = foreign.module_names(__name__)
