"""
Check before sending that the CA bundle is usable, and warn if the API key would be sent unencrypted.

requests opens the bundle only when it connects, and its error does not say which setting named it.
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
"""Where requests looks for a bundle if ``verify`` names none, in this order."""

_warned_hosts: set[str] = set()


def check_ca_bundle(verify: bool | str) -> None:
    """
    Raise if the CA bundle that TLS connections will use cannot be loaded.

    :param verify: path of a bundle; ``True`` for the one the environment names, if any; ``False`` for no check
    :raises ValueError: it is missing or unreadable; the message names the setting and the path
    """
    named = {"verify": verify} if isinstance(verify, str) else {}
    if verify is True:
        named = {name: os.environ[name] for name in _BUNDLE_VARIABLES if os.environ.get(name)}
    for name, path in list(named.items())[:1]:
        if not Path(path).exists():
            raise ValueError(f"{name}={path!r}: the CA bundle does not exist; correct the path or unset it")
        if Path(path).is_dir():
            continue
        try:
            ssl.create_default_context(cafile=path)
        except OSError as error:  # SSLError is one
            raise ValueError(f"{name}={path!r}: the CA bundle cannot be read ({error})") from None


def warn_about_plain_http(url: str) -> None:
    """Warn, once per host, that the key is sent unencrypted."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme != "http" or host in _warned_hosts or is_loopback_host(host):
        return
    _warned_hosts.add(host)
    log.warning(
        "The connection's host is http://%s: the API key is sent unencrypted and can be intercepted. "
        "Use https:// unless you trust the whole network path.",
        host,
    )


def is_loopback_host(host: str) -> bool:
    """Return whether a host is loopback, judging by its name or address alone."""
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
