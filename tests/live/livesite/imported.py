"""Which process has imported which module: the interface server must import none of the site's code."""

import os

from django.conf import settings


def note(module):
    """Write the module down, with this process's id."""
    with (settings.MEDIA_ROOT / "imported").open("a") as file:
        file.write(f"{os.getpid()} {module}\n")
