"""The SECRET_KEY: made once on each machine, so that nobody deploys a key from a repository."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured
from django.core.management.utils import get_random_secret_key


def secret_key(path: Path) -> str:
    """Return DJANGO_SECRET_KEY from the environment, or the key in the file, which is created if necessary."""
    if key := os.environ.get("DJANGO_SECRET_KEY"):
        return key
    try:
        if not path.exists():
            _create(path)
        return path.read_text()
    except OSError as error:
        raise ImproperlyConfigured(
            f"The secret key cannot be kept in {path} ({error.strerror}): set DJANGO_SECRET_KEY instead."
        ) from error


def _create(path: Path) -> None:
    # A link appears at once and replaces nothing: processes that start together all read the first key.
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=path.name) as file:
        file.write(get_random_secret_key())
        file.flush()
        with contextlib.suppress(FileExistsError):
            os.link(file.name, path)
