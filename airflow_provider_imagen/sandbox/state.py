"""The state of a running sandbox, shared by its endpoints."""

from __future__ import annotations

import json
import shlex
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow_provider_imagen.sandbox.account import Account
from airflow_provider_imagen.sandbox.faults import ArmedFaults
from airflow_provider_imagen.sandbox.image_store import ImageStore
from airflow_provider_imagen.sandbox.limits import RateMeter
from airflow_provider_imagen.sandbox.model_specs import all_models, find_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_imagen.sandbox.control_types import SeenRequest
    from airflow_provider_imagen.sandbox.image_store import Recipe
    from airflow_provider_imagen.sandbox.settings import Settings

_MAX_SEEN = 50_000


class State:
    """
    The state of one sandbox. Thread-safe.

    :param true_clock: returns seconds since the epoch, without the configured skew
    """

    def __init__(self, settings: Settings, *, true_clock: Callable[[], float], draw: Callable[[Recipe], bytes]) -> None:
        self.true_clock = true_clock
        self.settings = settings
        self.initial_settings = settings
        self.api_url = ""
        self.cdn_url = ""
        self.account = Account(settings.balance_usd, true_clock)
        self.generation_meter = RateMeter()
        self.log_meter = RateMeter()
        self.faults = ArmedFaults(settings.seed)
        self.images = ImageStore(draw)
        self._lock = threading.Lock()
        self._seen: deque[RecordedRequest] = deque(maxlen=_MAX_SEEN)

    @property
    def connection_line(self) -> str:
        """Shell command that makes this sandbox the connection imagen_default of an Airflow that starts after it."""
        connection = {"conn_type": "imagen", "host": self.api_url, "password": self.settings.api_key}
        return f"export AIRFLOW_CONN_IMAGEN_DEFAULT={shlex.quote(json.dumps(connection))}"

    def clock(self) -> float:
        """Return the sandbox's time in seconds since the epoch."""
        return self.true_clock() + self.settings.clock_skew_seconds

    def open(self) -> None:
        """Start the drawing threads."""
        self.draw_threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="imagen-sandbox-draw")

    def close(self) -> None:
        """Stop the drawing threads."""
        self.draw_threads.shutdown(wait=False, cancel_futures=True)

    def configure(self, values: dict[str, Any]) -> None:
        """Change settings; a new balance also replaces the current one."""
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
        self.images.clear()
        with self._lock:
            self._seen.clear()

    def record(self, request: SeenRequest) -> RecordedRequest:
        """Record a request on arrival."""
        recorded = RecordedRequest(request)
        with self._lock:
            self._seen.append(recorded)
        return recorded

    def seen(self, path: str | None = None) -> list[SeenRequest]:
        """Return the recorded requests, oldest first; a path ending in ``/`` is a prefix."""
        with self._lock:
            requests = [recorded.request for recorded in self._seen]
        if path is None:
            return requests
        if path.endswith("/"):
            return [request for request in requests if request.path.startswith(path)]
        return [request for request in requests if request.path == path]

    def withdrawn(self) -> dict[str, str | None]:
        """Return the withdrawn models, documented or by a fault, with their replacements."""
        documented = {model.id: model.replaced_by for model in all_models().values() if model.status == "withdrawn"}
        by_fault = {
            (model.id if (model := find_model(name)) else name): replaced_by
            for name, replaced_by in self.faults.withdrawn().items()
        }
        return documented | by_fault

    async def draw(self, recipe: Recipe) -> bytes:
        """Return the bytes of an image, drawn outside the event loop unless cached."""
        import asyncio

        if self.images.is_drawn(recipe):
            return self.images.bytes_of(recipe)
        return await asyncio.get_running_loop().run_in_executor(self.draw_threads, self.images.bytes_of, recipe)


class RecordedRequest:
    """A recorded request, which may still be in flight."""

    def __init__(self, request: SeenRequest) -> None:
        self.request = request

    def set_status(self, status: int) -> None:
        """Record the status of the response."""
        self.request = replace(self.request, status=status)
