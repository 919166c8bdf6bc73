"""Match what the API charged with what output folders record. Every cent of a statement gets exactly one category."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - msgspec reads the annotations for the signature of Entry
from decimal import ROUND_DOWN, Decimal
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from msgspec import Struct
from msgspec.structs import asdict, replace

from airflow_provider_imagen.accounting.statement import Statement  # noqa: TC001 - likewise for Reconciliation
from airflow_provider_imagen.api.cost import CREDITS_PER_USD
from airflow_provider_imagen.bill import Tally, add_costs, tally

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from airflow_provider_imagen.accounting.recorded_requests import RecordedImage, RecordedRequest, RecordedRequests
    from airflow_provider_imagen.api.account_rows import LoggedRequest

Category = Literal["stored", "lost", "gone", "unrecorded", "not charged", "elsewhere", "hook", "other client"]
"""
What became of a charge.

``stored``
    The images are in the folders.
``lost``
    The folders say that the charge, or this part of it, brought no image; or it is a second one for the same request.
``gone``
    The folders list the images, but the files are missing or have changed.
``unrecorded``
    The charge is for a task that the folders know, but none of them records it.
``not charged``
    The images are in the folders, but the log has no charge for them. Costs nothing.
``elsewhere``
    The charge is for a task that the folders do not know, or its id names no task, as in earlier versions.
``hook``
    ``ImagenHook.generate_images`` made the request, which no folder records.
``other client``
    Another client of the same key made the request.
"""

MISSING: Final[tuple[Category, ...]] = ("lost", "gone", "unrecorded", "not charged")
"""Categories in which an image or a charge is missing."""

MAX_MISSING_IN_JSON: Final = 100
"""Most missing entries in :meth:`Reconciliation.to_json`, which becomes an XCom."""

_CREDIT: Final = 1 / CREDITS_PER_USD
"""The smallest amount that the API charges, in USD."""


class Entry(Struct, frozen=True, kw_only=True):
    """
    The charge for a request, the part of it that belongs to one category, or images without a charge.

    :param usd: amount charged, in USD
    :param usd_recorded: what the folders say these images cost, in USD; ``None`` if unknown
    :param images: number of images that the folders list
    :param at: when the request was made, in UTC; for images without a charge, when they were generated
    :param key: name of the API key; ``None`` if no charge names it
    :param reason: what the folders say about missing images
    :param path: location of the first image
    """

    category: Category
    usd: Decimal
    usd_recorded: Decimal | None = None
    images: int = 0
    at: datetime
    key: str | None = None
    dag_id: str | None = None
    task_id: str | None = None
    model: str | None = None
    inference_id: str | None = None
    client_request_id: str | None = None
    reason: str | None = None
    path: str | None = None


class Reconciliation(Struct, frozen=True, kw_only=True):
    """
    The charges of a statement and the images of output folders, matched.

    :param statement: the charges
    :param entries: at least one for each charge, and one for each request whose images were not charged
    :param unmatched_images: number of images in the folders without a charge, and without ids or a time to find one by
    """

    statement: Statement
    entries: tuple[Entry, ...]
    unmatched_images: int = 0

    @property
    def tallies(self) -> dict[Category, Tally]:
        """Number of entries and amount charged in each category; the amounts add up to the statement's total."""
        tallies: dict[Category, Tally] = dict.fromkeys(get_args(Category), Tally())
        for entry in self.entries:
            tallies[entry.category] += Tally(1, entry.usd)
        return tallies

    @property
    def missing(self) -> list[Entry]:
        """The entries in which an image or a charge is missing."""
        return [entry for entry in self.entries if entry.category in MISSING]

    @property
    def is_complete(self) -> bool:
        """Whether every charge for the folders' tasks has its images, and the other way round."""
        return not (self.missing or self.unmatched_images or self.statement.unreadable)

    @property
    def overstated(self) -> Tally:
        """Entries for which the folders state more than was charged, and how much more, in USD."""
        excesses = (each.usd_recorded - each.usd for each in self.entries if each.usd and each.usd_recorded is not None)
        return tally(excess for excess in excesses if excess > _CREDIT)

    def to_json(self) -> dict[str, Any]:
        """
        Return the totals and the first :data:`MAX_MISSING_IN_JSON` missing entries as JSON values, as for an XCom.

        Amounts are numbers in USD. :attr:`missing` has all entries.
        """
        missing = self.missing
        return {
            "is_complete": self.is_complete,
            "categories": {category: total.to_json() for category, total in self.tallies.items()},
            "missing": [entry_json(entry) for entry in missing[:MAX_MISSING_IN_JSON]],
            "missing_not_listed": max(len(missing) - MAX_MISSING_IN_JSON, 0),
            "unmatched_images": self.unmatched_images,
            "overstated": self.overstated.to_json(),
        }


def entry_json(entry: Entry) -> dict[str, Any]:
    """Return an entry as JSON values; amounts are numbers in USD."""
    recorded = None if entry.usd_recorded is None else float(entry.usd_recorded)
    return {**asdict(entry), "at": entry.at.isoformat(), "usd": float(entry.usd), "usd_recorded": recorded}


def reconcile(statement: Statement, recorded: RecordedRequests) -> Reconciliation:
    """
    Return the charges of a statement, matched with what output folders record.

    A request that several runs reused was charged once: its images count as stored if any of the folders has them.
    """
    entries: list[Entry] = []
    matched: set[int] = set()
    for charge in _sum_by_inference(statement.charges):
        request = recorded.find(charge)
        if request is None:
            entries.append(_entry(charge, _category_without_record(charge, recorded)))
        elif id(request) in matched or _is_for_other_work(charge, request):
            entries.append(_entry(charge, "lost", request, reason="another charge for the same request"))
        else:
            matched.add(id(request))
            entries += _split(charge, request)
    charged = {id(recorded.find(request)) for request in statement.requests if request.usd}
    unmatched_images = recorded.images_without_ids
    for request in recorded:
        if request.usd == 0 or id(request) in charged:
            continue
        if request.is_undated:
            unmatched_images += len(request.images)
        elif request.bought_at is not None and statement.since <= request.bought_at < statement.until:
            entries.append(_entry_without_charge(request, request.bought_at))
    return Reconciliation(statement=statement, entries=tuple(entries), unmatched_images=unmatched_images)


def _sum_by_inference(charges: Iterable[LoggedRequest]) -> Iterator[LoggedRequest]:
    """Yield one charge for each inference: the log may have several rows for it, such as one per image."""
    charges_by_inference: dict[str | int, LoggedRequest] = {}
    for number, charge in enumerate(charges):
        key = charge.inference_id or number
        first = charges_by_inference.get(key)
        if first is not None:
            name = first.client_request_id or charge.client_request_id
            charge = replace(first, usd=first.usd + charge.usd, client_request_id=name)
        charges_by_inference[key] = charge
    yield from charges_by_inference.values()


def _category_without_record(charge: LoggedRequest, recorded: RecordedRequests) -> Category:
    source = charge.source
    if source is None:
        return "other client"
    if source.is_hook:
        return "hook"
    return "unrecorded" if recorded.knows_task(source.dag_id, source.task_id) else "elsewhere"


def _is_for_other_work(charge: LoggedRequest, request: RecordedRequest) -> bool:
    """Return whether the API did the work of a request more than once, and the images come from another time."""
    ids = charge.inference_id, request.inference_id
    return None not in ids and ids[0] != ids[1]


def _split(charge: LoggedRequest, request: RecordedRequest) -> Iterator[Entry]:
    """Yield the parts of a charge: for images that are stored, for images that are gone, and for none."""
    images = list(request.images.values())
    intact = [image for image in images if image.state == "intact"]
    gone = [image for image in images if image.state != "intact"]
    usd = _usd_for_images(charge, request)
    usd_intact = (usd * len(intact) / len(images)).quantize(_CREDIT, ROUND_DOWN) if gone else usd
    if intact:
        yield _entry(charge, "stored", request, usd=usd_intact, images=intact)
    if gone:
        reason = ", ".join(sorted({f"file {image.state}" for image in gone}))
        yield _entry(charge, "gone", request, usd=usd - usd_intact, images=gone, reason=reason)
    if usd != charge.usd:
        reason = "charged more than the manifest states" if request.failure is None else request.failure.error
        yield _entry(charge, "lost", request, usd=charge.usd - usd, reason=reason)


def _usd_for_images(charge: LoggedRequest, request: RecordedRequest) -> Decimal:
    """
    Return the part of a charge for the images that the folders list.

    It is the whole charge, unless they say that these images cost less. Costs of images are rounded in a manifest, so a
    difference below a credit does not count.
    """
    if not request.images:
        return Decimal(0)
    recorded = request.usd
    return recorded if recorded is not None and recorded <= charge.usd - _CREDIT else charge.usd


def _entry(
    charge: LoggedRequest,
    category: Category,
    request: RecordedRequest | None = None,
    *,
    usd: Decimal | None = None,
    images: Sequence[RecordedImage] = (),
    reason: str | None = None,
) -> Entry:
    """Return an entry for a charge; without an amount, for all of it."""
    source = charge.source
    return Entry(
        category=category,
        usd=charge.usd if usd is None else usd,
        usd_recorded=add_costs(image.usd for image in images) if images else None,
        images=len(images),
        at=charge.at,
        key=charge.key,
        dag_id=(request.dag_id if request else None) or (source.dag_id if source else None),
        task_id=(request.task_id if request else None) or (source.task_id if source else None),
        model=charge.model,
        inference_id=charge.inference_id,
        client_request_id=charge.client_request_id,
        reason=reason,
        path=images[0].path if images else None,
    )


def _entry_without_charge(request: RecordedRequest, bought_at: datetime) -> Entry:
    images = list(request.images.values())
    return Entry(
        category="not charged",
        usd=Decimal(0),
        usd_recorded=request.usd,
        images=len(images),
        at=bought_at,
        dag_id=request.dag_id,
        task_id=request.task_id,
        model=request.model,
        inference_id=request.inference_id,
        client_request_id=request.client_request_id,
        path=images[0].path if images else None,
    )
