"""The results of a run, in the forms that XCom, the manifest and the log need."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

from airflow_provider_imagen.exceptions import (
    ChargedButLostError,
    EmptyResultError,
    FilteredError,
    ImagenError,
    LostAnswerError,
)
from airflow_provider_imagen.image_record import ImageRecord
from airflow_provider_imagen.money import format_usd
from airflow_provider_imagen.run_report import MAX_MODELS, FailureLine, RunSummary
from airflow_provider_imagen.signed_urls import is_signed, without_query

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator, Mapping, Sequence
    from concurrent.futures import Future
    from datetime import datetime
    from decimal import Decimal

    from airflow_provider_imagen.image_record import StoredFile
    from airflow_provider_imagen.journal.records import ChargeLost, Intent, RequestState, Response, Target
    from airflow_provider_imagen.run.plan import Plan, PromptItem
    from airflow_provider_imagen.run.reuse import ReusedImage
    from airflow_provider_imagen.run_report import Outcome

MAX_LISTED_REQUESTS = 100
"""Maximum number of in-doubt requests in the summary; the failures file names all of them."""

ROUNDING = Fraction("1.1")
"""Tolerance for aspect ratios, as a factor: Imagen's ``4:3`` is 1280x896, which is 7.1 % wider."""


class ReceivedResponse(Struct, eq=False):
    """
    One request with its response, on its way from a submitter to a finisher.

    :param key: journal key of the request
    :param slot_number: its slot in the plan; ``None`` when it is no longer requested
    :param item: the prompt item
    :param target: the images it is for
    :param aspect_ratio: requested width divided by height; ``None`` when left to the model
    :param seconds: how long the request took
    :param inline: bytes of the images that came inside the response, by position
    :param is_reused: paid for by a previous attempt or, if ``reused`` is not empty, by another run
    :param files: images that are already stored, by position in the response
    :param reused: where the images of another run come from, by position in the response
    :param is_own: this task instance paid for the images in ``reused`` before it was cleared
    :param missing: positions of images that a previous attempt could not retrieve
    :param journaled: done once the response is durable; ``None`` when there is nothing to wait for
    :param finished: set once its images are stored or have failed; ``None`` when nobody waits for that
    """

    key: str
    slot_number: int | None
    item: PromptItem
    target: Target
    response: Response
    aspect_ratio: Fraction | None = None
    seconds: float = 0.0
    inline: dict[int, bytes] = field(default_factory=dict)
    is_reused: bool = False
    files: dict[int, StoredFile] = field(default_factory=dict)
    reused: Mapping[int, ReusedImage] = MappingProxyType({})
    is_own: bool = False
    missing: frozenset[int] = frozenset()
    journaled: Future[None] | None = None
    finished: threading.Event | None = None


class FinishedImage(Struct, frozen=True, eq=False):
    """
    One finished image.

    :param received: the request and response it comes from
    :param position: its index in the response
    :param api_url: the API's URL, decrypted; ``None`` when the image came inside the response or the URL cannot be read
    :param file: the stored file; ``None`` when there is none
    """

    received: ReceivedResponse
    position: int
    api_url: str | None
    file: StoredFile | None

    @property
    def image_index(self) -> int:
        """Index among the images of its prompt."""
        return self.received.target.index_of(self.position)

    @property
    def reused(self) -> ReusedImage | None:
        """Where it comes from, if another run paid for it."""
        return None if self.received.is_own else self.received.reused.get(self.position)

    @property
    def reused_at(self) -> datetime | None:
        """When it was reused, with time zone; ``None`` if this run or a previous attempt generated it."""
        image = self.received.reused.get(self.position)
        return image.reused_at if image is not None else None

    @property
    def order(self) -> tuple[int, int]:
        """Sort key: prompt first, then image."""
        return self.received.item.index, self.image_index

    @property
    def has_wrong_shape(self) -> bool:
        """Whether the stored image differs from the requested aspect ratio by more than :data:`ROUNDING`."""
        requested, file = self.received.aspect_ratio, self.file
        if requested is None or file is None or not (file.width and file.height):  # an SVG may state no size
            return False
        return not requested / ROUNDING <= Fraction(file.width, file.height) <= requested * ROUNDING

    @property
    def url(self) -> str:
        """URL to publish: the API's or, if that is missing or expires because it is signed, the stored file's."""
        if self.api_url is not None and (self.file is None or not is_signed(self.api_url)):
            return self.api_url
        return self.file.path if self.file is not None else ""

    @property
    def record(self) -> ImageRecord:
        """Its record, rebuilt on each access."""
        item, response, url = self.received.item, self.received.response, self.api_url
        image, usd, reused = response.images[self.position], response.usd_per_image, self.reused
        return ImageRecord.of(
            self.file,
            prompt_index=item.index,
            image_index=self.image_index,
            url=url if self.file is None or url is None else without_query(url),
            model=response.model,
            seed=image.seed,
            prompt=item.prompt,
            enhanced_prompt=image.prompt if image.prompt != item.prompt else None,
            usd=float(usd) if usd is not None else None,
            inference_id=response.inference_id,
            client_request_id=response.client_request_id,
            name=item.name,
            metadata=item.metadata,
            reused_from=reused.reused_from if reused is not None else None,
            usd_saved=reused.usd_saved if reused is not None else None,
            arguments=item.recorded_arguments,
        )


class RequestWithoutImages(Struct, frozen=True):
    """
    A request that was or may have been billed, and has no images.

    :param error: :class:`LostAnswerError` while in doubt, :class:`ChargedButLostError` once a charge is known
    :param target: what its images were for; ``None`` when unknown
    """

    client_request_id: str
    error: LostAnswerError
    target: Target | None

    @classmethod
    def in_doubt(cls, client_request_id: str, intent: Intent | None) -> RequestWithoutImages:
        """Return a request that may have been billed; without its intent, the possible amount is unknown."""
        error = LostAnswerError(
            "Whether this request was billed is not known.",
            client_request_id=client_request_id,
            model=intent.model if intent else None,
            usd=float(intent.usd) if intent and intent.usd is not None else None,
        )
        return cls(client_request_id, error, intent.target if intent else None)

    @classmethod
    def billed(cls, charge: ChargeLost, *, model: str | None, target: Target | None) -> RequestWithoutImages:
        """Return a billed request whose response is gone; ``model`` and ``target`` are ``None`` when unknown."""
        error = ChargedButLostError.of_charge(
            charge.usd, model=model, client_request_id=charge.client_request_id, inference_id=charge.inference_id
        )
        return cls(charge.client_request_id, error, target)

    def to_line(self) -> FailureLine:
        """Return its line in the failures file."""
        target = self.target
        return _failure_line(
            self.error,
            prompt_index=target.prompt_index if target else None,
            name=target.name if target else None,
            prompt=target.prompt if target else None,
            requested=target.images if target else None,
            made=0,
            metadata=target.metadata if target else None,
        )


class SlotResult(Struct):
    """
    Result of one slot.

    :param made: the images, in the order they were finished
    :param errors: the errors, in the order they occurred
    """

    made: list[FinishedImage] = field(default_factory=list)
    errors: list[ImagenError] = field(default_factory=list)


class Failure(Struct, frozen=True):
    """
    One item that lacks some of its images.

    :param errors: in the order they occurred
    :param made: number of images it has
    """

    item: PromptItem
    errors: list[ImagenError]
    made: int

    @property
    def error(self) -> ImagenError:
        """The most telling error: a lost charge before other failures, filtered images last."""

        def rank(error: ImagenError) -> tuple[bool, bool]:
            return not isinstance(error, ChargedButLostError), isinstance(error, FilteredError)

        return min(self.errors, key=rank)

    @property
    def is_filtered(self) -> bool:
        """Whether the model withheld images and nothing else went wrong."""
        return isinstance(self.error, FilteredError)

    def to_lines(self) -> Iterator[FailureLine]:
        """Yield its lines in the failures file: the most telling error, then every other request that was charged."""
        item, first = self.item, self.error
        charged = {error.client_request_id: error for error in self.errors if error.usd}
        charged.pop(first.client_request_id, None)
        for error in (first, *charged.values()):
            yield _failure_line(
                error,
                prompt_index=item.index,
                name=item.name,
                prompt=item.prompt,
                requested=item.images,
                made=self.made,
                metadata=item.metadata,
            )


def billed_without_images(
    requests: Mapping[str, RequestState], models: Mapping[str, str]
) -> Iterator[RequestWithoutImages]:
    """
    Yield the billed requests in a journal whose responses are gone.

    :param models: model ids by request key, as far as known
    """
    for key, request in requests.items():
        for charge in request.charges_lost.values():
            yield RequestWithoutImages.billed(charge, model=models.get(key), target=request.target)


class RunResult(Struct, frozen=True):
    """
    The state of a run at one moment, including what previous attempts made.

    :param made: requested images, in prompt order, then image order
    :param superseded: images that previous attempts paid for and that are no longer requested
    :param failures: incomplete items, in prompt order
    :param not_sent: items not sent, or not completed, because the task had to end first
    :param abort_reason: the error that ended the run early, if any
    :param usd_spent: charged over all attempts, including lost charges, in USD
    :param usd_lost: the part of ``usd_spent`` without an image, in USD
    :param usd_in_doubt: what may have been charged on top, at the highest known prices, in USD
    :param in_doubt: the requests that ``usd_in_doubt`` is for
    :param lost: billed requests whose responses are gone
    :param usd_is_estimate: some costs are known prices, because the responses did not state them
    :param usd_by_model: the parts of ``usd_spent`` whose model is known, in USD, by model id
    """

    plan: Plan
    made: list[FinishedImage]
    superseded: list[FinishedImage]
    failures: list[Failure]
    not_sent: list[PromptItem]
    abort_reason: ImagenError | None
    usd_spent: Decimal
    usd_lost: Decimal
    usd_in_doubt: Decimal
    in_doubt: list[RequestWithoutImages]
    lost: list[RequestWithoutImages]
    usd_is_estimate: bool
    seconds: float
    usd_by_model: Mapping[str, Decimal] = MappingProxyType({})

    @property
    def listed(self) -> list[FinishedImage]:
        """All images; those that are no longer requested come last."""
        return [*self.made, *self.superseded]

    @property
    def reused(self) -> int:
        """Number of requested images that previous attempts paid for, or this task instance before it was cleared."""
        return sum(made.received.is_reused and made.reused is None for made in self.made)

    @property
    def reused_from_other_runs(self) -> list[ReusedImage]:
        """The requested images that were reused from other runs."""
        return [made.reused for made in self.made if made.reused is not None]

    @property
    def records(self) -> list[ImageRecord]:
        """One record per requested image."""
        return [made.record for made in self.made]

    @property
    def urls(self) -> list[str]:
        """One URL per requested image."""
        return [made.url for made in self.made]

    @property
    def filtered(self) -> list[Failure]:
        """Incomplete items whose only errors are withheld images."""
        return [failure for failure in self.failures if failure.is_filtered]

    @property
    def failed(self) -> list[Failure]:
        """Incomplete items with any other error."""
        return [failure for failure in self.failures if not failure.is_filtered]

    def summary(self) -> RunSummary:
        """Return the counts and costs, without what only a publisher knows: paths."""
        made = Counter(image.received.item.index for image in self.made)
        from_other_runs = self.reused_from_other_runs
        return RunSummary(
            requested=self.plan.images,
            made=len(self.made),
            filtered=sum(failure.item.images - failure.made for failure in self.filtered),
            failed=sum(failure.item.images - failure.made for failure in self.failed),
            not_sent=sum(item.images - made[item.index] for item in self.not_sent),
            adopted=self.reused,
            reused=len(from_other_runs),
            beyond_limit=sum(item.images for item in self.plan.beyond_limit),
            superseded=len(self.superseded),
            wrong_shape=sum(image.has_wrong_shape for image in self.made),
            usd_spent=float(self.usd_spent),
            usd_by_model={model: float(usd) for model, usd in sorted(self.usd_by_model.items())[:MAX_MODELS]},
            usd_saved=round(sum(image.usd_saved or 0.0 for image in from_other_runs), 9),
            usd_lost=float(self.usd_lost),
            usd_in_doubt=float(self.usd_in_doubt),
            in_doubt=[request.client_request_id for request in self.in_doubt[:MAX_LISTED_REQUESTS]],
            usd_is_estimate=self.usd_is_estimate,
            seconds=round(self.seconds, 3),
        )

    def failure_lines(self) -> list[FailureLine]:
        """Return the lines of the failures file: for every incomplete item and every other request without images."""
        lines = [line for failure in self.failures for line in failure.to_lines()]
        known = {line.client_request_id for line in lines}
        others = {each.client_request_id: each for each in (*self.in_doubt, *self.lost)}
        return lines + [each.to_line() for name, each in others.items() if name not in known]


def failure_table(failures: Sequence[Failure], limit: int = 20) -> str:
    """
    Return one line per incomplete item, in the given order.

    :param limit: maximum number of items to list
    """
    lines = [
        f"[{failure.item.index}] {failure.item.label}: {failure.made} of {failure.item.images} made; "
        f"{type(failure.error).__name__}: {failure.error}"
        for failure in failures[:limit]
    ]
    if len(failures) > limit:
        lines.append(f"… and {len(failures) - limit} more")
    return "\n".join(lines)


def withheld_error(*, requested: int, made: int, flagged: int, response: Response) -> FilteredError:
    """Return the error for images that a paid request did not deliver."""
    facts: dict[str, Any] = {
        "requested": requested,
        "made": made,
        "model": response.model,
        "usd": float(response.usd) if response.usd is not None else None,
        "inference_id": response.inference_id,
        "client_request_id": response.client_request_id,
    }
    cost = f", charged {format_usd(response.usd)}" if response.usd else ""
    if made == 0 and not flagged:
        return EmptyResultError(
            f"{response.model} reported success but returned none of the {requested} requested images{cost}. Its "
            f"safety filter may have withheld them: change the prompt or safety_setting.",
            **facts,
        )
    why = f", {flagged} of them marked as filtered" if flagged else ""
    return FilteredError(
        f"{response.model} withheld {requested - made} of {requested} images{why}{cost}: "
        f"change the prompt or safety_setting.",
        **facts,
    )


def _failure_line(error: ImagenError, **item: Any) -> FailureLine:
    """
    Return a line of the failures file.

    :param item: what was requested and generated: ``prompt_index``, ``name``, ``prompt``, ``requested``, ``made``,
        ``metadata``
    """
    outcome: Outcome = "failed"
    if isinstance(error, FilteredError):
        outcome = "filtered"
    elif type(error) is LostAnswerError:
        outcome = "in_doubt"
    return FailureLine(
        **item,
        outcome=outcome,
        error=type(error).__name__,
        message=str(error),
        status=error.status,
        kind=error.kind,
        model=error.model,
        usd=error.usd,
        inference_id=error.inference_id,
        client_request_id=error.client_request_id,
    )
