"""
Read the files that records name, and no others.

A record is untrusted: anyone who can run a task can put any path into an XCom, and the web server may have access to
files that this person has not. So an image is served only if its size and SHA-256 digest match its record, which
nobody can state without having the file or a record of it. Every failure, even that the file is not an image, gives
the same message, so errors reveal nothing about other files. Lists are read line by line, at most two at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
import threading
from contextlib import contextmanager
from itertools import chain, islice
from typing import IO, TYPE_CHECKING, Any, Final

from airflow_provider_imagen.exceptions import BadImageError, StorageError
from airflow_provider_imagen.hooks.folders import open_folder
from airflow_provider_imagen.plugins.gallery.airflow_api import TaskInstance
from airflow_provider_imagen.plugins.gallery.task_results import belongs_to, read_images, read_problems
from airflow_provider_imagen.storage.contact_sheet import SHEET_MIME_TYPE, sheet_address
from airflow_provider_imagen.storage.inspect_image import DEFAULT_MAX_PIXELS, EXTENSIONS, MIME_TYPES, SVG_MIME_TYPE
from airflow_provider_imagen.storage.local_files import open_regular_file
from airflow_provider_imagen.storage.manifest import failures_address, parse_line, part_address, progress_address
from airflow_provider_imagen.storage.paths import (
    MANIFEST_NAME,
    address_of,
    descend,
    filesystem_of,
    local_path,
    stays_below,
)
from airflow_provider_imagen.storage.png import PNG_SIGNATURE
from airflow_provider_imagen.storage.svg import read_svg_size
from airflow_provider_imagen.storage.task_identity import TaskInstanceKey

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from airflow_provider_imagen.plugins.gallery.task_results import GalleryImage, Problem
    from airflow_provider_imagen.storage.paths import StoragePath

log = logging.getLogger(__name__)

MAX_IMAGE_BYTES: Final = 128 * 1024 * 1024
MAX_LIST_BYTES: Final = 64 * 1024 * 1024
MAX_LISTED: Final = 50_000
"""Maximum number of entries shown of one task instance's list."""

CHUNK_BYTES: Final = 256 * 1024

_BLOCK_BYTES: Final = 4 * 1024 * 1024  # per request to an object store
_MAX_COPY_IN_MEMORY: Final = 2 * 1024 * 1024
_MAX_LINE_BYTES: Final = 256 * 1024
_whole_images = threading.BoundedSemaphore(2)
_headers = threading.BoundedSemaphore(2)  # separate: whoever holds _whole_images also needs the media type
_lists = threading.BoundedSemaphore(2)


class FileUnavailableError(Exception):
    """A file that a record names cannot be shown; the message is for the visitor."""


def open_image_file(image: GalleryImage) -> IO[bytes]:
    """
    Return a stored image, verified and open for reading.

    Local files are read in place, objects from a temporary copy; neither is read into memory as a whole.

    :raises FileUnavailableError: it is gone, or is not the image that the record describes
    """
    gone = FileUnavailableError("The stored file is not there any more, or is not the image this task wrote.")
    if not image.path or not image.sha256 or not image.bytes or image.bytes > MAX_IMAGE_BYTES:
        raise gone
    try:
        file = _open(image.path, most=image.bytes)
    except Exception as error:
        log.warning("An image of %s cannot be read: %s", image.ti, type(error).__name__)
        raise gone from None
    try:
        is_right = (
            file.seek(0, os.SEEK_END) == image.bytes and _digest(file) == image.sha256 and media_type(file) is not None
        )
    except OSError:
        is_right = False
    file.seek(0)
    if not is_right:
        file.close()
        raise gone
    return file


def check_image_file(image: GalleryImage) -> None:
    """
    Verify a stored image.

    :raises FileUnavailableError: it is gone, or is not the image that the record describes
    """
    open_image_file(image).close()


@contextmanager
def image_bytes(image: GalleryImage) -> Iterator[bytes]:
    """
    Yield the bytes of a stored image; at most two are in memory at a time, other callers wait.

    :raises FileUnavailableError: it is gone, or is not the image that the record describes
    """
    with _whole_images, open_image_file(image) as file:
        yield file.read()


def open_contact_sheet(ti: TaskInstance, manifest: str) -> IO[bytes]:
    """
    Return the contact sheet of a task instance, open for reading.

    It has no digest. So its location is not taken from a record, but built from the folder of the manifest and the ids
    of the task instance: nobody can point it to a file that another task instance wrote.

    :raises FileUnavailableError: it is gone, or is not an image
    """
    try:
        folder: Any = open_folder(manifest).parent
        file = _open(sheet_address(folder, _key_of(ti).identity), most=MAX_IMAGE_BYTES, within=folder)
        if media_type(file) == SHEET_MIME_TYPE:
            file.seek(0)
            return file
        file.close()
    except Exception as error:
        log.warning("The contact sheet of %s cannot be read: %s", ti, type(error).__name__)
    raise FileUnavailableError("The contact sheet is not there any more.")


def read_manifest_images(ti: TaskInstance, manifest: str) -> list[GalleryImage]:
    """
    Return a task instance's images from a manifest.

    :raises FileUnavailableError: the manifest cannot be read
    """
    gone = FileUnavailableError(f"The list of images ({MANIFEST_NAME} in the output folder) cannot be read any more.")
    try:
        path: Any = open_folder(manifest)
        if path.name != MANIFEST_NAME:
            raise gone
        folder: Any = path.parent
        return _images(ti, folder, chain(_lines(manifest, within=folder), _used_in_place(ti, folder)))
    except Exception as error:
        log.warning("The manifest of %s cannot be read: %s", ti, type(error).__name__)
        raise gone from None


def read_run_images(dag_id: str, run_id: str, manifest: str) -> dict[TaskInstance, list[GalleryImage]]:
    """
    Return the images of a run that a manifest lists, by task instance.

    :raises FileUnavailableError: the manifest cannot be read
    """
    try:
        folder: Any = open_folder(manifest).parent
        address = address_of(descend(folder, MANIFEST_NAME))
        found: dict[TaskInstance, list[GalleryImage]] = {}
        with _lists:
            lines = (line for line in _lines(address, within=folder) if _names_image(line, dag_id, run_id))
            for line in islice(lines, MAX_LISTED):
                ti = TaskInstance(dag_id, run_id, line["task_id"], line["map_index"])
                found.setdefault(ti, []).extend(read_images(ti, [_with_path(line, folder)]))
    except Exception as error:
        log.warning("A manifest of run %s cannot be read: %s", run_id, type(error).__name__)
        raise FileUnavailableError("The list of images cannot be read any more.") from None
    for images in found.values():
        images.sort(key=lambda image: (image.prompt_index, image.image_index))
    return found


def _names_image(line: Mapping[str, Any], dag_id: str, run_id: str) -> bool:
    """Return whether a manifest line names an image in the folder and a task instance of a run."""
    is_of_run = line.get("dag_id") == dag_id and line.get("run_id") == run_id
    has_ids = isinstance(line.get("task_id"), str) and isinstance(line.get("map_index"), int)
    return is_of_run and has_ids and _names_file(line)


def _names_file(line: Mapping[str, Any]) -> bool:
    """Return whether a manifest line names a file in the folder."""
    name = line.get("file_name")
    return isinstance(name, str) and stays_below(name)


def _with_path(line: Mapping[str, Any], folder: StoragePath) -> dict[str, Any]:
    """Return a manifest line with its path rebuilt from the file name."""
    return {**line, "path": address_of(descend(folder, line["file_name"]))}


def read_progress_images(ti: TaskInstance, manifest: str) -> list[GalleryImage]:
    """
    Return the images that a running task instance has so far.

    :param manifest: the manifest that its images go to
    :raises FileUnavailableError: the list cannot be read, probably because the task instance has just ended
    """
    try:
        folder: Any = open_folder(manifest).parent
        return _images(ti, folder, _lines(progress_address(folder, _key_of(ti)), within=folder))
    except Exception as error:
        raise FileUnavailableError("The images of this task cannot be read at the moment.") from error


def _images(ti: TaskInstance, folder: StoragePath, lines: Iterable[Mapping[str, Any]]) -> list[GalleryImage]:
    """Return the images of a task instance in the lines of a list, their paths rebuilt from the file names."""
    with _lists:
        own = (_with_path(line, folder) for line in lines if belongs_to(ti, line) and _names_file(line))
        return read_images(ti, islice(own, MAX_LISTED))


def _used_in_place(ti: TaskInstance, folder: StoragePath) -> Iterator[Mapping[str, Any]]:
    """Yield the lines of images that a task instance reused in place, which the manifest lists for others."""
    with contextlib.suppress(FileNotFoundError):
        for line in _lines(part_address(folder, _key_of(ti)), within=folder):
            if line.get("reused_from") is not None and line["reused_from"] == line.get("path"):
                yield line


def read_failures_file(ti: TaskInstance, manifest: str) -> list[Problem]:
    """
    Return a task instance's problems from the failures file that belongs to a manifest.

    :raises FileUnavailableError: the failures file cannot be read
    """
    try:
        folder: Any = open_folder(manifest).parent
        address = failures_address(folder, _key_of(ti))
        with _lists, contextlib.suppress(FileNotFoundError):  # a task without failures writes none
            lines = (line for line in _lines(address, within=folder) if "prompt_index" in line)
            return read_problems(ti, islice(lines, MAX_LISTED))
        return []
    except Exception as error:
        log.warning("The failures of %s cannot be read: %s", ti, type(error).__name__)
        raise FileUnavailableError("The list of missing images can no longer be read.") from None


def _key_of(ti: TaskInstance) -> TaskInstanceKey:
    return TaskInstanceKey(dag_id=ti.dag_id, task_id=ti.task_id, run_id=ti.run_id, map_index=ti.map_index)


def _lines(address: str, *, within: StoragePath) -> Iterator[Mapping[str, Any]]:
    """Yield the JSON objects of a file, one per line; lines longer than tasks write are skipped."""
    with _open(address, most=MAX_LIST_BYTES, within=within) as file:
        while raw := file.readline(_MAX_LINE_BYTES):
            if len(raw) == _MAX_LINE_BYTES and not raw.endswith(b"\n"):
                while (rest := file.readline(_MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                    pass
                continue
            line = parse_line(raw)
            if line is not None:
                yield line


def media_type(file: IO[bytes]) -> str | None:
    """Return an image's media type, from its header; ``None`` if it is not an image or too large to decode."""
    from PIL import Image

    file.seek(0)
    head = file.read(1024)
    if head.startswith(PNG_SIGNATURE):  # Pillow rejects PNGs with much embedded text
        pixels = int.from_bytes(head[16:20], "big") * int.from_bytes(head[20:24], "big")
        return MIME_TYPES["PNG"] if 0 < pixels <= DEFAULT_MAX_PIXELS and head[12:16] == b"IHDR" else None
    file.seek(0)
    with _headers:  # some decoders read the whole file
        try:
            with Image.open(file, formats=tuple(EXTENSIONS)) as image:
                width, height = image.size
                name = {"MPO": "JPEG", "DIB": "BMP"}.get(image.format or "", image.format)
        except Exception:
            return _svg_media_type(file)
    kind = {str(known): value for known, value in MIME_TYPES.items()}.get(name or "")
    return kind if width * height <= DEFAULT_MAX_PIXELS else None


def _svg_media_type(file: IO[bytes]) -> str | None:
    file.seek(0)
    if not file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"<", b"\xff\xfe", b"\xfe\xff")):
        return None  # not XML, so not worth reading completely
    file.seek(0)
    try:
        return SVG_MIME_TYPE if read_svg_size(file.read()) is not None else None
    except BadImageError:
        return None


def _digest(file: IO[bytes]) -> str:
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    file.seek(0)
    return digest


def _open(path: str, *, most: int, within: StoragePath | None = None) -> IO[bytes]:
    """
    Return a file open for reading, in full.

    :param most: maximum size in bytes
    :param within: folder below which no symbolic link is followed; ``None`` for the file's own folder
    :raises StorageError: the file is larger
    """
    place: StoragePath = open_folder(path)
    local = local_path(place)
    if local is not None:
        file = open_regular_file(local, within=None if within is None else local_path(within))
        if os.fstat(file.fileno()).st_size > most:
            file.close()
            raise StorageError("It is larger than it should be.")
        return file
    filesystem, key = filesystem_of(place)
    if int(filesystem.info(key)["size"]) > most:
        raise StorageError("It is larger than it should be.")
    copy = tempfile.SpooledTemporaryFile(_MAX_COPY_IN_MEMORY)  # noqa: SIM115 - the caller closes it
    try:
        with filesystem.open(key, "rb", block_size=_BLOCK_BYTES) as source:
            while copy.tell() <= most and (chunk := source.read(CHUNK_BYTES)):
                copy.write(chunk)
    except BaseException:
        copy.close()
        raise
    return copy
