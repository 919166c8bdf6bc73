from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_imagen.catalogue.request_builder import build_requests
from airflow_provider_imagen.exceptions import ModelWithdrawnError
from airflow_provider_imagen.run.api_adapter import ApiAdapter


class RetiredModel:
    """A client whose API returns 404 for every model, and states a cost for it."""

    def generate(self, *_: Any, client_request_id: str, **__: Any) -> Any:
        raise ModelWithdrawnError(
            "gone", replaced_by=None, status=404, usd=0.3, inference_id="i-1", client_request_id=client_request_id
        )

    def list_deprecations(self) -> list[dict[str, Any]]:
        return []


def test_the_error_for_a_retired_model_keeps_its_cost_and_ids():
    ports = ApiAdapter(client=RetiredModel(), downloader=None)
    (request,) = build_requests({"model": "flux/dev", "prompt": "a fox"}, can_store=False)
    with pytest.raises(ModelWithdrawnError, match="fallback_models") as caught:
        ports.generate(request, "c-1")
    error = caught.value
    assert (error.usd, error.inference_id, error.client_request_id, error.status) == (0.3, "i-1", "c-1", 404)
