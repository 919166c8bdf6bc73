"""
Access files below a local folder without following symbolic links.

Other users may have write access to an output folder and could plant a link to a private file, or a pipe that blocks
its reader. The path of the folder itself is the DAG author's choice, so links on the way to it are followed.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Final

from airflow_provider_imagen.exceptions import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# O_PATH works without read permission.
_FOLDER: Final = os.O_DIRECTORY | os.O_CLOEXEC | getattr(os, "O_PATH", os.O_RDONLY)
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class IrregularFileError(StorageError):
    """A symbolic link, pipe, socket or device is where a file or folder should be; it was not followed or read."""


@contextmanager
def open_folder_at(path: Path, *, within: Path, create: bool = False) -> Iterator[int]:
    """
    Yield a descriptor of a folder, for the ``dir_fd`` of other calls.

    :param within: the folder, or one above it, below which no link is followed
    :param create: create missing folders
    :raises IrregularFileError: a part of the path below ``within`` is a link, or the path is outside ``within``
    """
    parts = path.relative_to(within).parts
    if ".." in parts:
        raise IrregularFileError(f"Cannot use {path}: it is outside {within}.")
    if create:
        within.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(within, _FOLDER)
    try:
        for part in parts:
            if create:
                with suppress(FileExistsError):
                    os.mkdir(part, dir_fd=descriptor)
            try:
                child = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=descriptor)
            except OSError:
                if stat.S_ISLNK(os.stat(part, dir_fd=descriptor, follow_symlinks=False).st_mode):
                    raise _irregular(path, f"{part!r} in it is a symbolic link, which is not followed") from None
                raise
            os.close(descriptor)
            descriptor = child
        yield descriptor
    finally:
        os.close(descriptor)


def open_regular_file(path: Path, *, within: Path | None = None) -> IO[bytes]:
    """
    Return a regular file opened for reading, without ever blocking.

    :param within: the folder below which no link is followed; ``None`` allows links in the path of the file's folder
    :raises IrregularFileError: it is a link, a pipe, a socket or a device, or a link leads to its folder
    """
    with open_folder_at(path.parent, within=within or path.parent) as folder:
        # Check before opening, which has side effects on some devices.
        _check_mode(path, os.stat(path.name, dir_fd=folder, follow_symlinks=False))
        descriptor = os.open(path.name, _FILE, dir_fd=folder)
    try:
        _check_mode(path, os.fstat(descriptor))
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def list_folder(path: Path, *, within: Path) -> dict[str, os.stat_result]:
    """
    Return the entries of a folder by name, each with its own status (that of a link itself, not of its target).

    Files that others delete or rename during the listing are omitted.

    :raises IrregularFileError: a part of the path below ``within`` is a link
    """
    with open_folder_at(path, within=within) as folder:
        readable = os.open(".", os.O_RDONLY, dir_fd=folder)
        try:
            statuses = {}
            with os.scandir(readable) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):
                        statuses[entry.name] = entry.stat(follow_symlinks=False)
            return statuses
        finally:
            os.close(readable)


def _check_mode(path: Path, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if stat.S_ISLNK(status.st_mode):
        raise _irregular(path, "it is a symbolic link, which is not followed")
    if not stat.S_ISREG(status.st_mode):
        raise _irregular(path, "it is not a regular file but a pipe, socket or device")


def _irregular(path: Path, reason: str) -> IrregularFileError:
    return IrregularFileError(f"Cannot use {path}: {reason}.")
