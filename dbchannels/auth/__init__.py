"""Who a connection belongs to: its sessions, its user, and the sockets that a logout closes."""

from dbchannels import foreign

__getattr__ = foreign.module_names(__name__)
