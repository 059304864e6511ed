"""What docs/server.rst says by name is what the code has."""

from __future__ import annotations

import re

from dbchannels.redaction import SECRET_WORDS
from tests.docs import pages

PAGE = " ".join(pages.text("server").split())


def test_the_words_that_it_calls_secret_are():
    words = re.findall(
        r"``(\w+)``", PAGE[PAGE.index("contains one of the words") : PAGE.index("and a few like")]
    )
    assert len(words) > 5
    assert set(words) <= SECRET_WORDS
