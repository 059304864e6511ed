"""A module's own time."""

from __future__ import annotations

import time
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


def patch_time(monkeypatch: pytest.MonkeyPatch, module: ModuleType, **functions: Any) -> None:
    """Replace functions of ``time`` for one module alone: threads of others, such as "deadlines", use them too."""
    monkeypatch.setattr(module, "time", SimpleNamespace(**{**vars(time), **functions}))
