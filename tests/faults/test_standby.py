"""Fault 47: the primary database is lost under load, and its standby is promoted."""

from __future__ import annotations

from contextlib import closing

import pytest

from dbchannels.exceptions import LayerUnavailable
from dbchannels.layers.postgresql.session import Session
from tests.clusters import entry
from tests.docs import pages
from tests.soak import standby

pytestmark = pytest.mark.postgresql


def test_nothing_that_was_acknowledged_is_lost_with_a_synchronous_standby() -> None:
    with standby.site_with_standby(synchronous=True) as (site, primary, second):
        found = standby.promotion(site, primary, second, clients=5, flow=100)
        assert (found.tally.lost, found.dropped, found.unanswered, found.left) == (0, 0, 0, 0)
        assert found.tally.sent > 200
        assert found.tally.duplicated <= 1  # the one whose acknowledgement the kill cut off was sent again


def test_a_session_waits_for_the_promotion_and_the_sequences_that_an_early_one_loses_are_made_anew() -> None:
    (statement,) = (block.code for block in pages.blocks("several-hosts", "sql"))
    table = "dbchannels_protocolmessage"
    with standby.site_with_standby(synchronous=True, early=True) as (site, primary, second):
        settings = {**entry(second), "OPTIONS": {}}  # nothing says which of the servers takes writes
        with closing(Session(settings, "dbchannels test", listen=True)) as session:
            with pytest.raises(LayerUnavailable, match="LISTEN"):
                session.execute([("SELECT 1", {})])
            primary.kill()
            second.promote()
            assert session.execute([("SELECT 1", {})]) == [(1,)]
        for other in (table, "dbchannels_audience", "dbchannels_sample"):
            site.rows(statement.replace(table, other))
        served = site.serve("--workers", "1")
        assert served.get("/").status == 200
        assert served.socket("/echo/").ask("hello") == "hello"
