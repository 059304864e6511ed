"""What pg_dump writes can be loaded: the data alone into tables that are there, and all into an empty database."""

from __future__ import annotations

import os
import subprocess
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest
from django.db import connection

from dbchannels.layers.operations import GroupAdd
from dbchannels.layers.postgresql.session import connection_parameters
from dbchannels.layers.postgresql.sql_groups import SEND_GROUP
from dbchannels.models import DurableMessage, Membership, Process
from examples import embedded_postgres
from examples.embedded_postgres import binaries
from tests import kinds
from tests.conftest import empty_tables
from tests.layers.test_tally import adds_up

pytestmark = kinds.only("postgresql")

# Of the very server that the tests run on: pg_dump refuses a newer one.
KIND = os.environ.get(embedded_postgres.CHOICE)
PROGRAMS = next(
    (
        one
        for one in binaries.find(KIND if KIND in ("system", "wheel") else None)
        if (Path(one.folder) / "pg_dump").exists()
    ),
    None,
)
WHERE = {"HOST": "--host", "PORT": "--port", "USER": "--username"}


def program(name, *arguments, **keywords):
    """Run one of PostgreSQL's programs on the test's server."""
    settings = connection.settings_dict
    where = [part for key, option in WHERE.items() if settings[key] for part in (option, str(settings[key]))]
    done = subprocess.run(
        [f"{PROGRAMS.folder}/{name}", *where, *arguments], capture_output=True, text=True, cwd="/", **keywords
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def written(layer, new_link):
    """What a dump is made of: memberships of a server and of a channel of the site's, and a message."""
    if PROGRAMS is None:
        pytest.skip("no pg_dump")
    link = new_link(layer)
    link.register("a", Process.SERVER, "reply.a!")
    link.apply([GroupAdd("group", f"reply.a!{number:022}") for number in range(60)])
    link.clean_up()  # some of the tally is merged, some is not
    layer.group_add("group", "reply.a!last")
    layer.group_add("other", "own")
    layer.send("own", {})


def test_the_data_alone_can_be_restored(layer, written, new_link):
    name = connection.settings_dict["NAME"]
    dump = program("pg_dump", "--data-only", "--table=dbchannels_*", name)
    empty_tables("default")
    program("psql", "--quiet", "--single-transaction", "--set=ON_ERROR_STOP=1", name, input=dump)
    assert (Membership.objects.count(), DurableMessage.objects.count()) == (62, 1)
    assert adds_up()
    layer.send_group("group", {})
    (message,) = new_link(layer).receive_many(["reply.a!"], 10)
    assert len(message.recipients) == 61


def test_all_can_be_restored_into_an_empty_database(layer, written):
    settings = {**connection.settings_dict, "NAME": "restored"}
    program("createdb", "--template=template0", "restored")
    try:
        dump = program("pg_dump", connection.settings_dict["NAME"])
        program("psql", "--quiet", "--set=ON_ERROR_STOP=1", "restored", input=dump)
        with closing(psycopg2.connect(**connection_parameters(settings, "test"))) as restored:
            cursor = restored.cursor()
            cursor.execute(
                "SELECT channel, sum(members) FROM dbchannels_tally GROUP BY channel ORDER BY channel"
            )
            assert cursor.fetchall() == [("own", 1), ("reply.a!", 61)]
            cursor.execute("TRUNCATE dbchannels_protocolmessage")
            cursor.execute(SEND_GROUP, ("group", b"\x80", 60.0, [""], [None], False, []))
            cursor.execute("SELECT count(*) FROM dbchannels_protocolmessage")
            assert cursor.fetchone() == (1,)
    finally:
        program("dropdb", "restored")
