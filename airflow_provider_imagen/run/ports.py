"""How a run behaves, and what it needs from the outside world."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

from msgspec import Struct

from airflow_provider_imagen.api.retries import FIRST_WAIT_SECONDS
from airflow_provider_imagen.run.usage_caps import USAGE_MAX_AGE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from datetime import datetime
    from decimal import Decimal

    from airflow_provider_imagen.api.responses import Generation
    from airflow_provider_imagen.catalogue.request_builder import ImageRequest
    from airflow_provider_imagen.image_record import StoredFile
    from airflow_provider_imagen.run.results import ReceivedResponse
    from airflow_provider_imagen.run.reuse import EarlierImage, ReusedImage
    from airflow_provider_imagen.run.usage_caps import UsageCap

RATE_LIMIT_PATIENCE_SECONDS = 120.0
"""More than one minute, which is usually the longest window over which APIs count requests."""

OnLostAnswer = Literal["check", "resend", "fail"]


class RunOptions(Struct, frozen=True):
    """
    Settings of a run.

    :param concurrency: maximum requests in flight, 1 or more
    :param requests_per_minute: maximum requests started per minute; ``None`` for no limit
    :param max_usd: spending cap over all attempts, in USD; ``None`` for no cap
    :param usage_caps: caps on what the API key spends
    :param usage_max_age_seconds: how long a reading of what the key has spent counts
    :param on_lost_answer: what to do about a lost response: look the request up, resend it, or fail the item
    :param lost_answer_patience_seconds: how long the API's log may take to show a request
    :param answer_timeout_seconds: longest time a response may take; a request left behind by a killed attempt may still
        be running for that long
    :param first_wait_seconds: wait before the first resend if the API asks for none; it doubles each time
    :param rate_limit_patience_seconds: how long the API may respond with nothing but 429 before the attempt ends
    """

    concurrency: int = 4
    requests_per_minute: float | None = None
    max_usd: Decimal | None = None
    usage_caps: tuple[UsageCap, ...] = ()
    usage_max_age_seconds: float = USAGE_MAX_AGE_SECONDS
    on_lost_answer: OnLostAnswer = "check"
    lost_answer_patience_seconds: float = 90.0
    answer_timeout_seconds: float = 0.0
    first_wait_seconds: float = FIRST_WAIT_SECONDS
    rate_limit_patience_seconds: float = RATE_LIMIT_PATIENCE_SECONDS


class Api(Protocol):
    """The API, as far as a run uses it."""

    @property
    def account(self) -> str:
        """Short hash of the API key that sends the requests; the API's log shows them to that key only."""

    @property
    def clock_offset_seconds(self) -> float | None:
        """Seconds that the API's clock is ahead of ours; ``None`` before its first response."""

    def generate(self, request: ImageRequest, client_request_id: str, *, before_send: Callable[[], None]) -> Generation:
        """
        Send one paid request, exactly once.

        :param before_send: called when it is about to be sent; if it raises, the API has nothing to act on
        """

    def fetch(self, url: str) -> bytes:
        """Download one image."""

    def iter_request_logs(self, **window: Any) -> Iterator[dict[str, Any]]:
        """Yield the rows of the API's request log."""

    def get_usage(self, *, start: datetime, end: datetime) -> Decimal:
        """Return what the API key has spent in a time window, in USD."""


class Sink(Protocol):
    """The output folder."""

    def save(
        self, data: bytes, received: ReceivedResponse, position: int, before_write: Callable[[StoredFile], None]
    ) -> StoredFile:
        """
        Verify and store one image under its deterministic name.

        :param position: index of the image in the response, from 0
        :param before_write: called with the expected file, still without its preview, right before it is written
        """

    def is_stored(self, file: StoredFile) -> bool:
        """Return whether a previous attempt's image is still present and intact."""

    def keep(self, file: StoredFile) -> StoredFile | None:
        """
        Return where a previous attempt's image is now, ``None`` if it is gone.

        It may be copied to the current folder first.
        """

    def reuse(self, places: Sequence[EarlierImage], received: ReceivedResponse, position: int) -> ReusedImage | None:
        """
        Return another run's image, stored in this folder, or ``None`` if it is intact nowhere.

        :param places: where the image is, the preferred place first
        :param received: the request that it is reused for
        :param position: index of the image in the response, from 0
        """

    def find_missing(self, files: Iterable[StoredFile]) -> list[StoredFile]:
        """Return the images whose files have disappeared, at the cost of one listing per folder."""
