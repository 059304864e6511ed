#!/usr/bin/env python
"""The command line of the examples; ``python manage.py demo`` starts them."""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    # So that the examples run from a checkout in which dbchannels has not been installed.
    sys.path.insert(1, str(Path(__file__).resolve().parent.parent))
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "demo.settings")

    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)
