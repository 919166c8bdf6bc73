"""
Serve an ASGI application with uvicorn's HTTP protocol, and nothing else of uvicorn.

Its ``Server`` sets up logging for the whole process and writes what it does to the log; a sandbox inside someone's
Airflow component must do neither.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from uvicorn.config import Config
from uvicorn.protocols.http.auto import AutoHTTPProtocol
from uvicorn.server import ServerState

from airflow_provider_imagen.sandbox.transport import ConnectionTracker

if TYPE_CHECKING:
    import socket

    from starlette.types import ASGIApp

_KEEP_ALIVE_SECONDS = 30


class _QuietConfig(Config):
    def configure_logging(self) -> None:
        """Leave the process's logging alone."""


_Protocol: Any = type("_Protocol", (ConnectionTracker, AutoHTTPProtocol), {})


class Listener:
    """
    One listening socket and the connections it accepted.

    :param app: what answers
    """

    def __init__(self, app: ASGIApp) -> None:
        self._config = _QuietConfig(
            app,
            lifespan="off",
            ws="none",
            log_config=None,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        )
        self._config.load()
        self._state = ServerState()
        self._server: asyncio.Server | None = None

    async def open(self, sock: socket.socket) -> None:
        """Accept connections from now on."""
        self._state.default_headers = [(b"server", b"airflow-imagen-sandbox")]
        self._server = await asyncio.get_running_loop().create_server(self._protocol, sock=sock, backlog=2048)

    def _protocol(self) -> asyncio.Protocol:
        protocol: asyncio.Protocol = _Protocol(config=self._config, server_state=self._state, app_state={})
        protocol.access_log = False  # type: ignore[attr-defined]
        return protocol

    async def close(self) -> None:
        """Stop accepting and cut every connection."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._state.connections):
            if (transport := getattr(connection, "transport", None)) is not None:
                transport.abort()
        tasks = list(self._state.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
