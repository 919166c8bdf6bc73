"""
Store one image: verify, convert, embed provenance, write, make a preview.

A run stores every image with :func:`save_picture`, which is stateless and thread-safe.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from airflow_provider_imagen.exceptions import BadImageError, StorageError
from airflow_provider_imagen.storage.atomic_write import is_intact, write_bytes_atomically
from airflow_provider_imagen.storage.convert import convert_image, make_thumbnail
from airflow_provider_imagen.storage.file_metadata import read_metadata
from airflow_provider_imagen.storage.inspect_image import DEFAULT_MAX_PIXELS, inspect_image
from airflow_provider_imagen.storage.naming import append_to_stem, with_extension
from airflow_provider_imagen.storage.paths import HIDDEN_FOLDER, address_of, descend
from airflow_provider_imagen.storage.provenance import embed_provenance, provenance_packet

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_imagen.storage.convert import ImageFormat
    from airflow_provider_imagen.storage.paths import StoragePath
    from airflow_provider_imagen.storage.provenance import Provenance


class StoredPicture(Struct, frozen=True, kw_only=True):
    """
    A stored image.

    :param path: location that ``ObjectStoragePath(path)`` can open; an absolute path on a disk
    :param file_name: name relative to the output folder, parts joined by ``/``
    :param bytes: size of the stored file
    :param sha256: digest of the stored file, in hex
    :param mime_type: media type of the stored file
    :param width: pixels; 0 for an SVG that does not state it
    :param height: pixels; 0 for an SVG that does not state it
    :param thumbnail: name of the preview relative to the output folder, ``None`` if there is none
    :param notes: what was requested but could not be done, one sentence each; normally empty
    """

    path: str
    file_name: str
    bytes: int
    sha256: str
    mime_type: str
    width: int
    height: int
    thumbnail: str | None = None
    notes: tuple[str, ...] = ()


def save_picture(
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
    announce: Callable[[StoredPicture], None] | None = None,
) -> StoredPicture:
    """
    Store an image and its preview, and return what was stored.

    A paid image is never lost over a lesser failure: if it cannot be converted, it is kept as delivered; if its preview
    fails, it is kept without one; ``notes`` says so. An SVG is always kept as delivered, because it is never rendered.

    :param data: the bytes as delivered
    :param folder: the output folder, created if missing
    :param stem: name relative to the folder, without extension, from
        :func:`~airflow_provider_imagen.storage.naming.image_stems`
    :param owner: marks temporary files (:attr:`~airflow_provider_imagen.storage.task_identity.Origin.identity`)
    :param provenance: provenance to embed, ``None`` for none
    :param image_format: format to convert to, ``None`` to keep the delivered one
    :param thumbnail_pixels: longer side of the preview in pixels, ``None`` for no preview
    :param max_pixels: maximum width times height
    :param may_replace: called with the file name, relative to the folder, if a file with other bytes exists; returns
        whether the image may replace it. If not, ``-`` and ``owner`` are appended to the image's name. ``None``
        replaces any file
    :param announce: called right before the image is written with what will be stored, except the preview; called
        again if the name changes. A caller that records it can find the image after a crash
    :raises BadImageError: the bytes are not a complete image
    :raises StorageError: the image cannot be written
    """
    facts = inspect_image(data, max_pixels=max_pixels, accept_svg=True)
    notes: list[str] = []
    marked_already = False
    if image_format is not None and facts.format == "SVG":
        notes.append(f"Kept as svg: a vector picture has no pixels to write as {image_format}.")
    elif image_format is not None:
        # An AVIF can only get its packet while it is encoded; one delivered as AVIF is not re-encoded for that.
        packet = None
        if provenance is not None and image_format == "avif" and facts.format != "AVIF":
            contents = read_metadata(data, facts.format)
            packet = provenance_packet(provenance, existing=contents.xmp if contents else None)
            if contents is not None and contents.has_huge_xmp:
                notes.append("Its own XMP metadata was left out: it is too large to be read.")
        try:
            data = convert_image(data, image_format=image_format, xmp=packet, notes=notes)
            facts = inspect_image(data, max_pixels=max_pixels)
            marked_already = packet is not None
        except BadImageError as error:
            notes.append(f"Kept as {facts.extension}: {error}")
    if provenance is not None and not marked_already:
        marked = embed_provenance(data, facts, provenance)
        data = marked.data
        if marked.skip_reason is not None:
            notes.append(marked.skip_reason)
    digest = hashlib.sha256(data).hexdigest()

    def picture_at(file_name: str) -> StoredPicture:
        return StoredPicture(
            path=address_of(descend(folder, file_name)),
            file_name=file_name,
            bytes=len(data),
            sha256=digest,
            mime_type=facts.mime_type,
            width=facts.width,
            height=facts.height,
        )

    file_name = write_under_free_name(
        data,
        folder=folder,
        file_name=with_extension(stem, facts.extension),
        content_type=facts.mime_type,
        digest=digest,
        owner=owner,
        may_replace=may_replace,
        announce=(lambda name: announce(picture_at(name))) if announce is not None else lambda _: None,
    )
    thumbnail = None
    if thumbnail_pixels is not None and facts.format == "SVG":
        notes.append("No preview: a vector picture is not drawn here.")
    elif thumbnail_pixels is not None:
        try:
            thumbnail = write_thumbnail(data, folder=folder, file_name=file_name, pixels=thumbnail_pixels, owner=owner)
        except (BadImageError, StorageError) as error:
            notes.append(f"No preview: {error}")
    return replace(picture_at(file_name), thumbnail=thumbnail, notes=tuple(notes))


def write_under_free_name(
    data: bytes,
    *,
    folder: StoragePath,
    file_name: str,
    content_type: str,
    digest: str,
    owner: str,
    may_replace: Callable[[str], bool] | None,
    announce: Callable[[str], None] = lambda _: None,
) -> str:
    """
    Write a file and return its name, which changes if it belongs to a file that may not be replaced.

    :param digest: digest of the data, in hex
    :param may_replace: as in :func:`save_picture`
    :param announce: called with each name right before the file is written under it
    """
    announce(file_name)
    if may_replace is not None:
        path = descend(folder, file_name)
        if write_bytes_atomically(path, data, content_type=content_type, owner=owner, within=folder, replace=False):
            return file_name
        if is_intact(path, size=len(data), sha256=digest, within=folder):
            return file_name
        if not may_replace(file_name):
            stem, _, extension = file_name.rpartition(".")
            file_name = with_extension(append_to_stem(stem, f"-{owner}"), extension)
            announce(file_name)
    write_bytes_atomically(descend(folder, file_name), data, content_type=content_type, owner=owner, within=folder)
    return file_name


def write_thumbnail(data: bytes, *, folder: StoragePath, file_name: str, pixels: int, owner: str) -> str:
    """
    Write the preview of an image and return its name, relative to the folder.

    :param pixels: longer side of the preview
    :raises BadImageError: no preview can be made of the image
    :raises StorageError: the preview cannot be written
    """
    thumbnail = f"{HIDDEN_FOLDER}/thumbnails/{file_name}.webp"
    preview = make_thumbnail(data, pixels=pixels)
    write_bytes_atomically(descend(folder, thumbnail), preview, content_type="image/webp", owner=owner, within=folder)
    return thumbnail
