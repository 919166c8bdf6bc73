"""Client settings and download hosts, from the checked fields of an Airflow connection."""

from __future__ import annotations

import json
import re
import shlex
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow_provider_imagen.sandbox_key import SANDBOX_API_KEY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow.sdk import Connection

    from airflow_provider_imagen.api.client import ClientSettings
    from airflow_provider_imagen.download.ip_addresses import HostAndPort
    from airflow_provider_imagen.run.usage_caps import UsageCap

CONNECTION_TYPE = "imagen"
EXTRA_FIELDS = ("connect_timeout", "max_usd_per_day", "max_usd_per_month", "model", "read_timeout", "sandbox", "verify")
LONGEST_TIMEOUT_SECONDS = 86_400

_UNTYPED = ("", "generic")
"""Types that say nothing about the service, as in JSON without ``conn_type``."""

_LONGEST_NAME_SHOWN = 60
_BOOLEANS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


def connection_settings(connection: Connection) -> ClientSettings:
    """
    Return the client settings for a connection.

    :raises ValueError: the connection is for another service, a field is invalid or unknown, or there is no key
    """
    from airflow_provider_imagen.api.client import (
        CONNECT_TIMEOUT_SECONDS,
        DEFAULT_BASE_URL,
        READ_TIMEOUT_SECONDS,
        ClientSettings,
    )

    _check_type(connection)
    extra = read_extra(connection)
    base_url = _base_url(connection)
    settings = ClientSettings(
        base_url=base_url or DEFAULT_BASE_URL,
        api_key=(connection.password or "").strip() or None,
        connect_timeout_seconds=_read_seconds(extra, "connect_timeout", CONNECT_TIMEOUT_SECONDS),
        read_timeout_seconds=_read_seconds(extra, "read_timeout", READ_TIMEOUT_SECONDS),
        verify=_read_verify(extra),
    )
    if _read_bool(extra, "sandbox"):
        return _sandbox_settings(settings, has_host=bool(base_url))
    if settings.api_key is None:
        raise ValueError(
            f"Connection {connection.conn_id!r} has no API key: enter it as the password, "
            f'or set "sandbox": true in the extra to use the built-in sandbox without a key.'
        )
    return settings


def read_extra(connection: Connection) -> dict[str, Any]:
    """
    Return the extra of a connection.

    Nothing in it is ignored: with a typo in ``sandbox``, requests meant for the sandbox would go to the paid API.

    :raises ValueError: it is not a JSON object, or has a field other than :data:`EXTRA_FIELDS`
    """
    from difflib import get_close_matches

    where = f"Connection {connection.conn_id!r}: the extra"
    try:
        extra = json.loads(connection.extra or "{}")
    except json.JSONDecodeError as error:  # for which ``extra_dejson`` returns an empty dictionary
        raise ValueError(f"{where} is not JSON: {error}") from None
    if not isinstance(extra, dict):
        raise ValueError(f'{where} is not a JSON object, such as {{"sandbox": true}}')
    for name in extra:
        if name in EXTRA_FIELDS:
            continue
        shown = name[:_LONGEST_NAME_SHOWN]
        near = get_close_matches(shown.lower(), EXTRA_FIELDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"its fields are {', '.join(EXTRA_FIELDS)}"
        raise ValueError(f"{where} has an unknown field {shown!r}; {hint}")
    return extra


def usage_caps(connection: Connection) -> tuple[UsageCap, ...]:
    """
    Return the caps on what the API key spends per day and month.

    :raises ValueError: a cap is not a number above 0, or the extra is invalid
    """
    from airflow_provider_imagen.api.cost import read_amount
    from airflow_provider_imagen.run.usage_caps import PERIODS, UsageCap

    extra = read_extra(connection)
    caps = []
    for period in PERIODS:
        name = f"max_usd_per_{period}"
        value = extra.get(name)
        if value is None or value == "":
            continue
        max_usd = read_amount(value.strip() if isinstance(value, str) else value)
        if not max_usd:
            raise ValueError(f"Extra {name}={value!r} of the connection: a number of USD above 0 is allowed")
        caps.append(UsageCap(period, max_usd))
    return tuple(caps)


def missing_connection_message(conn_id: str) -> str:
    """Return what to say about a connection that does not exist: how to create it, or try without a key."""
    extra = {"sandbox": True}
    connection = shlex.quote(json.dumps({"conn_type": CONNECTION_TYPE, "extra": extra}))
    command = f"export AIRFLOW_CONN_{conn_id.upper()}={connection}"
    if not re.fullmatch(r"[A-Za-z0-9_]+", conn_id):  # not a shell variable
        options = f"--conn-type {CONNECTION_TYPE} --conn-extra {shlex.quote(json.dumps(extra))}"
        command = f"airflow connections add {shlex.quote(conn_id)} {options}"
    return (
        f"There is no connection {conn_id!r}: create one of type {CONNECTION_TYPE} with the API key as its password. "
        f"To use the built-in sandbox without a key: {command}"
    )


def allowed_private_hosts(connection: Connection, base_url: str) -> set[HostAndPort]:
    """
    Return the hosts in private networks that images may be downloaded from: the API's own and the configured ones.

    :param base_url: base URL of the API
    :raises ValueError: ``[imagen] allowed_download_hosts`` has an entry that is not a host
    """
    from airflow_provider_imagen._compat import get_allowed_download_hosts
    from airflow_provider_imagen.api.transport_checks import is_loopback_host
    from airflow_provider_imagen.download.ip_addresses import canonical_host, parse_host

    parts = urlsplit(base_url if "://" in base_url else f"https://{base_url}")
    host = canonical_host(parts.hostname or "")
    hosts: set[HostAndPort] = {(host, parts.port or (443 if parts.scheme == "https" else 80))}
    try:
        hosts |= {parse_host(entry) for entry in get_allowed_download_hosts()}
    except ValueError as error:
        raise ValueError(f"[imagen] allowed_download_hosts has {error}") from None
    if parts.scheme == "http" and _is_sandbox(connection):  # it serves images on another port
        hosts |= {(name, None) for name in ({host, "127.0.0.1", "::1"} if is_loopback_host(host) else {host})}
    return hosts


def _is_sandbox(connection: Connection) -> bool:
    return connection.password == SANDBOX_API_KEY or _read_bool(read_extra(connection), "sandbox")


def _check_type(connection: Connection) -> None:
    """Reject the connection of another service, whose key must not be sent to the API."""
    conn_type = connection.conn_type or ""
    if conn_type not in (CONNECTION_TYPE, *_UNTYPED):
        raise ValueError(
            f"Connection {connection.conn_id!r} has the type {conn_type!r}, but must have the type {CONNECTION_TYPE!r}"
        )


def _base_url(connection: Connection) -> str:
    """
    Return the base URL built from a connection's fields, or an empty string if there is no host.

    ``schema`` is what follows the host in a connection URI. As in Airflow's HTTP connections, ``http`` and ``https``
    are the scheme; anything else is a path. Port 0 means none: Airflow's connection form needs a port for its test.

    :raises ValueError: fields contradict each other, or need a host that is missing
    """
    host, port = (connection.host or "").strip(), connection.port
    schema = (connection.schema or "").strip().strip("/")
    scheme = schema.lower() if schema.lower() in ("http", "https") else ""
    path = "" if scheme else schema
    if not host:
        if port not in (None, 0, 443) or path or scheme == "http":
            raise ValueError(f"Connection {connection.conn_id!r} has a port or schema but no host: set host, too")
        return ""
    if not (scheme or path or port):
        return host
    if _is_ipv6(host):  # Airflow strips the brackets when it parses a connection URI
        host = f"[{host}]"
    try:
        parts = urlsplit(host if "://" in host else f"{scheme or 'https'}://{host}")
        own_port = parts.port
    except ValueError:
        return host  # the client reports what is wrong with it
    for name, ours, theirs in (
        ("schema", scheme or parts.scheme, parts.scheme),
        ("schema", path, parts.path.strip("/") or path),
        ("port", port or own_port, own_port or port),
    ):
        if ours != theirs and ours:
            raise ValueError(
                f"Connection {connection.conn_id!r}: {name}={ours!r} and host={host!r} contradict each other; "
                f"put the whole base URL into host, such as https://gateway.example.com:8443/images"
            )
    netloc = f"{parts.netloc}:{port}" if port and not own_port else parts.netloc
    return parts._replace(netloc=netloc, path=parts.path or (path and f"/{path}")).geturl()


def _is_ipv6(host: str) -> bool:
    try:
        return ip_address(host).version == 6
    except ValueError:
        return False


def _sandbox_settings(settings: ClientSettings, *, has_host: bool) -> ClientSettings:
    """
    Return settings for a sandbox: the one at ``host``, else the one embedded in this process.

    :param has_host: whether the connection has a ``host``
    :raises ValueError: ``host`` is the API itself, where requests cost money
    """
    from msgspec.structs import replace

    from airflow_provider_imagen.api.client import DEFAULT_BASE_URL
    from airflow_provider_imagen.sandbox import embedded

    if not has_host:
        return replace(settings, base_url=embedded().url, api_key=SANDBOX_API_KEY)
    if str(urlsplit(DEFAULT_BASE_URL).hostname) in settings.base_url.lower():
        raise ValueError(
            "Extra sandbox=True of the connection: host is the API itself, where requests cost money; leave host empty "
            "or name a sandbox's host"
        )
    return replace(settings, api_key=settings.api_key or SANDBOX_API_KEY)


def _read_seconds(extra: Mapping[str, Any], name: str, default: float) -> float:
    value = extra.get(name)
    if value is None or value == "":
        return default
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    is_text = isinstance(value, str) and re.fullmatch(r"\s*[0-9]{1,9}(\.[0-9]{1,9})?\s*", value)
    seconds = float(value) if is_text else value if is_number else 0
    if not 0 < seconds <= LONGEST_TIMEOUT_SECONDS:
        raise ValueError(
            f"Extra {name}={value!r} of the connection: a number of seconds above 0, "
            f"up to {LONGEST_TIMEOUT_SECONDS}, is allowed"
        )
    return float(seconds)


def _parse_bool(value: Any) -> bool | None:
    """Return the boolean that a JSON value or form text stands for, or ``None`` if it is neither true nor false."""
    return _BOOLEANS.get(str(value).strip().lower())


def _read_bool(extra: Mapping[str, Any], name: str) -> bool:
    value = extra.get(name)
    if value is None or value == "":
        return False
    if (parsed := _parse_bool(value)) is None:
        raise ValueError(f"Extra {name}={value!r} of the connection: true or false is allowed")
    return parsed


def _read_verify(extra: Mapping[str, Any]) -> bool | str:
    value = extra.get("verify")
    if value is None or value == "":
        return True
    if (parsed := _parse_bool(value)) is not None:
        return parsed
    if isinstance(value, str) and Path(value.strip()).exists():
        return value.strip()
    raise ValueError(
        f"Extra verify={value!r} of the connection: true, false or the path of an existing CA bundle is allowed"
    )
