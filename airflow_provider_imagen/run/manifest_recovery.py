"""
Recover from the manifest what the journal could not record.

While Airflow's database is unavailable, a response cannot be made durable, but its images are stored and listed in the
manifest. Without this recovery, the next attempt would find a billed request without a response and report a loss that
never happened.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING

from msgspec import Struct

from airflow_provider_imagen.image_record import ResponseImage
from airflow_provider_imagen.journal.records import Response, WriteCommitted, decode_record, encode_record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from airflow_provider_imagen.image_record import ManifestLine, StoredFile
    from airflow_provider_imagen.journal.records import Record, RequestState
    from airflow_provider_imagen.journal.url_encryption import UrlEncryption


class _Found(Struct, frozen=True):
    """An image that the manifest fully describes."""

    line: ManifestLine
    file: StoredFile


def missed_records(
    requests: Mapping[str, RequestState], *, lines: Iterable[ManifestLine], encryption: UrlEncryption
) -> list[Record]:
    """
    Return the records that the journal lacks for images in the manifest.

    A request without a response stays in doubt if only some of its images are listed: what became of the others is
    unknown. Lines that do not fully describe a file are ignored, because the manifest may have been edited.

    :param requests: the journal's requests; those in doubt have an intent and no response
    :param lines: what this task instance recorded in the manifest
    :param encryption: encrypts URLs for the journal
    """
    by_request: dict[str, dict[int, _Found]] = defaultdict(dict)
    for line in lines:  # an image may be listed twice: before and after its attempt lost the journal
        file = line.file
        if line.client_request_id is not None and line.image_index is not None and file is not None:
            by_request[line.client_request_id][line.image_index] = _Found(line, file)
    missed: list[Record] = []
    for key, request in requests.items():
        if request.response is not None:
            missed += _missed_files(key, request, by_request.get(request.response.client_request_id, {}))
            continue
        for client_request_id, intent in request.open_intents.items():
            by_index = by_request.get(client_request_id, {})
            found = [by_index[index] for index in sorted(by_index)]
            lines_found = [image.line for image in found]
            is_complete = bool(found) and len(found) == intent.target.images
            if is_complete and (response := _response(key, lines_found, encryption)) is not None:
                missed.append(response)
                missed += [WriteCommitted(key=key, image=index, file=image.file) for index, image in enumerate(found)]
                break
    return missed


def _missed_files(key: str, request: RequestState, by_index: Mapping[int, _Found]) -> Iterator[WriteCommitted]:
    """Yield the missing records of stored images whose response is in the journal."""
    for position in request.positions_without_file if request.target is not None else ():
        found = by_index.get(request.target.index_of(position))  # type: ignore[union-attr]
        if found is not None:
            yield WriteCommitted(key=key, image=position, file=found.file)


def _response(key: str, lines: list[ManifestLine], encryption: UrlEncryption) -> Response | None:
    """
    Return the response that manifest lines describe, one line per image.

    :return: ``None`` if they leave out part of it, or state what no response can, such as a date before 1970
    """
    first = lines[0]
    if first.client_request_id is None or first.model is None:
        return None
    costs = [Decimal(str(line.usd)) for line in lines if line.usd is not None]
    try:
        response = Response(
            key=key,
            client_request_id=first.client_request_id,
            images=tuple(
                ResponseImage(
                    url=encryption.encrypt(line.url) if line.url else None, prompt=line.enhanced_prompt, seed=line.seed
                )
                for line in lines
            ),
            usd=sum(costs, Decimal(0)) if len(costs) == len(lines) else None,
            usd_is_estimate=True,  # the manifest does not say whether the API stated the amounts
            inference_id=first.inference_id,
            model=first.model,
            at=datetime.fromisoformat(first.created_at or "").timestamp(),
        )
        decode_record(encode_record(response))  # a record that cannot be read back would make the journal unreadable
    except (ValueError, OverflowError):
        return None
    return response
