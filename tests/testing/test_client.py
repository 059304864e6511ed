"""Views that leave their answer to others, with the client of tests."""

from __future__ import annotations

from unittest import mock

import pytest
from django.contrib.auth.models import Group as Model
from django.db import connection
from django.test import TestCase, override_settings

from dbchannels import Group
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

    def test_other_views_answer_as_ever(self):
        assert not hasattr(self.client.get("/rows/"), "later")
        with pytest.raises(ValueError, match="view failed"):
            self.client.get("/fail/")


@override_settings(ROOT_URLCONF="tests.testing.urls")
class Plain(TestCase):
    client_class = ChannelClient

    def test_without_channels_it_is_djangos_client(self):
        assert self.client.get("/rows/").content == b""
