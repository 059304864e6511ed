"""The tables of the reference that are made from the code, as Sphinx directives.

``.. options:: runchannels --max-*``
    A command's options, or those that match a pattern.
``.. settings::``
    The OPTIONS of a layer.
``.. task-options::``
    The OPTIONS of a backend of tasks.
``.. checks::``
    The system checks.
"""

from __future__ import annotations

import inspect
import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from django.core.management import load_command_class
from django.core.management.base import BaseCommand

from dbchannels import conf
from dbchannels.checks import routes, site

if TYPE_CHECKING:
    from sphinx.application import Sphinx

Row = tuple[str, ...]

_CHECK = re.compile(r"([EW]\d{3}): (.+)", re.DOTALL)


def options(command: str, *patterns: str) -> list[Row]:
    """Return a row for each option or argument that matches a pattern: its words, its default, and its help.

    They are in the order of the patterns.
    """
    parser = load_command_class("dbchannels", command).create_parser("manage.py", command)
    django = {action.dest for action in BaseCommand().create_parser("manage.py", "other")._actions}
    rows: dict[str, Row] = {}
    for pattern in patterns:
        for action in parser._actions:
            words = [one for one in action.option_strings if one.startswith("--")] or [
                action.metavar or action.dest
            ]
            if action.dest not in django and fnmatchcase(words[0], pattern):
                rows.setdefault(action.dest, _option(action, words))
    return [("option", "default", "meaning"), *rows.values()]


def _option(action: Any, words: list[str]) -> Row:
    value = "|".join(action.choices or ()) or (
        action.metavar if action.option_strings and action.nargs != 0 else ""
    )
    named = ", ".join(f"``{word} {value or ''}".rstrip() + "``" for word in words)
    # The help has the default in brackets at its end.
    found = re.fullmatch(r"(.+) \(([^()]+)\)", action.help)
    text, default = (found[1], found[2]) if found else (action.help, "off" if action.nargs == 0 else "none")
    if action.metavar == "BYTES" and action.default is not None:
        default = _size(action.default)
    return named, _escape(default), _escape(f"{text[0].upper()}{text[1:].rstrip('.')}.")


def _size(number: int) -> str:
    """Return a number of bytes with the largest unit that divides it."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if number % 1024**power == 0:
            return f"{number // 1024**power} {unit}"
    return f"{number:,}"


def settings(rules: dict[str, conf.Rule] = conf.RULES) -> list[Row]:
    """Return a row for each of a layer's OPTIONS: its name, its default, and what it means and takes."""
    rows: list[Row] = [("option", "default", "meaning")]
    for name, rule in rules.items():
        default = f"{rule.default:,g}" if type(rule.default) is float else f"{rule.default!r}"
        default = f"{rule.default:,}" if type(rule.default) is int else default
        rows.append((f"``{name}``", f"``{default}``", f"{rule.meaning} Takes {_code(rule.write)}."))
    return rows


def task_options() -> list[Row]:
    """Return a row for each option of a queue of tasks."""
    return settings(conf.TASK_RULES)


def checks() -> list[Row]:
    """Return a row for each check, from the docstrings of the functions that make them."""
    found: dict[str, str] = {}
    for module in (routes, site):
        for function in vars(module).values():
            if inspect.isfunction(function) and function.__module__ == module.__name__:
                for paragraph in (inspect.getdoc(function) or "").split("\n\n"):
                    if check := _CHECK.fullmatch(paragraph):
                        found[check[1]] = " ".join([found.get(check[1], ""), *check[2].split()]).strip()
    return [("id", "meaning"), *((f"``{number}``", text) for number, text in sorted(found.items()))]


KINDS = {"options": options, "settings": settings, "task-options": task_options, "checks": checks}


def table(kind: str, *arguments: str) -> str:
    """Return a table as reStructuredText."""
    lines = [".. list-table::", "   :header-rows: 1", "   :widths: auto", ""]
    for first, *others in KINDS[kind](*arguments):
        lines += [f"   * - {first}", *(f"     - {cell}" for cell in others)]
    return "\n".join(lines)


def _escape(text: str) -> str:
    """Show options, and what stands in quotes, as code; Sphinx would make a dash of the two hyphens."""
    return re.sub(
        r"(?<![\w`-])(--[a-z][a-z-]*[a-z](?:=\w+)?)|(?<!\w)'([^' ]+)'",
        lambda one: f"``{one[1] or one[2]}``",
        text,
    )


def _code(text: str) -> str:
    """Show the example at the end of a rule as code."""
    return re.sub(r"(?<=such as )(.+?)(?=, at most|,? or |$)", r"``\1``", text)


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directives to Sphinx."""
    from sphinx.util.docutils import SphinxDirective

    class Table(SphinxDirective):
        optional_arguments = 1
        final_argument_whitespace = True

        def run(self) -> list[Any]:
            return self.parse_text_to_nodes(table(self.name, *" ".join(self.arguments).split()))

    for name in KINDS:
        app.add_directive(name, Table)
    return {"parallel_read_safe": True}
