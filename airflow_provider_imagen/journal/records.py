"""
The records of the journal: what is written about each paid request, and what the records of a request add up to.

A request goes through these states, each a durable record:

``intent``
    before the POST: its ``X-Client-Request-Id``, model, quoted price, and what the images are for. One per POST.
``rejected``
    the API answered that it did not do the work, or the POST was never sent. Nothing was billed.
``response``
    the answer: URLs (never image bytes), ids, cost.
``write_started``
    an image that came inside the response is about to be written: path, digest, size. If the file exists, it is whole.
``write_committed``
    an image is stored: path, digest, size.
``missing``
    an image that was paid for cannot be retrieved any more.
``charge_lost``
    the API billed the POST and its response is gone.
``presumed_unbilled``
    the response is gone, and the API's log did not show a charge within the patience. It may still turn up.
``finished``
    the task succeeded. What came before is history: only its unresolved requests still matter.

Every record is a JSON object on a line of its own. Decoding is strict: an unknown record type or field is an error,
because skipping a record could mean paying again. So is a number that no record of ours has, because others may be able
to write to the folder of the journal.
"""

from __future__ import annotations

import json
import time
from decimal import Decimal
from typing import Annotated, Any, Final, Union

from msgspec import Meta, Struct, ValidationError, convert, field, to_builtins

Count = Annotated[int, Meta(ge=0, le=1_000_000)]
Timestamp = Annotated[float, Meta(ge=0, le=32_503_680_000)]  # until the year 3000

Pixels = Annotated[int, Meta(ge=0, le=2**31)]

_MAX_USD: Final = Decimal(10) ** 15  # as much as a response may state

FORMAT_VERSION = 2
"""Version of the records and of the header. A journal of any other version is rejected before anything is sent."""


class Target(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """
    What the images of a request are for, so that they can be listed even if the prompt has left the DAG since.

    :param prompt_index: place of the prompt in the list, from 0
    :param image_index: index of the request's first image among the images of its prompt
    :param images: images the request asks for
    :param prompt_images: images asked for with this prompt in all
    :param prompt: the text, empty for models that take none
    :param name: the name the author gave the item
    """

    prompt_index: Count
    image_index: Count
    images: Count
    prompt_images: Count
    prompt: str
    name: str | None = None

    def index_of(self, place: int) -> int:
        """
        Return the index of an image among the images of its prompt. More than asked for come after all others.

        :param place: its place in the response, from 0
        """
        beyond, place = divmod(place, max(self.images, 1))
        return self.image_index + place + beyond * self.prompt_images


class ResponseImage(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """
    One image of a response, without its bytes.

    :param url: encrypted when it is signed; ``None`` when the image came inside the response
    :param prompt: the prompt as the model rewrote it
    :param seed: the seed the response states, else the one that was sent
    :param withheld: filtered by the model
    :param broken: why it cannot be read
    """

    url: str | None = None
    prompt: str | None = None
    seed: int | None = None
    withheld: bool = False
    broken: str | None = None

    @property
    def is_inline(self) -> bool:
        """Whether its bytes came inside the response and cannot be downloaded."""
        return self.url is None and not self.withheld and self.broken is None


class StoredFile(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """
    One stored image.

    :param path: where it is, as a string :class:`~airflow.sdk.ObjectStoragePath` takes
    :param file_name: its name relative to the output folder
    :param sha256: hexadecimal digest of the file
    :param bytes: size of the file
    :param thumbnail: name of its preview relative to the output folder
    """

    path: str
    file_name: str
    sha256: str
    bytes: Annotated[int, Meta(ge=0, le=2**62)]
    mime_type: str
    width: Pixels
    height: Pixels
    thumbnail: str | None = None


class _Record(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="t", kw_only=True):
    """
    Base of all records.

    :param key: names the request: a fingerprint of what is sent, and which one it is among equal ones
    """

    key: str


class Intent(_Record, frozen=True, tag="intent"):
    """
    A POST is about to be sent.

    :param at: when, in seconds since the epoch: wall-clock time, because a later attempt compares it with the API's log
    :param usd: the quoted price, ``None`` when it is not known
    :param clock_offset: how many seconds the API's clock was ahead of the one ``at`` was read from; ``None`` before the
        first response
    :param account: short hash of the API key it is sent with
    """

    client_request_id: str
    model: str
    at: Timestamp
    target: Target
    usd: Decimal | None = None
    clock_offset: Annotated[float, Meta(ge=-1e10, le=1e10)] | None = None
    account: str | None = None

    def is_visible_to(self, account: str) -> bool:
        """Return whether an API key, given as its hash, sees the POST in the API's log."""
        return self.account in (None, account)


class Rejected(_Record, frozen=True, tag="rejected"):
    """A POST brought nothing and cost nothing."""

    client_request_id: str


class Response(_Record, frozen=True, tag="response"):
    """
    A POST was answered and paid for.

    :param usd: charged, in USD; ``None`` when neither the response nor a price list says
    :param usd_is_estimate: ``usd`` is the quoted price, because the response states no cost
    :param usd_undelivered: the part of ``usd`` for images that can never be retrieved, because the response holds none
    :param at: when the response came, in seconds since the epoch
    """

    client_request_id: str
    images: tuple[ResponseImage, ...]
    model: str
    at: Timestamp
    usd: Decimal | None = None
    usd_is_estimate: bool = False
    usd_undelivered: Decimal = Decimal(0)
    inference_id: str | None = None

    @property
    def usd_per_image(self) -> Decimal | None:
        """What each image of the response cost, in USD; ``None`` when that is not known."""
        return (self.usd - self.usd_undelivered) / len(self.images) if self.usd is not None and self.images else None


class WriteStarted(_Record, frozen=True, tag="write_started"):
    """An inline image is about to be written; ``image`` is its place in the response, from 0."""

    image: Count
    file: StoredFile


class WriteCommitted(_Record, frozen=True, tag="write_committed"):
    """An image is stored; ``image`` is its place in the response, from 0."""

    image: Count
    file: StoredFile


class Missing(_Record, frozen=True, tag="missing"):
    """An image that was paid for cannot be retrieved any more; ``image`` is its place in the response, from 0."""

    image: Count


class ChargeLost(_Record, frozen=True, tag="charge_lost"):
    """A POST was billed, and its response is gone."""

    client_request_id: str
    usd: Decimal | None = None
    inference_id: str | None = None


class PresumedUnbilled(_Record, frozen=True, tag="presumed_unbilled"):
    """The response of a POST is gone, and the API's log showed no charge for it within the patience."""

    client_request_id: str


class Finished(_Record, frozen=True, tag="finished"):
    """The task succeeded; ``key`` is empty."""

    key: str = ""


Record = Union[  # noqa: UP007 - msgspec reads the union at run time
    Intent, Rejected, Response, WriteStarted, WriteCommitted, Missing, ChargeLost, PresumedUnbilled, Finished
]


def new_intent(
    key: str,
    *,
    client_request_id: str,
    model: str,
    usd: Decimal | None,
    target: Target,
    clock_offset: float | None = None,
    account: str | None = None,
) -> Intent:
    """Return the intent for a POST that is sent now."""
    return Intent(
        key=key,
        client_request_id=client_request_id,
        model=model,
        at=round(time.time(), 3),
        target=target,
        usd=usd,
        clock_offset=clock_offset,
        account=account,
    )


def encode_record(record: Record) -> str:
    """Return a record as one line of ASCII, without its end; half a character (a lone surrogate) survives as well."""
    return json.dumps(to_builtins(record), separators=(",", ":"))


def decode_record(line: str) -> Record:
    """
    Return the record of a line.

    :raises ValueError: it is no JSON, or no record of this format
    """
    try:
        record: Record = convert(json.loads(line, parse_constant=_refuse), type=Record)
    except (ValidationError, RecursionError) as error:
        raise ValueError(str(error)) from None
    for name in ("usd", "usd_undelivered"):
        usd: Decimal | None = getattr(record, name, None)
        if usd is not None and not (usd.is_finite() and 0 <= usd <= _MAX_USD):
            raise ValueError(f"{name} is no amount")
    return record


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number")


class RequestState(Struct):
    """
    Everything the journal knows about one request.

    :param target: what its images are for, as the latest intent says
    :param open_intents: POSTs whose outcome is not known, by client request id, in the order sent
    :param presumed_unbilled: POSTs that the API's log did not show, by client request id
    :param files: stored images by their place in the response, those of ``writes_started`` among them
    :param writes_started: places whose file decides whether they are stored
    :param missing: places of paid images that cannot be retrieved
    :param charges_lost: charges without a response, by client request id
    :param usd_replaced: charged for responses that were bought again because their images were gone, in USD
    :param unpriced: POSTs that were charged an unknown amount, by client request id, replaced responses included
    """

    target: Target | None = None
    open_intents: dict[str, Intent] = field(default_factory=dict)
    presumed_unbilled: dict[str, Intent] = field(default_factory=dict)
    response: Response | None = None
    files: dict[int, StoredFile] = field(default_factory=dict)
    writes_started: frozenset[int] = frozenset()
    missing: frozenset[int] = frozenset()
    charges_lost: dict[str, ChargeLost] = field(default_factory=dict)
    usd_replaced: Decimal = Decimal(0)
    unpriced: dict[str, Intent] = field(default_factory=dict)

    def apply(self, record: Record) -> None:
        """Take the next record into account."""
        match record:
            case Intent():
                self.target = record.target
                self.open_intents[record.client_request_id] = record
            case WriteStarted():
                self.files[record.image] = record.file
                self.writes_started |= {record.image}
            case WriteCommitted():
                self.files[record.image] = record.file
                self.writes_started -= {record.image}
                self.missing -= {record.image}
            case Missing():
                self.files.pop(record.image, None)
                self.writes_started -= {record.image}
                self.missing |= {record.image}
            case Rejected():
                self._close(record.client_request_id)
            case Response():
                self._close_charged(record)
                self.charges_lost.pop(record.client_request_id, None)
                if self.response is not None and self.response.client_request_id != record.client_request_id:
                    self.usd_replaced += self.response.usd or Decimal(0)
                    self.files, self.writes_started, self.missing = {}, frozenset(), frozenset()
                self.response = record
            case ChargeLost():
                if self.response is not None and self.response.client_request_id == record.client_request_id:
                    self._close(record.client_request_id)
                else:
                    self._close_charged(record)
                    self.charges_lost[record.client_request_id] = record
            case PresumedUnbilled():
                if (intent := self._close(record.client_request_id)) is not None:
                    self.presumed_unbilled[record.client_request_id] = intent

    def _close(self, client_request_id: str) -> Intent | None:
        """Forget a POST whose outcome is known, or presumed, from now on."""
        presumed = self.presumed_unbilled.pop(client_request_id, None)
        return self.open_intents.pop(client_request_id, presumed)

    def _close_charged(self, record: Response | ChargeLost) -> None:
        intent = self._close(record.client_request_id)
        if record.usd is not None:
            self.unpriced.pop(record.client_request_id, None)
        elif intent is not None:
            self.unpriced[record.client_request_id] = intent

    @property
    def usd_missing(self) -> Decimal:
        """The part of the response's charge for which there is no image, in USD."""
        if self.response is None:
            return Decimal(0)
        return self.response.usd_undelivered + (self.response.usd_per_image or Decimal(0)) * len(self.missing)

    @property
    def usd_without_response(self) -> Decimal:
        """Charged for responses that are gone, or were bought again, in USD."""
        return sum((charge.usd or Decimal(0) for charge in self.charges_lost.values()), self.usd_replaced)

    @property
    def usd_lost(self) -> Decimal:
        """Charged without an image, in USD."""
        return self.usd_without_response + self.usd_missing

    @property
    def usd_spent(self) -> Decimal:
        """Charged in all, the lost part included, in USD."""
        return self.usd_without_response + ((self.response.usd or Decimal(0)) if self.response else Decimal(0))

    @property
    def unresolved(self) -> dict[str, Intent]:
        """POSTs that may have been billed, by client request id."""
        return {**self.open_intents, **self.presumed_unbilled}

    @property
    def places_without_file(self) -> list[int]:
        """Places of images that came, and are not known to be stored."""
        images = self.response.images if self.response is not None else ()
        return [
            place
            for place, image in enumerate(images)
            if place not in self.files and not image.withheld and image.broken is None
        ]

    @property
    def has_unreachable_images(self) -> bool:
        """Whether an image came inside the response and its write did not even start."""
        return self.response is not None and any(
            image.is_inline and place not in self.files for place, image in enumerate(self.response.images)
        )


class JournalState(Struct):
    """
    Everything a journal knows.

    :param requests: by their key, in the order they were first sent
    :param unresolved: POSTs of finished tasks (the task was cleared after its success) that may have been billed
    """

    requests: dict[str, RequestState] = field(default_factory=dict)
    unresolved: dict[str, Intent] = field(default_factory=dict)

    def apply(self, record: Record) -> None:
        """Take the next record into account."""
        if isinstance(record, Finished):
            for request in self.requests.values():
                self.unresolved |= request.unresolved
            self.requests = {}
        elif getattr(record, "client_request_id", None) in self.unresolved:
            if isinstance(record, (Rejected, Response, ChargeLost)):
                del self.unresolved[record.client_request_id]
        else:
            self.requests.setdefault(record.key, RequestState()).apply(record)

    @property
    def has_loose_ends(self) -> bool:
        """Whether there are requests without a response, or images that are not known to be stored."""
        return any(request.open_intents or request.places_without_file for request in self.requests.values())

    def all_unresolved(self) -> dict[str, Intent]:
        """Return every POST that may have been billed, those of finished tasks included, by client request id."""
        found = dict(self.unresolved)
        for request in self.requests.values():
            found |= request.unresolved
        return found


__all__ = [
    "FORMAT_VERSION",
    "ChargeLost",
    "Finished",
    "Intent",
    "JournalState",
    "Missing",
    "PresumedUnbilled",
    "Record",
    "Rejected",
    "RequestState",
    "Response",
    "ResponseImage",
    "StoredFile",
    "Target",
    "WriteCommitted",
    "WriteStarted",
    "decode_record",
    "encode_record",
    "new_intent",
]
