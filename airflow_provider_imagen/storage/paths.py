"""
Folders and files, wherever they are: the few things the storage needs from a path object.

:class:`pathlib.Path`, ``upath.UPath`` and Airflow's ``ObjectStoragePath`` all fit, so nothing here imports Airflow.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

HIDDEN_FOLDER: Final = ".imagen"
"""Folder beside the pictures for what readers of pictures should not take for one: previews, parts of the manifest."""

MANIFEST_NAME: Final = "metadata.jsonl"

_LOCAL_PROTOCOLS = ("", "file", "local")


@runtime_checkable
class StoragePath(Protocol):
    """A place for bytes, as :class:`pathlib.Path` and ``ObjectStoragePath`` show it."""

    @property
    def name(self) -> str:
        """The last part of the path."""
        ...

    @property
    def parent(self) -> Self:
        """The folder it lies in."""
        ...

    def __truediv__(self, key: str, /) -> Self:
        """Descend into the folder."""
        ...


def local_path(path: StoragePath) -> Path | None:
    """Turn a path on this machine's disk into a :class:`pathlib.Path`; ``None`` for an object store."""
    if protocol_of(path) not in _LOCAL_PROTOCOLS:
        return None
    known: Any = path  # not told by its class: before version 0.3 every UPath was a pathlib.Path as well
    return Path(getattr(known, "path", known))


def protocol_of(path: StoragePath) -> str:
    """Name the kind of store (``s3``, ``gs``, ``abfs``, ``file`` …)."""
    return str(getattr(path, "protocol", "file"))


def filesystem_of(path: StoragePath) -> tuple[AbstractFileSystem, str]:
    """
    Take an object store's path apart into its fsspec filesystem and the key there.

    :raises ValueError, ImportError: when the package that speaks to this kind of store is not installed
    """
    remote: Any = path
    return remote.fs, str(remote.path)


def address_of(path: StoragePath) -> str:
    """
    Write a path so that ``ObjectStoragePath(…)`` opens it again, connection id included (``s3://conn@bucket/key``).

    A file on this machine is its absolute path.
    """
    local = local_path(path)
    return str(path if local is None else local.absolute())


def list_objects(filesystem: AbstractFileSystem, key: str) -> list[dict[str, Any]]:
    """
    List a folder of an object store as it is now: name, size and whatever else the store says of each object.

    No listing stays in fsspec's cache, where it would hide from others in this process what is written later.

    :raises FileNotFoundError: nothing is in the folder
    """
    filesystem.invalidate_cache(key)
    try:
        found: list[dict[str, Any]] = filesystem.ls(key, detail=True)
        return found
    finally:
        filesystem.invalidate_cache(key)


def path_text(value: Any) -> Any:
    """Turn a path object, or a whole number that native rendering made of digits, into text; leave all else."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if is_number or isinstance(value, StoragePath) else value


def descend(folder: StoragePath, relative: str) -> StoragePath:
    """
    Go from a folder to a file below it.

    :param relative: parts joined by ``/``, none of them ``..``
    """
    path = folder
    for part in relative.split("/"):
        path = path / part
    return path


def stays_below(relative: str) -> bool:
    """Return whether a relative name, from a file that others may have written, does not lead out of its folder."""
    return "\0" not in relative and not {"", ".", ".."} & set(relative.split("/"))


def folder_above(path: StoragePath, relative: str) -> StoragePath | None:
    """Return the folder below which a path has a relative name; ``None`` if there is none."""
    if not stays_below(relative):
        return None
    folder = path
    for part in reversed(relative.split("/")):
        if folder.name != part:
            return None
        folder = folder.parent
    return folder
