"""The site's own WSGI application answers, wrapped by WhiteNoise, patched by Sentry's SDK, whoever runs it."""

from __future__ import annotations

import pytest

from tests.harness import until


@pytest.mark.parametrize("http", ["channels", "direct"])
def test_what_wraps_and_patches_the_application_works(site, http):
    (site.folder / "files").mkdir(exist_ok=True)
    (site.folder / "files" / "a.txt").write_bytes(b"x" * 300_000)
    settings = {
        "WSGI_APPLICATION": "livesite.wrapped.application",
        "ROOT_URLCONF": "livesite.monitored",
        "FORCE_SCRIPT_NAME": "/below",
        "LOGGING": {"version": 1},  # which disables the loggers there are each time that Django is set up
        "DATABASES": {"default": {**site.database, "ATOMIC_REQUESTS": True}},
    }
    served = site.serve("--workers", "1", "--http", http, settings=settings)
    processes = [served.process.pid, *served.workers(1)]

    assert served.get("/files/a.txt").content == b"x" * 300_000
    assert served.get("/where").json() == {"path": "/below/where", "reversed": "/below/where"}
    assert served.socket("/echo/").ask("a frame") == "a frame"
    assert served.get("/tagged").text == "tagged"
    assert served.get("/boom").status == 500
    assert served.get("/stream").text == "one,two"
    if http == "channels":
        assert served.get("/later").text == "later"
    found = served.get("/reports").json()
    assert found["pid"] == processes[http == "channels"]
    (report,) = found["reports"]  # a view that leaves its answer to others has not failed
    assert report["error"] == "ValueError" and "visitor" not in report["tags"]
    assert http == "direct" or report["tags"] == {"site": "live"}  # as the process has begun
    assert not {"anna was here", "bob was here"} & {*report["crumbs"]}
    assert report["url"].endswith("/boom")
    assert site.entries() == ["kept"] * (http == "channels")

    assert served.socket("/broken/").status == 500
    for text in ("raised on a message of websocket.connect", "GET /where"):
        until(lambda text=text: text in served.output(), f"the log goes on: {text}")
