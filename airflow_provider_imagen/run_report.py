"""The summary and the failures of a task. Field names are the keys of XCom ``summary`` and of the failures file."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from msgspec import Meta, Struct
from msgspec.structs import asdict

from airflow_provider_imagen.image_record import Metadata, Usd, WholeNumber
from airflow_provider_imagen.money import format_usd

if TYPE_CHECKING:
    from collections.abc import Sequence

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]

MAX_MESSAGE_CHARACTERS: Final = 8_000
"""Maximum length of the message of a failed attempt; the task's log has the whole message."""

MAX_MODELS: Final = 100
"""Maximum number of models whose costs a summary states."""

UsdByModel = Annotated[dict[Annotated[str, Meta(max_length=250)], Usd], Meta(max_length=MAX_MODELS)]

Outcome = Literal["filtered", "failed", "in_doubt"]


class RunSummary(Struct, frozen=True, kw_only=True):
    """
    The counts and costs of one task instance, small enough for XCom and asset events.

    :param requested: images requested
    :param made: images generated
    :param filtered: images that the model withheld
    :param failed: images that failed
    :param not_sent: images not requested, because the task ended first
    :param adopted: images reused from previous attempts
    :param reused: images reused from other runs
    :param beyond_limit: images of the prompts that ``limit`` leaves out; not included in ``requested``
    :param superseded: images that previous attempts paid for and that are no longer requested
    :param wrong_shape: images that differ from the requested aspect ratio
    :param usd_spent: total charged, including lost charges
    :param usd_by_model: the parts of ``usd_spent`` whose model is known, by model id
    :param usd_saved: what the images reused from other runs cost when they were generated, as far as known
    :param usd_lost: charged without an image
    :param usd_in_doubt: further amount that may have been charged for in-doubt requests
    :param in_doubt: client request ids of these requests, possibly not all
    :param usd_is_estimate: whether part of the cost is a list price, because a response did not state it
    :param seconds: duration of the attempt
    :param output_path: the folder of the images, as given; ``None`` if images are not stored
    :param manifest: path of the ``metadata.jsonl``; ``None`` if nothing was stored
    :param contact_sheet: path of the contact sheet; ``None`` if there is none
    :param in_progress: whether the attempt was still running when it published this; a killed attempt leaves it true
    """

    requested: Count = 0
    made: Count = 0
    filtered: Count = 0
    failed: Count = 0
    not_sent: Count = 0
    adopted: Count = 0
    reused: Count = 0
    beyond_limit: Count = 0
    superseded: Count = 0
    wrong_shape: Count = 0
    usd_spent: Usd = 0.0
    usd_by_model: UsdByModel = {}
    usd_saved: Usd = 0.0
    usd_lost: Usd = 0.0
    usd_in_doubt: Usd = 0.0
    in_doubt: list[str] = []
    usd_is_estimate: bool = False
    seconds: float = 0.0
    output_path: str | None = None
    manifest: str | None = None
    contact_sheet: str | None = None
    in_progress: bool = False

    @property
    def problems(self) -> int:
        """Number of requested images that are missing."""
        return self.filtered + self.failed + self.not_sent

    @property
    def totals(self) -> str:
        """The counts and costs as part of a sentence: ``10 of 12 images made (3 reused), 2 failed, $0.46 spent``."""
        saved = f", {format_usd(self.usd_saved)} saved" if self.usd_saved else ""
        reused = [f"{self.adopted} reused"] if self.adopted else []
        reused += [f"{self.reused} reused from other runs{saved}"] if self.reused else []
        how = f" ({', '.join(reused)})" if reused else ""
        parts = [f"{self.made} of {self.requested} images made{how}" if self.requested or self.made else "no images"]
        for count, outcome in (
            (self.failed, "failed"),
            (self.filtered, "withheld by the model"),
            (self.not_sent, "not sent"),
            (self.wrong_shape, "of another aspect ratio than requested"),
            (self.beyond_limit, "left out by limit"),
        ):
            parts += [f"{count} {outcome}"] if count else []
        about = "about " if self.usd_is_estimate else ""
        lost = f" ({format_usd(self.usd_lost)} of it lost)" if self.usd_lost else ""
        parts.append(f"{about}{format_usd(self.usd_spent)} spent{lost}")
        if self.in_doubt:
            parts.append(f"up to {format_usd(self.usd_in_doubt)} more in doubt")
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Return the summary as a mapping, every key present."""
        return asdict(self)


_SUMS = (
    "requested",
    "made",
    "filtered",
    "failed",
    "not_sent",
    "adopted",
    "reused",
    "beyond_limit",
    "superseded",
    "wrong_shape",
    "usd_spent",
    "usd_saved",
    "usd_lost",
    "usd_in_doubt",
    "seconds",
)


class TaskFailure(Struct, frozen=True):
    """
    Why the latest attempt of a task failed: XCom ``failure``.

    :param error: class name of the error
    :param message: its text, at most 8,000 characters, without secrets that Airflow masks in logs
    """

    error: Annotated[str, Meta(max_length=250)] = ""
    message: Annotated[str, Meta(max_length=MAX_MESSAGE_CHARACTERS)] = ""

    def to_json(self) -> dict[str, Any]:
        """Return the failure as a mapping, every key present."""
        return asdict(self)


def add_summaries(summaries: Sequence[RunSummary]) -> RunSummary:
    """Return the counts and costs of several task instances together; one alone keeps its paths."""
    if len(summaries) == 1:
        return summaries[0]
    usd_by_model: Counter[str] = Counter()
    for summary in summaries:
        usd_by_model.update(summary.usd_by_model)
    return RunSummary(
        **{name: sum(getattr(summary, name) for summary in summaries) for name in _SUMS},
        usd_by_model=dict(usd_by_model),
        in_doubt=[name for summary in summaries for name in summary.in_doubt],
        usd_is_estimate=any(summary.usd_is_estimate for summary in summaries),
    )


class FailureLine(Struct, frozen=True, kw_only=True):
    """
    One prompt that lacks images, and why: a line of the failures file.

    :param prompt_index: index of the prompt in the list, from 0; ``None`` if unknown
    :param name: name given by the author
    :param prompt: the prompt as sent
    :param requested: number of images requested; ``None`` if unknown
    :param made: number of images generated
    :param outcome: why images are missing; ``in_doubt`` if a request may have been charged
    :param error: name of the error class
    :param message: error message
    :param status: HTTP status of the response
    :param kind: the API's machine-readable reason
    :param model: model id
    :param usd: charge for the failed request, if known
    :param inference_id: the API's id of the paid work
    :param client_request_id: the id sent with the request
    :param metadata: as in :class:`~airflow_provider_imagen.image_record.ImageRecord`
    """

    prompt_index: WholeNumber | None = None
    name: str | None = None
    prompt: str | None = None
    requested: Count | None = None
    made: Count = 0
    outcome: Outcome = "failed"
    error: str = ""
    message: str = ""
    status: WholeNumber | None = None
    kind: str | None = None
    model: str | None = None
    usd: Usd | None = None
    inference_id: str | None = None
    client_request_id: str | None = None
    metadata: Metadata | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the line as a mapping, every key present."""
        return asdict(self)
