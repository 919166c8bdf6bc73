"""
Classify IP addresses and hosts as public or private.

Pure, standard library only. The ranges are listed here because the :mod:`ipaddress` properties classify special ranges
differently between patch releases of Python.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterable

# IANA IPv4 Special-Purpose Address Registry, plus multicast and the reserved block at the top.
_NON_PUBLIC_IPV4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT; also Alibaba's metadata service
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's host agent: a public address, reachable only from inside
        "169.254.0.0/16",  # link-local; the metadata service of most clouds
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments; also Oracle's metadata service
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)
# The only block allocated as global unicast; everything outside it (loopback, unique local, link-local, multicast,
# IPv4-compatible, local NAT64 …) is non-public without being listed.
_GLOBAL_UNICAST_IPV6 = IPv6Network("2000::/3")
_NON_PUBLIC_IPV6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments, Teredo among them
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: embeds an IPv4 address
        "3fff::/20",  # documentation
    )
)
_NAT64 = IPv6Network("64:ff9b::/96")  # how IPv6-only networks represent a public IPv4 address
_ISATAP = (0x00005EFE, 0x02005EFE)  # bits 64–95 of an address that tunnels to the IPv4 address in its last 32

# Ranges of private networks. Anything else that is not public (link-local, multicast, reserved …) is never connected
# to.
_PRIVATE = tuple(
    ip_network(network)
    for network in (
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT, also used inside clouds
        "127.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarks; some VPN clients map public names to it
        "::1/128",
        "fc00::/7",  # unique local
    )
)
_METADATA = tuple(
    ip_network(network)
    for network in (
        "100.100.100.200/32",  # Alibaba
        "fd00:ec2::/32",  # Amazon
        "fd20:ce::/32",  # Google
        "fd00:c1::/32",  # Oracle
        "fd00:42::42/128",  # Scaleway
    )
)
_LINK_LOCAL_IPV4 = IPv4Network("169.254.0.0/16")

_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_.")

HostAndPort = tuple[str, int | None]
"""A host as :func:`canonical_host` spells it, and a port, or ``None`` for every port."""


def is_public_address(address: str) -> bool:
    """
    Return whether an IP address is reachable on the public internet.

    Not public are private, loopback, link-local, carrier-grade NAT, multicast, documentation, reserved and unspecified
    addresses, cloud metadata services, and every IPv6 form that embeds such an IPv4 address.

    :param address: an IPv4 or IPv6 address as text, with or without a scope (``fe80::1%eth0``)
    :raises ValueError: not an IP address
    """
    ip = ip_address(address)
    if isinstance(ip, IPv4Address):
        return _is_public_ipv4(ip)
    if ip.ipv4_mapped is not None:
        return _is_public_ipv4(ip.ipv4_mapped)
    ip = IPv6Address(int(ip))  # without its scope
    if ip in _NAT64:
        return _is_public_ipv4(_last_32_bits(ip))
    if ip not in _GLOBAL_UNICAST_IPV6 or any(ip in network for network in _NON_PUBLIC_IPV6):
        return False
    if int(ip) >> 32 & 0xFFFFFFFF in _ISATAP:
        return _is_public_ipv4(_last_32_bits(ip))
    return True


def is_private_address(address: str) -> bool:
    """
    Return whether an IP address belongs to a private network, which a deployment may allow.

    Link-local addresses, metadata services and IPv6 forms that tunnel to a private IPv4 address are neither public nor
    private: they cannot be allowed.

    :param address: as for :func:`is_public_address`
    """
    ip = ip_address(address)
    if isinstance(ip, IPv6Address):
        ip = ip.ipv4_mapped or IPv6Address(int(ip))
    embeds_link_local = isinstance(ip, IPv6Address) and _last_32_bits(ip) in _LINK_LOCAL_IPV4
    return not embeds_link_local and _is_in(ip, _PRIVATE) and not _is_in(ip, _METADATA)


def _is_in(ip: IPv4Address | IPv6Address, networks: Iterable[IPv4Network | IPv6Network]) -> bool:
    return any(ip in network for network in networks)


def _is_public_ipv4(ip: IPv4Address) -> bool:
    return not any(ip in network for network in _NON_PUBLIC_IPV4)


def _last_32_bits(ip: IPv6Address) -> IPv4Address:
    return IPv4Address(int(ip) & 0xFFFFFFFF)


def literal_address(host: str) -> str | None:
    """
    Return the IP address if a host is one, also in the legacy spellings that resolvers accept, else ``None``.

    ``2130706433``, ``0x7f.1`` and ``127.1`` all mean 127.0.0.1 to the C library.

    :param host: host part of a URL, IPv6 with or without brackets
    """
    bare = host.strip("[]").rstrip(".")
    try:
        return str(ip_address(bare))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(bare))
    except (OSError, UnicodeError):
        return None


def canonical_host(host: str) -> str:
    """Return the canonical spelling of a host: an address in standard form, a name in lower case and IDNA-encoded."""
    name = literal_address(host) or host.lower().rstrip(".")
    try:
        return name if name.isascii() else name.encode("idna").decode()
    except UnicodeError:
        return name


def parse_host(text: str) -> HostAndPort:
    """
    Parse a host with or without a port: ``cdn.internal``, ``10.0.3.7:9000``, ``[fd00::7]:9000``, ``fd00::7``.

    :raises ValueError: anything else, such as a URL or a network
    """
    bare = text.strip()
    netloc = f"[{bare}]" if bare.count(":") > 1 and not bare.startswith("[") else bare
    parts = urlsplit(f"//{netloc}")
    host = canonical_host(parts.hostname or "")
    if (
        parts.netloc != netloc
        or "@" in netloc
        or not (literal_address(host) or set(host) <= _NAME_CHARACTERS)
        or not host
    ):
        raise ValueError(f"{text!r}: a host is allowed, with or without a port, such as cdn.internal or 10.0.3.7:9000")
    return host, parts.port
