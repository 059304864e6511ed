"""No fault: what one open live page costs while a thousand channels are in use and many messages wait."""

from __future__ import annotations

import json
import statistics
from typing import Any

from tests.soak.row import Row, Seen
from tests.soak.sites import on_postgresql, scaled

WORKERS = 8
ASKS = 20  # that are measured
MEASURE = '''
import json, time
from django.db import connection
from dbchannels import channel_layers
from dbchannels.admin.live import cached, live_data
from dbchannels.layers.overview import overview
from dbchannels.measures import SIZE
from dbchannels.models import Sample
from dbchannels.samples import GAUGES, PERIOD, KEPT, sample, site_sample

layer, names = channel_layers["default"], [f"shop.orders.{number}" for number in range(1_000)]
for start in range(0, MESSAGES, 1_000):
    layer.send_many([(name, {"number": start}) for name in names])
now = int(time.time()) // PERIOD * PERIOD
counts, gauges = {name: [1] * SIZE for name in names}, {name: [1] * len(GAUGES) for name in names}
texts = {f"worker-{number}": sample(now, counts, 10) for number in range(WORKERS)}
texts[""] = site_sample(now, 0.01, {"channels": gauges, "sockets": 1, "servers": 1, "workers": WORKERS})
layer.rows(Sample).bulk_create(Sample(at=layer.moment(now), source=one, data=data) for one, data in texts.items())
connection.cursor().execute(
    """INSERT INTO dbchannels_sample (at, source, data)
    SELECT to_timestamp(moment), source, replace(data, %s, moment::text)
    FROM dbchannels_sample, generate_series(%s::bigint, %s, %s) AS moment""",
    [str(now), now - KEPT + PERIOD, now - PERIOD, PERIOD],
)
connection.cursor().execute("VACUUM ANALYZE")

backend = connection.connection.info.backend_pid

def spent():
    with open(f"/proc/{backend}/schedstat") as file:
        return time.process_time() + int(file.read().split()[0]) / 1e9

def ask(since):
    cached._read_at, queries, before_all, began = 0.0, [], spent(), time.perf_counter()
    def timed(execute, *given):
        before = time.perf_counter()
        result = execute(*given)
        queries.append(time.perf_counter() - before)
        return result
    with connection.execute_wrapper(timed):
        found = live_data(since)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "processor": spent() - before_all, "every": found["ask_in"], "queries": queries,
            "bytes": len(json.dumps(found))}

ask(0.0)
print(json.dumps({"opening": ask(0.0), "asks": [ask(float(now)) for _ in range(ASKS)]}))
'''


def measured(messages: int) -> dict[str, Any]:
    """Return what an opening costs, and each ask afterwards, with so many messages that wait."""
    given = {"MESSAGES": messages, "WORKERS": WORKERS, "ASKS": ASKS}
    with on_postgresql() as (site, _):
        code = "\n".join(f"{name} = {value}" for name, value in given.items()) + MEASURE
        return dict(json.loads(site.shell(code).splitlines()[-1]))


def _cost(scale: float) -> Seen:
    messages = scaled(50_000, scale, 1_000)
    found = measured(messages)
    opening, asks = found["opening"], found["asks"]
    processor, every = (statistics.mean(one[key] for one in asks) for key in ("processor", "every"))
    text = (
        f"{messages:,} messages: opening {1000 * opening['seconds']:.0f} ms in {len(opening['queries'])} queries, the "
        f"slowest {1000 * max(opening['queries']):.0f} ms, {opening['bytes'] / 1000:.0f} kB; afterwards "
        f"{1000 * processor:.1f} ms of a core every {every:.1f} s, {60 * processor / every:.2f} s a minute; the "
        "database is counted"
    )
    return Seen(text, opening["seconds"] < 1 and processor / every < 0.01)


ROWS = [Row(0, "the live page with 1,000 channels", "opens in < 1 s, costs < 1 % of a core", _cost)]
