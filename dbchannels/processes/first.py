"""Process 1 of a container: it passes signals on to the program, and reaps orphans.

The kernel drops signals that process 1 does not handle yet, and makes it the parent of each process whose own parent
has died. So the command goes on in a child, and process 1 becomes this file, run as a script. A program that reaped
orphans itself could take the exit status of a process that its own code waits for.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress


def leave_first_place() -> None:
    """If this is process 1, run this command in a child of it; call it before anything else was started."""
    if os.getpid() != 1:
        return
    blocked = signal.pthread_sigmask(
        signal.SIG_BLOCK, signal.valid_signals()
    )  # kept until `main` waits for them
    child = os.fork()
    if child:
        os.execv(sys.executable, [sys.executable, "-I", "-S", __file__, str(child)])
    os.setsid()  # Ctrl-C in a terminal reaches process 1 only, which passes it on
    if "LISTEN_PID" in os.environ:  # sockets that systemd or podman has opened are the child's
        os.environ["LISTEN_PID"] = str(os.getpid())
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    os.execv(sys.executable, sys.orig_argv)


def main(child: int) -> int:
    """Pass on all signals until the child ends; return its exit status as a shell would."""
    everything = signal.valid_signals()
    signal.pthread_sigmask(signal.SIG_BLOCK, everything)
    while True:
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == child:
                    status = os.waitstatus_to_exitcode(ended[1])
                    return status if status >= 0 else 128 - status
        number = signal.sigwait(everything)
        if number != signal.SIGCHLD:
            os.kill(child, number)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
