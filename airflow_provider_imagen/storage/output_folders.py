"""Find the output folders in a folder: those that hold a manifest, or lists of items without an image."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Final

from airflow_provider_imagen.exceptions import StorageError
from airflow_provider_imagen.storage.atomic_write import redacted_address, storage_error
from airflow_provider_imagen.storage.local_files import list_folder
from airflow_provider_imagen.storage.paths import (
    HIDDEN_FOLDER,
    MANIFEST_NAME,
    StoragePath,
    filesystem_of,
    list_objects,
    local_path,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_DEPTH: Final = 8
"""Most levels of subfolders that are searched."""

MAX_FOLDERS: Final = 100_000
"""Most folders that are listed."""


def find_output_folders(folder: StoragePath) -> list[StoragePath]:
    """
    Return the output folders in a folder, itself included; links are not followed.

    :raises StorageError: there is none, there are too many or too deep folders, or one cannot be listed
    """
    return list(iter_output_folders(folder))


def iter_output_folders(folder: StoragePath) -> Iterator[StoragePath]:
    """Yield the folders of :func:`find_output_folders` as they are found; raises the same errors."""
    is_found = False
    pending = [(folder, 0)]
    listed = 0
    while pending:
        place, depth = pending.pop()
        listed += 1
        if listed > MAX_FOLDERS:
            raise StorageError(f"{redacted_address(folder)} has more than {MAX_FOLDERS:,} folders; pass some of them.")
        files, subfolders = _list_names(place, within=folder)
        if MANIFEST_NAME in files or HIDDEN_FOLDER in subfolders:
            is_found = True
            yield place
        names = sorted(subfolders - {HIDDEN_FOLDER}, reverse=True)
        if names and depth == MAX_DEPTH:
            raise StorageError(
                f"{redacted_address(folder)} has folders more than {MAX_DEPTH} levels down; pass some of them."
            )
        pending += [(place.joinpath(name), depth + 1) for name in names]
    if not is_found:
        raise StorageError(f"{redacted_address(folder)} is not an output folder, and has none in it.")


def _list_names(folder: StoragePath, *, within: StoragePath) -> tuple[set[str], set[str]]:
    """Return the names of the files and of the subfolders of a folder."""
    try:
        entries = dict(_list_entries(folder, within=within))
    except (FileNotFoundError, NotADirectoryError):
        return set(), set()
    except Exception as error:
        raise storage_error("list", folder, error) from None
    folders = {name for name, is_folder in entries.items() if is_folder}
    return entries.keys() - folders, folders


def _list_entries(folder: StoragePath, *, within: StoragePath) -> Iterator[tuple[str, bool]]:
    """Yield the name of each file and subfolder, with whether it is a folder."""
    local, root = local_path(folder), local_path(within)
    if local is not None and root is not None:
        for name, status in list_folder(local, within=root).items():
            if stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode):
                yield name, stat.S_ISDIR(status.st_mode)
        return
    filesystem, key = filesystem_of(folder)
    for info in list_objects(filesystem, key):
        name = str(info["name"]).rstrip("/").rpartition("/")[2]
        if name:
            yield name, info.get("type") == "directory"
