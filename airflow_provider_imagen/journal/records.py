"""
Journal records of paid requests, and the state they add up to.

Each record type marks one step of a request or, for ``finished``, of the task:

``intent``
    Before the POST: its ``X-Client-Request-Id``, model, quoted price, and what the images are for. One per POST.
``rejected``
    The API did not do the work, or the POST was never sent. Nothing was billed.
``response``
    The response: URLs (never image bytes), ids, cost.
``write_started``
    An image that came inside the response is about to be written: path, digest, size. If the file exists, it is whole.
``write_committed``
    An image is stored: path, digest, size.
``missing``
    A paid image can no longer be retrieved.
``charge_lost``
    The API billed the POST, but its response is lost.
``presumed_unbilled``
    The response is lost, and the API's log showed no charge while we waited. One may still turn up.
``finished``
    The task succeeded. Of all earlier records, only the unresolved requests still matter.

Every record is a JSON object on its own line. Decoding is strict: an unknown record type or field is an error, because
skipping a record could mean paying again. Out-of-range numbers are errors too, because others may be able to write to
the journal's folder.
"""

from __future__ import annotations

import json
import time
from decimal import Decimal
from typing import Annotated, Any, Final, Union

from msgspec import Meta, Struct, ValidationError, convert, field, to_builtins

from airflow_provider_imagen.image_record import Metadata, ResponseImage, StoredFile  # noqa: TC001 - msgspec reads them

Count = Annotated[int, Meta(ge=0, le=1_000_000)]
Timestamp = Annotated[float, Meta(ge=0, le=32_503_680_000)]  # until the year 3000

_MAX_USD: Final = Decimal(10) ** 15  # as much as a response may state

FORMAT_VERSION = 2
"""Format version of records and header. A journal of any other version is rejected before anything is sent."""


class Target(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """
    What the images of a request are for, so that they can be listed even after the prompt is removed from the DAG.

    :param prompt_index: index of the prompt in the list, from 0
    :param image_index: index of the request's first image among all images of its prompt, from 0
    :param images: number of images in this request
    :param prompt_images: number of images requested for this prompt in all
    :param prompt: the text, empty for models that take none
    :param name: the prompt item's name, ``None`` if the author did not name it
    :param metadata: the prompt item's metadata when the request was sent; ``None`` if it had none
    :param has_input_images: whether the request sends images, so that those it returns are edits or composites
    """

    prompt_index: Count
    image_index: Count
    images: Count
    prompt_images: Count
    prompt: str
    name: str | None = None
    metadata: Metadata | None = None
    has_input_images: bool = False

    def index_of(self, position: int) -> int:
        """
        Return the index of an image among all images of its prompt; surplus images follow the requested ones.

        :param position: index of the image in the response, from 0
        """
        beyond, position = divmod(position, max(self.images, 1))
        return self.image_index + position + beyond * self.prompt_images


class _Record(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag_field="t", kw_only=True):
    """
    Base class of all records.

    :param key: identifies the request: a fingerprint of what is sent, plus its number among identical requests
    """

    key: str


class Intent(_Record, frozen=True, tag="intent"):
    """
    A POST is about to be sent.

    :param at: when, in seconds since the epoch; wall-clock time, because a later attempt compares it with the API's log
    :param usd: quoted price, ``None`` if unknown
    :param clock_offset: seconds by which the API's clock was ahead of ours; ``None`` before the first response
    :param account: short hash of the API key used
    """

    client_request_id: str
    model: str
    at: Timestamp
    target: Target
    usd: Decimal | None = None
    clock_offset: Annotated[float, Meta(ge=-1e10, le=1e10)] | None = None
    account: str | None = None

    def is_visible_to(self, account: str) -> bool:
        """Return whether the API's log shows this POST to an API key, given as its short hash."""
        return self.account in (None, account)


class Rejected(_Record, frozen=True, tag="rejected"):
    """A POST did no work and cost nothing."""

    client_request_id: str


class Response(_Record, frozen=True, tag="response"):
    """
    The response to a POST that was paid for.

    :param usd: amount charged; ``None`` if neither the response nor a price list states it
    :param usd_is_estimate: whether ``usd`` is the quoted price because the response states no cost
    :param usd_undelivered: part of ``usd`` for images that can never be retrieved because the response lacks them
    :param at: when the response arrived, in seconds since the epoch
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
        """Cost of each image of the response, in USD; ``None`` if unknown."""
        return (self.usd - self.usd_undelivered) / len(self.images) if self.usd is not None and self.images else None


class WriteStarted(_Record, frozen=True, tag="write_started"):
    """An inline image is about to be written; ``image`` is its index in the response, from 0."""

    image: Count
    file: StoredFile


class WriteCommitted(_Record, frozen=True, tag="write_committed"):
    """An image is stored; ``image`` is its index in the response, from 0."""

    image: Count
    file: StoredFile


class Missing(_Record, frozen=True, tag="missing"):
    """A paid image can no longer be retrieved; ``image`` is its index in the response, from 0."""

    image: Count


class ChargeLost(_Record, frozen=True, tag="charge_lost"):
    """A POST was billed, but its response is lost."""

    client_request_id: str
    usd: Decimal | None = None
    inference_id: str | None = None


class PresumedUnbilled(_Record, frozen=True, tag="presumed_unbilled"):
    """The response to a POST is lost, and the API's log showed no charge for it while we waited."""

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
    """Return the intent for a POST about to be sent, timestamped now."""
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
    """Return a record as one line of ASCII JSON, without the line end; lone surrogates survive."""
    return json.dumps(to_builtins(record), separators=(",", ":"))


def decode_record(line: str) -> Record:
    """
    Return the record that a line encodes.

    :raises ValueError: the line is not JSON, or not a record of this format
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

    :param model: model id; ``None`` before the first intent
    :param target: what its images are for, according to the latest intent
    :param open_intents: POSTs with unknown outcome, by client request id, in the order sent
    :param presumed_unbilled: POSTs that the API's log did not show, by client request id
    :param response: the latest response, ``None`` before the first
    :param files: stored images by index in the response, including those in ``writes_started``
    :param writes_started: indexes of images that are stored only if their file exists
    :param missing: indexes of paid images that can no longer be retrieved
    :param charges_lost: charges without a response, by client request id
    :param usd_replaced: amount charged for responses that a later one replaced
    :param unpriced: POSTs charged an unknown amount, by client request id, including those of replaced responses
    """

    model: str | None = None
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
        """Update the state with the next record."""
        match record:
            case Intent():
                self.model, self.target = record.model, record.target
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
                if self.response is None or self.response.client_request_id != record.client_request_id:
                    self._close_charged(record)
                    self.charges_lost[record.client_request_id] = record
            case PresumedUnbilled():
                if (intent := self._close(record.client_request_id)) is not None:
                    self.presumed_unbilled[record.client_request_id] = intent

    def _close(self, client_request_id: str) -> Intent | None:
        """Remove a POST whose outcome is now known or presumed, and return its intent if there was one."""
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
        """Part of the response's charge that brought no image, in USD."""
        if self.response is None:
            return Decimal(0)
        return self.response.usd_undelivered + (self.response.usd_per_image or Decimal(0)) * len(self.missing)

    @property
    def usd_without_response(self) -> Decimal:
        """Amount charged for responses that were lost or replaced, in USD."""
        return sum((charge.usd or Decimal(0) for charge in self.charges_lost.values()), self.usd_replaced)

    @property
    def usd_lost(self) -> Decimal:
        """Amount charged that brought no image, in USD."""
        return self.usd_without_response + self.usd_missing

    @property
    def usd_spent(self) -> Decimal:
        """Total amount charged, in USD, including ``usd_lost``."""
        return self.usd_without_response + ((self.response.usd or Decimal(0)) if self.response else Decimal(0))

    @property
    def unresolved(self) -> dict[str, Intent]:
        """In-doubt requests (POSTs that may have been billed), by client request id."""
        return {**self.open_intents, **self.presumed_unbilled}

    @property
    def client_request_ids(self) -> set[str]:
        """Ids of all its POSTs that were or may have been billed, except those of replaced responses."""
        answered = {self.response.client_request_id} if self.response is not None else set()
        return answered | self.unresolved.keys() | self.charges_lost.keys()

    @property
    def positions_without_file(self) -> list[int]:
        """Indexes of delivered images that are not known to be stored."""
        images = self.response.images if self.response is not None else ()
        return [
            position
            for position, image in enumerate(images)
            if position not in self.files and not image.withheld and image.broken is None
        ]

    @property
    def has_unreachable_images(self) -> bool:
        """Whether an image came inside the response and its write never started, so its bytes are lost."""
        return self.response is not None and any(
            image.is_inline and position not in self.files for position, image in enumerate(self.response.images)
        )


class JournalState(Struct):
    """
    Everything a journal knows.

    :param requests: requests by key, in the order first sent
    :param unresolved: in-doubt requests from before a ``finished`` record, for tasks cleared after they succeeded
    """

    requests: dict[str, RequestState] = field(default_factory=dict)
    unresolved: dict[str, Intent] = field(default_factory=dict)

    def apply(self, record: Record) -> None:
        """Update the state with the next record."""
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
        """Whether any request has an unknown outcome, or any image is not known to be stored."""
        return any(request.open_intents or request.positions_without_file for request in self.requests.values())

    def all_unresolved(self) -> dict[str, Intent]:
        """Return all in-doubt requests by client request id, including those from before a ``finished`` record."""
        found = dict(self.unresolved)
        for request in self.requests.values():
            found |= request.unresolved
        return found
