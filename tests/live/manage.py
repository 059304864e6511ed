"""The command line of the site that the end-to-end tests run in processes of its own."""

import atexit
import gc
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    if sys.argv[1:2] == ["check"] and "LIVESITE_UNCHECKED" in os.environ:
        sys.exit(print("System check identified no issues."))  # see LiveSite.serve
    here = Path(__file__).resolve().parent
    # This tree's dbchannels, whether or not it is installed.
    sys.path[:0] = [str(here), str(here.parents[1])]
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "livesite.settings")
    gc.disable()  # until livesite.apps: collecting takes an eighth of the time of a start
    atexit.register(gc.freeze)  # the interpreter's last collections take a quarter of that
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)
