"""What a run made, and what it did not, in the forms XCom, the manifest and the log take."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

from airflow_provider_imagen.api.secrets import is_signed, without_query
from airflow_provider_imagen.exceptions import (
    ChargedButLostError,
    EmptyResultError,
    FilteredError,
    ImagenError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from decimal import Decimal

    from airflow_provider_imagen.generation.plan import Item, Plan
    from airflow_provider_imagen.journal.records import Paid, PaidPicture, Stored

Record = dict[str, Any]
"""
One picture: ``prompt_index``, ``image_index``, ``url``, ``path``, ``width``, ``height``, ``mime_type``, ``bytes``,
``sha256``, ``model``, ``seed``, ``prompt``, ``enhanced_prompt``, ``usd``, ``inference_id``, ``client_request_id``.
What is not known is ``None``.
"""


def describe_picture(
    *, item: Item, image_index: int, url: str | None, paid: Paid, picture: PaidPicture, stored: Stored | None
) -> Made:
    """
    Describe one picture, and choose the link to hand on.

    :param url: the link the API gave, opened; ``None`` when the picture came inline
    :param stored: where it is safe, ``None`` when it is not stored
    """
    record = {
        "prompt_index": item.index,
        "image_index": image_index,
        "url": url if stored is None or url is None else without_query(url),
        "path": stored.path if stored else None,
        "width": stored.width if stored else None,
        "height": stored.height if stored else None,
        "mime_type": stored.mime_type if stored else None,
        "bytes": stored.bytes if stored else None,
        "sha256": stored.sha256 if stored else None,
        "model": paid.model,
        "seed": picture.seed,
        "prompt": item.prompt,
        "enhanced_prompt": picture.prompt if picture.prompt != item.prompt else None,
        "usd": float(paid.usd / len(paid.pictures)) if paid.usd is not None else None,
        "inference_id": paid.inference_id,
        "client_request_id": paid.client_request_id,
    }
    if url is not None and (stored is None or not is_signed(url)):
        public_url = url
    else:  # no link, or one that soon is dead
        public_url = stored.path if stored is not None else ""
    return Made(record=record, url=public_url, stored=stored, at=paid.at)


class Made(Struct, frozen=True):
    """
    One picture that was made.

    :param record: its description
    :param url: what to hand on: the API's link, or where the picture is stored
    :param stored: where it is safe, ``None`` when it is not stored
    :param at: when it was made, in seconds since the epoch
    """

    record: Record
    url: str
    stored: Stored | None
    at: float


class SlotResult(Struct):
    """
    What became of one slot.

    :param made: the pictures, in the order they were finished
    :param adopted: pictures whose money an earlier try had spent
    :param errors: what went wrong, in the order it did
    """

    made: list[Made] = field(default_factory=list)
    adopted: int = 0
    errors: list[ImagenError] = field(default_factory=list)


class Failure(Struct, frozen=True):
    """One item that did not bring all its pictures, with the first error that says why."""

    item: Item
    error: ImagenError
    made: int

    @property
    def is_filtered(self) -> bool:
        """Whether the model withheld pictures, as opposed to something breaking."""
        return isinstance(self.error, FilteredError)

    def to_json(self) -> dict[str, Any]:
        """Describe it for the file of failures."""
        error = self.error
        return {
            "prompt_index": self.item.index,
            "name": self.item.name,
            "prompt": self.item.prompt,
            "requested": self.item.images,
            "made": self.made,
            "outcome": "filtered" if self.is_filtered else "failed",
            "error": type(error).__name__,
            "message": str(error),
            "status": error.status,
            "kind": error.kind,
            "model": error.model,
            "usd": error.usd,
            "inference_id": error.inference_id,
            "client_request_id": error.client_request_id,
        }


class RunResult(Struct, frozen=True):
    """
    Everything a run brought.

    :param made: the pictures, in prompt order, then image order
    :param failures: items that are not whole, in prompt order
    :param not_sent: items that were not sent, or not seen through, because the task had to end before
    :param halt: the error that ended the run early, if one did
    :param usd_spent: charged over all tries, lost charges included, in USD
    :param usd_lost: the part of it no picture came of, in USD
    :param usd_is_estimate: some cost was not in the answers and is the known price instead
    """

    plan: Plan
    made: list[Made]
    failures: list[Failure]
    not_sent: list[Item]
    adopted: int
    halt: ImagenError | None
    usd_spent: Decimal
    usd_lost: Decimal
    usd_is_estimate: bool
    seconds: float

    @property
    def records(self) -> list[Record]:
        """One record per picture."""
        return [made.record for made in self.made]

    @property
    def urls(self) -> list[str]:
        """One URL per picture."""
        return [made.url for made in self.made]

    @property
    def filtered(self) -> list[Failure]:
        """Items of which the model withheld pictures."""
        return [failure for failure in self.failures if failure.is_filtered]

    @property
    def failed(self) -> list[Failure]:
        """Items of which something broke."""
        return [failure for failure in self.failures if not failure.is_filtered]

    def summary(self) -> dict[str, Any]:
        """Sum the run up, small enough for XCom and asset events."""
        made = Counter(record["prompt_index"] for record in self.records)
        return {
            "requested": self.plan.images,
            "made": len(self.made),
            "filtered": sum(failure.item.images - failure.made for failure in self.filtered),
            "failed": sum(failure.item.images - failure.made for failure in self.failed),
            "not_sent": sum(item.images - made[item.index] for item in self.not_sent),
            "adopted": self.adopted,
            "usd_spent": float(self.usd_spent),
            "usd_lost": float(self.usd_lost),
            "usd_is_estimate": self.usd_is_estimate,
            "seconds": round(self.seconds, 3),
        }

    def table(self, limit: int = 20) -> str:
        """List what did not work, one line per item, by prompt."""
        lines = [
            f"[{failure.item.index}] {_shorten(failure.item.name or failure.item.prompt, 60)}: "
            f"{failure.made} of {failure.item.images} made; {type(failure.error).__name__}: {failure.error}"
            for failure in self.failures[:limit]
        ]
        if len(self.failures) > limit:
            lines.append(f"… and {len(self.failures) - limit} more")
        if self.not_sent:
            lines.append(f"{len(self.not_sent)} of {len(self.plan.items)} items were not sent")
        return "\n".join(lines)


def worst_error(errors: Iterable[ImagenError]) -> ImagenError:
    """Choose the error that says most about an item: a lost charge, then what broke, then what was withheld."""
    return min(errors, key=lambda error: (not isinstance(error, ChargedButLostError), isinstance(error, FilteredError)))


def withheld_error(*, requested: int, made: int, flagged: int, paid: Paid) -> FilteredError:
    """Make the error for pictures that a paid request did not bring."""
    facts: dict[str, Any] = {
        "requested": requested,
        "made": made,
        "model": paid.model,
        "usd": float(paid.usd) if paid.usd is not None else None,
        "inference_id": paid.inference_id,
        "client_request_id": paid.client_request_id,
    }
    cost = f", charged {paid.usd:.4f} USD" if paid.usd else ""
    if made == 0 and not flagged:
        return EmptyResultError(
            f"{paid.model} answered success without a picture ({requested} asked for{cost}). Its safety filter may "
            f"have withheld them: change the prompt or safety_setting.",
            **facts,
        )
    why = f", {flagged} of them marked as filtered" if flagged else ""
    return FilteredError(
        f"{paid.model} withheld {requested - made} of {requested} pictures{why}{cost}: "
        f"change the prompt or safety_setting.",
        **facts,
    )


def _shorten(text: str, limit: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
