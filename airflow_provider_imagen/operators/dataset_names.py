"""Asset URI and OpenLineage dataset name of a storage folder. Pure."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote, urlsplit

from msgspec import Struct

_PLAIN: Final = "/:+@=&,;!$'()*~"
"""Punctuation left unescaped in the path of a URI; other punctuation and all non-ASCII characters are escaped."""


_SIGNATURE: Final = r"(?s)\?[^?&=/]*=.*"
"""A query string, which may hold a signature; a question mark without ``name=`` may be part of a file name."""


class Location(Struct, frozen=True):
    """
    A folder or file, independent of the Airflow connection used to open it.

    :param scheme: kind of store: ``file``, ``s3``, ``gs``, ``abfs`` …
    :param container: bucket or container; empty for local files
    :param key: path in the container, without leading or trailing slashes; for local files the absolute path without
        its first slash
    """

    scheme: str
    container: str
    key: str

    @property
    def uri(self) -> str:
        """Asset URI; ASCII only, as MySQL requires."""
        return f"{self.scheme}://{self.container}/{quote(self.key, safe=_PLAIN)}"

    @property
    def namespace(self) -> str:
        """OpenLineage dataset namespace (see OpenLineage's dataset naming)."""
        return self.scheme if self.scheme == "file" else f"{self.scheme}://{self.container}"

    @property
    def name(self) -> str:
        """OpenLineage dataset name: the absolute path for local files, else the key, or ``/`` for a whole bucket."""
        return f"/{self.key}" if self.scheme == "file" else self.key or "/"


def location_of(address: str) -> Location:
    """
    Return the location that an address names.

    :param address: as ``ObjectStoragePath`` prints it (``s3://conn@bucket/key``, ``file:///data``), or an absolute path
    """
    scheme, separator, rest = without_signature(address).partition("://")
    if not separator:
        return Location("file", "", address.strip("/"))
    if scheme in ("file", "local"):
        return Location("file", "", rest.strip("/"))
    container, _, key = rest.partition("/")
    return Location(scheme, container.rpartition("@")[2], key.strip("/"))


def without_signature(address: str) -> str:
    """Return an object store address without its query string, which may hold a signature."""
    is_local = "://" not in address or address.startswith(("file://", "local://"))
    return address if is_local else re.sub(_SIGNATURE, "", address)


def host_of(url: str) -> str:
    """Return the scheme, host and port of a URL."""
    parts = urlsplit(url if "://" in url else f"https://{url}")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
