"""How the formats of the files that ``channels_deploy`` prints write a value: the filters of its templates."""

from __future__ import annotations

import json
import re
import shlex

from django.core.management.base import CommandError
from django.template import Library

register = Library()
register.filter("json", json.dumps)  # so Docker takes a command, and YAML a list or a string


def without(text: str, forbidden: str, where: str) -> str:
    """Return the text; raise CommandError if it has a control character, or one that ``where`` cannot have."""
    for character in text:
        if character in forbidden or not character.isprintable():
            raise CommandError(
                f"{text!r} cannot be written into {where}, because it contains {character!r}. Rename it."
            )
    return text


def systemd_word(text: str, dollar: str = "$$") -> str:
    """Return a word as systemd reads it: in quotes if need be, without specifiers and variables."""
    text = without(text, "", "a unit of systemd").replace("%", "%%").replace("$", dollar)
    if re.fullmatch(r"[\w@%+=:,./$*-]+", text, re.ASCII):
        return text
    return '"' + text.replace("\\", r"\\").replace('"', r"\"") + '"'


@register.filter
def systemd_words(words: list[str]) -> str:
    """Return a command line for ExecStart."""
    without(words[0], "$\"'\\", "ExecStart of systemd")  # it takes none of them in a program's path
    return " ".join(map(systemd_word, words))


@register.filter
def systemd_assignment(text: str) -> str:
    """Return NAME=value for Environment, where no variable is replaced."""
    return systemd_word(text, "$")


@register.filter
def systemd_path(text: str) -> str:
    """Return a path for a setting that takes the rest of its line."""
    text = without(text, "", "a unit of systemd")
    if text != text.strip() or text.endswith("\\"):
        raise CommandError(
            f"{text!r} cannot be written into a unit of systemd, because of its end. Rename it."
        )
    return text.replace("%", "%%")


@register.filter
def nginx(text: str) -> str:
    """Return a word of a configuration of nginx, which has no way to write a dollar sign."""
    text = without(text, "$", "a configuration of nginx")
    if re.fullmatch(r"[\w./:@%+-]+", text):
        return text
    return '"' + text.replace("\\", r"\\").replace('"', r"\"") + '"'


@register.filter
def caddy(text: str) -> str:
    """Return a word of a Caddyfile, where braces begin placeholders."""
    text = without(text, "{}\\`", "a Caddyfile")
    return text if re.fullmatch(r"[\w./:@%+*-]+", text) else '"' + text.replace('"', r"\"") + '"'


@register.filter
def crontab(words: list[str]) -> str:
    """Return a shell command for a crontab, where a percent sign ends the line."""
    return without(shlex.join(words), "", "a crontab").replace("%", r"\%")


@register.filter
def crontab_assignment(text: str) -> str:
    """Return NAME=value for a crontab, in quotes if need be."""
    name, _, value = without(text, "\"'", "a crontab").partition("=")
    return text if value == "".join(value.split()) else f'{name}="{value}"'


@register.filter
def line(text: str) -> str:
    """Return a text for a comment."""
    return without(text, "", "a comment")


@register.filter
def compose(text: str) -> str:
    """Keep Docker Compose from taking a dollar sign for a variable."""
    return text.replace("$", "$$")
