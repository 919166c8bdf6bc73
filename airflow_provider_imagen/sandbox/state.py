"""All that a running sandbox knows, shared by its endpoints."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, get_args

from airflow_provider_imagen.sandbox.account import Account
from airflow_provider_imagen.sandbox.envelopes import Envelope
from airflow_provider_imagen.sandbox.faults import FaultBook
from airflow_provider_imagen.sandbox.limits import Counting, Meter, RateLimit
from airflow_provider_imagen.sandbox.models import all_models, find_model
from airflow_provider_imagen.sandbox.pictures import PictureStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_imagen.sandbox.pictures import Recipe
    from airflow_provider_imagen.sandbox.records import SeenRequest

_SEEN_KEPT = 50_000
_LARGEST_SKEW_SECONDS = 365 * 86400


@dataclass(frozen=True)
class Settings:
    """
    How the sandbox behaves when nothing goes wrong.

    :param api_key: the key it accepts
    :param balance_usd: money in the account, in USD
    :param latency_seconds: how long a generation takes
    :param log_lag_seconds: how long after its end a request shows in ``/v2/logs``
    :param clock_skew_seconds: how far the sandbox's clock is ahead of the real time, or behind it if negative: in the
        ``Date`` header, in ``/v2/logs``, and in every time that a body or a signed link states
    :param picture_scale: width and height of what is drawn, as a share of what was asked for
    :param requests_per_minute: generations beyond this are answered 429; ``None`` = no limit
    :param counting: how they are counted: ``sliding``, ``fixed`` or ``bucket``;
        see :data:`~airflow_provider_imagen.sandbox.limits.Counting`
    :param window_seconds: what ``sliding`` and ``fixed`` count over
    :param burst: generations that ``bucket`` lets through at once
    :param max_concurrent: generations at once beyond this are answered 429; ``None`` = no limit
    :param tells_retry_after: a 429 for one of these limits carries ``Retry-After``, in whole seconds
    :param limit_envelope: the form of such a 429, ``problem`` or ``old``
    :param logs_per_minute: calls of ``/v2/logs`` beyond this are answered 429; the API's number is 200
    :param seed: decides pictures without a seed of their own, and faults with a probability
    """

    api_key: str
    balance_usd: Decimal = Decimal(100)
    latency_seconds: float = 0.0
    log_lag_seconds: float = 0.0
    clock_skew_seconds: float = 0.0
    picture_scale: float = 1.0
    requests_per_minute: float | None = None
    counting: Counting = "sliding"
    window_seconds: float = 60.0
    burst: int = 1
    max_concurrent: int | None = None
    tells_retry_after: bool = False
    limit_envelope: Envelope = "problem"
    logs_per_minute: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.picture_scale <= 1:
            raise ValueError(f"picture_scale={self.picture_scale!r}; allowed: above 0, to 1")
        for name in ("latency_seconds", "log_lag_seconds", "balance_usd"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)!r}; allowed: 0 or more")
        for name, choices in (("counting", get_args(Counting)), ("limit_envelope", get_args(Envelope))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}; allowed: {', '.join(choices)}")
        if not abs(self.clock_skew_seconds) <= _LARGEST_SKEW_SECONDS:
            raise ValueError(f"clock_skew_seconds={self.clock_skew_seconds!r}; allowed: a year either way")
        if self.window_seconds <= 0:
            raise ValueError(f"window_seconds={self.window_seconds!r}; allowed: above 0")
        if self.burst < 1:
            raise ValueError(f"burst={self.burst!r}; allowed: 1 or more")

    def changed(self, values: dict[str, Any]) -> Settings:
        """
        Give a copy with some values changed.

        :raises ValueError: an unknown name, or a value out of range
        """
        known = [field.name for field in fields(self)]
        if strange := [name for name in values if name not in known]:
            raise ValueError(f"The sandbox has no setting {', '.join(strange)}; allowed: {', '.join(known)}")
        if "balance_usd" in values:
            values = {**values, "balance_usd": Decimal(str(values["balance_usd"]))}
        return replace(self, **values)

    @property
    def generation_limit(self) -> RateLimit:
        """How many generations are let through."""
        return RateLimit(
            self.requests_per_minute,
            counting=self.counting,
            window_seconds=self.window_seconds,
            burst=self.burst,
        )

    def to_json(self) -> dict[str, Any]:
        """Give plain JSON values; money travels as text."""
        return {field.name: getattr(self, field.name) for field in fields(self)} | {
            "balance_usd": str(self.balance_usd)
        }


class State:
    """
    The state of one sandbox. Its methods may be called from any thread.

    :param true_clock: gives seconds since the epoch, without the skew of the settings
    """

    def __init__(self, settings: Settings, *, true_clock: Callable[[], float], draw: Callable[[Recipe], bytes]) -> None:
        self.true_clock = true_clock
        self.settings = settings
        self.initial_settings = settings
        self.api_url = ""
        self.cdn_url = ""
        self.account = Account(settings.balance_usd, true_clock)
        self.generation_meter = Meter()
        self.log_meter = Meter()
        self.faults = FaultBook(settings.seed)
        self.pictures = PictureStore(draw)
        self._lock = threading.Lock()
        self._seen: deque[Sighting] = deque(maxlen=_SEEN_KEPT)

    def clock(self) -> float:
        """Return the time that the sandbox tells, in seconds since the epoch."""
        return self.true_clock() + self.settings.clock_skew_seconds

    def open(self) -> None:
        """Get ready to draw."""
        self.artists = ThreadPoolExecutor(max_workers=2, thread_name_prefix="imagen-sandbox-artist")

    def close(self) -> None:
        """Draw nothing more."""
        self.artists.shutdown(wait=False, cancel_futures=True)

    def configure(self, values: dict[str, Any]) -> None:
        """Change settings; a new balance takes effect at once."""
        self.settings = self.settings.changed(values)
        if "balance_usd" in values:
            self.account.set_balance(self.settings.balance_usd)

    def reset(self) -> None:
        """Forget faults, charges, log, seen requests and links, and go back to the first settings."""
        self.settings = self.initial_settings
        self.faults.clear()
        self.account.reset(self.settings.balance_usd)
        self.generation_meter.reset()
        self.log_meter.reset()
        self.pictures.clear()
        with self._lock:
            self._seen.clear()

    def see(self, request: SeenRequest) -> Sighting:
        """Note a request that arrived."""
        sighting = Sighting(request)
        with self._lock:
            self._seen.append(sighting)
        return sighting

    def seen(self, path: str | None = None) -> list[SeenRequest]:
        """List the requests that arrived, oldest first; a path ending in ``/`` matches what lies under it."""
        with self._lock:
            requests = [sighting.request for sighting in self._seen]
        if path is None:
            return requests
        if path.endswith("/"):
            return [request for request in requests if request.path.startswith(path)]
        return [request for request in requests if request.path == path]

    def withdrawn(self) -> dict[str, str | None]:
        """Map each model that answers 404 to its successor: the documented ones and those of faults."""
        documented = {model.id: model.replaced_by for model in all_models().values() if model.status == "withdrawn"}
        by_fault = {
            (model.id if (model := find_model(name)) else name): replaced_by
            for name, replaced_by in self.faults.withdrawn().items()
        }
        return documented | by_fault

    async def draw(self, recipe: Recipe) -> bytes:
        """Draw a picture outside the event loop, unless it is drawn already."""
        import asyncio

        if self.pictures.is_drawn(recipe):
            return self.pictures.bytes_of(recipe)
        return await asyncio.get_running_loop().run_in_executor(self.artists, self.pictures.bytes_of, recipe)


class Sighting:
    """A seen request whose answer may still be to come."""

    def __init__(self, request: SeenRequest) -> None:
        self.request = request

    def answered(self, status: int) -> None:
        """Note the status of the answer."""
        self.request = replace(self.request, status=status)
