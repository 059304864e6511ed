"""Views that leave their answer to others, with the client of tests."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import Group as Model
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
        assert not later.arrived
        Group("waiting").send({"content": b"b", "more_content": False})
        assert later.receive().content == b"ab"

    def test_a_client_that_does_not_wait_is_told_of(self):
        self.client.get("/later/").later.leave()
        self.assertSent("done", left="/later/")
        Group("waiting").send({"status": 200, "content": b"nobody reads this"})

    def test_other_views_answer_as_ever(self):
        assert not hasattr(self.client.get("/rows/"), "later")
        with pytest.raises(ValueError, match="view failed"):
            self.client.get("/fail/")


@override_settings(ROOT_URLCONF="tests.testing.urls")
class Plain(TestCase):
    client_class = ChannelClient

    def test_without_channels_it_is_djangos_client(self):
        assert self.client.get("/rows/").content == b""
