"""The run's access to the API: the client, the downloader and the input images behind one interface."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

from airflow_provider_imagen.catalogue.lookup import find_model, nearest_models
from airflow_provider_imagen.exceptions import ImagenError, ModelWithdrawnError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime
    from decimal import Decimal

    from airflow_provider_imagen.api.client import ApiClient
    from airflow_provider_imagen.api.responses import Generation
    from airflow_provider_imagen.catalogue.request_builder import ImageRequest
    from airflow_provider_imagen.download.downloader import Downloader
    from airflow_provider_imagen.run.input_reader import InputReader

log = logging.getLogger(__name__)


class ApiAdapter:
    """
    The production implementation of :class:`~airflow_provider_imagen.run.ports.Api`.

    :param client: calls the API
    :param downloader: downloads images
    :param inputs: reads the input images that requests refer to; ``None`` when none does
    """

    def __init__(self, *, client: ApiClient, downloader: Downloader, inputs: InputReader | None = None) -> None:
        self._client = client
        self._downloader = downloader
        self._inputs = inputs
        self._lock = threading.Lock()
        self._replacements: dict[str, str | None] = {}

    def generate(
        self, request: ImageRequest, client_request_id: str, *, before_send: Callable[[], None] | None = None
    ) -> Generation:
        """Send one paid request, exactly once; if its model is retired, the error names the replacement."""
        body, files = self._inputs.wire(request) if self._inputs else (request.body, None)
        try:
            return self._client.generate(
                request.path, body, client_request_id=client_request_id, files=files, before_send=before_send
            )
        except ModelWithdrawnError as error:
            raise self._with_replacement(error, str(request.body.get("model"))) from error

    def _with_replacement(self, error: ModelWithdrawnError, model: str) -> ModelWithdrawnError:
        with self._lock:
            if model not in self._replacements:
                self._replacements[model] = self._find_replacement(model)
            replaced_by = self._replacements[model]
        advice = f"Its replacement is {replaced_by!r}." if replaced_by else _similar_models(model)
        return ModelWithdrawnError(
            f"{error} {advice} fallback_models names models to use instead.",
            replaced_by=replaced_by,
            status=error.status,
            kind=error.kind,
            request_id=error.request_id,
            client_request_id=error.client_request_id,
            inference_id=error.inference_id,
            usd=error.usd,
            model=model,
        )

    def _find_replacement(self, model: str) -> str | None:
        """Return a model's replacement from the API's list of deprecations (free to read), else from the catalogue."""
        try:
            rows = self._client.list_deprecations()
        except ImagenError as error:
            log.warning("The list of deprecations could not be read: %s", error)
            rows = []
        for row in rows:
            aliases = row.get("aliases")
            names = [row.get("id"), *(aliases if isinstance(aliases, list) else ())]
            if model in names and isinstance(row.get("replaced_by"), str):
                return str(row["replaced_by"])
        known = find_model(model)
        return known.successor if known else None

    def fetch(self, url: str) -> bytes:
        """Download one image."""
        return self._downloader.fetch(url).data

    @property
    def account(self) -> str:
        """Short hash of the API key that sends the requests."""
        return self._client.settings.account

    @property
    def clock_offset_seconds(self) -> float | None:
        """Seconds that the API's clock is ahead of ours; ``None`` before its first response."""
        return self._client.clock_offset_seconds

    def iter_request_logs(self, **window: Any) -> Iterator[dict[str, Any]]:
        """Return an iterator over the rows of the API's request log."""
        return self._client.iter_request_logs(**window)

    def get_usage(self, *, start: datetime, end: datetime) -> Decimal:
        """Return what the API key has spent in a time window, in USD."""
        return self._client.get_usage(start=start, end=end)


def _similar_models(model: str) -> str:
    names = nearest_models(model)
    return f"Models with a similar name: {', '.join(names)}." if names else "No model has a similar name."
