"""
What output folders record about the requests that were paid for: their images, and items without an image.

Others may have written to the folders, so a record only claims: an image counts if its file is there with the size
that the manifest states, and, where lines disagree about a file or the caller wants to be sure, the SHA-256.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Literal, Protocol

from msgspec import Struct, field

from airflow_provider_imagen.api.client_request_id import read_client_request_id, readable_names
from airflow_provider_imagen.bill import add_costs
from airflow_provider_imagen.storage.atomic_write import file_sizes, is_intact
from airflow_provider_imagen.storage.manifest import iter_failures, iter_lines
from airflow_provider_imagen.storage.paths import descend

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from airflow_provider_imagen.image_record import ManifestLine
    from airflow_provider_imagen.run_report import FailureLine
    from airflow_provider_imagen.storage.paths import StoragePath

FileState = Literal["intact", "changed", "missing"]

_BEST_FIRST: tuple[FileState, ...] = ("intact", "changed", "missing")


class HasIds(Protocol):
    """Anything with the ids of a request, such as a charge or a line of a manifest."""

    @property
    def client_request_id(self) -> str | None:
        """The id sent with the request."""

    @property
    def inference_id(self) -> str | None:
        """The API's id of the paid work."""


class RecordedImage(Struct, frozen=True):
    """
    One image of a request, in the best of the places where the folders record it.

    :param state: whether its file is there, unchanged
    :param path: location of the file
    :param usd: its share of the request's cost when it was bought, in USD; ``None`` if unknown
    """

    state: FileState
    path: str
    usd: Decimal | None


class RecordedRequest(Struct, kw_only=True):
    """
    What the folders record about one request.

    :param images: its images, by index in the response or, in manifests that lack it, by file name
    :param bought_at: when its images were generated, if one of the folders belongs to the task that paid for them
    :param is_undated: whether such a folder states no usable time
    :param failure: why the request, or part of it, has no image; ``None`` if no failure is recorded
    """

    client_request_id: str | None
    inference_id: str | None
    dag_id: str | None = None
    task_id: str | None = None
    model: str | None = None
    images: dict[int | str, RecordedImage] = field(default_factory=dict)
    bought_at: datetime | None = None
    is_undated: bool = False
    failure: FailureLine | None = None

    @property
    def usd(self) -> Decimal | None:
        """Cost of its images in USD; ``None`` if part of it is unknown."""
        return add_costs(image.usd for image in self.images.values())


class RecordedRequests:
    """
    The requests that output folders record.

    :param folders: the output folders
    :param verify: compare the SHA-256 of every file, not only its size
    :raises StorageError: a manifest or list cannot be read, or a folder cannot be listed
    """

    def __init__(self, folders: Iterable[StoragePath], *, verify: bool = False) -> None:
        self._by_client_request_id: dict[str, RecordedRequest] = {}
        self._by_inference_id: dict[str, RecordedRequest] = {}
        self._tasks: set[tuple[str, str]] = set()
        self.images_without_ids = 0
        """Number of paid images whose line names no request."""

        for folder in folders:
            self._add_images(folder, verify=verify)
            for failure in iter_failures(folder):
                request = self._request_of(failure)
                if request is not None:
                    request.model = request.model or failure.model
                    request.failure = request.failure or failure

    def __iter__(self) -> Iterator[RecordedRequest]:
        yield from self._by_client_request_id.values()
        yield from (each for each in self._by_inference_id.values() if each.client_request_id is None)

    def find(self, record: HasIds) -> RecordedRequest | None:
        """Return the request with the ids of a charge or a line; ``None`` if the folders do not record it."""
        found = self._by_client_request_id.get(record.client_request_id or "")
        return found or self._by_inference_id.get(record.inference_id or "")

    def knows_task(self, dag_id: str | None, task_id: str | None) -> bool:
        """Return whether the folders record requests of a task, named as in client request ids."""
        return (dag_id, task_id) in self._tasks

    def _request_of(self, line: HasIds) -> RecordedRequest | None:
        """Return the request that a line is about, added if it is new; ``None`` if the line names none."""
        found = self.find(line)
        if found is None and (line.client_request_id or line.inference_id):
            found = RecordedRequest(client_request_id=line.client_request_id, inference_id=line.inference_id)
        if found is not None:
            if line.client_request_id:
                self._by_client_request_id.setdefault(line.client_request_id, found)
            if line.inference_id:
                self._by_inference_id.setdefault(line.inference_id, found)
            source = read_client_request_id(line.client_request_id)
            if source is not None and source.dag_id and source.task_id:
                self._tasks.add((source.dag_id, source.task_id))
        return found

    def _add_images(self, folder: StoragePath, *, verify: bool) -> None:
        lines: dict[tuple[str, str | None, str | None], ManifestLine] = {}  # most lines are in several lists
        for line in iter_lines(folder):
            lines.setdefault((line.file_name, line.sha256, line.client_request_id), line)
        digests: dict[str, set[str | None]] = {}
        for name, sha256, _ in lines:
            digests.setdefault(name, set()).add(sha256)
        sizes = file_sizes(folder, digests)
        for line in lines.values():
            request = self._request_of(line)
            if request is None:
                if line.reused_from is None and line.purchase_usd != 0:
                    self.images_without_ids += 1
                continue
            image = RecordedImage(
                _state_of(line, folder, sizes, verify=verify or len(digests[line.file_name]) > 1),
                line.path or line.file_name,
                None if line.purchase_usd is None else Decimal(str(line.purchase_usd)),
            )
            position = line.file_name if line.response_index is None else line.response_index
            other = request.images.get(position)
            if other is None or _BEST_FIRST.index(image.state) < _BEST_FIRST.index(other.state):
                request.images[position] = image
            if line.reused_from is None:
                self._describe(request, line)

    def _describe(self, request: RecordedRequest, line: ManifestLine) -> None:
        """Record who paid for a request, as its own task says."""
        request.bought_at = _read_time(line.created_at) or request.bought_at
        request.is_undated = request.bought_at is None
        request.dag_id, request.task_id, request.model = line.dag_id, line.task_id, line.model
        if line.dag_id and line.task_id:
            self._tasks.add(readable_names(line.dag_id, line.task_id))


def _state_of(line: ManifestLine, folder: StoragePath, sizes: dict[str, int], *, verify: bool) -> FileState:
    size = sizes.get(line.file_name)
    if size is None:
        return "missing"
    if line.bytes is not None and size != line.bytes:
        return "changed"
    if verify and line.sha256 is not None:
        path = descend(folder, line.file_name)
        return "intact" if is_intact(path, size=size, sha256=line.sha256, within=folder) else "changed"
    return "intact"


def _read_time(text: str | None) -> datetime | None:
    try:
        at = datetime.fromisoformat(text or "")
        return at.astimezone(UTC) if at.tzinfo else None
    except (ValueError, OverflowError):
        return None
