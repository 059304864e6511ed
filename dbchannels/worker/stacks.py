"""Stacks and tracebacks of consumers, which begin at the site's code, not at the worker's."""

from __future__ import annotations

import os
import sysconfig
import traceback
from collections.abc import Iterable

import asgiref
import django

import dbchannels

_STANDARD_LIBRARY = sysconfig.get_paths()["stdlib"] + os.sep
_FRAMEWORKS = tuple(
    os.path.dirname(str(module.__file__)) + os.sep for module in (dbchannels, django, asgiref)
)
_EXECUTOR = os.path.join(os.path.dirname(__file__), "executor.py")


def format_stack(frames: Iterable[traceback.FrameSummary]) -> str:
    """Return the frames as text, from the site's first one on; all inside the executor if the site has none."""
    return "".join(traceback.format_list(_from_the_site_on(frames)))


def format_error(error: BaseException) -> str:
    """Return the traceback of a consumer that raised, from the site's first frame on.

    An error of the executor itself is its last line alone.
    """
    told = traceback.TracebackException.from_exception(error)
    told.stack[:] = _from_the_site_on(told.stack)
    return "".join(told.format() if told.stack else told.format_exception_only())


def _from_the_site_on(frames: Iterable[traceback.FrameSummary]) -> list[traceback.FrameSummary]:
    inner: list[traceback.FrameSummary] = []
    for frame in frames:
        if frame.filename == _EXECUTOR:  # manage.py, for one, is the site's, and calls it
            inner.clear()
        else:
            inner.append(frame)
    first = next((number for number, one in enumerate(inner) if not _calls_the_site(one)), 0)
    return inner[first:]


def _calls_the_site(frame: traceback.FrameSummary) -> bool:
    """Whether a frame belongs to Python, Django or dbchannels. Installed apps belong to the site."""
    name = frame.filename
    installed = "site-packages" in name or "dist-packages" in name
    return name.startswith(_FRAMEWORKS) or (name.startswith(_STANDARD_LIBRARY) and not installed)
