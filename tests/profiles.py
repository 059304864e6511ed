"""How many examples Hypothesis tries, by profile.

``dev`` is the default: a quarter of what each test asks for. ``ci`` tries all of them, ``deep`` ten times as many.
Choose one with ``pytest --hypothesis-profile=ci``, or with ``HYPOTHESIS_PROFILE=ci`` in the environment. Every profile
but ``deep`` tries the same examples in each run.
"""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, settings

SHARES = {"dev": 25, "ci": 100, "deep": 1_000}  # per cent


for name, share in SHARES.items():
    settings.register_profile(
        name,
        max_examples=share,
        deadline=None,
        derandomize=name != "deep",
        suppress_health_check=list(HealthCheck),
    )
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


def examples(number: int, **others: Any) -> settings:
    """Return the settings of a test that tries so many examples in the profile ``ci``, and its share in the others."""
    return settings(max_examples=max(1, number * settings().max_examples // 100), **others)
