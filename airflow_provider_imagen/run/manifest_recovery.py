"""
Recover from the manifest what the journal could not record.

While Airflow's database is unavailable, a response cannot be made durable, but its images are stored and listed in the
manifest. Without this recovery, the next attempt would find a billed request without a response and report a loss that
never happened.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from datetime import datetime  # noqa: TC003 - msgspec reads the annotation
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from msgspec import Struct, ValidationError, convert

from airflow_provider_imagen.journal.records import Response, ResponseImage, StoredFile, WriteCommitted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from airflow_provider_imagen.journal.records import Record, RequestState
    from airflow_provider_imagen.journal.url_encryption import UrlEncryption


class _Line(Struct):
    """The fields and types a manifest line must have to describe an image; the file may have been edited."""

    client_request_id: str
    image_index: int
    url: str | None
    enhanced_prompt: str | None
    seed: int | None
    usd: float | None
    inference_id: str | None
    model: str
    created_at: datetime
    path: str
    file_name: str
    sha256: str
    bytes: int
    mime_type: str
    width: int
    height: int
    thumbnail: str | None


def missed_records(
    requests: Mapping[str, RequestState], *, lines: Iterable[Mapping[str, Any]], links: UrlEncryption
) -> list[Record]:
    """
    Return the records that the journal lacks for images in the manifest.

    A request without a response stays in doubt if only some of its images are listed: what became of the others is
    unknown.

    :param requests: the journal's requests; those in doubt have an intent and no response
    :param lines: what this task instance recorded in the manifest
    :param links: encrypts URLs for the journal
    """
    by_request: dict[str, dict[int, _Line]] = defaultdict(dict)
    for line in lines:  # an image may be listed twice: before and after its attempt lost the journal
        with suppress(ValidationError):
            read = convert(line, type=_Line)
            by_request[read.client_request_id][read.image_index] = read
    missed: list[Record] = []
    for key, request in requests.items():
        if request.response is not None:
            missed += _missed_files(key, request, by_request.get(request.response.client_request_id, {}))
            continue
        for client_request_id, intent in request.open_intents.items():
            found = [line for _, line in sorted(by_request.get(client_request_id, {}).items())]
            if found and len(found) == intent.target.images:
                missed.append(_response(key, client_request_id, found, links))
                missed += [WriteCommitted(key=key, image=place, file=_stored(line)) for place, line in enumerate(found)]
                break
    return missed


def _missed_files(key: str, request: RequestState, by_index: Mapping[int, _Line]) -> Iterator[WriteCommitted]:
    """Yield the missing records of stored images whose response is in the journal."""
    for place in request.places_without_file if request.target is not None else ():
        line = by_index.get(request.target.index_of(place))  # type: ignore[union-attr]
        if line is not None:
            yield WriteCommitted(key=key, image=place, file=_stored(line))


def _response(key: str, client_request_id: str, lines: list[_Line], links: UrlEncryption) -> Response:
    costs = [Decimal(str(line.usd)) for line in lines if line.usd is not None]
    return Response(
        key=key,
        client_request_id=client_request_id,
        images=tuple(
            ResponseImage(
                url=links.encrypt(line.url) if line.url else None, prompt=line.enhanced_prompt, seed=line.seed
            )
            for line in lines
        ),
        usd=sum(costs, Decimal(0)) if len(costs) == len(lines) else None,
        usd_is_estimate=True,  # the manifest does not say whether the API stated the amounts
        inference_id=lines[0].inference_id,
        model=lines[0].model,
        at=lines[0].created_at.timestamp(),
    )


def _stored(line: _Line) -> StoredFile:
    return StoredFile(**{name: getattr(line, name) for name in StoredFile.__struct_fields__})
