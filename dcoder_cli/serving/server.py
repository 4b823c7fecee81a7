"""A server process: its socket, its model, its end."""

from __future__ import annotations

import ipaddress
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dcoder_cli.base.errors import UserError
from dcoder_cli.model.backbone import Model
from dcoder_cli.serving.app import Serving, make_app
from dcoder_cli.serving.worker import Decoder

_GRACE = 10  # seconds in which answers under way may still end (ours)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A socket on a port; 0 takes a free one. Raises UserError where it cannot be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        return found
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(f"--host {host} --port {port} cannot be listened on: {why}; choose another") from None


def serve(
    model: Model, at: socket.socket, serving: Serving, slots: int, most_waiting: int, ready: Callable[[str], Any]
) -> None:
    """Answer until SIGINT or SIGTERM; answers under way may end, and a second signal ends them too.

    Args:
        ready: told the address once the server listens.
    """
    import uvicorn

    worker = Decoder(model, slots, most_waiting)
    try:
        app = make_app(worker, serving)
        host, port = at.getsockname()[:2]

        class Server(uvicorn.Server):
            """Leaves signals to us, and says when it listens."""

            @contextmanager
            def capture_signals(self) -> Iterator[None]:
                yield

            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")

        server = Server(
            uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=_GRACE, lifespan="off")
        )

        def stop(*_: Any) -> None:
            server.force_exit = server.should_exit
            server.should_exit = True

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            server.run(sockets=[at])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    finally:
        worker.stop()
