"""
Path operations that work the same on local disks and object stores.

:class:`pathlib.Path`, ``upath.UPath`` and Airflow's ``ObjectStoragePath`` all fit, so nothing here imports Airflow.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

HIDDEN_FOLDER: Final = ".imagen"
"""Folder for files that readers should not mistake for images: previews, parts of the manifest, journals."""

MANIFEST_NAME: Final = "metadata.jsonl"

_LOCAL_PROTOCOLS = ("", "file", "local")


@runtime_checkable
class StoragePath(Protocol):
    """The interface that :class:`pathlib.Path` and ``ObjectStoragePath`` share."""

    @property
    def name(self) -> str:
        """The last part of the path."""
        ...

    @property
    def parent(self) -> Self:
        """The containing folder."""
        ...

    def joinpath(self, *parts: str) -> Self:
        """Return the path of an entry below the folder."""
        ...


def local_path(path: StoragePath) -> Path | None:
    """Return a path on a local disk as a :class:`pathlib.Path`; ``None`` for an object store."""
    if protocol_of(path) not in _LOCAL_PROTOCOLS:
        return None
    local: Any = path  # no isinstance check: before version 0.3, every UPath was a pathlib.Path
    return Path(getattr(local, "path", local))


def protocol_of(path: StoragePath) -> str:
    """Return the protocol of a path (``s3``, ``gs``, ``abfs``, ``file`` …)."""
    return str(getattr(path, "protocol", "file"))


def filesystem_of(path: StoragePath) -> tuple[AbstractFileSystem, str]:
    """
    Return the fsspec filesystem of an object store's path, and the key within it.

    :raises ValueError, ImportError: the package for this kind of store is not installed
    """
    remote: Any = path
    return remote.fs, str(remote.path)


def address_of(path: StoragePath) -> str:
    """
    Return a path as text that ``ObjectStoragePath(…)`` can open, with any connection id (``s3://conn@bucket/key``).

    For a local file, that is its absolute path.
    """
    local = local_path(path)
    return str(path if local is None else local.absolute())


def list_objects(filesystem: AbstractFileSystem, key: str) -> list[dict[str, Any]]:
    """
    Return the objects in a folder of an object store, each with its name, size and the store's other metadata.

    Bypasses fsspec's listing cache and leaves nothing in it, because a cached listing would hide later writes.

    :raises FileNotFoundError: the folder is empty or missing
    """
    filesystem.invalidate_cache(key)
    try:
        objects: list[dict[str, Any]] = filesystem.ls(key, detail=True)
        return objects
    finally:
        filesystem.invalidate_cache(key)


def path_text(value: Any) -> Any:
    """Return a path object, or an integer (native template rendering turns digits into one), as text."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if is_number or isinstance(value, StoragePath) else value


def descend(folder: StoragePath, relative: str) -> StoragePath:
    """
    Return the path of a file below a folder.

    :param relative: parts joined by ``/``, none of them ``..``
    """
    return folder.joinpath(*relative.split("/"))


def stays_below(relative: str) -> bool:
    """Return whether an untrusted relative name stays inside its folder."""
    return "\0" not in relative and not {"", ".", ".."} & set(relative.split("/"))


def folder_above(path: StoragePath, relative: str) -> StoragePath | None:
    """Return the folder relative to which a path has the given name; ``None`` if there is none."""
    if not stays_below(relative):
        return None
    folder = path
    for part in reversed(relative.split("/")):
        if folder.name != part:
            return None
        folder = folder.parent
    return folder
