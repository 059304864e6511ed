"""The blocks of the reference pages on settings, commands, checks, the server and WSGI are what the code takes."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest
from django.core.management import load_command_class

from dbchannels import conf
from dbchannels.server.access_log import Access
from dbchannels.server.options import LaunchConfig
from dbchannels.server.wsgi_gateway import Gateway
from dbchannels.wsgi import get_wsgi_application
from tests.docs import pages
from tests.docs.test_tables import OURS

PAGES = ["settings", "commands", "checks", "server", "wsgi"]


def settings_of(page: str) -> list[dict[str, Any]]:
    """Return the settings that each Python block of a page makes."""
    made = []
    for block in pages.blocks(page, "python"):
        exec(block.code, names := {})
        made.append({name: value for name, value in names.items() if name.isupper()})
    return made


@pytest.mark.parametrize(
    "command",
    [one for page in PAGES for one in pages.commands(page) if one.split()[2:3] and one.split()[2] in OURS],
)
def test_a_command_is_understood_as_it_is_shown(command: str) -> None:
    python, manage, name, *arguments = shlex.split(command)
    assert (python, manage) == ("python", "manage.py")
    given = vars(load_command_class("dbchannels", name).create_parser(manage, name).parse_args(arguments))
    if name == "runchannels":
        LaunchConfig.from_options(given)


def test_the_settings_are_valid(settings: Any) -> None:
    default, example = settings_of("settings")
    settings.DBCHANNELS = default["DBCHANNELS"]
    assert conf.problems() == []
    assert conf.layer_settings() == ("default", None, "default", None, conf.OPTIONS)
    settings.DBCHANNELS = example["DBCHANNELS"]
    assert conf.problems() == []
    assert conf.layer_settings().options["retries"] == 10


def test_a_check_is_silenced_by_its_whole_name() -> None:
    (made,) = settings_of("checks")
    assert all(re.fullmatch(r"dbchannels\.[EW]\d{3}", one) for one in made["SILENCED_SYSTEM_CHECKS"])
    assert all(
        f"``{one.partition('.')[2]}``" in pages.text("checks") for one in made["SILENCED_SYSTEM_CHECKS"]
    )


def test_the_lines_of_the_access_log_have_its_format() -> None:
    shown = next(one.code for one in pages.blocks("server", "text") if "WSCONNECT" in one.code).splitlines()
    pattern = r'(\S+) - - \[.+?\] "(.+?)" (\S+) (\S+) "(.*?)" "(.*?)" (\d+) ms'
    assert len(shown) == 4
    for line in shown:
        found = re.fullmatch(pattern, line)
        assert found is not None
        made = Access(found[1], found[2], found[3], found[4], int(found[7]) / 1000).combined()
        dated = re.sub(r"\[.+?\]", "[]", line)
        assert re.sub(r"\[.+?\]", "[]", made) == dated.replace(f'"{found[6]}"', '"-"')


# Other ways to serve the views.


def test_the_site_has_a_wsgi_application_for_a_wsgi_server() -> None:
    (code,) = (one.code for one in pages.blocks("wsgi", "python") if one.caption == "mysite/wsgi.py")
    exec(code, names := {})
    assert isinstance(names["application"], Gateway)


def test_its_arguments_have_the_defaults_that_the_page_names() -> None:
    shown = dict(re.findall(r"^``(\w+)=(\S+)``$", pages.text("wsgi"), re.MULTILINE))
    parameters = inspect.signature(get_wsgi_application).parameters
    assert {name: ast.literal_eval(value) for name, value in shown.items()} == {
        name: parameter.default for name, parameter in parameters.items()
    }


def test_the_application_of_a_worker_may_be_whitenoises(tmp_path: Path) -> None:
    pytest.importorskip("whitenoise")
    (code,) = (one.code for one in pages.blocks("wsgi", "python") if "with WhiteNoise" in one.caption)
    (tmp_path / "a.txt").write_text("of the site")
    exec(code.replace("/srv/mysite/static", str(tmp_path)), names := {})
    told: list[str] = []
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/a.txt"}
    setup_testing_defaults(environ)
    answer = names["application"](environ, lambda status, headers: told.append(status))
    assert (told, b"".join(answer)) == (["200 OK"], b"of the site")
    answer.close()


def test_gunicorn_takes_the_arguments_that_are_shown() -> None:
    config = pytest.importorskip("gunicorn.config").Config()
    (command,) = (one for one in pages.commands("wsgi") if one.startswith("gunicorn"))
    given = config.parser().parse_args(command.split()[1:])
    assert (given.args, given.worker_class, given.threads) == (["mysite.wsgi"], "gthread", 32)
