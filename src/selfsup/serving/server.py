"""A server on a socket of this machine, until it is asked to stop."""

from __future__ import annotations

import ipaddress
import signal
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from selfsup.errors import UserError
from selfsup.serving.guard import LOOPBACK
from selfsup.stopping import signals

PATIENCE = 2  # seconds that answers which are being given have left when the server is to stop


def bound(host: str, port: int) -> socket.socket:
    """A socket that takes connections from now on; port 0 takes a free one. Raises a UserError where it cannot."""
    try:
        address = ipaddress.ip_address(LOOPBACK if host == "localhost" else host)
    except ValueError:
        raise UserError(f"{host!r:.100} is no address; give --host as numbers, such as 0.0.0.0.") from None
    taken = socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((str(address), port))
        taken.listen()
    except OSError as error:
        taken.close()
        raise UserError(f"Port {port} of {host} cannot be had ({error.strerror}); give another --port.") from None
    return taken


def address_of(taken: socket.socket, host: str) -> str:
    """http://HOST:PORT, by which a socket is reached."""
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{taken.getsockname()[1]}"


class Server(uvicorn.Server):
    """uvicorn's, whose end by Ctrl-C, SIGTERM or SIGHUP is an end in order."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                lifespan="off",
                log_level="warning",
                access_log=False,  # addresses hold the token
                server_header=False,
                timeout_graceful_shutdown=PATIENCE,
            )
        )

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in signals()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
