"""Fault 42: a text that makes a pattern slow; the patterns themselves are in tests/test_linear.py."""

from __future__ import annotations

from tests.soak import slow_texts


def test_no_text_of_a_stranger_is_slow_anywhere(site):
    served = site.serve(*slow_texts.OPTIONS)
    found = slow_texts.slow_texts(served, ["?_key_", '"', "127.0.0.1,"])
    assert found.longest[32_000] < 10  # the whole server stood for minutes
    assert found.statuses <= {101, 200, 400, 403, 404}
    assert served.get("/").status == 200 and "Traceback" not in served.output()
