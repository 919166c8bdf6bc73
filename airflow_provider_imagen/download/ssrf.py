"""
The transport of the downloader: connections that go to checked addresses only and cannot outlast their fetch.

requests and urllib3 do the work; what is added here sits at the three places where they leave room for it: how a
connection is made, how a response reads its socket, and which connections a pool makes. Imports requests, so import
this module when it is used.
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
    from collections.abc import Callable, Collection, Iterable, Iterator

    from urllib3.connectionpool import ConnectionPool

    from airflow_provider_imagen.download.ip_addresses import HostAndPort

_POLL_SECONDS = 1.0  # how long a silent server can keep a fetch from noticing that it should stop


def explain(host: str | None, what: str) -> str:
    """
    Word the message of a download error; it names the host, never the path or query of a link.

    :param what: what happened, as the end of the sentence
    """
    return f"Could not fetch the picture from {host or 'its link'}: {what}"


class FetchLimits:
    """
    What one fetch may do, and whether it may go on.

    :param allow_private_hosts: hosts that may have private addresses; ``True`` for all
    :param read_timeout_seconds: longest silence of a server
    :param total_timeout_seconds: longest time of the fetch, counted from now
    :param should_stop: true when the task is ending
    :param clock: monotonic seconds
    """

    def __init__(
        self,
        *,
        allow_private_hosts: bool | Collection[HostAndPort],
        read_timeout_seconds: float,
        total_timeout_seconds: float,
        should_stop: Callable[[], bool],
        clock: Callable[[], float],
    ) -> None:
        self._private_hosts = () if isinstance(allow_private_hosts, bool) else allow_private_hosts
        self._all_may_be_private = allow_private_hosts is True
        self.read_timeout_seconds = read_timeout_seconds
        self.poll_seconds = min(_POLL_SECONDS, read_timeout_seconds, total_timeout_seconds)
        self.clock = clock
        self.host: str | None = None
        """Host of the present hop, for messages."""
        self._total_timeout_seconds = total_timeout_seconds
        self._deadline = clock() + total_timeout_seconds
        self._should_stop = should_stop

    def may_be_private(self, host: str, port: int) -> bool:
        """Return whether a host may have private addresses, as far as this port is concerned."""
        name = canonical_host(host)
        return self._all_may_be_private or (name, port) in self._private_hosts or (name, None) in self._private_hosts

    def check_addresses(self, host: str, port: int, addresses: Iterable[str]) -> None:
        """
        Return when all addresses of a host may be connected to.

        :raises UnsafeAddressError: otherwise
        """
        may_be_private = self.may_be_private(host, port)
        for address in addresses:
            if is_public_address(address) or (may_be_private and is_private_address(address)):
                continue
            hint = "; [imagen] allowed_download_hosts can allow its host" if is_private_address(address) else ""
            raise UnsafeAddressError(explain(host, f"it leads to the private address {address}{hint}"), host=host)

    def check_before_proxy(self, host: str, port: int) -> None:
        """
        Check a host that a proxy is going to resolve, as far as this machine knows its addresses.

        :raises UnsafeAddressError: one of them may not be connected to; a name that does not resolve here passes
        """
        try:
            addresses = _resolve(host, None)
        except (OSError, UnicodeError):
            return
        self.check_addresses(host, port, addresses)

    def check_literal(self, host: str, port: int) -> None:
        """
        Check a host that is an IP address, in any spelling; a name passes.

        :raises UnsafeAddressError: it may not be connected to
        """
        literal = literal_address(host)
        if literal is not None:
            self.check_addresses(host, port, [literal])

    def remaining_seconds(self) -> float:
        """Time left, never less than a millisecond, so that it can serve as a timeout."""
        return max(self._deadline - self.clock(), 0.001)

    def check(self) -> None:
        """
        Return while there is time and nobody asked to stop.

        :raises DownloadError: otherwise
        """
        if self._should_stop():
            raise DownloadError(explain(self.host, "stopped, because the task is ending"), host=self.host)
        if self.clock() >= self._deadline:
            what = f"not complete after {self._total_timeout_seconds:g} s"
            raise DownloadError(explain(self.host, what), host=self.host)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the connections that this thread makes and reads meanwhile under these limits."""
        token = _current_limits.set(self)
        try:
            yield
        finally:
            _current_limits.reset(token)


_current_limits: ContextVar[FetchLimits] = ContextVar("current_limits")


def _resolve(host: str, port: int | None) -> list[str]:
    found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class _WatchedReader(io.RawIOBase):
    """Read from a socket in short waits, so that a silent or dripping server cannot outlast the limits."""

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


class _WatchedResponse(FinalResponse):
    """A final response that is read under the limits of the fetch, with all interim ones before it."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_WatchedReader(self.fp.detach(), sock, _current_limits.get()))


class _GuardedConnection(HTTPConnection):
    """A connection to the very address that was checked; host name, SNI and certificate check stay by name."""

    response_class = _WatchedResponse

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
            patience = limits.remaining_seconds()
            try:
                return create_connection(
                    (address, self.port),
                    patience if self.timeout is None else min(self.timeout, patience),
                    source_address=self.source_address,
                    socket_options=self.socket_options,
                )
            except OSError as error:
                problem = error
        if isinstance(problem, TimeoutError):
            raise ConnectTimeoutError(self, "no connection in time") from problem
        raise NewConnectionError(self, "no connection") from problem


class _GuardedTlsConnection(_GuardedConnection, HTTPSConnection):
    """The same under TLS."""


class _GuardedPool(HTTPConnectionPool):
    ConnectionCls = _GuardedConnection


class _GuardedTlsPool(HTTPSConnectionPool):
    ConnectionCls = _GuardedTlsConnection


class GuardedAdapter(HTTPAdapter):
    """
    The transport of requests on guarded connections; every use must be inside :meth:`FetchLimits.applied`.

    Behind a proxy the connection goes to the proxy, whose address is the administrator's choice and is not checked.
    A SOCKS proxy brings its own kind of connection, which knows the read timeout only.
    """

    _POOLS: ClassVar[dict[str, type[ConnectionPool]]] = {"http": _GuardedPool, "https": _GuardedTlsPool}

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make the pools of direct connections guarded ones."""
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = self._POOLS

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        """Make the pools of connections through an HTTP proxy watched ones."""
        manager = super().proxy_manager_for(proxy, **kwargs)
        if not proxy.lower().startswith("socks"):
            manager.pool_classes_by_scheme = self._POOLS
        return manager
