"""The ``manage.py`` of the tests' site, under a profile: each call of a function of dbchannels is a line of a log.

The site's folder holds two files: ``on``, whose one byte says whether calls are logged now, and ``log``, to which all
processes append. A line names the process, the thread, the file and the function.
"""

from __future__ import annotations

import mmap
import os
import sys
import threading
from pathlib import Path
from types import FrameType

FOLDER = Path(os.environ["LIVESITE_FOLDER"])
ROOT = Path(os.environ["PYTHONPATH"])
PACKAGE = f"{ROOT / 'dbchannels'}/"
#: Python 3.12 runs most of them in the frame of their function (PEP 709), which a reader sees them in anyway.
COMPREHENSIONS = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")


def main() -> None:
    with (FOLDER / "on").open("rb") as file:
        on = mmap.mmap(file.fileno(), 1, prot=mmap.PROT_READ)
    log = os.open(FOLDER / "log", os.O_WRONLY | os.O_APPEND)

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and on[0]:
            code = frame.f_code
            if code.co_filename.startswith(PACKAGE) and code.co_name not in COMPREHENSIONS:
                file = code.co_filename.removeprefix(PACKAGE)
                os.write(log, f"{os.getpid()} {threading.get_ident()} {file} {code.co_name}\n".encode())

    threading.setprofile(note)
    sys.setprofile(note)
    sys.path[:1] = [str(ROOT / "tests" / "live"), str(ROOT)]
    os.environ["DJANGO_SETTINGS_MODULE"] = "livesite.settings"
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)  # the workers that the server starts are this program again


if __name__ == "__main__":
    main()
