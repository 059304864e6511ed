"""Patterns: which texts of a message's field match a route, and the text that ``reverse`` builds.

A pattern that contains any of ``^ $ * + ? ( ) [ ] { } | \\`` is a **regular expression**, matched from the start of the
field; after a ``$`` at its end no newline may follow, as in Django's ``re_path()``. Every other pattern is a **path**,
as in Django's ``path()``: it must match the whole field (in an ``include``, its beginning), and ``<slug:room>``
captures by Django's converters. ``path="chat/"`` means ``path="/chat/"``.
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
#: Text in a regular expression that may have been meant as a path's capture: not (?P<name>, (?<= or \<.
_STRAY = re.compile(r"(?<![\\P?])<(?:(\w+):)?(\w+)>")
#: The beginning of a regular expression whose first character is required, and is no slash.
_NO_SLASH = re.compile(r"(?:\^|\\A)?(?:\((?:\?P<\w+>|\?:)?)*(?:[\w-]|\\[wd]|\[[^\]^/]*\])(?![*?{])")
#: A first group of alternatives, and what follows it.
_FIRST_GROUP = re.compile(r"(?:\^|\\A)?\((?:\?P<\w+>|\?:)?([^()\\]*)\)(?![*?{])([^|]*)\Z")
#: The texts of each of Django's converters also match these others.
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
    whole: bool  # for a path: it matches the whole field, not its beginning

    @property
    def ends(self) -> bool:
        """Whether this is a regular expression that ends with ``$``."""
        return (
            not self.is_path and self.regex.pattern.endswith("$") and not self.regex.pattern.endswith(r"\$")
        )

    def candidates(self) -> list[tuple[str, list[str]]]:
        """Return texts that may match, with ``%(name)s`` for each capture, and the names of the captures."""
        if self.is_path:
            return [(_CAPTURE.sub(r"%(\2)s", self.text), list(self.converters))]
        return [(text, list(names)) for text, names in normalize(self.regex.pattern)]

    def covers(self, later: Pattern) -> bool:
        """Whether this pattern is known to match all texts that a later one matches, which is then never reached."""
        if self.text == later.text:
            return self.whole == later.whole or later.whole
        if not self.is_path and self.text in ANYTHING:
            return True
        if later.is_path and later.whole and not later.converters:
            found = self.regex.match(later.text)
            return found is not None and convert(found.groupdict(), self.converters)
        if not (self.is_path and later.is_path and self.whole and later.whole):
            return False
        # They differ only in their captures, and each of ours matches all texts of the later one.
        if _CAPTURE.sub("<>", self.text) != _CAPTURE.sub("<>", later.text):
            return False
        kinds = zip(_CAPTURE.findall(self.text), _CAPTURE.findall(later.text), strict=True)
        return all(
            (wide or "str") in WIDER.get(narrow or "str", (narrow,)) for (wide, _), (narrow, _) in kinds
        )


def convert(captures: dict[str, Any], converters: Mapping[str, Any]) -> bool:
    """Replace captured texts by their converters' values; return False if a converter refuses its text."""
    try:
        for name, converter in converters.items():
            captures[name] = converter.to_python(captures[name])
    except ValueError:  # how a converter of Django refuses a text
        return False
    return True


def compile_pattern(key: str, text: object, *, whole: bool = True) -> Pattern:
    """Return the pattern of the field ``key``, from a text or a compiled expression; raises InvalidConfiguration."""
    if isinstance(text, str) and not EXPRESSION.search(text):
        regex, converters = _compile_path(key, text)
        # As in Django's path(), the slash in front may be omitted; an include of "" removes nothing.
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
    """Return a path's regular expression, without its end, and its converters by capture."""
    parts, converters, end = [], {}, 0
    known = get_converters()
    for found in _CAPTURE.finditer(text):
        kind, name = "str" if found[1] is None else found[1], found[2]
        if not name.isidentifier() or name in converters:
            raise InvalidConfiguration(
                f"The filter {key}={safe_repr(text)} of a route captures {safe_repr(name)}, which is "
                f"{'used twice' if name in converters else 'not a name'}: give each capture its own name."
            )
        if kind not in known:
            raise InvalidConfiguration(
                f"The filter {key}={safe_repr(text)} of a route names the converter {safe_repr(kind)}, which is not "
                f"registered: use one of {', '.join(sorted(known))}, or call django.urls.register_converter before the "
                "routes."
            )
        converters[name] = known[kind]
        parts += [_literal(key, text, end, found.start()), f"(?P<{name}>{converters[name].regex})"]
        end = found.end()
    return "".join([*parts, _literal(key, text, end, len(text))]), converters


def _literal(key: str, text: str, start: int, end: int) -> str:
    literal = text[start:end]
    if stray := re.search("[<>]", literal):
        raise InvalidConfiguration(
            f"The filter {key}={safe_repr(text)} of a route has a {stray[0]!r} without its other half: write a "
            f"capture as <slug:name>, or the character itself as '\\{stray[0]}', in a regular expression."
        )
    return re.escape(literal)


def misses_the_slash(pattern: Pattern) -> bool:
    """Whether a regular expression is known to match no text that begins with a slash, as all paths do."""
    text = pattern.text
    if "|" not in text:
        alternatives = [text]
    elif found := _FIRST_GROUP.match(text):
        alternatives = [one + found[2] for one in found[1].split("|")]
    else:
        alternatives = [] if "(" in text else text.split("|")
    return not pattern.is_path and bool(alternatives) and all(map(_NO_SLASH.match, alternatives))


def stray_capture(key: str, pattern: Pattern) -> str:
    """Return text in a regular expression that looks like a path's capture, and captures nothing; "" if there is none.

    Outside the path, ``<b>`` may be meant literally, but hardly ``<int:b>``.
    """
    for found in () if pattern.is_path else _STRAY.finditer(pattern.text):
        if found[1] in get_converters() or (found[1] is None and key == "path"):
            return found[0]
    return ""


def joined(patterns: Sequence[Pattern]) -> Pattern | None:
    """Return the patterns of nested includes as one pattern, if there is one or all are paths; else None."""
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
