"""The state of a running sandbox, shared by its endpoints."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow_provider_imagen.sandbox.account import Account
from airflow_provider_imagen.sandbox.faults import FaultBook
from airflow_provider_imagen.sandbox.image_store import PictureStore
from airflow_provider_imagen.sandbox.limits import Meter
from airflow_provider_imagen.sandbox.model_specs import all_models, find_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_imagen.sandbox.control_types import SeenRequest
    from airflow_provider_imagen.sandbox.image_store import Recipe
    from airflow_provider_imagen.sandbox.settings import Settings

_SEEN_KEPT = 50_000


class State:
    """
    The state of one sandbox. Its methods may be called from any thread.

    :param true_clock: returns seconds since the epoch, without the skew of the settings
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
        """Return the sandbox's time, in seconds since the epoch."""
        return self.true_clock() + self.settings.clock_skew_seconds

    def open(self) -> None:
        """Start the threads that draw."""
        self.artists = ThreadPoolExecutor(max_workers=2, thread_name_prefix="imagen-sandbox-artist")

    def close(self) -> None:
        """Stop the threads that draw."""
        self.artists.shutdown(wait=False, cancel_futures=True)

    def configure(self, values: dict[str, Any]) -> None:
        """Change settings; a new balance takes effect at once."""
        self.settings = self.settings.changed(**values)
        if "balance_usd" in values:
            self.account.set_balance(self.settings.balance_usd)

    def reset(self) -> None:
        """Drop faults, charges, log, seen requests and images, and restore the initial settings."""
        self.settings = self.initial_settings
        self.faults.clear()
        self.account.reset(self.settings.balance_usd)
        self.generation_meter.reset()
        self.log_meter.reset()
        self.pictures.clear()
        with self._lock:
            self._seen.clear()

    def see(self, request: SeenRequest) -> Sighting:
        """Record a request that arrived."""
        sighting = Sighting(request)
        with self._lock:
            self._seen.append(sighting)
        return sighting

    def seen(self, path: str | None = None) -> list[SeenRequest]:
        """Return the requests that arrived, oldest first; a path ending in ``/`` is a prefix."""
        with self._lock:
            requests = [sighting.request for sighting in self._seen]
        if path is None:
            return requests
        if path.endswith("/"):
            return [request for request in requests if request.path.startswith(path)]
        return [request for request in requests if request.path == path]

    def withdrawn(self) -> dict[str, str | None]:
        """Return the models that answer 404, documented and by faults, with their replacements."""
        documented = {model.id: model.replaced_by for model in all_models().values() if model.status == "withdrawn"}
        by_fault = {
            (model.id if (model := find_model(name)) else name): replaced_by
            for name, replaced_by in self.faults.withdrawn().items()
        }
        return documented | by_fault

    async def draw(self, recipe: Recipe) -> bytes:
        """Return the bytes of an image; it is drawn outside the event loop, and once."""
        import asyncio

        if self.pictures.is_drawn(recipe):
            return self.pictures.bytes_of(recipe)
        return await asyncio.get_running_loop().run_in_executor(self.artists, self.pictures.bytes_of, recipe)


class Sighting:
    """A recorded request, which may still be in flight."""

    def __init__(self, request: SeenRequest) -> None:
        self.request = request

    def answered(self, status: int) -> None:
        """Record the status of the response."""
        self.request = replace(self.request, status=status)
