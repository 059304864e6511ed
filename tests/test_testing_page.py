"""What docs/testing.rst shows is what runs: its project is made, and its tests pass."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import dbchannels.testing
from dbchannels.testing import Channels, ClientSocket, SentMessage, plugin
from tests.testing.test_plugin import SETTINGS, URLS, run

PAGE = (Path(__file__).parents[1] / "docs" / "testing.rst").read_text()
BLOCKS = dict(re.findall(r":caption: (.+)\n\n((?:   .*\n|\n)+)", PAGE))
COFFEE = """
from dbchannels.testing import ChannelTestCase

class Failure(ChannelTestCase):
    def test_it_is_as_shown(self):
        self.client.ws("/orders/").send("tea")
        with self.assertRaises(AssertionError) as raised:
            self.assertSent("bills", item="coffee")
        self.assertEqual(str(raised.exception), SHOWN)
"""


def test_its_project_passes_its_tests(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    shown = textwrap.dedent(re.findall(r"::\n\n((?: {8}.*\n)+)", PAGE)[0]).rstrip()
    files = {
        "config.py": SETTINGS.replace("TEST}", "'test.sqlite3'}").replace("Group", "User"),
        "shop/urls.py": URLS.replace("Group", "User"),
        "shop/test_failure.py": f"SHOWN = {shown!r}\n{COFFEE}",
        "pytest.ini": "[pytest]\nDJANGO_SETTINGS_MODULE = config\npythonpath = .\npython_files = *test*.py\n",
        **{name: textwrap.dedent(text) for name, text in BLOCKS.items()},
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    done = run(tmp_path)
    assert "6 passed" in done.stdout, done.stdout + done.stderr


def test_it_names_all_that_a_test_may_use():
    fixtures = [
        name
        for name in vars(plugin)
        if not name.startswith("_") and hasattr(vars(plugin)[name], "__wrapped__")
    ]
    methods = [name for one in (Channels, ClientSocket) for name in vars(one) if not name.startswith("_")]
    internal = {"accept", "refuse", "connect", "explain", "run", "waiting"}
    words = set(re.findall(r"\w+", PAGE))
    wanted = {*dbchannels.testing.__all__, *fixtures, *methods, *SentMessage.__annotations__}
    wanted -= {"Channels", "ClientSocket", "SentMessage", *internal}
    assert len(wanted) > 30
    assert wanted - words == set()
