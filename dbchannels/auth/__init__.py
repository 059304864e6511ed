"""The sessions and the user of a client, and the closing of WebSockets at logout."""

from dbchannels import other_libraries

__getattr__ = other_libraries.module_names(__name__)
