from __future__ import annotations

import re

import requests

from airflow_provider_imagen.catalogue.pricing import PriceList
from airflow_provider_imagen.catalogue.request_builder import ImageRequest
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


def test_prices_are_included_on_request(sandbox):
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


def test_every_listed_price_has_the_documented_format_and_can_be_parsed(sandbox):
    """The fields in the examples of the complete-model-list page (2026-08-19)."""
    rows = ask(sandbox, "/v1/models", include="pricing").json()["data"]
    prices = PriceList.from_response({"data": rows})

    for row in rows:
        pricing = row["pricing"]
        rates = {"fixed": pricing.get("units"), "variants": pricing.get("variants")}[pricing["kind"]]
        members = {"fixed": {"name", "measure", "price", "per"}, "variants": {"when", "price", "unit", "per"}}
        assert all(set(rate) == members[pricing["kind"]] for rate in rates)
        request = ImageRequest("/v1/images/generations", {"model": row["id"]}, 1, returns_base64=False)
        assert prices.quote(request).source == "live", row["id"]


def test_a_model_links_to_its_openapi_document(sandbox):
    (entry,) = ask(sandbox, "/v1/models", id="openai/gpt-image-2").json()["data"]
    document = requests.get(entry["info"]["docsJson"], timeout=10).json()
    post = document["paths"]["/v1/images/generations"]["post"]
    schema = post["requestBody"]["content"]["application/json"]["schema"]

    assert schema["required"] == ["model", "prompt"]
    assert schema["properties"]["model"]["enum"] == ["openai/gpt-image-2"]
    assert schema["properties"]["quality"]["enum"] == ["low", "high", "medium"]
    assert "/v1/images/edits" in document["paths"]
    assert ask(sandbox, "/docs-json", model="nothing").status_code == 404


def test_withdrawn_models_are_listed_with_their_replacement(sandbox):
    data = {entry["id"]: entry for entry in ask(sandbox, "/v1/models/deprecations").json()["data"]}

    assert data["dall-e-3"]["status"] == "withdrawn"
    assert data["dall-e-3"]["replaced_by"] == "openai/gpt-image-1"
    assert data["microsoft/mai-image-2.5"]["status"] == "withdrawn"
    assert IMAGEN not in data
    for entry in data.values():
        assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", entry["shutdown_at"])
        assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", entry["deprecated_at"])
        assert entry["reason"] == "provider_delisted"


def test_the_deprecations_are_filtered_sorted_and_cached_as_documented(sandbox):
    """The model-deprecations page, 2026-08."""

    def ids(**query):
        return [entry["id"] for entry in ask(sandbox, "/v1/models/deprecations", **query).json()["data"]]

    sandbox.add_fault(Fault("withdrawn", model=IMAGEN))
    whole = ids()
    assert whole[0] == "microsoft/mai-image-2.5"  # withdrawn last, so it comes first
    assert IMAGEN in whole
    assert ids(status="WITHDRAWN") == ids(status="nonsense") == ids(since="soon") == whole
    assert ids(status="superseded,deprecated") == []
    assert ids(since="2026-08-01") == ["microsoft/mai-image-2.5"]
    paths = [f"{root}/{name}" for root in ("/v1/models", "/models", "/api/v1/models") for name in ("deprecated",)]
    for path in (*paths, "/models/deprecations"):
        assert [entry["id"] for entry in ask(sandbox, path).json()["data"]] == whole
    answer = ask(sandbox, "/v1/models/deprecations")
    assert answer.headers["cache-control"] == "public, max-age=300"
    again = requests.get(answer.url, headers={"If-None-Match": answer.headers["etag"]}, timeout=10)
    assert (again.status_code, again.content) == (304, b"")


def test_a_model_is_found_by_any_of_its_names(sandbox):
    """The complete-model-list page, 2026-08-19: singular, not under /v1, unescaped slashes, any case."""
    for name in ("openai/gpt-image-2", "gpt-image-2", "OpenAI/GPT-Image-2"):
        answer = ask(sandbox, f"/model/{name}", include="pricing").json()
        assert (answer["object"], answer["data"]["id"]) == ("model", "openai/gpt-image-2")
        assert answer["data"]["pricing"]["kind"] == "variants"
    (listed,) = ask(sandbox, "/v1/models", id="openai/gpt-image-2").json()["data"]
    assert ask(sandbox, "/model/openai/gpt-image-2").json()["data"] == listed
    for unknown in ("no/such", "dall-e-3", ""):
        assert ask(sandbox, f"/model/{unknown}").status_code == 404


def test_an_unchanged_list_returns_304(sandbox):
    answer = ask(sandbox, "/v1/models", include="pricing")
    tag = answer.headers["etag"]
    assert re.fullmatch(r'W/"[^"]+"', tag)
    for known in (tag, tag.removeprefix("W/"), f'"other", {tag}', "*"):
        again = requests.get(answer.url, headers={"If-None-Match": known}, timeout=10)
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    other = requests.get(f"{sandbox.url}/v1/models", headers={"If-None-Match": tag}, timeout=10)
    assert other.status_code == 200


def test_sections_and_filters_match_the_documentation(sandbox):
    (whole,) = ask(sandbox, "/v1/models", include="all", id="FLUX/DEV").json()["data"]
    assert {"modalities", "capabilities", "pricing"} <= set(whole)
    assert whole["modalities"] == {"input": ["text"], "output": ["image"]}
    assert whole["info"]["docsUrl"].startswith("https://docs.aimlapi.com/api-references/image-models/")
    (bare,) = ask(sandbox, "/v1/models", include="nonsense", id="flux/dev").json()["data"]
    assert not {"modalities", "capabilities", "pricing"} & set(bare)

    def count(**query):
        return len(ask(sandbox, "/v1/models", **query).json()["data"])

    assert count(output_modalities="IMAGE") == count(tags="playground:image") == count()
    assert 0 < count(input_modalities="image") < count()
    assert count(output_modalities="video") == count(tags="tier:9") == 0
    assert count(id="flux/dev", input_modalities="image") == 0
    assert count(capabilities=["text_to_image", "image_to_image"]) == count()


def test_a_withdrawn_fault_withdraws_a_model_everywhere(sandbox, generate):
    sandbox.add_fault(Fault("withdrawn", model=IMAGEN, replaced_by="google/imagen-4.0-generate-001"))
    data = {entry["id"]: entry for entry in ask(sandbox, "/v1/models/deprecations").json()["data"]}

    assert [generate().status_code for _ in range(2)] == [404, 404]
    assert generate(model="google/imagen-4.0-generate-001").status_code == 200
    assert data[IMAGEN]["replaced_by"] == "google/imagen-4.0-generate-001"
    assert ask(sandbox, "/v1/models", id=IMAGEN).json()["data"] == []
    assert ask(sandbox, "/docs-json", model=IMAGEN).status_code == 404


def test_an_unknown_path_is_404_in_the_old_envelope(sandbox, key):
    answer = requests.get(f"{sandbox.url}/v1/nothing", headers=key, timeout=10)

    assert answer.status_code == answer.json()["statusCode"] == 404
    assert requests.get(f"{sandbox.url}/v1/images/generations", headers=key, timeout=10).status_code == 405
