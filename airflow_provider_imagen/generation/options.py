"""How a run behaves, and what it needs of the world."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

from msgspec import Struct

from airflow_provider_imagen.api.resending import FIRST_WAIT_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from decimal import Decimal

    from airflow_provider_imagen.api.answers import Generation
    from airflow_provider_imagen.api.request import ImageRequest
    from airflow_provider_imagen.generation.plan import Item
    from airflow_provider_imagen.journal.records import Paid, PaidPicture, Stored

RATE_LIMIT_PATIENCE_SECONDS = 120.0
"""Longer than a minute, the longest window in which APIs usually count requests."""

OnLostAnswer = Literal["check", "resend", "fail"]


class RunOptions(Struct, frozen=True):
    """
    How a run behaves.

    :param concurrency: requests in flight, 1 or more
    :param requests_per_minute: most requests started in a minute; ``None`` for no limit
    :param max_usd: cap over all tries, in USD
    :param on_lost_answer: what to do when an answer is lost: look it up, send again, or give the item up
    :param lost_answer_patience_seconds: how long the API's log may take to show a request
    :param answer_timeout_seconds: how long an answer may take at most; a request that a killed try left behind may
        still be served for that long
    :param first_wait_seconds: wait before a failed request is sent again when the API asks for none; it doubles
    :param rate_limit_patience_seconds: how long nothing but 429 may be answered until the try ends
    :param grace_seconds: how long answers in flight are awaited when the task is told to stop; Airflow kills after 5
    """

    concurrency: int = 4
    requests_per_minute: float | None = None
    max_usd: Decimal | None = None
    on_lost_answer: OnLostAnswer = "check"
    lost_answer_patience_seconds: float = 90.0
    answer_timeout_seconds: float = 0.0
    first_wait_seconds: float = FIRST_WAIT_SECONDS
    rate_limit_patience_seconds: float = RATE_LIMIT_PATIENCE_SECONDS
    grace_seconds: float = 4.0


class Tools(Protocol):
    """What a run needs of the world."""

    stores: bool
    """Whether pictures are stored at all."""

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
        paid: Paid,
        picture: PaidPicture,
        announce: Callable[[Stored], None] | None = None,
    ) -> Stored:
        """
        Check and store one picture under its deterministic name.

        :param announce: told what is going to be stored, right before it is written; its preview is not made yet
        """

    def is_stored(self, stored: Stored) -> bool:
        """Say whether a picture that an earlier try stored is still there and whole."""

    def iter_request_logs(self, **window: Any) -> Iterator[dict[str, Any]]:
        """Give the rows of the API's request log."""
