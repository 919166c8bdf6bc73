"""Name a stored folder for those outside: as the URI of an asset and as an OpenLineage dataset. Pure."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote, urlsplit

from msgspec import Struct

_PLAIN: Final = "/:+@=&,;!$'()*~"
"""What stands for itself in the path of a URI; the rest of ASCII's marks, and all beyond ASCII, is escaped."""


_SIGNATURE: Final = r"(?s)\?[^?&=/]*=.*"
"""A query, which may be a signature; a question mark alone may belong to a name."""


class Place(Struct, frozen=True):
    """
    A folder or file, without the connection that opens it: the same place whoever looks at it.

    :param scheme: kind of store: ``file``, ``s3``, ``gs``, ``abfs`` …
    :param container: bucket or container; empty on this machine
    :param key: path within it, without slashes at either end; on this machine the absolute path without the first slash
    """

    scheme: str
    container: str
    key: str

    @property
    def uri(self) -> str:
        """URI of an asset, ASCII as MySQL wants it."""
        return f"{self.scheme}://{self.container}/{quote(self.key, safe=_PLAIN)}"

    @property
    def namespace(self) -> str:
        """Namespace of an OpenLineage dataset (OpenLineage, naming of datasets)."""
        return self.scheme if self.scheme == "file" else f"{self.scheme}://{self.container}"

    @property
    def name(self) -> str:
        """Name of an OpenLineage dataset: an absolute path on this machine, else the key, ``/`` for a whole bucket."""
        return f"/{self.key}" if self.scheme == "file" else self.key or "/"


def place_of(address: str) -> Place:
    """
    Take an address apart.

    :param address: as ``ObjectStoragePath`` prints it (``s3://conn@bucket/key``, ``file:///data``), or an absolute path
    """
    scheme, separator, rest = unsigned(address).partition("://")
    if not separator:
        return Place("file", "", address.strip("/"))
    if scheme in ("file", "local"):
        return Place("file", "", rest.strip("/"))
    container, _, key = rest.partition("/")
    return Place(scheme, container.rpartition("@")[2], key.strip("/"))


def unsigned(address: str) -> str:
    """Cut the query off an address in a store: it may be a signature."""
    is_local = "://" not in address or address.startswith(("file://", "local://"))
    return address if is_local else re.sub(_SIGNATURE, "", address)


def host_of(url: str) -> str:
    """Cut a URL down to scheme, host and port."""
    parts = urlsplit(url if "://" in url else f"https://{url}")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
