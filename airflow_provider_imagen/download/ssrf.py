"""
The downloader's SSRF-safe transport: connects only to checked addresses, and enforces the limits of a fetch.

Hooks into requests and urllib3 at three points: how a connection is made, how a response reads its socket, and which
connections a pool creates. Imports requests, so import this module only where it is used.
"""

from __future__ import annotations

import io
import socket
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ClassVar

from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError
from urllib3.util.connection import create_connection

from airflow_provider_imagen.api.final_response import FinalResponse
from airflow_provider_imagen.download.ip_addresses import (
    canonical_host,
    is_private_address,
    is_public_address,
    literal_address,
)
from airflow_provider_imagen.exceptions import DownloadError, UnsafeAddressError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Collection, Iterable, Iterator

    from urllib3.connectionpool import ConnectionPool

    from airflow_provider_imagen.download.ip_addresses import HostAndPort

_POLL_SECONDS = 1.0  # how often a fetch from a silent server checks whether it should stop


def failure_message(host: str | None, reason: str) -> str:
    """
    Return the message of a download error; it names the host, never the path or query of a URL.

    :param reason: what happened, worded to follow a colon
    """
    return f"Could not download the image{f' from {host}' if host else ''}: {reason}"


class FetchLimits:
    """
    Limits of one fetch: which addresses it may connect to, and how long it may take.

    :param allow_private_hosts: hosts that may have private addresses; ``True`` for all
    :param read_timeout_seconds: longest time without data from a server
    :param total_timeout_seconds: longest time for the fetch, from now
    :param cancelled: set when the task is ending
    :param clock: monotonic seconds
    """

    def __init__(
        self,
        *,
        allow_private_hosts: bool | Collection[HostAndPort],
        read_timeout_seconds: float,
        total_timeout_seconds: float,
        cancelled: threading.Event,
        clock: Callable[[], float],
    ) -> None:
        self._private_hosts = () if isinstance(allow_private_hosts, bool) else allow_private_hosts
        self._all_may_be_private = allow_private_hosts is True
        self.read_timeout_seconds = read_timeout_seconds
        self.poll_seconds = min(_POLL_SECONDS, read_timeout_seconds, total_timeout_seconds)
        self.clock = clock
        self.host: str | None = None
        """Host of the current hop, for error messages."""
        self._total_timeout_seconds = total_timeout_seconds
        self._deadline = clock() + total_timeout_seconds
        self._cancelled = cancelled

    def may_be_private(self, host: str, port: int) -> bool:
        """Return whether a host may have private addresses on this port."""
        name = canonical_host(host)
        return self._all_may_be_private or (name, port) in self._private_hosts or (name, None) in self._private_hosts

    def check_addresses(self, host: str, port: int, addresses: Iterable[str]) -> None:
        """
        Raise unless all addresses of a host are public, or private and allowed.

        :raises UnsafeAddressError: one of them is neither
        """
        may_be_private = self.may_be_private(host, port)
        for address in addresses:
            if is_public_address(address) or (may_be_private and is_private_address(address)):
                continue
            hint = "; [imagen] allowed_download_hosts can allow the host" if is_private_address(address) else ""
            raise UnsafeAddressError(
                failure_message(host, f"it resolves to the private address {address}{hint}"), host=host
            )

    def check_before_proxy(self, host: str, port: int) -> None:
        """
        Check the addresses, as resolved on this machine, of a host that a proxy will resolve.

        A name that does not resolve here passes.

        :raises UnsafeAddressError: one of them may not be connected to
        """
        try:
            addresses = _resolve(host, None)
        except (OSError, UnicodeError):
            return
        self.check_addresses(host, port, addresses)

    def check_literal(self, host: str, port: int) -> None:
        """
        Check a host that is an IP address in any spelling; names pass.

        :raises UnsafeAddressError: the address may not be connected to
        """
        literal = literal_address(host)
        if literal is not None:
            self.check_addresses(host, port, [literal])

    def remaining_seconds(self) -> float:
        """Return the time left, at least a millisecond so that it can serve as a timeout."""
        return max(self._deadline - self.clock(), 0.001)

    def check(self) -> None:
        """
        Raise if the fetch has to end.

        :raises DownloadError: the task is ending, or the total timeout has passed
        """
        if self._cancelled.is_set():
            raise DownloadError(failure_message(self.host, "cancelled because the task is ending"), host=self.host)
        if self.clock() >= self._deadline:
            reason = f"not complete after {self._total_timeout_seconds:g} s"
            raise DownloadError(failure_message(self.host, reason), host=self.host)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Apply these limits to the connections this thread makes and reads inside the ``with`` block."""
        token = _current_limits.set(self)
        try:
            yield
        finally:
            _current_limits.reset(token)


_current_limits: ContextVar[FetchLimits] = ContextVar("current_limits")


def _resolve(host: str, port: int | None) -> list[str]:
    found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class _LimitedReader(io.RawIOBase):
    """Reads a socket with short timeouts, so that a silent or slow server cannot outlast the limits."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, limits: FetchLimits) -> None:
        self._raw = raw  # holds the socket open until this reader closes
        self._sock = sock
        self._limits = limits
        sock.settimeout(limits.poll_seconds)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        silent_until = self._limits.clock() + self._limits.read_timeout_seconds
        while True:
            self._limits.check()
            try:
                return self._sock.recv_into(buffer)
            except TimeoutError:
                if self._limits.clock() >= silent_until:
                    raise

    def close(self) -> None:
        self._raw.close()
        super().close()


class _LimitedResponse(FinalResponse):
    """A final response read under the limits of the fetch, including any interim responses before it."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_LimitedReader(self.fp.detach(), sock, _current_limits.get()))


class _GuardedConnection(HTTPConnection):
    """A connection to the address that was checked; ``Host``, SNI and certificate checks still use the name."""

    response_class = _LimitedResponse

    def _new_conn(self) -> socket.socket:
        limits = _current_limits.get()
        if self.proxy is not None:
            return super()._new_conn()
        try:
            addresses = _resolve(self.host, self.port)
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error
        except UnicodeError as error:  # a label that is empty or too long
            raise NameResolutionError(self.host, self, socket.gaierror(str(error))) from error
        limits.check_addresses(self.host, self.port, addresses)
        return self._connect_to_one_of(addresses, limits)

    def _connect_to_one_of(self, addresses: Iterable[str], limits: FetchLimits) -> socket.socket:
        problem: OSError | None = None
        for address in addresses:
            limits.check()
            remaining = limits.remaining_seconds()
            try:
                return create_connection(
                    (address, self.port),
                    remaining if self.timeout is None else min(self.timeout, remaining),
                    source_address=self.source_address,
                    socket_options=self.socket_options,
                )
            except OSError as error:
                problem = error
        if isinstance(problem, TimeoutError):
            raise ConnectTimeoutError(self, "no connection in time") from problem
        raise NewConnectionError(self, "no connection") from problem


class _GuardedTlsConnection(_GuardedConnection, HTTPSConnection):
    """A :class:`_GuardedConnection` over TLS."""


class _GuardedPool(HTTPConnectionPool):
    ConnectionCls = _GuardedConnection


class _GuardedTlsPool(HTTPSConnectionPool):
    ConnectionCls = _GuardedTlsConnection


class GuardedAdapter(HTTPAdapter):
    """
    A requests adapter on guarded connections, for use inside :meth:`FetchLimits.applied` only.

    The address of a proxy is the administrator's choice and is not checked. A SOCKS proxy uses its own connection
    class, to which only the read timeout applies.
    """

    _POOLS: ClassVar[dict[str, type[ConnectionPool]]] = {"http": _GuardedPool, "https": _GuardedTlsPool}

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Use guarded pools for direct connections."""
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = self._POOLS

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        """Use guarded pools for connections through an HTTP proxy, too; these read under the fetch's limits."""
        manager = super().proxy_manager_for(proxy, **kwargs)
        if not proxy.lower().startswith("socks"):
            manager.pool_classes_by_scheme = self._POOLS
        return manager
