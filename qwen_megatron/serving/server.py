"""The HTTP server around an engine: its socket, its thread, its beginning and end."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from qwen_megatron.errors import PlatformError
from qwen_megatron.serving.engine import Engine

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
# Answers that have ended are sent within this time, or not at all.
SENDING_SECONDS = 5
# Connections beyond those whose requests run or wait.
SPARE_CONNECTIONS = 64


def listener_on(host: str, port: int) -> socket.socket:
    """A socket that is bound but takes no connections yet.

    Args:
        host: Name or address.
        port: 0 for a free one.
    Raises:
        PlatformError: if it cannot be bound.
    """
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise PlatformError(
            f"{host}, port {port}: cannot be listened on ({error.strerror or error}); choose another --host or --port, "
            "--port 0 for a free one"
        ) from error
    return listener


def hosts_of(host: str) -> frozenset[str] | None:
    """Names that clients may call a server by that is bound to a host; None for any."""
    return LOOPBACK if host in LOOPBACK else None


def url_of(listener: socket.socket) -> str:
    """Where clients find it."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(engine: Engine, app: FastAPI, listener: socket.socket, announce: Callable[[str], None]) -> None:
    """Serves until the engine is stopped. The engine runs in this thread, HTTP in another.

    Args:
        engine: Of this rank, the first.
        app: Its application.
        listener: As of `listener_on`; closed at the end.
        announce: Is told the address as soon as connections are taken.
    Raises:
        PlatformError: if the server does not start.
    """
    address = url_of(listener)
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=engine.max_pending + SPARE_CONNECTIONS,
        timeout_graceful_shutdown=SENDING_SECONDS,
    )
    server = uvicorn.Server(config)

    def run() -> None:
        try:
            server.run(sockets=[listener])
        finally:
            engine.stop(0.0)

    thread = threading.Thread(target=run, name="http", daemon=True)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        if server.started:
            announce(address)
        engine.run()
        if not server.started:
            raise PlatformError(f"{address}: the HTTP server did not start; its message stands above")
    finally:
        server.should_exit = True
        thread.join(2 * SENDING_SECONDS)
        listener.close()
