"""A database in an encoding of one byte: what a site says is refused in a sentence, the rest is written out."""

from __future__ import annotations

import pytest
from django.db import connection, connections

from dbchannels.exceptions import InvalidMessage
from dbchannels.layers import orm
from dbchannels.layers.postgresql.session import Session
from dbchannels.models import DurableMessage
from dbchannels.testing.contract.case import raises
from tests import kinds

both = kinds.only("postgresql", "polling")


@pytest.fixture
def latin1(django_db_setup, django_db_blocker):
    """An entry of DATABASES for an empty database in LATIN1."""
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        cursor.execute(
            "CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        )
        yield {**connection.settings_dict, "NAME": "latin"}
        cursor.execute("DROP DATABASE latin")


@kinds.only("postgresql")
def test_what_the_database_cannot_keep_is_written_out_by_sessions_of_ours(layer, latin1):
    session = Session(latin1, "test", False)
    session.execute([("CREATE TABLE kept (text text, texts text[])", {})])
    insert = "INSERT INTO kept VALUES (%(text)s, %(texts)s::text[]) RETURNING text, texts"
    assert session.execute([(insert, {"text": "/\u00e9", "texts": ["\u00e9"]})]) == [("/\u00e9", ["\u00e9"])]
    kept = session.execute([(insert, {"text": "/\u20ac", "texts": ["a", "\u20ac"]})])
    assert kept == [("/\\u20ac", ["a", "\\u20ac"])]
    assert session.execute([("SELECT count(*) FROM kept", {})]) == [(2,)]
    session.close()


@both
@pytest.mark.parametrize("encoding", ["LATIN1", "WIN1251", "ISO_8859_5", "KOI8R", "EUC_KR"])
def test_a_key_that_the_database_cannot_keep_is_one_sentence_at_the_send(layer, monkeypatch, encoding):
    monkeypatch.setattr(orm, "encoding_of", lambda database: encoding)
    bad = "\U0001f600"
    with connections[layer.database].execute_wrapper(never):
        for call in (
            lambda: layer.send("own", {}, unique=bad),
            lambda: layer.identify("reply.a!b", bad),
            lambda: layer.make_send("own", {}, unique=bad),
        ):
            with raises(InvalidMessage) as refused:
                call()
            assert encoding in refused.sentence and "in UTF8" in refused.sentence
    layer.send("own", {}, unique="key")


def never(*arguments):
    raise AssertionError("a statement was run")


@both
@pytest.mark.parametrize("encoding", ["UTF8", "SQL_ASCII"])
def test_where_it_can_it_is_kept(layer, monkeypatch, encoding):
    monkeypatch.setattr(orm, "encoding_of", lambda database: encoding)
    layer.send("own", {}, unique="\u20ac")
    assert DurableMessage.objects.get().unique_key == "\u20ac"
