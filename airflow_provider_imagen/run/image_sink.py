"""Store images in a folder, each under a name that is the same in every attempt."""

from __future__ import annotations

import hashlib
import logging
import threading
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from airflow_provider_imagen.exceptions import BadImageError, StorageError
from airflow_provider_imagen.run.reuse import MAX_REUSED_BYTES, ReusedImage
from airflow_provider_imagen.storage.atomic_write import file_sizes, is_intact, read_bytes, redacted_address
from airflow_provider_imagen.storage.c2pa import has_content_credentials
from airflow_provider_imagen.storage.inspect_image import inspect_image
from airflow_provider_imagen.storage.manifest import names_used_by_others, recorded_names
from airflow_provider_imagen.storage.naming import (
    NameFields,
    alternative_stems,
    append_to_stem,
    image_name,
    image_stems,
)
from airflow_provider_imagen.storage.paths import address_of, descend, folder_above, local_path, stays_below
from airflow_provider_imagen.storage.provenance import (
    DIGITAL_SOURCE_TYPE,
    EDITED_SOURCE_TYPE,
    Provenance,
    read_provenance,
)
from airflow_provider_imagen.storage.save_image import save_image, write_image, write_original, write_thumbnail
from airflow_provider_imagen.storage.task_identity import TaskInstanceKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from airflow_provider_imagen.image_record import StoredFile
    from airflow_provider_imagen.journal.records import RequestState
    from airflow_provider_imagen.run.plan import Plan, PromptItem
    from airflow_provider_imagen.run.results import ReceivedResponse
    from airflow_provider_imagen.run.reuse import EarlierImage
    from airflow_provider_imagen.storage.convert import ImageFormat
    from airflow_provider_imagen.storage.inspect_image import ImageInfo
    from airflow_provider_imagen.storage.paths import StoragePath

log = logging.getLogger(__name__)

MAX_REUSED_AT_ONCE: Final = 8
"""Images of other runs that are in memory at the same time, however many requests may be in flight."""


_ORIGINAL_LOST: Final = "%s: the file as delivered, with C2PA content credentials, is lost: %s"

_MAX_ALTERNATIVE_NAMES: Final = 10
"""Names under which an image counts as having its planned name."""


class StoredFiles:
    """
    Locates the images that the journal names.

    :param open_path: turns the path of a stored image back into a path object
    :param folders: the only folders that images may be in, for a journal in a folder that others can write to; ``None``
        trusts the journal
    :param current: the output folder, where most images are; it is always allowed
    """

    def __init__(
        self,
        *,
        open_path: Callable[[str], StoragePath],
        folders: Sequence[StoragePath] | None,
        current: StoragePath | None = None,
    ) -> None:
        self._open_path = open_path
        self._folders = folders
        self._current = current

    def find(self, file: StoredFile) -> tuple[StoragePath, StoragePath] | None:
        """Return the path of an image and its output folder; ``None`` if the image is not in an allowed place."""
        if not all(stays_below(name or file.file_name) for name in (file.file_name, file.thumbnail, file.original)):
            return None
        if self._current is not None:  # the usual case, first, because building paths takes most of the time
            path = descend(self._current, file.file_name)
            if address_of(path) == file.path:
                return path, self._current
        path = self._open_path(file.path)
        folder = folder_above(path, file.file_name)
        if folder is None:
            return None
        if self._folders is not None and file.path not in (
            address_of(descend(allowed, file.file_name)) for allowed in self._folders
        ):
            return None
        return path, folder

    def find_intact(self, file: StoredFile, *, sha256: str | None = None) -> tuple[StoragePath, StoragePath] | None:
        """
        Return the path and output folder of an image; ``None`` if it is missing, damaged or not in an allowed place.

        :param sha256: digest to compare the contents with; without it, only the size is compared
        :raises StorageError: the store cannot be reached
        """
        found = self.find(file)
        if found is None:
            return None
        path, folder = found
        return found if is_intact(path, size=file.bytes, sha256=sha256, within=folder) else None


class ImageSink:
    """
    Stores images in a folder, each under a name that is the same in every attempt.

    An image never replaces one of another task instance, nor one that another uses in place, and a copy never replaces
    one that this task instance paid for. If the name pattern gives both the same name, the later image gets its task
    instance's identity appended.

    :param folder: output folder
    :param open_path: turns the path of a stored image back into a path object
    :param plan: the planned images; decides the names
    :param requests: the journal's requests, so that a new image never takes the name of a kept one
    :param ti_key: this task instance
    :param filename: name pattern
    :param provenance: ``True`` writes into each file what made it, ``False`` does not, a mapping changes, adds or
        removes facts (:meth:`~airflow_provider_imagen.storage.provenance.Provenance.changed`); in it,
        ``"metadata": True`` adds the item's metadata
    :param image_format: format to convert to; ``None`` keeps the delivered one
    :param thumbnail_pixels: longer side of the previews; ``None`` for no previews
    :param stored_folders: ``folders`` of :class:`StoredFiles`
    :param own_names: names of files that this task instance stored before it was cleared and that are to be reused, by
        prompt and image index (:meth:`~airflow_provider_imagen.run.reuse.EarlierRequests.own_names`)
    """

    def __init__(
        self,
        *,
        folder: StoragePath,
        open_path: Callable[[str], StoragePath],
        plan: Plan,
        requests: Mapping[str, RequestState],
        ti_key: TaskInstanceKey,
        filename: str,
        provenance: bool | Mapping[str, Any] = True,
        image_format: ImageFormat | None = None,
        thumbnail_pixels: int | None = None,
        stored_folders: Sequence[StoragePath] | None = None,
        own_names: Mapping[tuple[int, int], str] | None = None,
    ) -> None:
        self.folder = folder
        self._stored_files = StoredFiles(open_path=open_path, folders=stored_folders, current=folder)
        self._plan = plan
        self._ti_key = ti_key
        self._filename = filename
        self._provenance = provenance
        self._image_format = image_format
        self._thumbnail_pixels = thumbnail_pixels
        self._stems = self._name_images(requests, own_names or {})
        self._own_names = recorded_names(folder, ti_key) | {
            file.file_name: True for request in requests.values() for file in request.files.values()
        }  # each with whether this task instance paid for the image
        self._used_by_others: set[str] | None = None  # not read yet: it is rarely needed
        self._lock = threading.Lock()
        self._reusing = threading.BoundedSemaphore(MAX_REUSED_AT_ONCE)
        self._has_warned = False
        if local_path(folder) is not None:  # raises if a planned subfolder is a symlink
            file_sizes(folder, (stem for stem in self._stems.values() if "/" in stem))

    def save(
        self,
        data: bytes,
        received: ReceivedResponse,
        position: int,
        before_write: Callable[[StoredFile], None] = lambda _: None,
    ) -> StoredFile:
        """
        Verify one image, add its provenance, and store it.

        :param position: index of the image in the response, from 0
        :param before_write: called with the expected file, still without its preview, right before it is written
        """
        saved = save_image(
            data,
            folder=self.folder,
            stem=self._stem(received, position),
            owner=self._ti_key.identity,
            provenance=self._describe(received, position),
            image_format=self._image_format,
            thumbnail_pixels=self._thumbnail_pixels,
            may_replace=self._may_replace,
            before_write=before_write,
        )
        for note in saved.notes:
            log.warning("%s: %s", saved.file.file_name, note)
        if saved.file.original is not None:
            log.info(
                "%s: the conversion dropped its C2PA content credentials, so the file as delivered is kept, too: %s",
                saved.file.file_name,
                saved.file.original,
            )
        return saved.file

    def _stem(self, received: ReceivedResponse, position: int) -> str:
        """Return an image's name without extension: the planned one, or a new one if it was not or is not requested."""
        item, image_index = received.item, received.target.index_of(position)
        planned = None if item.is_superseded else self._stems.get((item.index, image_index))
        if planned is not None:
            return planned
        fields = self._name_fields(item, image_index)
        stem = image_name(self._filename, fields=fields, extension="x").removesuffix(".x")
        if item.is_superseded and stem in self._stems.values():
            return append_to_stem(stem, f"-{received.key[:8]}")
        return stem

    def is_stored(self, file: StoredFile) -> bool:
        """Return whether a previous attempt's image is still present and intact."""
        return self._find_intact(file) is not None

    def _find_intact(self, file: StoredFile) -> tuple[StoragePath, StoragePath] | None:
        try:
            return self._stored_files.find_intact(file, sha256=file.sha256)
        except StorageError as error:
            log.warning("%s It is downloaded again.", error)
            return None

    def keep(self, file: StoredFile) -> StoredFile | None:
        """
        Return where a previous attempt's image is now, or ``None`` if it is gone.

        An image in another folder, because ``output_path`` has changed, is copied to the current one.
        """
        found = self._find_intact(file)
        if found is None:
            return None
        path, folder = found
        if folder is self.folder:
            return file
        try:
            data = read_bytes(path, within=folder)
        except StorageError as error:
            log.warning("%s The image is downloaded again.", error)
            return None
        if data is None:
            return None
        original, original_sha256 = self._copy_original(file, folder, file_name=file.file_name)
        copy = write_image(
            data,
            replace(
                file,
                path=address_of(descend(self.folder, file.file_name)),
                thumbnail=None,
                original=original,
                original_sha256=original_sha256,
            ),
            folder=self.folder,
            owner=self._ti_key.identity,
            may_replace=self._may_replace,
        )
        log.info(
            "Copied %s from %s: output_path has changed since the last attempt.",
            copy.file_name,
            redacted_address(path),
        )
        return replace(copy, thumbnail=self._thumbnail(data, copy.file_name))

    def _copy_original(
        self, file: StoredFile, folder: StoragePath, *, file_name: str
    ) -> tuple[str, str] | tuple[None, None]:
        """
        Return the name and digest of an original copied from another folder; ``None`` if there is none or this fails.

        :param file_name: name of the converted image in this folder
        """
        if (delivered := _read_original(file, folder)) is None:
            return None, None
        try:
            return write_original(*delivered, folder=self.folder, file_name=file_name, owner=self._ti_key.identity)
        except StorageError as error:
            log.warning(_ORIGINAL_LOST, file.original, error)
            return None, None

    def reuse(self, places: Sequence[EarlierImage], received: ReceivedResponse, position: int) -> ReusedImage | None:
        """
        Return another run's image, stored in this folder, or ``None`` if it is intact nowhere.

        A file in this folder stays as it is if it has the planned name, or this task instance stored it before it was
        cleared. Any other is copied under that name, and converted to ``image_format`` if necessary, if possible from
        the file as delivered. Like a new image, the copy gets the provenance that is wanted, which names the task
        instance that generated it; one with C2PA content credentials that is not converted stays unchanged.

        :param places: where the image is, the preferred place first
        :raises StorageError: a store cannot be reached, or the copy cannot be written
        """
        stem = self._stem(received, position)
        for place in places:
            with self._reusing, suppress(BadImageError):
                if (data := place.read()) is not None:
                    generated = next((each.writer for each in places if each.line.reused_from is None), None)
                    provenance = self._describe(received, position, generated or _ti_key_in(data) or place.writer)
                    return self._store_reused(data, place, stem, provenance)
            log.warning("%s is not reused: it is missing, or not the image listed.", redacted_address(place.path))
        return None

    def _store_reused(self, data: bytes, place: EarlierImage, stem: str, provenance: Provenance | None) -> ReusedImage:
        line, file, wanted = place.line, place.file, self._image_format
        is_own = place.writer == self._ti_key
        info = inspect_image(data, accept_svg=True)
        is_as_wanted = info.format == "SVG" or (
            file.original is None if wanted is None else wanted == info.format.lower()
        )
        delivered = None if is_as_wanted else _read_original(file, place.folder)
        names = islice(alternative_stems(stem, place.writer.identity), _MAX_ALTERNATIVE_NAMES)
        has_name = is_own or line.file_name.rpartition(".")[0] in names
        can_stay = delivered is None and (is_as_wanted or wanted is None)
        if can_stay and has_name and place.folder is self.folder:
            has_original = self._has_original(file)
            file = replace(
                file,
                mime_type=info.mime_type,
                width=info.width,
                height=info.height,
                thumbnail=line.thumbnail or self._thumbnail(data, line.file_name),
                original=file.original if has_original else None,
                original_sha256=file.original_sha256 if has_original else None,
            )
            origin = line.reused_from if is_own else None  # of a copy that a previous attempt made
            return ReusedImage(file, origin or file.path, line.purchase_usd)
        data, info = delivered or (data, info)
        is_converted = not is_as_wanted and wanted not in (None, info.format.lower())
        # Neither an AVIF or SVG nor a signed file can get other marks unless it is converted; it keeps those it has.
        keeps_marks = info.format in ("AVIF", "SVG") or has_content_credentials(data)
        saved = save_image(
            data,
            folder=self.folder,
            stem=stem,
            owner=self._ti_key.identity,
            provenance=None if keeps_marks and not is_converted else provenance,
            image_format=wanted if is_converted else None,
            thumbnail_pixels=self._thumbnail_pixels,
            may_replace=partial(self._may_replace, is_copy=True),
        )
        self._own_names.setdefault(saved.file.file_name, False)
        for note in saved.notes:
            log.warning("%s: %s", saved.file.file_name, note)
        file = saved.file
        if file.original is None and delivered is None:
            original, original_sha256 = self._copy_original(place.file, place.folder, file_name=file.file_name)
            file = replace(file, original=original, original_sha256=original_sha256)
        return ReusedImage(file, place.file.path, line.purchase_usd)

    def _has_original(self, file: StoredFile) -> bool:
        """Return whether the file as delivered is still kept for a converted image."""
        if file.original is None:
            return False
        if file.original in file_sizes(self.folder, [file.original]):
            return True
        log.warning(_ORIGINAL_LOST, file.original, "it no longer exists")
        return False

    def _thumbnail(self, data: bytes, file_name: str) -> str | None:
        """Return the name of a copied image's new preview; ``None`` if previews are off or this one fails."""
        if self._thumbnail_pixels is None:
            return None
        try:
            return write_thumbnail(
                data,
                folder=self.folder,
                file_name=file_name,
                pixels=self._thumbnail_pixels,
                owner=self._ti_key.identity,
            )
        except (BadImageError, StorageError) as error:
            log.warning("%s: no preview: %s", file_name, error)
            return None

    def find_missing(self, files: Iterable[StoredFile]) -> list[StoredFile]:
        """
        Return the images whose files have disappeared or have a different size.

        :raises StorageError: the folder cannot be listed
        """
        wanted = list(files)
        sizes = file_sizes(self.folder, {file.file_name for file in wanted})
        return [file for file in wanted if sizes.get(file.file_name) != file.bytes]

    def _may_replace(self, file_name: str, *, is_copy: bool = False) -> bool:
        """
        Return whether an image may replace an existing file with other bytes.

        It must be known to be this task instance's, from before this attempt, and no other may use it in place.

        :param is_copy: the image is not a new one, so it must not replace one that was paid for
        """
        is_paid = self._own_names.get(file_name)
        if is_paid is not None:
            with self._lock:
                if self._used_by_others is None:
                    self._used_by_others = names_used_by_others(self.folder, self._ti_key)
            if file_name not in self._used_by_others:
                return not (is_paid and is_copy)
            log.info("%s is kept, because other runs use it; the new image gets another name.", file_name)
            return False
        with self._lock:
            if not self._has_warned:
                self._has_warned = True
                log.warning(
                    "%s already exists and was not written by this task instance, as far as is known. It is not "
                    "replaced: images whose name is taken get -%s appended. {identity} in filename %r, or {{ run_id }} "
                    "in output_path, avoids that.",
                    file_name,
                    self._ti_key.identity,
                    self._filename,
                )
        return False

    def _name_images(
        self, requests: Mapping[str, RequestState], own_names: Mapping[tuple[int, int], str]
    ) -> dict[tuple[int, int], str]:
        """Return a name for every planned image, avoiding the names of images that this task instance has stored."""
        items = (*self._plan.items, *self._plan.beyond_limit)
        images = [(item, index) for item in items for index in range(item.images)]
        stems = image_stems(self._filename, [self._name_fields(item, index) for item, index in images])
        names = {(item.index, index): stem for (item, index), stem in zip(images, stems, strict=True)}
        kept = {**{image: name.rpartition(".")[0] for image, name in own_names.items()}, **self._kept_names(requests)}
        taken = {stem.casefold(): image for image, stem in kept.items()}
        for image, stem in names.items():
            number = 1
            while taken.get(names[image].casefold(), image) != image:
                number += 1
                names[image] = f"{stem}-v{number}"
        return names

    def _kept_names(self, requests: Mapping[str, RequestState]) -> dict[tuple[Any, int], str]:
        """Return the names of stored images, by prompt and image index, or by journal key if no longer requested."""
        targets = {planned.key: planned.target for planned in self._plan.requests}
        kept: dict[tuple[Any, int], str] = {}
        for key, request in requests.items():
            target = targets.get(key)
            for position, file in request.files.items():
                image = (key, position) if target is None else (target.prompt_index, target.index_of(position))
                kept[image] = file.file_name.rpartition(".")[0]
        return kept

    def _name_fields(self, item: PromptItem, image: int) -> NameFields:
        seed = item.arguments.get("seed")
        return NameFields(
            ti_key=self._ti_key,
            index=item.index,
            image=image,
            prompt=item.prompt,
            model=str(item.arguments.get("model") or ""),
            name=item.name,
            seed=seed if isinstance(seed, int) else None,
            items=len(self._plan.items) + len(self._plan.beyond_limit),
        )

    def _describe(
        self, received: ReceivedResponse, position: int, generated_by: TaskInstanceKey | None = None
    ) -> Provenance | None:
        """
        Return the provenance to embed in an image; ``None`` for none.

        :param generated_by: the task instance that generated it; default: this one
        """
        if self._provenance is False:
            return None
        item, response = received.item, received.response
        image = response.images[position]
        own = {"model", "prompt", "seed"}
        described = Provenance(
            prompt=item.prompt,
            alt_text=item.alt_text,
            enhanced_prompt=image.prompt if image.prompt != item.prompt else None,
            model=response.model,
            seed=image.seed,
            parameters={name: value for name, value in item.arguments.items() if name not in own and value is not None},
            inference_id=response.inference_id,
            ti_key=generated_by or self._ti_key,
            created_at=datetime.fromtimestamp(response.at, UTC),
            digital_source_type=EDITED_SOURCE_TYPE if received.target.has_input_images else DIGITAL_SOURCE_TYPE,
        )
        if self._provenance is True:
            return described
        changes = dict(self._provenance)
        if changes.get("metadata") is True:
            changes["metadata"] = item.metadata
        return described.changed(changes)


def _read_original(file: StoredFile, folder: StoragePath) -> tuple[bytes, ImageInfo] | None:
    """Return the file as delivered that is kept for a converted image; ``None`` if there is none or it is unusable."""
    if file.original is None:
        return None
    try:
        data = read_bytes(descend(folder, file.original), within=folder, max_bytes=MAX_REUSED_BYTES)
        if data is not None and hashlib.sha256(data).hexdigest() == file.original_sha256:
            return data, inspect_image(data)
        reason = "it no longer exists" if data is None else "it is not the file that was stored"
    except (BadImageError, StorageError) as error:
        reason = str(error)
    log.warning(_ORIGINAL_LOST, file.original, reason)
    return None


def _ti_key_in(data: bytes) -> TaskInstanceKey | None:
    """Return the task instance that an image's embedded provenance names; ``None`` if it names none."""
    found = read_provenance(data)
    if not {"dag_id", "run_id", "task_id"} <= found.keys():
        return None
    return TaskInstanceKey(**{name: found[name] for name in TaskInstanceKey.__struct_fields__ if name in found})
