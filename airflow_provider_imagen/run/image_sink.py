"""Store images in a folder, each under a name that is the same in every attempt."""

from __future__ import annotations

import logging
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from airflow_provider_imagen.exceptions import BadImageError, StorageError
from airflow_provider_imagen.journal.records import StoredFile
from airflow_provider_imagen.run.plan import place_of
from airflow_provider_imagen.storage.atomic_write import file_sizes, is_intact, read_bytes, redacted_address
from airflow_provider_imagen.storage.manifest import recorded_names
from airflow_provider_imagen.storage.naming import NameFields, append_to_stem, image_name, image_stems
from airflow_provider_imagen.storage.paths import address_of, descend, folder_above, local_path, stays_below
from airflow_provider_imagen.storage.provenance import Provenance
from airflow_provider_imagen.storage.save_image import save_picture, write_thumbnail, write_under_free_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from airflow_provider_imagen.journal.records import RequestState, Response, ResponseImage
    from airflow_provider_imagen.run.plan import Item, Plan, Unit
    from airflow_provider_imagen.storage.convert import ImageFormat
    from airflow_provider_imagen.storage.paths import StoragePath
    from airflow_provider_imagen.storage.save_image import StoredPicture
    from airflow_provider_imagen.storage.task_identity import Origin

log = logging.getLogger(__name__)


class StoredFiles:
    """
    Locates the images that the journal names.

    :param open_path: turns the path of a stored image back into a path object
    :param folders: the only folders that images may be in, for a journal in a folder that others can write to; ``None``
        trusts the journal
    """

    def __init__(self, *, open_path: Callable[[str], StoragePath], folders: Sequence[StoragePath] | None) -> None:
        self._open_path = open_path
        self._folders = folders

    def find(self, stored: StoredFile) -> tuple[StoragePath, StoragePath] | None:
        """Return the path of an image and its output folder; ``None`` if the image is not in an allowed place."""
        path = self._open_path(stored.path)
        folder = folder_above(path, stored.file_name)
        if folder is None or not stays_below(stored.thumbnail or stored.file_name):
            return None
        if self._folders is not None and stored.path not in (
            address_of(descend(allowed, stored.file_name)) for allowed in self._folders
        ):
            return None
        return path, folder

    def is_there(self, stored: StoredFile, *, sha256: str | None = None) -> bool:
        """
        Return whether a stored image exists with the right size and, if ``sha256`` is given, the right contents.

        :raises StorageError: the store cannot be reached
        """
        place = self.find(stored)
        return place is not None and is_intact(place[0], size=stored.bytes, sha256=sha256, within=place[1])


class ImageSink:
    """
    Stores images in a folder, each under a name that is the same in every attempt.

    An image never replaces one of another task instance. If the name pattern gives both the same name, the later image
    gets its task instance's identity appended.

    :param folder: output folder
    :param open_path: turns the path of a stored image back into a path object
    :param plan: the planned images; decides the names
    :param entries: the journal's requests, so that a new image never takes the name of a kept one
    :param origin: this task instance
    :param filename: name pattern
    :param provenance: ``True`` writes into each file what made it, ``False`` does not, a mapping changes, adds or
        removes facts (:meth:`~airflow_provider_imagen.storage.provenance.Provenance.changed`)
    :param image_format: format to convert to; ``None`` keeps the delivered one
    :param thumbnail_pixels: longer side of the previews; ``None`` for no previews
    :param stored_folders: ``folders`` of :class:`StoredFiles`
    """

    def __init__(
        self,
        *,
        folder: StoragePath,
        open_path: Callable[[str], StoragePath],
        plan: Plan,
        entries: Mapping[str, RequestState],
        origin: Origin,
        filename: str,
        provenance: bool | Mapping[str, Any] = True,
        image_format: ImageFormat | None = None,
        thumbnail_pixels: int | None = None,
        stored_folders: Sequence[StoragePath] | None = None,
    ) -> None:
        self.folder = folder
        self._stored_files = StoredFiles(open_path=open_path, folders=stored_folders)
        self._plan = plan
        self._origin = origin
        self._filename = filename
        self._provenance = provenance
        self._image_format = image_format
        self._thumbnail_pixels = thumbnail_pixels
        self._stems = self._name_pictures(entries)
        self._own_names = recorded_names(folder, origin) | {
            stored.file_name for request in entries.values() for stored in request.files.values()
        }
        self._lock = threading.Lock()
        self._has_warned = False
        if local_path(folder) is not None:  # raises if a planned subfolder is a symlink
            file_sizes(folder, (stem for stem in self._stems.values() if "/" in stem))

    def save(
        self,
        data: bytes,
        *,
        item: Item,
        image_index: int,
        response: Response,
        image: ResponseImage,
        announce: Callable[[StoredFile], None] | None = None,
    ) -> StoredFile:
        """
        Verify one image, add its provenance, and store it.

        :param announce: called with the file to expect, still without its preview, right before it is written
        """
        stem = None if item.is_superseded else self._stems.get((item.index, image_index))
        if stem is None:  # more than requested, or no longer requested
            fields = self._name_fields(item, image_index)
            stem = image_name(self._filename, fields=fields, extension="x").removesuffix(".x")
            if item.is_superseded and stem in self._stems.values():
                stem = append_to_stem(stem, f"-{response.key[:8]}")
        saved = save_picture(
            data,
            folder=self.folder,
            stem=stem,
            owner=self._origin.identity,
            provenance=self._describe(item, response, image),
            image_format=self._image_format,
            thumbnail_pixels=self._thumbnail_pixels,
            may_replace=self._is_own,
            announce=(lambda expected: announce(_as_fact(expected))) if announce is not None else None,
        )
        for note in saved.notes:
            log.warning("%s: %s", saved.file_name, note)
        return _as_fact(saved)

    def is_stored(self, stored: StoredFile) -> bool:
        """Return whether a previous attempt's image is still present and intact."""
        try:
            return self._stored_files.is_there(stored, sha256=stored.sha256)
        except StorageError as error:
            log.warning("%s It is downloaded again.", error)
            return False

    def keep_stored(self, stored: StoredFile) -> StoredFile | None:
        """
        Return where a previous attempt's image is now, or ``None`` if it is gone.

        An image in another folder, because ``output_path`` has changed, is copied to the current one.
        """
        place = self._stored_files.find(stored)
        if place is None or not self.is_stored(stored):
            return None
        if address_of(descend(self.folder, stored.file_name)) == stored.path:
            return stored
        try:
            data = read_bytes(place[0], within=place[1])
        except StorageError as error:
            log.warning("%s The image is downloaded again.", error)
            return None
        if data is None:
            return None
        file_name = write_under_free_name(
            data,
            folder=self.folder,
            file_name=stored.file_name,
            content_type=stored.mime_type,
            owner=self._origin.identity,
            digest=stored.sha256,
            may_replace=self._is_own,
        )
        place_name = redacted_address(place[0])
        log.info("Copied %s from %s: output_path has changed since the last attempt.", file_name, place_name)
        return replace(
            stored,
            path=address_of(descend(self.folder, file_name)),
            file_name=file_name,
            thumbnail=self._thumbnail(data, file_name),
        )

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
                owner=self._origin.identity,
            )
        except (BadImageError, StorageError) as error:
            log.warning("%s: no preview: %s", file_name, error)
            return None

    def find_missing(self, stored: Iterable[StoredFile]) -> list[StoredFile]:
        """
        Return the images whose files have disappeared or have a different size.

        :raises StorageError: the folder cannot be listed
        """
        wanted = list(stored)
        sizes = file_sizes(self.folder, {each.file_name for each in wanted})
        return [each for each in wanted if sizes.get(each.file_name) != each.bytes]

    def _is_own(self, file_name: str) -> bool:
        """Return whether an existing file is known to be this task instance's, from before this attempt."""
        if file_name in self._own_names:
            return True
        with self._lock:
            if not self._has_warned:
                self._has_warned = True
                log.warning(
                    "%s exists already, and not as an image that this task instance is known to have made. It is not "
                    "replaced: images whose name is taken get -%s appended. {identity} in filename %r, or {{ run_id }} "
                    "in output_path, avoids that.",
                    file_name,
                    self._origin.identity,
                    self._filename,
                )
        return False

    def _name_pictures(self, entries: Mapping[str, RequestState]) -> dict[tuple[int, int], str]:
        """Return a name for every planned image, avoiding the names of images that previous attempts stored."""
        places = [(item, image) for item in self._plan.items for image in range(item.images)]
        stems = image_stems(self._filename, [self._name_fields(item, image) for item, image in places])
        names = {(item.index, image): stem for (item, image), stem in zip(places, stems, strict=True)}
        kept = self._kept_names(entries)
        taken = {stem.casefold(): place for place, stem in kept.items()}
        for place, stem in names.items():
            number = 1
            while taken.get(names[place].casefold(), place) != place:
                number += 1
                names[place] = f"{stem}-v{number}"
        return names

    def _kept_names(self, entries: Mapping[str, RequestState]) -> dict[tuple[Any, int], str]:
        """Return the names of stored images, by position in this plan, or by journal key if they have no position."""
        places: dict[str, tuple[Unit, Item, int]] = {}
        for slot in self._plan.slots:
            for units in slot.choices:
                first = slot.first_image
                for unit in units:
                    places[unit.key] = (unit, self._plan.items[slot.item], first)
                    first += unit.request.expected_images
        kept: dict[tuple[Any, int], str] = {}
        for key, entry in entries.items():
            place = places.get(key)
            for number, stored in entry.files.items():
                where: tuple[Any, int] = (key, number)
                if place is not None:
                    unit, item, first = place
                    index = place_of(
                        number, images=unit.request.expected_images, first_image=first, prompt_images=item.images
                    )
                    where = (item.index, index)
                kept[where] = stored.file_name.rpartition(".")[0]
        return kept

    def _name_fields(self, item: Item, image: int) -> NameFields:
        seed = item.arguments.get("seed")
        return NameFields(
            origin=self._origin,
            index=item.index,
            image=image,
            prompt=item.prompt,
            model=str(item.arguments.get("model") or ""),
            name=item.name,
            seed=seed if isinstance(seed, int) else None,
            items=len(self._plan.items),
        )

    def _describe(self, item: Item, response: Response, image: ResponseImage) -> Provenance | None:
        if self._provenance is False:
            return None
        own = {"model", "prompt", "seed"}
        described = Provenance(
            prompt=item.prompt,
            enhanced_prompt=image.prompt if image.prompt != item.prompt else None,
            model=response.model,
            seed=image.seed,
            parameters={name: value for name, value in item.arguments.items() if name not in own and value is not None},
            inference_id=response.inference_id,
            origin=self._origin,
            created_at=datetime.fromtimestamp(response.at, UTC),
        )
        return described if self._provenance is True else described.changed(self._provenance)


def _as_fact(picture: StoredPicture) -> StoredFile:
    return StoredFile(
        path=picture.path,
        file_name=picture.file_name,
        sha256=picture.sha256,
        bytes=picture.bytes,
        mime_type=picture.mime_type,
        width=picture.width,
        height=picture.height,
        thumbnail=picture.thumbnail,
    )
