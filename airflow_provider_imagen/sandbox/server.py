"""The sandbox server: two ports, one event loop, one daemon thread."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from contextlib import suppress
from errno import EINVAL
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from airflow_provider_imagen.sandbox.drawing import draw
from airflow_provider_imagen.sandbox.settings import Settings
from airflow_provider_imagen.sandbox.state import State
from airflow_provider_imagen.sandbox.value_checks import Range

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable
    from decimal import Decimal
    from types import TracebackType
    from typing import Self

    from airflow_provider_imagen.sandbox.control_types import Charge, SeenRequest
    from airflow_provider_imagen.sandbox.faults import Fault

_BACKLOG = 2048
_KEEP_ALIVE_SECONDS = 30
_PORTS = Range(least=0, most=65535)


class Sandbox:
    """
    A local server that behaves like the AI/ML API and draws real images.

    Use it as a context manager, or call :meth:`start` and :meth:`close`. Starting takes a fraction of a second.
    Forked processes can send requests to it, and control it with
    :class:`~airflow_provider_imagen.sandbox.SandboxControl`, but the server runs in this process only.

    :param host: address to listen on. Anyone who can reach it controls it, so keep it on loopback, where it rejects
        other host names and cross-origin requests
    :param port: port of the API; 0 = any free one
    :param cdn_port: port of the images, which have a host of their own as in the real API; 0 = any free one
    :param clock: returns seconds since the epoch, for the log, URLs and limits
    :param settings: see :class:`~airflow_provider_imagen.sandbox.Settings`
    :raises ValueError: an unknown setting, or a port or value out of range
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        cdn_port: int = 0,
        clock: Callable[[], float] = time.time,
        **settings: Any,
    ) -> None:
        for name, number in (("port", port), ("cdn_port", cdn_port)):
            if not isinstance(number, int) or number not in _PORTS:
                raise ValueError(f"{name}={number!r}; allowed: {_PORTS}")
        if not host:
            raise ValueError(f"host={host!r}; allowed: the name or address of a network interface")
        self._state = State(Settings().changed(**settings), true_clock=clock, draw=draw)
        self._host = host
        self._ports = (port, cdn_port)
        self._sockets: list[socket.socket] = []
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._pid = os.getpid()

    @property
    def url(self) -> str:
        """Base URL of the API, without ``/v1``; empty before :meth:`start`."""
        return self._state.api_url

    @property
    def cdn_url(self) -> str:
        """Base URL of the images; empty before :meth:`start`."""
        return self._state.cdn_url

    @property
    def api_key(self) -> str:
        """API key that the sandbox accepts."""
        return self._state.settings.api_key

    @property
    def connection_line(self) -> str:
        """Shell assignment of the environment variable that makes this sandbox Airflow's connection imagen_default."""
        return self._state.connection_line

    @property
    def balance_usd(self) -> Decimal:
        """Current balance in USD."""
        return self._state.account.balance_usd

    def add_fault(self, fault: Fault) -> None:
        """Arm a fault, after those already armed."""
        self._state.faults.add(fault)

    def clear_faults(self) -> None:
        """Disarm all faults."""
        self._state.faults.clear()

    def configure(self, **settings: Any) -> None:
        """
        Change :class:`settings <airflow_provider_imagen.sandbox.Settings>` until the next :meth:`reset`.

        :raises ValueError: an unknown name, or a value out of range
        """
        self._state.configure(settings)

    def reset(self) -> None:
        """Drop faults, charges, log, seen requests and images, and restore the initial settings."""
        self._state.reset()

    def ledger(self) -> list[Charge]:
        """Return the charges, oldest first: one per billed request."""
        return self._state.account.charges()

    def seen(self, path: str | None = None) -> list[SeenRequest]:
        """Return the HTTP requests that arrived on either port, oldest first; a path ending in ``/`` is a prefix."""
        return self._state.seen(path)

    def start(self) -> Self:
        """
        Start serving, and return once both ports accept requests.

        :raises OSError: the host is unknown, or a port is in use or not permitted
        """
        if self._thread is not None:
            return self
        try:
            self._sockets = [_listen(self._host, port) for port in self._ports]
        except OSError:
            self._close_sockets()
            raise
        shown = "127.0.0.1" if self._host == "0.0.0.0" else f"[{self._host}]" if ":" in self._host else self._host  # noqa: S104
        self._state.api_url, self._state.cdn_url = (f"http://{shown}:{sock.getsockname()[1]}" for sock in self._sockets)
        self._state.open()
        ready: list[BaseException | None] = []
        started = threading.Event()

        def report(error: BaseException | None = None) -> None:
            ready.append(error)
            started.set()

        self._thread = threading.Thread(target=self._run, args=(report,), name="imagen-sandbox", daemon=True)
        self._thread.start()
        started.wait()
        if ready[0] is not None:
            self.close()
            raise ready[0]
        return self

    def close(self) -> None:
        """Stop serving and close all connections; does nothing in a forked child."""
        if os.getpid() != self._pid:
            return
        thread, self._thread = self._thread, None
        if thread is None:
            return
        if self._loop is not None and self._stop is not None:
            with suppress(RuntimeError):  # the loop has already ended
                self._loop.call_soon_threadsafe(self._stop.set)
        thread.join(timeout=10)
        self._state.close()
        self._close_sockets()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _close_sockets(self) -> None:
        for sock in self._sockets:
            sock.close()
        self._sockets = []

    def _run(self, report: Callable[..., None]) -> None:
        import asyncio

        try:
            asyncio.run(self._serve(report))
        except BaseException as error:
            report(error)

    async def _serve(self, report: Callable[..., None]) -> None:
        """Serve with uvicorn's HTTP protocol, but without its ``Server``, which logs."""
        import asyncio
        from functools import partial

        from uvicorn.config import Config
        from uvicorn.server import ServerState

        from airflow_provider_imagen.sandbox.app import RequestRecorder, api_app
        from airflow_provider_imagen.sandbox.cdn import cdn_app
        from airflow_provider_imagen.sandbox.local_requests import LocalRequestsOnly
        from airflow_provider_imagen.sandbox.transport import Protocol

        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        shared = ServerState()
        shared.default_headers = [(b"server", b"airflow-imagen-sandbox")]
        apps = (
            RequestRecorder(api_app(self._state), self._state, "api"),
            RequestRecorder(cdn_app(self._state), self._state, "cdn"),
        )
        is_loopback = all(ip_address(sock.getsockname()[0]).is_loopback for sock in self._sockets)
        servers = []
        for app, sock in zip(apps, self._sockets, strict=True):
            config = Config(
                LocalRequestsOnly(app, is_loopback=is_loopback),
                lifespan="off",
                ws="none",
                log_config=None,
                proxy_headers=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            )
            config.load()
            protocol = partial(Protocol, config=config, server_state=shared, app_state={})
            servers.append(await self._loop.create_server(protocol, sock=sock, backlog=_BACKLOG))
        report()
        await self._stop.wait()
        for server in servers:
            server.close()
        for connection in list(shared.connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # requests in flight see the disconnect, and asyncio.run cancels them


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only if the protocol is explicit.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except (OSError, TypeError, ValueError) as error:  # Python raises the last two for a name that DNS does not allow
        sock.close()
        number, reason = (error.errno, error.strerror) if isinstance(error, OSError) else (EINVAL, "Invalid host name")
        raise OSError(number, f"cannot listen on {host}, port {port}: {reason}") from None
    return sock


def serve(
    *,
    on_ready: Callable[[Sandbox], None] | None = None,
    faults: Iterable[Fault] = (),
    **options: Any,
) -> None:
    """
    Run a sandbox until SIGINT or SIGTERM, then close it.

    :param on_ready: called once both ports accept requests
    :param faults: armed before the first request
    :param options: parameters of :class:`Sandbox`
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    signals = (signal.SIGINT, signal.SIGTERM) if in_main_thread else ()
    before = {number: signal.signal(number, signal.default_int_handler) for number in signals}
    try:
        sandbox = Sandbox(**options)
        for fault in faults:
            sandbox.add_fault(fault)
        with sandbox:
            if on_ready is not None:
                on_ready(sandbox)
            while True:
                time.sleep(3600)
    except KeyboardInterrupt:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_embedded: Sandbox | None = None
_embedded_lock = threading.Lock()


def embedded() -> Sandbox:
    """
    Return the sandbox of this process, started on the first call.

    A forked child starts its own, because threads do not survive a fork.
    """
    global _embedded
    with _embedded_lock:
        if _embedded is None:
            _embedded = Sandbox().start()
        return _embedded


def _reset_after_fork() -> None:
    """Close the parent's ports, which would otherwise stay open until the child ends."""
    global _embedded, _embedded_lock
    _embedded_lock = threading.Lock()
    if _embedded is not None:
        _embedded._close_sockets()
        _embedded = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
