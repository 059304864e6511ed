"""Views that leave their answer to others, with the client of tests."""

from __future__ import annotations

from unittest import mock

import pytest
from django.contrib.auth.models import Group as Model
from django.db import connection
from django.test import TestCase, override_settings

from dbchannels import Group, ResponseLater
from dbchannels.testing import ChannelClient, ChannelTestCase
from tests.testing.site import ROUTING


@override_settings(DBCHANNELS=ROUTING, ROOT_URLCONF="tests.testing.urls")
class Later(ChannelTestCase):
    def test_the_answer_is_what_is_sent_to_the_reply_channel(self):
        first, second = self.client.get("/later/"), self.client.get("/later/")
        assert Model.objects.exists()  # what the view wrote is kept
        assert not first.later.arrived
        with pytest.raises(AssertionError, match=r"The request of /later/ was not answered\.$"):
            first.later.receive()
        headers = [[b"Content-Type", b"text/plain"], [b"X-Own", b"1"]]
        Group("waiting").send({"status": 201, "headers": headers, "content": b"news"})
        for response in (first.later.receive(), second.later.receive()):
            assert (response.status_code, response.content, response["X-Own"]) == (201, b"news", "1")

    def test_a_stream_has_arrived_with_its_last_part(self):
        later = self.client.get("/later/").later
        Group("waiting").send({"status": 200, "content": b"a", "more_content": True})
        assert (later.arrived, later.content) == (False, b"a")
        Group("waiting").send({"content": b"b", "more_content": False})
        assert later.receive().content == b"ab"

    def test_a_client_that_does_not_wait_is_told_of(self):
        self.client.get("/later/").later.leave()
        self.assertSent("done", left="/later/")
        Group("waiting").send({"status": 200, "content": b"nobody reads this"})

    def test_with_atomic_requests_what_the_view_did_is_kept_as_ever(self):
        with mock.patch.dict(connection.settings_dict, ATOMIC_REQUESTS=True):
            later = self.client.get("/later/").later
        assert Model.objects.exists()
        Group("waiting").send({"status": 204})
        assert later.receive().status_code == 204

    def test_a_stream_of_events_has_what_is_sent_to_its_groups(self):
        later = self.client.get("/news/").later
        Group("news", history=5).send(text="one\ntwo")
        Group("more").send(text="three", event="price")
        self.assertSent(Group("news"), text="one\ntwo")
        lines = [line for line in later.content.decode().split("\n") if not line.startswith("id: ")]
        assert "\n".join(lines) == "\nevent: price\ndata: three\n\ndata: one\ndata: two\n\n"
        Group("news").send(close=True)
        response = later.receive()
        assert (response.status_code, response["Content-Type"]) == (200, "text/event-stream")
        assert (response["Cache-Control"], response["X-Accel-Buffering"]) == ("no-store", "no")
        assert response["Set-Cookie"].startswith("seen=yes") and "Content-Length" not in response

    def test_a_stream_of_events_has_a_head_alone_too(self):
        """A request that waits would hold its connection until its client left."""
        response = self.client.head("/news/")
        assert (response.status_code, response["Content-Type"]) == (200, "text/event-stream")
        assert not hasattr(response, "later")

    def test_a_stream_of_events_begins_after_the_last_id(self):
        first = self.client.get("/news/").later
        for number in range(3):
            Group("news", history=5).send(text=str(number))
        ids = [line[4:] for line in first.content.decode().split("\n") if line.startswith("id: ")]
        assert len(ids) == 4
        first.leave()
        for last_id, left in (
            (ids[1], ["1", "2"]),
            (ids[3], []),
            ("garbage", ["0", "0", "1", "2"]),
        ):  # first the gap
            for given in (
                {"headers": {"Last-Event-ID": last_id}},
                {"query_params": {"last-event-id": last_id}},
            ):
                content = self.client.get("/news/", **given).later.content.decode()
                heard = [line[6:] for line in content.split("\n") if line.startswith("data: ")]
                assert heard == left, given

    def test_a_stream_of_events_begins_whatever_a_stranger_asks(self):
        Group("news", history=5).send(text="hi")
        for query, headers in (
            ("&".join(["a"] * 2000), {"Last-Event-ID": "0"}),
            ("&".join(["a"] * 2000 + ["last-event-id=0"]), {}),
            ("last-event-id=%ED%A0%80", {}),
            (r"last-event-id=\ud800", {"Content-Type": "text/plain; charset=unicode_escape"}),
        ):
            content = self.client.get(f"/news/?{query}", headers=headers).later.content
            assert content.endswith(b"data: hi\n\n"), query

    def test_other_views_answer_as_ever(self):
        assert not hasattr(self.client.get("/rows/"), "later")
        with pytest.raises(ValueError, match="view failed"):
            self.client.get("/fail/")


@override_settings(ROOT_URLCONF="tests.testing.urls")
class Plain(TestCase):
    client_class = ChannelClient

    def test_without_channels_it_is_djangos_client(self):
        assert self.client.get("/rows/").content == b""

    def test_a_stream_of_events_without_a_worker_is_an_error(self):
        with pytest.raises(ResponseLater, match="interface server"):
            list(self.client.get("/news/"))
