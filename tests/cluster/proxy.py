"""A TCP proxy in front of a store, in this process: it passes, answers 503, hangs, or cuts, as it is told."""

from __future__ import annotations

import re
import socket
import threading
import time
from contextlib import suppress
from typing import Literal

Mode = Literal["pass", "503", "hang", "cut"]
BODY = b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>injected</Message></Error>'
REFUSED = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
)
LINGER_NOT = b"\1\0\0\0\0\0\0\0"  # a connection that is closed so is reset


class Proxy:
    """Listens on all of this machine's addresses, at :attr:`port`, and passes on to a port of this machine.

    ``503``: each request is read whole and refused, as by an overloaded store. ``hang``: nothing moves in either
    direction, and connections stay. ``cut``: every connection is reset. Open connections end when a mode begins that
    does not pass.
    """

    def __init__(self, upstream: int) -> None:
        self.upstream, self.refused = upstream, 0
        self._mode: Mode = "pass"
        self._open: set[socket.socket] = set()
        self._server = socket.create_server(("0.0.0.0", 0), backlog=256)
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def mode(self) -> Mode:
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        self._mode = mode
        if mode in ("503", "cut"):
            for each in list(self._open):
                close(each)

    def close(self) -> None:
        self._server.close()
        self.mode = "cut"

    def _accept(self) -> None:
        with suppress(OSError):  # it is closed
            while True:
                threading.Thread(target=self._serve, args=(self._server.accept()[0],), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        self._wait()
        if self.mode == "cut":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
            client.close()
        elif self.mode == "503":
            with suppress(OSError):
                read_request(client)
                client.sendall(REFUSED)
                self.refused += 1
            close(client)
        else:
            self._pass(client)

    def _pass(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self.upstream))
        except OSError:
            close(client)
            return
        self._open |= {client, server}
        for pair in ((client, server), (server, client)):
            threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self._wait()
                target.sendall(data)
        for each in (source, target):
            close(each)
            self._open.discard(each)

    def _wait(self) -> None:
        while self.mode == "hang":
            time.sleep(0.1)


def close(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


def read_request(client: socket.socket) -> None:
    """A whole HTTP request, its body too: a client that is cut off while it sends sees no answer."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (more := client.recv(65536)):
            return
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    if re.search(rb"(?i)expect: *100", head):
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    length = re.search(rb"(?i)content-length: *(\d+)", head)
    left = int(length[1]) - len(body) if length else 0
    while left > 0 and (more := client.recv(65536)):
        left -= len(more)
