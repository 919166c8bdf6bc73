"""
A zip of images that opens as a Hugging Face ImageFolder, written while it is sent.

Only a piece of it is in memory at a time. Images are stored uncompressed, because their formats are compressed already,
and each is verified before it is added.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Final
from unicodedata import normalize
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from airflow_provider_imagen.exceptions import InvalidArgumentsError
from airflow_provider_imagen.image_record import ImageRecord, ManifestLine
from airflow_provider_imagen.plugins.gallery.files import FileUnavailableError, media_type, open_image_file
from airflow_provider_imagen.plugins.gallery.image_ids import image_id
from airflow_provider_imagen.plugins.gallery.task_results import read_moment
from airflow_provider_imagen.storage.inspect_image import EXTENSIONS, MIME_TYPES, SVG_MIME_TYPE
from airflow_provider_imagen.storage.naming import append_to_stem, literal_stem, with_extension
from airflow_provider_imagen.storage.paths import MANIFEST_NAME

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from typing import IO

    from airflow_provider_imagen.plugins.gallery.task_results import GalleryImage

MISSING_NAME: Final = "missing.txt"

_PIECE_BYTES: Final = 1024 * 1024
_FORBIDDEN: Final = re.compile(r'[<>:"|?*\\]')  # on Windows
_EXTENSION_OF: Final = {MIME_TYPES[name]: extension for name, extension in EXTENSIONS.items()} | {SVG_MIME_TYPE: "svg"}
_NO_DATE: Final = (1980, 1, 1, 0, 0, 0)
_YEARS: Final = range(1980, 2108)  # in a zip


class _Pieces:
    """The bytes of the zip that have been written but not sent."""

    def __init__(self) -> None:
        self.size = 0
        self._pieces: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._pieces.append(bytes(data))
        self.size += len(data)
        return len(data)

    def take(self) -> bytes:
        taken = b"".join(self._pieces)
        self._pieces.clear()
        self.size = 0
        return taken

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


class _Names:
    """
    Names of files in the zip: relative, safe to unpack on every system, and unique.

    They are those in the manifests as far as possible.
    """

    def __init__(self) -> None:
        self._files: set[str] = set()
        self._folders: set[str] = set()
        self._counts: dict[str, int] = {}

    def add(self, image: GalleryImage, extension: str) -> str:
        stem = f"{image.ti.task_id}-{image.prompt_index}-{image.image_index}"
        with suppress(InvalidArgumentsError):
            stem = literal_stem(_FORBIDDEN.sub("-", image.file_name or stem))
        if any(folder in self._files for folder in _folders_of(stem)):
            stem = stem.replace("/", "-")
        name = with_extension(stem, extension)
        key = _fold(name)
        while _fold(name) in self._files or _fold(name) in self._folders:
            self._counts[key] = self._counts.get(key, 1) + 1
            name = with_extension(append_to_stem(stem, f"-{self._counts[key]}"), extension)
        self._files.add(_fold(name))
        self._folders.update(_folders_of(name))
        return name


def write_archive(images: Iterable[GalleryImage], *, notes: Iterable[str] = ()) -> Generator[bytes, None, None]:
    """
    Yield the zip of images in pieces of about one megabyte, some of them empty.

    ``metadata.jsonl`` describes the images as the manifest of an output folder does. ``missing.txt`` names those that
    are not in the zip and says why; there is none if all are.

    :param notes: sentences about other images that are missing
    """
    pieces, names = _Pieces(), _Names()
    added: list[tuple[GalleryImage, str]] = []
    missing = list(notes)
    with ZipFile(pieces, "w", ZIP_STORED) as archive:
        for image in images:
            try:
                with _open(image) as file:
                    name = names.add(image, _EXTENSION_OF[media_type(file) or ""])
                    file.seek(0)
                    with archive.open(_entry(name, image), "w") as target:
                        while piece := file.read(_PIECE_BYTES):
                            target.write(piece)
                            if pieces.size >= _PIECE_BYTES:
                                yield pieces.take()
                added.append((image, name))
            except (FileUnavailableError, OSError) as error:
                missing.append(_missing_line(image, error))
                yield pieces.take()  # so that the caller can stop here, too
        with archive.open(ZipInfo(MANIFEST_NAME, _NO_DATE), "w") as target:
            for image, name in added:
                target.write(_line(image, name))
                if pieces.size >= _PIECE_BYTES:
                    yield pieces.take()
        if missing:
            archive.writestr(ZipInfo(MISSING_NAME, _NO_DATE), "".join(f"{line}\n" for line in missing))
    yield pieces.take()


def _open(image: GalleryImage) -> IO[bytes]:
    if not image.is_stored:
        raise FileUnavailableError("The image was not stored.")
    return open_image_file(image)


def _entry(name: str, image: GalleryImage) -> ZipInfo:
    generated = read_moment(image.created_at)
    date = generated.timetuple()[:6] if generated and generated.year in _YEARS else _NO_DATE
    entry = ZipInfo(name, date)
    entry.external_attr = 0o644 << 16
    return entry


def _line(image: GalleryImage, name: str) -> bytes:
    line = ManifestLine(
        **{field: getattr(image, field) for field in ImageRecord.__struct_fields__},
        file_name=name,
        dag_id=image.ti.dag_id,
        run_id=image.ti.run_id,
        task_id=image.ti.task_id,
        map_index=image.ti.map_index,
        created_at=image.created_at,
    )
    return json.dumps(line.to_json()).encode() + b"\n"


def _missing_line(image: GalleryImage, error: Exception) -> str:
    name = "" if image.file_name is None else f" ({image.file_name!r})"
    reason = error if isinstance(error, FileUnavailableError) else "The file cannot be read."
    return f"{image_id(image)}{name}: {reason}"


def _folders_of(name: str) -> list[str]:
    parts = _fold(name).split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def _fold(name: str) -> str:
    """Return the same text for names that some file systems cannot tell apart."""
    return normalize("NFC", name.casefold())
