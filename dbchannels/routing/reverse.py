"""``reverse``: the path of a route by its name, like ``django.urls.reverse`` for views."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from django.urls import NoReverseMatch
from django.utils.http import RFC3986_SUBDELIMS, escape_leading_slashes

from dbchannels.exceptions import safe_repr
from dbchannels.routing.patterns import Pattern
from dbchannels.routing.routes import BoundRoute, Consumer
from dbchannels.routing.table import site_routing

_GAP = re.compile(r"%\((\w+)\)s")


def reverse(to: str | Consumer, kwargs: Mapping[str, Any] | None = None, *, layer: str = "default") -> str:
    """Return the path of the first route with this name whose captures are exactly these keywords.

    ``to`` is the route's ``name`` (``"namespace:name"`` in an include with a namespace), its consumer, or the
    consumer's dotted name. The path is quoted as in a URL. The first call imports the site's consumers. Raises
    NoReverseMatch, and InvalidConfiguration for an invalid routing::

        reverse("room", kwargs={"room": "tea"})  # "/chat/tea/"
    """
    given = dict(kwargs or {})
    bound = site_routing(layer).bound_routes()
    if isinstance(to, str):
        found = [one for one in bound if to in (one.url_name, one.route.name)]
    else:
        found = [one for one in bound if inspect.unwrap(one.route.consumer) == inspect.unwrap(to)]
    for one in found:
        path = _path(one.patterns().get("path", []), given)
        if path is not None:
            return escape_leading_slashes(quote(path, safe=RFC3986_SUBDELIMS + "/~:@"))
    raise NoReverseMatch(_sentence(to, given, found))


def _path(chain: Sequence[Pattern], given: dict[str, Any]) -> str | None:
    """Return the text that the patterns match one after another, with exactly these captures; None if there is none."""
    for parts in itertools.product(*(one.candidates() for one in chain)) if chain else ():
        if {name for _, captured in parts for name in captured} != set(given):
            continue
        try:
            path = "".join(
                _GAP.sub(lambda gap, one=one: _text(one, gap[1], given), text)  # type: ignore[misc]
                for (text, _), one in zip(parts, chain, strict=True)
            )
        except ValueError:  # a converter refuses the value
            continue
        if _matches(chain, path, given):
            return path
    return None


def _text(pattern: Pattern, name: str, given: dict[str, Any]) -> str:
    converter = pattern.converters.get(name)
    return str(given[name] if converter is None else converter.to_url(given[name]))


def _matches(chain: Sequence[Pattern], path: str, given: dict[str, Any]) -> bool:
    """Whether the path gives these captures back: a slash in a slug, for example, would change the path."""
    rest = path
    for pattern in chain:
        found = pattern.regex.match(rest)
        if found is None:
            return False
        captured = {name: text for name, text in found.groupdict().items() if text is not None}
        if any(text != _text(pattern, name, given) for name, text in captured.items()):
            return False
        rest = rest[found.end() :]
    return True


def _sentence(to: str | Consumer, given: dict[str, Any], found: Sequence[BoundRoute]) -> str:
    called = to if isinstance(to, str) else f"{to.__module__}.{getattr(to, '__qualname__', repr(to))}"
    if not found:
        return (
            f"Reverse for {called!r} not found. It is neither the name of a route nor a consumer with a route: give a "
            f"route name={called.rpartition('.')[2]!r}, or run 'manage.py showchannels' to list the routes."
        )
    tried = [one.shown_filters().get("path") for one in found]
    if not any(tried):
        return f"Reverse for {called!r} not found. Its route has no filter on the path: add path=... to it."
    arguments = f"keyword arguments {safe_repr(given, 200)}" if given else "no arguments"
    paths = ", ".join(repr(text) for text in tried if text)
    return f"Reverse for {called!r} with {arguments} not found. {len(tried)} pattern(s) tried: {paths}"
