from __future__ import annotations

import requests

from airflow_provider_imagen.api.pricing import PriceList
from airflow_provider_imagen.api.request import ImageRequest
from airflow_provider_imagen.sandbox import Fault

from .conftest import IMAGEN


def ask(sandbox, path, **query):
    return requests.get(f"{sandbox.url}{path}", params=query, timeout=10)


def test_the_catalogue_needs_no_key_and_omits_withdrawn_models(sandbox):
    entries = ask(sandbox, "/v1/models").json()["data"]
    ids = [entry["id"] for entry in entries]

    assert len(ids) == len(set(ids)) > 75
    assert IMAGEN in ids
    assert "dall-e-3" not in ids
    assert all({"id", "aliases", "type", "info", "tags"} <= set(entry) for entry in entries)
    assert all("pricing" not in entry for entry in entries)


def test_the_other_paths_of_the_catalogue_are_aliases(sandbox):
    answers = [ask(sandbox, path).json() for path in ("/v1/models", "/models", "/api/v1/models")]

    assert answers[0] == answers[1] == answers[2]


def test_the_catalogue_is_filtered_by_id_and_type(sandbox):
    def ids(**query):
        return {entry["id"] for entry in ask(sandbox, "/v1/models", **query).json()["data"]}

    assert ids(id=IMAGEN) == {IMAGEN}
    assert ids(id=f"gpt-image-2,{IMAGEN}") == {"openai/gpt-image-2", IMAGEN}
    assert ids(id=["flux/dev", "recraft-v3"]) == {"flux/dev", "recraft-v3"}
    assert ids(type="openai/image-generations") == ids()
    assert ids(type="openai/chat-completions") == set()


def test_prices_come_when_asked_for(sandbox):
    (fixed,) = ask(sandbox, "/v1/models", include="pricing", id=IMAGEN).json()["data"]
    (variants,) = ask(sandbox, "/v1/models", details="true", id="openai/gpt-image-2").json()["data"]

    assert fixed["pricing"]["kind"] == "fixed"
    assert fixed["pricing"]["units"] == [{"name": "image", "measure": "output", "price": 0.042, "per": 1}]
    assert variants["pricing"]["kind"] == "variants"
    assert variants["pricing"]["dimensions"] == ["quality"]
    assert variants["pricing"]["variants"][0] == {
        "when": {"quality": "low"},
        "price": 0.0135,
        "unit": "image",
        "per": 1,
    }


def test_every_price_of_the_list_has_the_documented_form_and_is_read(sandbox):
    """The members that the examples of the complete-model-list page have (2026-08-19)."""
    rows = ask(sandbox, "/v1/models", include="pricing").json()["data"]
    prices = PriceList.from_answer({"data": rows})

    for row in rows:
        pricing = row["pricing"]
        rates = {"fixed": pricing.get("units"), "variants": pricing.get("variants")}[pricing["kind"]]
        members = {"fixed": {"name", "measure", "price", "per"}, "variants": {"when", "price", "unit", "per"}}
        assert all(set(rate) == members[pricing["kind"]] for rate in rates)
        request = ImageRequest("/v1/images/generations", {"model": row["id"]}, 1, answers_inline=False)
        assert prices.quote(request).source == "live", row["id"]


def test_a_model_leads_to_its_own_openapi_document(sandbox):
    (entry,) = ask(sandbox, "/v1/models", id="openai/gpt-image-2").json()["data"]
    document = requests.get(entry["info"]["docsJson"], timeout=10).json()
    post = document["paths"]["/v1/images/generations"]["post"]
    schema = post["requestBody"]["content"]["application/json"]["schema"]

    assert schema["required"] == ["model", "prompt"]
    assert schema["properties"]["model"]["enum"] == ["openai/gpt-image-2"]
    assert schema["properties"]["quality"]["enum"] == ["low", "high", "medium"]
    assert "/v1/images/edits" in document["paths"]
    assert ask(sandbox, "/docs-json", model="nothing").status_code == 404


def test_withdrawn_models_are_listed_with_their_successor(sandbox):
    data = {entry["id"]: entry for entry in ask(sandbox, "/v1/models/deprecations").json()["data"]}

    assert data["dall-e-3"]["status"] == "withdrawn"
    assert data["dall-e-3"]["replaced_by"] == "openai/gpt-image-1"
    assert IMAGEN not in data


def test_a_withdrawn_fault_withdraws_a_model_everywhere(sandbox, generate):
    sandbox.add_fault(Fault("withdrawn", model=IMAGEN, replaced_by="google/imagen-4.0-generate-001"))
    data = {entry["id"]: entry for entry in ask(sandbox, "/v1/models/deprecations").json()["data"]}

    assert [generate().status_code for _ in range(2)] == [404, 404]
    assert generate(model="google/imagen-4.0-generate-001").status_code == 200
    assert data[IMAGEN]["replaced_by"] == "google/imagen-4.0-generate-001"
    assert ask(sandbox, "/v1/models", id=IMAGEN).json()["data"] == []
    assert ask(sandbox, "/docs-json", model=IMAGEN).status_code == 404


def test_an_unknown_address_is_404_in_the_old_envelope(sandbox, key):
    answer = requests.get(f"{sandbox.url}/v1/nothing", headers=key, timeout=10)

    assert answer.status_code == answer.json()["statusCode"] == 404
    assert requests.get(f"{sandbox.url}/v1/images/generations", headers=key, timeout=10).status_code == 405
