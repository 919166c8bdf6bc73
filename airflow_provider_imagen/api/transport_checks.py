"""
Check, before anything is sent, what would break or expose every request: the CA bundle, and a key in the clear.

requests looks for the bundle when it connects and does not say which setting named it.
"""

from __future__ import annotations

import logging
import os
import ssl
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

log = logging.getLogger(__name__)

_BUNDLE_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""Where requests looks for a bundle when ``verify`` names none, in its order."""

_warned_hosts: set[str] = set()


def check_ca_bundle(verify: bool | str) -> None:
    """
    Load the CA bundle that TLS connections are going to use.

    :param verify: path of a bundle; ``True`` for what the environment names, if anything; ``False`` for no checks
    :raises ValueError: it is missing or holds no certificates; the message names the setting and the path
    """
    named = {"verify": verify} if isinstance(verify, str) else {}
    if verify is True:
        named = {name: os.environ[name] for name in _BUNDLE_VARIABLES if os.environ.get(name)}
    for name, path in list(named.items())[:1]:
        if not Path(path).exists():
            raise ValueError(f"{name}={path!r}: there is no such CA bundle; correct the path or unset it")
        if Path(path).is_dir():
            continue
        try:
            ssl.create_default_context(cafile=path)
        except OSError as error:  # SSLError is one
            raise ValueError(f"{name}={path!r}: this CA bundle cannot be read ({error})") from None


def warn_about_plain_http(url: str) -> None:
    """Warn, once for each host, that the key goes unencrypted over the network."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme != "http" or host in _warned_hosts or is_this_machine(host):
        return
    _warned_hosts.add(host)
    log.warning(
        "The connection's host is http://%s: the API key is sent unencrypted, for anyone on the way to read. "
        "Use https:// unless the network between is your own.",
        host,
    )


def is_this_machine(host: str) -> bool:
    """Return whether a host is loopback by its name alone."""
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
