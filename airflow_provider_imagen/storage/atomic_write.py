"""
Atomic file writes: a file that exists under its final name is always complete.

On a disk, a hidden temporary file in the same folder is synced, then renamed. On an object store, fsspec's
``pipe_file`` writes the whole object with one PUT; a file opened there would commit a partial object if it were closed
after an error. Other stores (SFTP, HDFS …) also use ``pipe_file``, and a failed write is cleaned up.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import secrets
import stat
from importlib import import_module
from typing import IO, TYPE_CHECKING, Any, Final

from airflow_provider_imagen.exceptions import StorageError
from airflow_provider_imagen.redaction import scrub_storage_text
from airflow_provider_imagen.storage.local_files import (
    IrregularFileError,
    list_folder,
    open_folder_at,
    open_regular_file,
)
from airflow_provider_imagen.storage.paths import (
    HIDDEN_FOLDER,
    MANIFEST_NAME,
    address_of,
    descend,
    filesystem_of,
    list_objects,
    local_path,
    protocol_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from airflow_provider_imagen.storage.paths import StoragePath

log = logging.getLogger(__name__)

TEMPORARY_PREFIX: Final = ".imagen-"
TEMPORARY_SUFFIX: Final = ".part"

MAX_READ_BYTES: Final = 2**30
"""Largest file that is read into memory: above any real image or manifest."""

_SIZE_CHECKS: Final = 5
_CHUNK_BYTES: Final = 2**20

_EXTRAS: Final[dict[str, str]] = {
    "s3": "s3",
    "s3a": "s3",
    "s3n": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "abfs": "azure",
    "abfss": "azure",
    "adl": "azure",
    "az": "azure",
    "wasb": "azure",
}
"""Protocols of object stores, which keep only whole objects, and the extra that installs support for each."""

_ABOUT: Final = f"{HIDDEN_FOLDER}/about.txt"
_HIDDEN_PARTS: Final = ("parts", "progress", "failures", "journal", "thumbnails", "originals")
_ABOUT_TEXT: Final = (
    b"This folder is managed by airflow-provider-imagen. It holds previews, originals, parts of metadata.jsonl and "
    b"journals of the images in the folder above.\n"
)
_NO_LINKS: Final = (errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV)
"""Errors from file systems without hard links."""

_REASONS: Final[dict[int, str]] = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is exceeded",
    errno.EFBIG: "the file exceeds this process's file size limit",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ENOENT: "the directory does not exist",
    errno.EEXIST: "a file exists where a directory is needed",
    errno.ENOTDIR: "part of the path is a file, not a directory",
    errno.EISDIR: "a directory with this name already exists",
    errno.ENAMETOOLONG: "the name is too long for this file system",
    errno.EMFILE: "this process has too many open files",
    errno.EIO: "the disk reported an I/O error",
    errno.ESTALE: "the network file system is no longer available",
}


def write_bytes_atomically(
    path: StoragePath,
    data: bytes,
    *,
    content_type: str,
    owner: str = "",
    within: StoragePath | None = None,
    shared: bool = False,
    replace: bool = True,
) -> bool:
    """
    Write a file atomically and return whether it was written.

    Missing folders are created. On return, the file is synced to disk or, unless ``shared``, its size in the store has
    been checked.

    :param path: the final name
    :param data: the whole content
    :param content_type: media type, kept by object stores and sent to browsers; ignored on disks
    :param owner: letters and digits that mark the temporary file, for :func:`remove_leftovers`
    :param within: the output folder, below which no symbolic link on a disk is followed; default: the file's folder
    :param shared: whether others may replace the same file at the same moment. If so, an object in a store is neither
        size-checked after the write nor deleted after an error: it may be theirs
    :param replace: ``False`` keeps an existing file. On disks with hard links, S3, Google and Azure this check is
        atomic, so only one of two concurrent writers succeeds; other stores are checked before the write
    :returns: ``False`` only if a file exists and ``replace`` is false
    :raises StorageError: the file could not be written; unless ``shared``, nothing partial is left under the name
    """
    local = local_path(path)
    try:
        if local is not None:
            return _write_local(local, data, owner, within=_local_root(local, within), replace=replace)
        return _write_object(path, data, content_type, shared=shared, replace=replace)
    except StorageError:
        raise
    except Exception as error:
        raise storage_error("write", path, error) from None


def is_intact(path: StoragePath, *, size: int, sha256: str | None = None, within: StoragePath | None = None) -> bool:
    """
    Return whether a file written by a previous attempt still exists and is complete; false for links, pipes, devices.

    :param size: expected size in bytes
    :param sha256: expected digest in hex; if given, the whole file is read
    :param within: as in :func:`write_bytes_atomically`
    :raises StorageError: the store cannot be read
    """
    local = local_path(path)
    try:
        if local is not None:
            with open_regular_file(local, within=_local_root(local, within)) as file:
                if os.fstat(file.fileno()).st_size != size:
                    return False
                return sha256 is None or hashlib.file_digest(file, "sha256").hexdigest() == sha256  # type: ignore[arg-type]
        filesystem, key = filesystem_of(path)
        if _size_of(filesystem, key) != size:
            return False
        return sha256 is None or hashlib.sha256(filesystem.cat_file(key)).hexdigest() == sha256
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, IrregularFileError):
        return False
    except Exception as error:
        raise storage_error("read", path, error) from None


def read_bytes(
    path: StoragePath, *, within: StoragePath | None = None, max_bytes: int = MAX_READ_BYTES
) -> bytes | None:
    """
    Return the content of a file, ``None`` if it does not exist.

    :param within: as in :func:`write_bytes_atomically`
    :param max_bytes: maximum size of the file
    :raises IrregularFileError: it is a link, a pipe or a device, or a link leads to it
    :raises StorageError: the file exists, or may exist, but cannot be read or is larger
    """
    local = local_path(path)
    try:
        if local is not None:
            with open_regular_file(local, within=_local_root(local, within)) as file:
                data = _read_at_most(file, max_bytes)
        else:
            filesystem, key = filesystem_of(path)
            data = bytes(filesystem.cat_file(key))
        if data is None or len(data) > max_bytes:
            raise StorageError(f"Cannot read {redacted_address(path)}: it has more than {max_bytes:,} bytes.")
        return data
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:
        raise storage_error("read", path, error) from None


def _read_at_most(file: IO[bytes], max_bytes: int) -> bytes | None:
    """Return the content of a file, ``None`` if it is too large, even if it is longer than its stated size."""
    size = os.fstat(file.fileno()).st_size
    if size > max_bytes:
        return None
    data = file.read(size)
    while len(data) <= max_bytes and (more := file.read(_CHUNK_BYTES)):
        data += more
    return data


def file_sizes(folder: StoragePath, names: Iterable[str]) -> dict[str, int]:
    """
    Return the size in bytes of each named file that exists, with one listing per subfolder.

    :param names: relative to the folder, parts joined by ``/``
    :raises StorageError: a folder cannot be listed
    """
    by_parent: dict[str, set[str]] = {}
    for name in names:
        by_parent.setdefault(name.rpartition("/")[0], set()).add(name)
    sizes: dict[str, int] = {}
    for parent, wanted in by_parent.items():
        subfolder = descend(folder, parent) if parent else folder
        for file_name, size in _list_files(subfolder, within=folder):
            name = f"{parent}/{file_name}" if parent else file_name
            if name in wanted:
                sizes[name] = size
    return sizes


def _list_files(folder: StoragePath, *, within: StoragePath) -> Iterator[tuple[str, int]]:
    local = local_path(folder)
    try:
        if local is not None:
            for name, status in list_folder(local, within=_local_root(local, within)).items():
                if stat.S_ISREG(status.st_mode):
                    yield name, status.st_size
            return
        filesystem, key = filesystem_of(folder)
        for info in list_objects(filesystem, key):
            yield str(info["name"]).rpartition("/")[2], int(info.get("size") or 0)
    except (FileNotFoundError, NotADirectoryError):
        return
    except Exception as error:
        raise storage_error("read", folder, error) from None


def check_writable(folder: StoragePath, *, owner: str = "check") -> None:
    """
    Raise, before money is spent, unless every operation needed to store images works in a folder.

    On a disk, a file is created, renamed, replaced, listed and deleted, and the hidden folder must not contain links.
    An object store takes five calls: a short description of the hidden folder is written, which stays; a probe object
    is written, overwritten and deleted; and the hidden folder is listed. Storing images never requires a delete, so a
    store that refuses only that (as with a retention policy) causes a warning.

    :param owner: letters and digits that name the probe object
    :raises StorageError: images cannot be stored there
    """
    local = local_path(folder)
    try:
        if local is None:
            _check_store(folder, owner)
        else:
            _check_disk(local)
    except Exception as error:
        raise storage_error("use", folder, error) from None


def _check_disk(path: Path) -> None:
    first, second = _temporary_name("check"), _temporary_name("check")
    with open_folder_at(path, within=path, create=True) as folder:
        try:
            _write_synced(first, b"\0" * 4096, folder)
            try:
                os.replace(first, second, src_dir_fd=folder, dst_dir_fd=folder)
                _write_synced(first, b"\0", folder)
                os.replace(first, second, src_dir_fd=folder, dst_dir_fd=folder)
            except OSError as error:
                raise StorageError(
                    f"Cannot use {path}: files can be created there, but not renamed or replaced "
                    f"({_reason(error, in_bucket=False)}). Change how it is mounted, or use the object store's own URL."
                ) from None
            entries = list_folder(path, within=path)
            if second not in entries:
                raise StorageError(f"Cannot use {path}: a file written there is not listed.")
        finally:
            for name in (first, second):
                try:
                    os.unlink(name, dir_fd=folder)
                except FileNotFoundError:
                    pass
                except OSError as error:
                    _warn_of_leftover(path / name, error)
    if MANIFEST_NAME in entries:
        _check_replaceable(path, entries[MANIFEST_NAME])
    if HIDDEN_FOLDER in entries:
        _check_hidden_folder(path)


def _check_replaceable(path: Path, manifest: os.stat_result) -> None:
    folder = path.stat()
    if stat.S_ISDIR(manifest.st_mode):
        raise StorageError(f"Cannot use {path}: {MANIFEST_NAME} in it is a directory.")
    if folder.st_mode & stat.S_ISVTX and os.geteuid() not in (0, manifest.st_uid, folder.st_uid):
        raise StorageError(f"Cannot use {path}: {MANIFEST_NAME} in it belongs to another user.")


def _check_hidden_folder(path: Path) -> None:
    entries = list_folder(path / HIDDEN_FOLDER, within=path)
    for name, status in entries.items():
        if stat.S_ISLNK(status.st_mode):
            raise IrregularFileError(f"Cannot use {path / HIDDEN_FOLDER / name}: it is a symbolic link. Remove it.")
    for name in (HIDDEN_FOLDER, *(f"{HIDDEN_FOLDER}/{part}" for part in _HIDDEN_PARTS if part in entries)):
        if not (path / name).is_dir() or not os.access(path / name, os.W_OK | os.X_OK):
            raise StorageError(f"Cannot use {path}: {name} in it is not a writable directory.")


def _check_store(folder: StoragePath, owner: str) -> None:
    about, probe = descend(folder, _ABOUT), descend(folder, f"{HIDDEN_FOLDER}/check-{owner}.txt")
    for path in (about, probe, probe):
        try:
            _write_object(path, _ABOUT_TEXT, "text/plain", shared=True, replace=True)
        except Exception as error:
            if not _exists(path):
                raise
            raise StorageError(
                f"Cannot use {redacted_address(folder)}: {path.name} exists and cannot be overwritten "
                f"({_reason(error, in_bucket=True)}), but {MANIFEST_NAME} is overwritten for every image. Use a folder "
                "without a retention policy, and a connection that may overwrite objects."
            ) from None
    filesystem, key = filesystem_of(about)
    try:
        names = {str(info["name"]).rpartition("/")[2] for info in list_objects(filesystem, filesystem._parent(key))}
    except Exception as error:
        raise storage_error("list", folder, error) from None
    if about.name not in names:
        raise StorageError(f"Cannot use {redacted_address(folder)}: an object written there is not listed.")
    try:
        filesystem.rm_file(filesystem_of(probe)[1])
    except FileNotFoundError:
        pass
    except Exception as error:
        _warn_of_leftover(probe, error)


def _exists(path: StoragePath) -> bool:
    """Return whether an object is known to exist; ``False`` if the store cannot tell."""
    filesystem, key = filesystem_of(path)
    with contextlib.suppress(Exception):
        return _size_of(filesystem, key) >= 0
    return False


def _warn_of_leftover(path: StoragePath, error: Exception) -> None:
    log.warning(
        "%s cannot be deleted (%s). Images are stored anyway, but files of this kind remain, and so do the journals of "
        "finished tasks on Airflow 3.1 and 3.2.",
        redacted_address(path),
        _reason(error, in_bucket=local_path(path) is None),
    )


def remove_leftovers(folder: StoragePath, *, owner: str) -> int:
    """
    Delete temporary files that a killed attempt left in a folder or below it, and return their number.

    Only files marked with ``owner`` are deleted, because other tasks may be writing there. Object stores have none.
    """
    local = local_path(folder)
    if local is None or not owner:
        return 0
    start = f"{TEMPORARY_PREFIX}{owner}-"
    removed = 0
    with contextlib.suppress(OSError), open_folder_at(local, within=local) as root:
        for _, _, names, parent in os.fwalk(".", dir_fd=root):
            for name in names:
                if name.startswith(start) and name.endswith(TEMPORARY_SUFFIX):
                    with contextlib.suppress(OSError):
                        os.unlink(name, dir_fd=parent)
                        removed += 1
    return removed


def _local_root(path: Path, within: StoragePath | None) -> Path:
    root = local_path(within) if within is not None else None
    return path.parent if root is None else root


def storage_error(verb: str, path: StoragePath, error: BaseException) -> StorageError:
    """
    Return an error that states in one sentence, without secrets, what failed; a StorageError is returned unchanged.

    :param verb: the failed operation: ``read``, ``write``, ``list`` or ``use``
    :param path: the file or folder
    :param error: the error of the file system or store
    """
    if isinstance(error, StorageError):
        return error
    protocol = protocol_of(path)
    extra = _EXTRAS.get(protocol)
    where = redacted_address(path)
    if isinstance(error, ImportError) or (isinstance(error, ValueError) and "filesystem" in str(error).lower()):
        install = f"run pip install 'airflow-provider-imagen[{extra}]'" if extra else "install its Airflow provider"
        return StorageError(f"Cannot {verb} {where}: support for {protocol}:// is not installed; {install}.")
    return StorageError(f"Cannot {verb} {where}: {_reason(error, in_bucket=extra is not None)}.")


def redacted_address(path: StoragePath) -> str:
    """Return the location of a file or folder without secrets, for logs and errors."""
    return scrub_storage_text(address_of(path))


def _reason(error: BaseException, *, in_bucket: bool) -> str:
    if in_bucket and (isinstance(error, FileNotFoundError) or _status_of(error) == 404):
        return "the bucket or container does not exist, or the connection has no access to it"
    if in_bucket and (isinstance(error, PermissionError) or _status_of(error) in (401, 403)):
        return f"the connection has no permission ({scrub_storage_text(str(error))})"
    if "credential" in type(error).__name__.lower():
        return "no credentials were found; name a connection in the path, as in s3://my_conn@bucket/folder"
    if isinstance(error, (ConnectionError, TimeoutError)) or re.search(
        r"connect|timeout|timed|dns|resol|servicerequest", type(error).__name__, re.IGNORECASE
    ):
        return f"the connection to the store failed ({type(error).__name__}: {scrub_storage_text(str(error))})"
    if isinstance(error, OSError) and error.errno in _REASONS:
        return _REASONS[error.errno]
    return f"{type(error).__name__}: {scrub_storage_text(str(error))}"


def _status_of(error: BaseException) -> int | None:
    """Return the HTTP status of an error from Azure (``status_code``) or gcsfs (``code``, or its text for 403)."""
    for name in ("status_code", "code"):
        status = getattr(error, name, None)
        if isinstance(status, int):
            return status
    return 403 if isinstance(error, OSError) and str(error).startswith("Forbidden") else None


def _write_local(path: Path, data: bytes, owner: str, *, within: Path, replace: bool) -> bool:
    with open_folder_at(path.parent, within=within, create=True) as folder:
        temporary = _temporary_name(owner)
        try:
            _write_synced(temporary, data, folder)
            if replace:
                os.replace(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
            elif not _link_final_name(temporary, path.name, folder):
                return False
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=folder)
        _sync_folder(folder)
    return True


def _link_final_name(temporary: str, name: str, folder: int) -> bool:
    """Link a file to its final name unless that exists (a rename would replace it); return whether it was linked."""
    try:
        os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with contextlib.suppress(FileNotFoundError):
            os.stat(name, dir_fd=folder, follow_symlinks=False)
            return False
        os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    return True


def _temporary_name(owner: str) -> str:
    return f"{TEMPORARY_PREFIX}{owner}-{secrets.token_hex(6)}{TEMPORARY_SUFFIX}"


def _write_synced(name: str, data: bytes, folder: int) -> None:
    # Not tempfile: it creates files that only their owner can read, and the rename keeps that mode.
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=folder)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: int) -> None:
    """Make the new name durable, on systems that can sync folders."""
    with contextlib.suppress(OSError):
        descriptor = os.open(".", os.O_RDONLY, dir_fd=folder)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_object(path: StoragePath, data: bytes, content_type: str, *, shared: bool, replace: bool) -> bool:
    filesystem, key = filesystem_of(path)
    protocol = protocol_of(path)
    whole_objects_only = protocol in _EXTRAS
    options = _content_type_options(protocol, content_type)
    try:
        if not whole_objects_only:
            filesystem.makedirs(filesystem._parent(key), exist_ok=True)
        if not replace:
            filesystem.invalidate_cache(filesystem._parent(key))
            if filesystem.exists(key):
                return False
            if whole_objects_only:
                options["mode"] = "create"
        try:
            filesystem.pipe_file(key, data, **options)
        except FileExistsError:
            if replace:
                raise
            return False
        if shared:
            return True
        stored = _size_after(filesystem, key, len(data))
        if stored != len(data):
            raise StorageError(
                f"Cannot write {redacted_address(path)}: the store has only {stored or 0} of its {len(data)} bytes."
            )
    except BaseException as error:
        # A refused PUT leaves the previous object intact, so delete only what is known to be partial.
        if not shared and (not whole_objects_only or isinstance(error, StorageError)):
            with contextlib.suppress(Exception):
                filesystem.rm_file(key)
        raise
    return True


def _size_after(filesystem: Any, key: str, expected: int) -> int | None:
    """Return the stored size; check an unexpected one again, as another thread may have cached an old listing."""
    size = None
    for _ in range(_SIZE_CHECKS):
        try:
            size = _size_of(filesystem, key)
        except FileNotFoundError:
            size = None
        if size == expected:
            break
    return size


def _size_of(filesystem: Any, key: str) -> int:
    filesystem.invalidate_cache(filesystem._parent(key))
    return int(filesystem.info(key)["size"])


def _content_type_options(protocol: str, content_type: str) -> dict[str, Any]:
    """Return the store's own option for the media type; without it, S3 and Azure serve images as unknown bytes."""
    extra = _EXTRAS.get(protocol)
    if extra == "s3":
        return {"ContentType": content_type}
    if extra == "gcs":
        return {"content_type": content_type}
    if extra == "azure":
        blob = import_module("azure.storage.blob")  # comes with adlfs, so type checks do not have it
        return {"content_settings": blob.ContentSettings(content_type=content_type)}
    return {}
