"""The page about metrics, its alerts and the dashboard name only metrics that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from textwrap import dedent

import pytest

from dbchannels.measures import MOST
from dbchannels.server.metrics import COUNTER, HISTOGRAM, METRICS, STALE
from dbchannels.server.metrics import MOST as MOST_VALUES
from dbchannels.worker.batch import Measures
from dbchannels.worker.sampler import Sampler
from tests import kinds

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/metrics.rst").read_text()
DASHBOARD = json.loads((ROOT / "examples/grafana-dashboard.json").read_text())

#: The names of all lines that are shown, and the labels of each.
LINES = {
    f"dbchannels_{name}{end}": {label, *(("le",) if end == "_bucket" else ())}
    for name, kind, label, _ in METRICS
    for end in {COUNTER: ("_total",), HISTOGRAM: ("_bucket", "_sum", "_count")}.get(kind, ("",))
}
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
ALERTS = re.findall(r"^ +expr: (.+)$", PAGE, re.MULTILINE)


def test_the_table_has_each_metric():
    rows = re.findall(r"^``(\w+)``  +(counter|gauge|histogram)  +(\S+)  +(.+)$", PAGE, re.MULTILINE)
    assert rows == [
        (name + "_total" * (kind == COUNTER), kind, f"``{label}``" if label else "\\", text)
        for name, kind, label, text in METRICS
    ]


def test_the_page_says_the_limits():
    assert f"Beyond {MOST:,} channels" in PAGE and f"beyond {MOST_VALUES} statuses" in PAGE
    assert f"{STALE / 60:.0f} minutes" in PAGE


@pytest.mark.parametrize("query", [*QUERIES, *ALERTS])
def test_a_query_names_what_exists(query):
    names = re.findall(r"\bdbchannels_\w+", query)
    assert names
    assert set(names) <= set(LINES)
    labels = {
        one.strip() for found in re.findall(r"\b(?:by|on) \(([^)]*)\)", query) for one in found.split(",")
    }
    for label in labels - {"instance"}:
        assert all(label in LINES[name] for name in names), (label, query)
    assert query.count("(") == query.count(")")


def test_there_are_three_alerts_and_a_dashboard():
    assert len(ALERTS) == 3
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"]) > 5
    # Every metric that an operator looks at is drawn somewhere.
    drawn = {name for query in QUERIES for name in re.findall(r"\bdbchannels_\w+", query)}
    assert {name for name in LINES if name.startswith("dbchannels_site_")} - drawn <= {
        "dbchannels_site_takers",
        "dbchannels_site_counted_timestamp_seconds",
    }


@kinds.on_databases
def test_the_code_of_the_page_gives_the_series_that_it_lists(layer, new_link):
    layer.send("invoices", {})
    Sampler(new_link(layer), Measures()).look("w1")
    names = {}
    (block,) = re.findall(r"^.. code-block:: python\n\n((?:   .*\n|\n)+)", PAGE, re.MULTILINE)
    exec(dedent(block), names)
    series = names["invoices"]["values"]
    assert series["ready"] == [1]
    listed = PAGE[PAGE.index('``site["moments"]``') : PAGE.index("Percentiles are estimated")]
    assert set(re.findall(r"``(\w+)``", listed)) == set(names["site"]["values"])
    assert set(names["site"]["values"]) - set(series) == {"sockets", "servers", "workers"}
