"""
Find images that other runs have paid for with the same requests, in the manifests of their folders.

Others may have written to these folders, so a line only says where to look: its file counts if it lies in the folder,
is a regular file, and has the size and SHA-256 that the line states. Its URL is never used.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import deque
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct, field
from msgspec.structs import replace

from airflow_provider_imagen.api.fields import IMAGE_FIELDS
from airflow_provider_imagen.catalogue.input_images import flatten, reference_kind
from airflow_provider_imagen.image_record import ResponseImage
from airflow_provider_imagen.journal.records import Response
from airflow_provider_imagen.storage.atomic_write import is_intact, read_bytes, redacted_address
from airflow_provider_imagen.storage.manifest import request_lines, ti_key_of
from airflow_provider_imagen.storage.paths import descend

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

    from airflow_provider_imagen.image_record import ManifestLine, StoredFile
    from airflow_provider_imagen.run.plan import ImageSlot, Plan, PlannedRequest
    from airflow_provider_imagen.storage.paths import StoragePath
    from airflow_provider_imagen.storage.task_identity import TaskInstanceKey

log = logging.getLogger(__name__)

MAX_REUSED_BYTES: Final = 128 * 2**20
"""Largest file that is reused; twice as large as any image that is downloaded, because a conversion may enlarge one."""

_AFFINITIES: Final = (0, 1, 2)
_YEAR_3000: Final = 32_503_680_000


class ReusedImage(Struct, frozen=True):
    """
    An image of another run, or of this task instance before it was cleared, stored in this run's folder.

    :param file: the stored file
    :param reused_from: location of the file it was copied from, or its own if it was used in place
    :param usd_saved: what it cost when it was generated, in USD; ``None`` if unknown
    :param reused_at: when it was reused, with time zone
    """

    file: StoredFile
    reused_from: str
    usd_saved: float | None
    reused_at: datetime = field(default_factory=lambda: datetime.now(UTC))


class EarlierImage(Struct, frozen=True, eq=False):
    """
    An image as a manifest lists it.

    :param folder: the folder of the manifest
    :param line: its line
    :param file: the file that the line describes
    :param writer: the task instance that the line names
    :param generated_at: when it was generated, in seconds since the epoch
    """

    folder: StoragePath
    line: ManifestLine
    file: StoredFile
    writer: TaskInstanceKey
    generated_at: float

    @property
    def path(self) -> StoragePath:
        """Its location."""
        return descend(self.folder, self.file.file_name)

    def read(self) -> bytes | None:
        """
        Return the file, or ``None`` if it is missing, not a regular file, or not the one that the line describes.

        :raises StorageError: the store cannot be reached
        """
        if not is_intact(self.path, size=self.file.bytes, within=self.folder):
            return None
        data = read_bytes(self.path, within=self.folder, max_bytes=self.file.bytes)
        return data if data is not None and hashlib.sha256(data).hexdigest() == self.file.sha256 else None


class EarlierRequest(Struct, frozen=True, eq=False):
    """
    A request of another run, or of this task instance before it was cleared, all of whose images are listed.

    :param images: for each image, by position in the response, the places where it is: this task instance's own file
        first, then the purchased file, then copies
    :param affinity: who has its images: 0 for this task instance, 1 for the same task and map index in another run, 2
        for others
    :param is_own: whether this task instance paid for it
    """

    client_request_id: str
    images: tuple[tuple[EarlierImage, ...], ...]
    affinity: int
    is_own: bool

    @classmethod
    def of(
        cls, client_request_id: str, images: tuple[tuple[EarlierImage, ...], ...], ti_key: TaskInstanceKey | None
    ) -> EarlierRequest:
        """Return a request as a task instance sees it."""
        firsts = [places[0] for places in images]
        return cls(
            client_request_id,
            images,
            affinity=min(_affinity(place.writer, ti_key) for places in images for place in places),
            is_own=all(place.writer == ti_key and place.line.reused_from is None for place in firsts),
        )

    @property
    def place(self) -> tuple[int | None, int | None]:
        """Index of its prompt, and of its first image among those of the prompt."""
        line = self.images[0][0].line
        return line.prompt_index, line.image_index

    @property
    def own_usd(self) -> Decimal | None:
        """Cost of the request to this task instance, in USD; ``None`` if unknown."""
        costs = [places[0].line.usd for places in self.images]
        if not self.is_own:
            return Decimal(0)
        return sum((Decimal(str(usd)) for usd in costs), Decimal(0)) if None not in costs else None

    @property
    def generated_at(self) -> float:
        """When its images were generated, in seconds since the epoch."""
        return self.images[0][0].generated_at

    def response_to(self, planned: PlannedRequest) -> Response:
        """Return its response as if it answered a planned request, without URLs; it costs :attr:`own_usd`."""
        lines = [places[0].line for places in self.images]
        return Response(
            key=planned.key,
            client_request_id=self.client_request_id,
            images=tuple(ResponseImage(prompt=line.enhanced_prompt, seed=line.seed) for line in lines),
            model=planned.model,
            at=self.generated_at,
            usd=self.own_usd,
            inference_id=lines[0].inference_id,
        )


class EarlierRequests:
    """
    Requests of other runs that can take the place of planned ones; safe to use from any number of threads.

    Each takes the place of one planned request, so two equal prompts never get the same image.

    A request whose input image is given by URL is left out: what is behind the URL may have changed.

    :param plan: the planned requests
    :param folders: where to look, in order of preference; a folder without a manifest has nothing to reuse
    :param own: client request ids in this task's journal, which are no other run's
    :param ti_key: this task instance. What it stored before it was cleared comes first, so that it keeps its images
    :raises StorageError: a manifest exists, or may exist, but cannot be read
    """

    def __init__(
        self,
        plan: Plan,
        folders: Sequence[StoragePath] = (),
        *,
        own: Container[str] = (),
        ti_key: TaskInstanceKey | None = None,
    ) -> None:
        self._plan = plan
        self._ti_key = ti_key
        self._lock = threading.Lock()
        self._assigned: dict[str, EarlierRequest] = {}
        self._spare: dict[str, deque[EarlierRequest]] = {}
        if folders:
            wanted = {
                planned.fingerprint: planned.target.images
                for planned in plan.requests
                if not has_remote_input(planned.request.body)
            }
            if any(planned.fingerprint not in wanted for planned in plan.requests):
                log.warning(
                    "Requests with an input image given by URL are not reused, because what is behind the URL may have "
                    "changed. Store the image and pass its path instead."
                )
            found = _find(folders, wanted, own=own, ti_key=ti_key)
            for affinity in _AFFINITIES:
                self._assign(
                    {name: [each for each in requests if each.affinity == affinity] for name, requests in found.items()}
                )

    def _assign(self, found: Mapping[str, list[EarlierRequest]]) -> None:
        """
        Assign requests to planned ones that have none yet; what is left becomes spare.

        Each prompt gets its own, so that a retry makes the same choice, then any.
        """
        by_place = {(name, each.place): each for name, requests in found.items() for each in reversed(requests)}
        for planned in self._plan.requests:
            place = planned.target.prompt_index, planned.target.image_index
            if planned.key in self._assigned:
                continue
            if (earlier := by_place.pop((planned.fingerprint, place), None)) is not None:
                self._assigned[planned.key] = earlier
        taken = {id(earlier) for earlier in self._assigned.values()}
        left = {name: deque(each for each in requests if id(each) not in taken) for name, requests in found.items()}
        for planned in self._plan.requests:
            if planned.key not in self._assigned and left.get(planned.fingerprint):
                self._assigned[planned.key] = left[planned.fingerprint].popleft()
        for name, requests in left.items():
            self._spare.setdefault(name, deque()).extend(requests)

    def own_names(self, folder: StoragePath) -> dict[tuple[int, int], str]:
        """
        Return the file names, by prompt and image index, of assigned images that this task instance stored in a folder.

        It was cleared since, and its images keep their names, so that none replaces one that is still to be reused.
        """
        return {
            (planned.target.prompt_index, planned.target.index_of(position)): place.file.file_name
            for planned in self._plan.requests
            if (earlier := self._assigned.get(planned.key)) is not None
            for position, places in enumerate(earlier.images)
            for place in places
            if place.folder is folder and place.writer == self._ti_key
        }

    @property
    def own(self) -> list[tuple[str, EarlierRequest]]:
        """The assigned requests that this task instance paid for, each with its model."""
        assigned = [(planned.model, self._assigned.get(planned.key)) for planned in self._plan.requests]
        return [(model, earlier) for model, earlier in assigned if earlier is not None and earlier.is_own]

    def has_any(self, slot: ImageSlot) -> bool:
        """Return whether all requests of one of a slot's alternatives can be replaced, images not verified yet."""
        return any(all(map(self.has, alternative)) for alternative in slot.alternatives)

    def has(self, planned: PlannedRequest) -> bool:
        """Return whether there is a request to take the place of a planned one, its images not verified yet."""
        with self._lock:
            return planned.key in self._assigned

    def take(self, planned: PlannedRequest) -> EarlierRequest | None:
        """Return a request to take the place of a planned one; call again for another if its images are not intact."""
        with self._lock:
            if (assigned := self._assigned.pop(planned.key, None)) is not None:
                return assigned
            spare = self._spare.get(planned.fingerprint)
            return spare.popleft() if spare else None


def has_remote_input(body: Mapping[str, Any]) -> bool:
    """Return whether a request refers to an input image by a URL whose content is not known."""
    return any(
        isinstance(part, str) and reference_kind(part, field=name) == "url"
        for name in IMAGE_FIELDS
        for part in flatten(body.get(name))
    )


def _affinity(writer: TaskInstanceKey, ti_key: TaskInstanceKey | None) -> int:
    """Return :attr:`EarlierRequest.affinity` for one place."""
    if ti_key is None or replace(writer, run_id=ti_key.run_id) != ti_key:
        return 2
    return 0 if writer == ti_key else 1


def _find(
    folders: Sequence[StoragePath],
    wanted: Mapping[str, int],
    *,
    own: Container[str],
    ti_key: TaskInstanceKey | None,
) -> dict[str, list[EarlierRequest]]:
    """
    Return the complete requests by fingerprint, in the order of the folders and their manifests.

    :param wanted: number of images by fingerprint
    """
    places: dict[tuple[str, str], dict[int, list[EarlierImage]]] = {}
    for folder in folders:
        lines = request_lines(folder, wanted)
        if lines is None:
            log.info("There is nothing to reuse in %s: it has no manifest.", redacted_address(folder))
            continue
        for line in sorted(lines, key=lambda line: (ti_key_of(line) != ti_key, line.reused_from is not None)):
            request, position = line.client_request_id, line.response_index
            file, writer, at = line.file, ti_key_of(line), _seconds(line.created_at)
            if request is None or request in own or position is None or writer is None or at is None:
                continue
            if file is None or file.bytes > MAX_REUSED_BYTES:
                continue
            images = places.setdefault((line.request_fingerprint or "", request), {})
            images.setdefault(position, []).append(EarlierImage(folder, line, file, writer, at))
    found: dict[str, list[EarlierRequest]] = {}
    for (fingerprint, request), images in places.items():
        positions = range(wanted[fingerprint])
        if all(position in images for position in positions):
            earlier = EarlierRequest.of(request, tuple(tuple(images[position]) for position in positions), ti_key)
            found.setdefault(fingerprint, []).append(earlier)
    return found


def _seconds(created_at: str | None) -> float | None:
    """Return a date in seconds since the epoch; ``None`` if it is none that a journal record can hold."""
    try:
        seconds = datetime.fromisoformat(created_at or "").timestamp()
    except (ValueError, OverflowError, OSError):
        return None
    return seconds if 0 <= seconds < _YEAR_3000 else None
