"""A broadcast is one row for a server, however many of its clients are in the room."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from tests.harness import LiveSite, Socket, gather

CLIENTS, BROADCASTS = 500, 20
SAY = (
    "from dbchannels import Group\nfor number in range({}): Group('room-hall').send({{'text': str(number)}})"
)


@pytest.fixture(autouse=True)
def _enough_descriptors() -> Iterator[None]:
    """A socket for each client here, and as many in the server, which inherits the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = soft if soft == resource.RLIM_INFINITY else max(soft, 2 * CLIENTS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def last_identity(site: LiveSite) -> int:
    """Return the number of protocol messages that were ever written."""
    sequence = "pg_sequence_last_value(pg_get_serial_sequence('dbchannels_protocolmessage', 'id'))"
    return int(site.rows(f"SELECT coalesce({sequence}, 0)")[0][0])


def test_five_hundred_clients_hear_twenty_broadcasts_by_twenty_rows(site):
    served = site.serve("--workers", "2")
    clients = [Socket(served.port, "/room/hall/", {}) for _ in range(CLIENTS)]
    assert [client.handshake().status for client in clients] == [101] * CLIENTS
    before = last_identity(site)
    site.shell(SAY.format(BROADCASTS))
    heard = gather(clients, BROADCASTS)
    assert last_identity(site) - before == BROADCASTS
    assert heard == [[str(number) for number in range(BROADCASTS)]] * CLIENTS
