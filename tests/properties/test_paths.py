"""Whatever a route's path is made of: what reverse gives is matched by that route, with the same captures."""

from __future__ import annotations

import re
from urllib.parse import unquote

from hypothesis import given
from hypothesis import strategies as st

from dbchannels import include, reverse, route
from dbchannels.routing import table
from dbchannels.routing.patterns import EXPRESSION, compile_pattern
from dbchannels.routing.table import Routing
from tests.profiles import examples

VALUES = {
    "int": st.integers(min_value=0),
    "slug": st.from_regex(r"[-a-zA-Z0-9_]+", fullmatch=True),
    "str": st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), min_size=1),
    "uuid": st.uuids(),
}
LITERALS = st.text(st.characters(exclude_characters="<>", exclude_categories=["Cs"]), max_size=5).map(
    lambda text: EXPRESSION.sub("", text)
)


@st.composite
def paths(draw, name):
    """Return a path with captures, each between slashes, and values for them."""
    kinds = draw(st.lists(st.sampled_from(sorted(VALUES)), max_size=3))
    path, values = draw(LITERALS), {}
    for number, kind in enumerate(kinds):
        values[f"{name}{number}"] = draw(VALUES[kind])
        path += f"/<{kind}:{name}{number}>/" + draw(LITERALS)
    return path, values


def consume(message, **captures):
    """A consumer."""


@examples(100)
@given(prefix=paths("outer"), rest=paths("inner"))
def test_what_is_reversed_is_matched(prefix, rest):
    routing = Routing([include([route("own", consume, path=rest[0], name="there")], path=prefix[0])])
    table.site_routing.cache_clear()
    kept, table.load_routing = table.load_routing, lambda setting, alias: routing
    try:
        path = unquote(reverse("there", {**prefix[1], **rest[1]}))
    finally:
        table.load_routing = kept
        table.site_routing.cache_clear()
    found = routing.match("own", {"path": path})
    assert found and found[1] == {**prefix[1], **rest[1]}


@examples(100)
@given(text=st.text(max_size=20), value=st.text(max_size=20))
def test_a_path_without_captures_matches_itself_alone(text, value):
    text = re.sub("[<>]", "", EXPRESSION.sub("", text))
    regex = compile_pattern("path", text).regex
    assert regex.match(text)
    assert bool(regex.match(value)) == (value == text)
