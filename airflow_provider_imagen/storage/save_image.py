"""
Store one image: verify, convert, make a preview, embed provenance, write.

A run stores every image with :func:`save_image`, which is stateless and thread-safe.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from airflow_provider_imagen.exceptions import StorageError
from airflow_provider_imagen.image_record import StoredFile
from airflow_provider_imagen.storage.atomic_write import is_intact, write_bytes_atomically
from airflow_provider_imagen.storage.c2pa import has_content_credentials
from airflow_provider_imagen.storage.convert import convert_and_preview, make_thumbnail
from airflow_provider_imagen.storage.file_metadata import read_metadata
from airflow_provider_imagen.storage.inspect_image import DEFAULT_MAX_PIXELS, inspect_image
from airflow_provider_imagen.storage.naming import alternative_stems, with_extension
from airflow_provider_imagen.storage.paths import HIDDEN_FOLDER, address_of, descend
from airflow_provider_imagen.storage.provenance import embed_provenance, provenance_packet

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_imagen.storage.convert import ImageFormat
    from airflow_provider_imagen.storage.inspect_image import ImageInfo
    from airflow_provider_imagen.storage.paths import StoragePath
    from airflow_provider_imagen.storage.provenance import Provenance


class SavedImage(Struct, frozen=True):
    """
    A stored image.

    :param notes: what was requested but could not be done, one sentence each; normally empty
    """

    file: StoredFile
    notes: tuple[str, ...] = ()


def save_image(
    data: bytes,
    *,
    folder: StoragePath,
    stem: str,
    owner: str = "",
    provenance: Provenance | None = None,
    image_format: ImageFormat | None = None,
    thumbnail_pixels: int | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    may_replace: Callable[[str], bool] | None = None,
    before_write: Callable[[StoredFile], None] = lambda _: None,
) -> SavedImage:
    """
    Store an image and its preview, and return what was stored.

    The image is decoded only for a conversion or a preview, once for both (see
    :func:`~airflow_provider_imagen.storage.inspect_image.inspect_image` for what is verified without that).

    A conversion drops C2PA content credentials, so an image that has any is also kept as delivered
    (:func:`write_original`).

    A paid image is never lost over a lesser failure: if it cannot be converted, it is kept as delivered; if its preview
    or its original cannot be written, it is kept without; ``notes`` says so. An SVG is always kept as delivered,
    because it is never rendered.

    :param data: the bytes as delivered
    :param folder: the output folder, created if missing
    :param stem: name relative to the folder, without extension, from
        :func:`~airflow_provider_imagen.storage.naming.image_stems`
    :param owner: marks temporary files: letters and digits, such as the short hash of the task-instance key
    :param provenance: provenance to embed, ``None`` for none
    :param image_format: format to convert to, ``None`` to keep the delivered one
    :param thumbnail_pixels: longer side of the preview in pixels, ``None`` for no preview
    :param max_pixels: maximum width times height
    :param may_replace: as in :func:`write_image`
    :param before_write: as in :func:`write_image`
    :raises BadImageError: the bytes are not a complete image, or cannot be decoded for a conversion or a preview
    :raises StorageError: the image cannot be written
    """
    info = inspect_image(data, max_pixels=max_pixels, accept_svg=True)
    notes: list[str] = []
    preview = None
    has_provenance = False
    signed = None  # the file as delivered, if a conversion drops its content credentials
    if info.format == "SVG":
        if image_format is not None:
            notes.append(f"Kept as SVG: a vector image cannot be converted to {image_format}.")
        if thumbnail_pixels is not None:
            notes.append("No preview: vector images are not rendered.")
    elif image_format is not None or thumbnail_pixels is not None:
        # An AVIF can only get its packet while it is encoded; one delivered as AVIF is not re-encoded for that.
        packet = None
        if provenance is not None and image_format == "avif" and info.format != "AVIF":
            metadata = read_metadata(data, info.format)
            packet = provenance_packet(provenance, existing=metadata.xmp if metadata else None)
            if metadata is not None and metadata.has_huge_xmp:
                notes.append("The XMP metadata it came with was left out: it is too large to be read.")
        derived = convert_and_preview(
            data, info, image_format=image_format, preview_pixels=thumbnail_pixels, xmp=packet
        )
        preview = derived.preview
        notes.extend(derived.notes)
        if derived.converted is not None:
            signed = (data, info) if has_content_credentials(data) else None
            data = derived.converted
            info = inspect_image(data, max_pixels=max_pixels)
            has_provenance = packet is not None
    if provenance is not None and not has_provenance:
        marked = embed_provenance(data, info, provenance)
        data = marked.data
        if marked.skip_reason is not None:
            notes.append(marked.skip_reason)
    file_name = with_extension(stem, info.extension)
    original = original_sha256 = None
    if signed is not None:
        try:
            original, original_sha256 = write_original(*signed, folder=folder, file_name=file_name, owner=owner)
        except StorageError as error:
            notes.append(f"Its C2PA content credentials are lost: the file as delivered cannot be kept: {error}")
    file = write_image(
        data,
        StoredFile(
            path=address_of(descend(folder, file_name)),
            file_name=file_name,
            sha256=hashlib.sha256(data).hexdigest(),
            bytes=len(data),
            mime_type=info.mime_type,
            width=info.width,
            height=info.height,
            original=original,
            original_sha256=original_sha256,
        ),
        folder=folder,
        owner=owner,
        may_replace=may_replace,
        before_write=before_write,
    )
    if preview is not None:
        try:
            thumbnail = _write_preview(preview, folder=folder, file_name=file.file_name, owner=owner)
            file = replace(file, thumbnail=thumbnail)
        except StorageError as error:
            notes.append(f"No preview: {error}")
    return SavedImage(file, tuple(notes))


def write_image(
    data: bytes,
    file: StoredFile,
    *,
    folder: StoragePath,
    owner: str,
    may_replace: Callable[[str], bool] | None,
    before_write: Callable[[StoredFile], None] = lambda _: None,
) -> StoredFile:
    """
    Write an image, and return where it is: its name changes if it belongs to a file that may not be replaced.

    :param file: what to write, without a preview
    :param owner: marks temporary files, and is appended to the name if it is taken, then also a number
    :param may_replace: called with the file name, relative to the folder, if a file with other bytes exists; returns
        whether the image may replace it. ``None`` replaces any file
    :param before_write: called right before the image is written with what will be stored; called again if the name
        changes. A caller that journals it can find the image after a crash
    :raises StorageError: the image cannot be written
    """

    def write(path: StoragePath, *, replace_existing: bool) -> bool:
        return write_bytes_atomically(
            path,
            data,
            content_type=file.mime_type,
            owner=owner,
            within=folder,
            replace=replace_existing,
        )

    planned, _, extension = file.file_name.rpartition(".")
    for stem in alternative_stems(planned, owner):
        path = descend(folder, file_name := with_extension(stem, extension))
        file = replace(file, path=address_of(path), file_name=file_name)
        before_write(file)
        if may_replace is not None:
            if write(path, replace_existing=False):
                break
            if is_intact(path, size=file.bytes, sha256=file.sha256, within=folder):
                break
            if not may_replace(file_name):
                continue
        write(path, replace_existing=True)
        break
    return file


def write_thumbnail(data: bytes, *, folder: StoragePath, file_name: str, pixels: int, owner: str) -> str:
    """
    Write the preview of an image and return its name, relative to the folder.

    :param pixels: longer side of the preview
    :raises BadImageError: no preview can be made of the image
    :raises StorageError: the preview cannot be written
    """
    return _write_preview(make_thumbnail(data, pixels=pixels), folder=folder, file_name=file_name, owner=owner)


def write_original(data: bytes, info: ImageInfo, *, folder: StoragePath, file_name: str, owner: str) -> tuple[str, str]:
    """
    Write an image as delivered, beside its conversion; return its name, relative to the folder, and its SHA-256 in hex.

    Each owner has a subfolder, so that no file replaces the original of another task instance. Like previews, originals
    are in a hidden folder, which Hugging Face's ImageFolder ignores.

    :param info: format of the image
    :param file_name: name of the conversion, relative to the folder
    :raises StorageError: the file cannot be written
    """
    name = "/".join(filter(None, (HIDDEN_FOLDER, "originals", owner, f"{file_name}.{info.extension}")))
    write_bytes_atomically(descend(folder, name), data, content_type=info.mime_type, owner=owner, within=folder)
    return name, hashlib.sha256(data).hexdigest()


def _write_preview(preview: bytes, *, folder: StoragePath, file_name: str, owner: str) -> str:
    thumbnail = f"{HIDDEN_FOLDER}/thumbnails/{file_name}.webp"
    write_bytes_atomically(descend(folder, thumbnail), preview, content_type="image/webp", owner=owner, within=folder)
    return thumbnail
