"""Close codes of a WebSocket (RFC 6455, section 7.4.1, and IANA's registry)."""

NORMAL_CLOSURE, GOING_AWAY, PROTOCOL_ERROR, UNSUPPORTED_DATA = 1000, 1001, 1002, 1003
NO_CODE, VANISHED = 1005, 1006  # the client gave no code; the client vanished. Never sent
INVALID_DATA, POLICY_VIOLATION, TOO_LARGE = 1007, 1008, 1009
INTERNAL_ERROR, SERVICE_RESTART, TRY_AGAIN = 1011, 1012, 1013
LOGGED_OUT = 4401  # the user of the connection is logged out: 4000 and HTTP's 401
STALE_TOKEN = 4410  # the token of a live group is good no more; the page has a new one. 4000 and HTTP's 410


def is_close_code(code: int) -> bool:
    """Whether a Close frame may carry the code."""
    return NORMAL_CLOSURE <= code <= UNSUPPORTED_DATA or INVALID_DATA <= code <= 1014 or 3000 <= code <= 4999
