"""Patterns: what one field of a message must look like for a route, and the text that a reverse makes of it.

There are two kinds, told apart by their characters. One that holds any of ``^ $ * + ? ( ) [ ] { } | \\`` is a
regular expression, searched from the start of the field; one with ``$`` at its end lets no newline follow, as in
Django's ``re_path()``. Every other one is a **path**, as in Django's ``path()``: it is the whole field (in an
``include`` its beginning), and ``<slug:room>`` in it captures, by Django's converters. ``path="chat/"`` is
``path="/chat/"``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from django.urls.converters import get_converters
from django.utils.regex_helper import normalize

from dbchannels.exceptions import InvalidConfiguration, safe_repr

EXPRESSION = re.compile(r"[\^$*+?()\[\]{}|\\]")  # a character that makes a pattern a regular expression
_CAPTURE = re.compile(r"<(?:([^<>:]*):)?([^<>:]*)>")
#: What stands in a regular expression where a path's capture may have been meant: not (?P<name>, (?<= or \<.
_STRAY = re.compile(r"(?<![\\P?])<(?:(\w+):)?(\w+)>")
#: The beginning of a regular expression whose first character is there, and is no slash.
_NO_SLASH = re.compile(r"(?:\^|\\A)?(?:\((?:\?P<\w+>|\?:)?)*(?:[\w-]|\\[wd]|\[[^\]^/]*\])(?![*?{])")
#: What Django's own converters match is matched by these others too.
WIDER = {
    "int": ("int", "slug", "str", "path"),
    "uuid": ("uuid", "slug", "str", "path"),
    "slug": ("slug", "str", "path"),
    "str": ("str", "path"),
    "path": ("path",),
}
ANYTHING = ("", "^", ".*", "^.*", "^.*$")


class Pattern(NamedTuple):
    """One pattern, compiled."""

    text: str  # as it was written
    regex: re.Pattern[str]
    converters: Mapping[str, Any]  # of a path, by the capture's name
    is_path: bool
    whole: bool  # a path that is the whole field, not its beginning

    @property
    def ends(self) -> bool:
        """Whether a regular expression says that the field ends with it."""
        return (
            not self.is_path and self.regex.pattern.endswith("$") and not self.regex.pattern.endswith(r"\$")
        )

    def candidates(self) -> list[tuple[str, list[str]]]:
        """Return texts with ``%(name)s`` for their captures, and the names of these, that may match."""
        if self.is_path:
            return [(_CAPTURE.sub(r"%(\2)s", self.text), list(self.converters))]
        return [(text, list(names)) for text, names in normalize(self.regex.pattern)]

    def covers(self, later: Pattern) -> bool:
        """Whether this one is known to match whatever the other matches, so that a route behind it is never reached."""
        if self.text == later.text:
            return self.whole == later.whole or later.whole
        if not self.is_path and self.text in ANYTHING:
            return True
        if later.is_path and later.whole and not later.converters:
            found = self.regex.match(later.text)
            return found is not None and convert(found.groupdict(), self.converters)
        return (
            self.is_path and later.is_path and self.whole and later.whole and _is_wider(self.text, later.text)
        )


def convert(captures: dict[str, Any], converters: Mapping[str, Any]) -> bool:
    """Put in place of captured texts what their converters make of them; False: one of them is no match after all."""
    try:
        for name, converter in converters.items():
            captures[name] = converter.to_python(captures[name])
    except ValueError:  # Django's way for a converter to say that this is none of its
        return False
    return True


def compile_pattern(key: str, text: object, *, whole: bool = True) -> Pattern:
    """Return the pattern of the field ``key``; raises InvalidConfiguration. A compiled one is a regular expression."""
    if isinstance(text, str) and not EXPRESSION.search(text):
        regex, converters = _compile_path(key, text)
        # As in Django's path(), the slash in front may be left out; an include of "" takes nothing off.
        if key == "path" and not text.startswith("/") and (text or whole):
            regex = "/?" + regex
        return Pattern(text, re.compile(regex + (r"\Z" if whole else "")), converters, True, whole)
    try:
        compiled = re.compile(text)  # type: ignore[call-overload]
        if not isinstance(compiled.pattern, str):
            raise TypeError("it is for bytes")
    except (re.error, TypeError) as error:
        raise InvalidConfiguration(
            f"The filter {key}={safe_repr(text)} of a route is not a regular expression ({error}): correct it."
        ) from None
    return Pattern(compiled.pattern, compiled, {}, False, False)


def _compile_path(key: str, text: str) -> tuple[str, dict[str, Any]]:
    """Return a path's regular expression, without its end, and its converters by the captures' names."""
    parts, converters, end = [], {}, 0
    for found in _CAPTURE.finditer(text):
        kind, name = "str" if found[1] is None else found[1], found[2]
        if not name.isidentifier() or name in converters:
            raise InvalidConfiguration(
                f"The filter {key}={safe_repr(text)} of a route captures {safe_repr(name)}, which is "
                f"{'there twice' if name in converters else 'no name'}: give each capture a name of its own."
            )
        converters[name] = _converter(key, text, kind)
        parts += [_literal(key, text, end, found.start()), f"(?P<{name}>{converters[name].regex})"]
        end = found.end()
    return "".join([*parts, _literal(key, text, end, len(text))]), converters


def _converter(key: str, text: str, kind: str) -> Any:
    known = get_converters()
    if kind not in known:
        raise InvalidConfiguration(
            f"The filter {key}={safe_repr(text)} of a route names the converter {safe_repr(kind)}, which is not "
            f"registered: use one of {', '.join(sorted(known))}, or call django.urls.register_converter in front of "
            "the routes."
        )
    return known[kind]


def _literal(key: str, text: str, start: int, end: int) -> str:
    literal = text[start:end]
    if stray := re.search("[<>]", literal):
        raise InvalidConfiguration(
            f"The filter {key}={safe_repr(text)} of a route has a {stray[0]!r} without its other half: write a "
            f"capture as <slug:name>, or the character itself as '\\{stray[0]}', in a regular expression."
        )
    return re.escape(literal)


def misses_the_slash(pattern: Pattern) -> bool:
    """Whether a regular expression is known to match no text that begins with a slash, as each path does."""
    return not pattern.is_path and "|" not in pattern.text and bool(_NO_SLASH.match(pattern.text))


def stray_capture(key: str, pattern: Pattern) -> str:
    """Return what looks like a path's capture in a regular expression, where it captures nothing; "" for nothing.

    In other fields than the path ``<b>`` may be meant as it stands, ``<int:b>`` hardly.
    """
    for found in () if pattern.is_path else _STRAY.finditer(pattern.text):
        if found[1] in get_converters() or (found[1] is None and key == "path"):
            return found[0]
    return ""


def joined(patterns: Sequence[Pattern]) -> Pattern | None:
    """Return the patterns of nested includes as one, where all but the last are beginnings and all are paths."""
    if len(patterns) == 1:
        return patterns[0]
    if not all(one.is_path for one in patterns):
        return None
    text = "".join(one.text for one in patterns)
    regex = "".join(one.regex.pattern for one in patterns)
    converters = {name: conv for one in patterns for name, conv in one.converters.items()}
    if sum(len(one.converters) for one in patterns) != len(converters):
        return None
    return Pattern(text, re.compile(regex), converters, True, patterns[-1].whole)


def _is_wider(earlier: str, later: str) -> bool:
    """Whether two paths differ in their captures alone, and the earlier one's take all that the later one's do."""
    if _CAPTURE.sub("<>", earlier) != _CAPTURE.sub("<>", later):
        return False
    kinds = zip(_CAPTURE.findall(earlier), _CAPTURE.findall(later), strict=True)
    return all((wide or "str") in WIDER.get(narrow or "str", (narrow,)) for (wide, _), (narrow, _) in kinds)
