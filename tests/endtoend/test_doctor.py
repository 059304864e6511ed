"""``manage.py channels_doctor`` and its sisters on whole sites: one that is served, and some that are broken."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from examples.embedded_postgres import EmbeddedPostgres
from tests.endtoend.conftest import postgresql_database, sqlite_database
from tests.harness import LiveSite, Served, until
from tests.pooler import PROGRAM, pooled

GOOD = {"SECRET_KEY": "x7!kq0-w2m9$z1v8b4n6c3l5j7h9g2f4d6s8a0p1o3i5u7y9t2r4e6w8q0"}
SECRET = "hunter2-is-no-password"


def wrong(site: LiveSite, *arguments: str, **settings: object) -> list[str]:
    """Run the doctor in a process of its own; return what is wrong. Nothing secret is printed."""
    done = site.manage(
        "channels_doctor", "--json", "--max-connections", "100", *arguments, settings={**GOOD, **settings}
    )
    assert GOOD["SECRET_KEY"] not in done.stdout + done.stderr and SECRET not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    found = [one["text"] for one in json.loads(done.stdout) if one["status"] == "wrong"]
    assert done.returncode == bool(found)
    return found


def test_a_served_site_is_well(any_site: LiveSite) -> None:
    any_site.serve("--workers", "1", settings=GOOD)
    until(lambda: any_site.count("process", "kind = 'worker' AND work <> ''"), "the worker is on record")
    assert wrong(any_site) == []


@pytest.mark.postgresql
def test_a_stopped_server_is_reported_and_the_rest_goes_on(tmp_path: Path) -> None:
    with EmbeddedPostgres.start() as server:
        site = LiveSite({**server.settings(), "PASSWORD": SECRET}, tmp_path)
    (text,) = wrong(site)
    assert text.startswith("The database 'default' does not answer (") and "start it" in text


@pytest.mark.postgresql
def test_a_database_without_tables_is_reported(tmp_path: Path) -> None:
    site = LiveSite(postgresql_database("dbchannels_bare"), tmp_path)
    (text,) = wrong(site)
    assert text.startswith("The database lacks 4 migrations of dbchannels: run 'manage.py migrate")


def test_a_file_without_tables_is_reported(tmp_path: Path) -> None:
    (text,) = wrong(LiveSite(sqlite_database(tmp_path), tmp_path))
    assert text.startswith("The database lacks 4 migrations of dbchannels: run 'manage.py migrate")


@pytest.mark.postgresql
@pytest.mark.pooler
def test_a_pooler_in_transaction_mode_is_reported(site: LiveSite) -> None:
    if PROGRAM is None:
        pytest.skip("no pgbouncer: apt-get install pgbouncer")
    with pooled(site.database) as through:
        found = wrong(LiveSite(through, site.folder))
        assert any(text.startswith("A pooler in transaction mode stands between") for text in found), found
        direct = {
            "default": {"OPTIONS": {"direct": {"HOST": site.database["HOST"], "PORT": site.database["PORT"]}}}
        }
        found = wrong(LiveSite(through, site.folder), DBCHANNELS=direct)
        assert not any("pooler" in text for text in found), found


@pytest.mark.psycopg3
def test_psycopg_3_serves_as_well(site: LiveSite, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = os.environ.get("DBCHANNELS_PSYCOPG3", "")
    if not os.path.isdir(os.path.join(folder, "psycopg")):
        pytest.skip("no psycopg 3: set DBCHANNELS_PSYCOPG3=FOLDER")
    environment = site.environment

    def with_psycopg3(settings: dict[str, object] | None = None) -> dict[str, str]:
        given = environment(settings)
        return {**given, "PYTHONPATH": f"{folder}:{given['PYTHONPATH']}"}

    monkeypatch.setattr(site, "environment", with_psycopg3)
    site.send("ledger", {"text": "x"})
    found = wrong(site)
    assert "No server is alive: start runchannels." in found
    assert all("alive" in text or "no live worker" in text for text in found), found
    assert "ledger" in site.manage("channels_status").stdout


def test_a_watch_ends_at_an_interrupt(any_site: LiveSite) -> None:
    served = Served(any_site, ["channels_status", "--watch", "0.1"], None)
    any_site.processes.append(served)
    until(lambda: served.output().count("TAKEN BY") > 2, served.output, 60)
    assert served.terminate(signal.SIGINT) == 0
    assert "Traceback" not in served.output()
