"""What gevent does alone: ``python -m tests.benchmarks.bare SIZE``.

It prints its port. For each byte that a client sends, it writes one ready frame of SIZE bytes to every client.
"""

from __future__ import annotations

import sys
from contextlib import suppress

from gevent import socket
from gevent.server import StreamServer

from tests.harness import HOST


def main() -> None:
    size = int(sys.argv[1])
    frame = bytes((0x81, size - 2)) + b"x" * (size - 2)
    clients: list[socket.socket] = []

    def serve(client: socket.socket, address: object) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        clients.append(client)
        with suppress(OSError):  # it has gone
            while data := client.recv(4096):
                for one in clients * len(data):
                    with suppress(OSError):
                        one.sendall(frame)
        clients.remove(client)

    server = StreamServer((HOST, 0), serve, backlog=1024)
    server.start()
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
