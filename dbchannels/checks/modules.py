"""W009 and W018: search the sources of the site's apps for consumers and bindings that nothing imports."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.apps import AppConfig, apps
from django.conf import settings
from django.core import checks
from django.utils.module_loading import autodiscover_modules

from dbchannels import foreign

_CONSUMER = re.compile(r"^@(?:dbchannels\.)?consumer\(", re.MULTILINE)
_ROUTES = re.compile(rf"^(?:routes|{'|'.join(foreign.NAMES['routing'])})\s*(?::[^=]*)?=", re.MULTILINE)
_BINDING = re.compile(r"^class \w+\((?:dbchannels\.)?Binding\)", re.MULTILINE)
_NOT_ITS_OWN = {"site-packages", "dist-packages"}
_ELSEWHERE = {"migrations", "tests", "management", "node_modules"}
_LARGEST = 1_000_000  # bytes; larger files have no consumers


@checks.register("dbchannels")
def check_modules(app_configs: Any, **kwargs: Any) -> list[checks.CheckMessage]:
    """W009: A module of an app has a consumer or a binding, and nothing imports it. Import it in the app's
    ``consumers.py``, or a binding's in ``AppConfig.ready()``.
    """
    try:
        autodiscover_modules("consumers")
    except Exception:  # any error of a module of the site: check_routing reports it
        return []
    found: list[checks.CheckMessage] = []
    for config in filter(is_of_the_site, apps.get_app_configs()):
        root = Path(config.path)
        for path in sorted([*root.glob("*.py"), *root.glob("*/*.py")]):
            module = ".".join([config.name, *path.relative_to(root).with_suffix("").parts])
            its_own = apps.get_containing_app_config(module) is config  # not that of a nested app
            if not its_own or module in sys.modules or _is_elsewhere(path.relative_to(root)):
                continue
            text = _source(path)
            if _CONSUMER.search(text):
                what, hint = (
                    "consumers, and nothing imports it, so no worker runs them",
                    f"Import it in {config.name}.consumers, or list its consumers in the routing module.",
                )
            elif _BINDING.search(text):
                what, hint = (
                    "bindings, and nothing imports it, so they send nothing",
                    f"Import it in the ready() of {config.name}'s AppConfig, as with signals.",
                )
            else:
                continue
            found.append(checks.Warning(f"{module} has {what}.", hint=hint, id="dbchannels.W009"))
    return found


def unnamed_modules() -> Iterator[checks.CheckMessage]:
    """W018: A ``routing.py``, or a ``consumers.py`` beside the settings, has routes, and nothing imports it. Name it
    in ``DBCHANNELS["default"]["ROUTING"]``, or import it in your routing module.
    """
    if apps.is_installed("channels"):  # the modules may belong to Channels
        return
    places = {config.name: Path(config.path) for config in apps.get_app_configs() if is_of_the_site(config)}
    wanted = [(f"{name}.routing", root / "routing.py") for name, root in places.items()]
    project = (settings.SETTINGS_MODULE or "").rpartition(".")[0]  # "" after settings.configure()
    if project not in places and (file := getattr(sys.modules.get(project), "__file__", None)):
        wanted += [
            (f"{project}.{name}", Path(file).parent / f"{name}.py") for name in ("routing", "consumers")
        ]
    for module, path in wanted:
        text = _source(path)
        if module not in sys.modules and (_ROUTES.search(text) or _CONSUMER.search(text)):
            yield checks.Warning(
                f"{module} has routes or consumers, and nothing imports it, so no message reaches them.",
                hint=f"Set DBCHANNELS = {{'default': {{'ROUTING': {module!r}}}}}, or import it in your routing module.",
                id="dbchannels.W018",
            )


def _source(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() and path.stat().st_size < _LARGEST else ""


def is_of_the_site(config: AppConfig, module: str = "") -> bool:
    """Whether an app, and a module of it, are the site's own: not an installed package, dbchannels, or tests."""
    inside = Path(*module.removeprefix(config.name).strip(".").split("."), "")
    own = config.name != "dbchannels" and _NOT_ITS_OWN.isdisjoint(Path(config.path).parts)
    return own and not (module and _is_elsewhere(inside))


def _is_elsewhere(path: Path) -> bool:
    return path.name.startswith(("test", "conftest", "__")) or not _ELSEWHERE.isdisjoint(path.parts)
