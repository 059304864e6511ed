"""Hosts on one machine: network namespaces on a switch, which a test may cut off. Needs Linux, root and iproute2."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress

CLONE_NEWNET = 0x40000000
PORT = 8000  # of every host's server


class Network:
    """A switch in a namespace of its own, and hosts named by the caller at 10.77.0.1, 10.77.0.2 and so on."""

    def __init__(self) -> None:
        self._switch = f"dbch{os.getpid()}"
        self.hosts: list[Host] = []
        run("netns", "add", self._switch)
        run("-n", self._switch, "link", "add", "bridge", "type", "bridge")
        run("-n", self._switch, "link", "set", "bridge", "up")

    def host(self, name: str) -> Host:
        """Add a host."""
        self.hosts.append(Host(self._switch, name, f"10.77.0.{len(self.hosts) + 1}"))
        return self.hosts[-1]

    def close(self) -> None:
        """Delete all namespaces."""
        for name in (*(host.namespace for host in self.hosts), self._switch):
            with suppress(AssertionError):
                run("netns", "delete", name)


class Host:
    """A namespace with one address."""

    def __init__(self, switch: str, name: str, address: str) -> None:
        self._switch, self._port, self.address = switch, f"to-{name}", address
        self.namespace = f"{switch}-{name}"
        #: Starts a program there.
        self.prefix = ["nsenter", f"--net=/run/netns/{self.namespace}"]
        run("netns", "add", self.namespace)
        ends = ["link", "add", self._port, "type", "veth", "peer", "name", "eth0", "netns", self.namespace]
        run("-n", switch, *ends)
        run("-n", switch, "link", "set", self._port, "master", "bridge", "up")
        run("-n", self.namespace, "address", "add", f"{address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            run("-n", self.namespace, "link", "set", device, "up")

    def cut(self) -> None:
        """Take the host's cable out of the switch: what is sent is lost, and nobody is told."""
        run("-n", self._switch, "link", "set", self._port, "nomaster")

    def mend(self) -> None:
        """Put the cable in again."""
        run("-n", self._switch, "link", "set", self._port, "master", "bridge")

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Let the calling thread open sockets there; those that it opens stay there."""
        with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{self.namespace}") as there:
            enter(there.fileno())
            try:
                yield
            finally:
                enter(home.fileno())


def enter(descriptor: int) -> None:
    """Move the calling thread into a network namespace."""
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def run(*arguments: str) -> None:
    """Run the command ``ip``."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr.strip()} (are you root?)"
