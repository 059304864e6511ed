"""ChannelLiveServerTestCase with a browser: one test, as a site's developer writes it."""

from __future__ import annotations

import os
from unittest import mock

import pytest
from django.test import override_settings
from playwright.sync_api import expect, sync_playwright

from dbchannels import Group
from dbchannels.testing import ChannelLiveServerTestCase
from tests.browser.conftest import ARGUMENTS, CHROMIUM
from tests.browser.pagesite import SETTINGS


@pytest.mark.browser
@override_settings(**{name: SETTINGS[name] for name in ("ROOT_URLCONF", "DBCHANNELS")})
class Browsing(ChannelLiveServerTestCase):
    @classmethod
    def setUpClass(cls):
        if CHROMIUM is None:
            pytest.skip("no Chromium: install Debian's package chromium-headless-shell")
        super().setUpClass()
        # Playwright's event loop runs in this thread, and Django refuses its ORM there.
        unsafe = mock.patch.dict(os.environ, DJANGO_ALLOW_ASYNC_UNSAFE="true")
        unsafe.start()
        cls.addClassCleanup(unsafe.stop)
        playwright = sync_playwright().start()
        cls.addClassCleanup(playwright.stop)
        cls.browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        cls.addClassCleanup(cls.browser.close)

    def test_the_page_shows_what_a_visitor_writes_and_what_the_test_sends(self):
        pages = [self.browser.new_page() for _ in range(2)]
        for page in pages:
            page.goto(f"{self.live_server_url}/docs/")
            expect(page.locator("#state")).to_have_text("Connected")
        pages[0].get_by_label("Line").fill("hello")
        pages[0].get_by_label("Line").press("Enter")
        expect(pages[1].locator("#lines li")).to_have_text(["hello"])
        Group("garden").send({"text": '{"line": "from the test"}'})
        for page in pages:
            expect(page.locator("#lines li")).to_have_text(["hello", "from the test"])
            page.close()
