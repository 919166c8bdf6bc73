"""How a run behaves, and what it needs of the world."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

from msgspec import Struct

from airflow_provider_imagen.api.retries import FIRST_WAIT_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from decimal import Decimal

    from airflow_provider_imagen.api.responses import Generation
    from airflow_provider_imagen.catalogue.request_builder import ImageRequest
    from airflow_provider_imagen.journal.records import Response, ResponseImage, StoredFile
    from airflow_provider_imagen.run.plan import Item

RATE_LIMIT_PATIENCE_SECONDS = 120.0
"""Longer than a minute, the longest window in which APIs usually count requests."""

OnLostAnswer = Literal["check", "resend", "fail"]


class RunOptions(Struct, frozen=True):
    """
    How a run behaves.

    :param concurrency: requests in flight, 1 or more
    :param requests_per_minute: most requests started in a minute; ``None`` for no limit
    :param max_usd: cap over all attempts, in USD
    :param on_lost_answer: what to do when a response is lost: look it up, send again, or give the item up
    :param lost_answer_patience_seconds: how long the API's log may take to show a request
    :param answer_timeout_seconds: how long a response may take at most; a request that a killed attempt left behind may
        still be served for that long
    :param first_wait_seconds: wait before a failed request is sent again when the API asks for none; it doubles
    :param rate_limit_patience_seconds: how long nothing but 429 may be answered until the attempt ends
    """

    concurrency: int = 4
    requests_per_minute: float | None = None
    max_usd: Decimal | None = None
    on_lost_answer: OnLostAnswer = "check"
    lost_answer_patience_seconds: float = 90.0
    answer_timeout_seconds: float = 0.0
    first_wait_seconds: float = FIRST_WAIT_SECONDS
    rate_limit_patience_seconds: float = RATE_LIMIT_PATIENCE_SECONDS


class Ports(Protocol):
    """What a run needs of the world."""

    stores: bool
    """Whether pictures are stored at all."""

    @property
    def account(self) -> str:
        """Short hash of the API key that requests are sent with; only that key sees them in the API's log."""

    @property
    def clock_offset_seconds(self) -> float | None:
        """How far the API's clock is ahead of ours; ``None`` before its first response."""

    def generate(self, request: ImageRequest, client_request_id: str) -> Generation:
        """Send one paid request, once."""

    def fetch(self, url: str) -> bytes:
        """Download one picture."""

    def save(
        self,
        data: bytes,
        *,
        item: Item,
        image_index: int,
        response: Response,
        image: ResponseImage,
        announce: Callable[[StoredFile], None] | None = None,
    ) -> StoredFile:
        """
        Verify and store one image under its deterministic name.

        :param announce: called with what is going to be stored, right before it is written; its preview is not made yet
        """

    def is_stored(self, stored: StoredFile) -> bool:
        """Return whether an image that an earlier attempt stored is still there and whole."""

    def keep_stored(self, stored: StoredFile) -> StoredFile | None:
        """Return where an image of an earlier attempt is now, ``None`` if it is gone; it may be copied for that."""

    def find_missing(self, stored: Iterable[StoredFile]) -> list[StoredFile]:
        """Return those images whose files have disappeared; one directory listing tells."""

    def iter_request_logs(self, **window: Any) -> Iterator[dict[str, Any]]:
        """Yield the rows of the API's request log."""
