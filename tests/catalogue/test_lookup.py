import subprocess
import sys
from datetime import date
from decimal import Decimal
from importlib import resources

import pytest

from airflow_provider_imagen.catalogue.lookup import Endpoint, all_models, find_model, nearest_models

SIDE = {"type": "integer", "minimum": 64, "maximum": 1536, "multipleOf": 32}
URI = {"type": "string", "format": "uri"}
SIZES = ["1024x1024", "1024x1536", "1536x1024"]
PRESETS = ["square_hd", "square", "portrait_4_3", "portrait_16_9", "landscape_4_3", "landscape_16_9"]

# Copied by hand from the vendor's model pages, to catch mistakes in the generated catalogue.
FACTS = {
    "imagen-3.0-generate-002": {
        "kind": "text_to_image",
        "required": {"prompt"},
        "count_field": "num_images",
        "max_images": 4,
        "size_field": "aspect_ratio",
        "base64_field": "convert_base64_to_url",
        "fields": {
            "prompt", "num_images", "aspect_ratio", "seed", "enhance_prompt", "person_generation", "safety_setting",
            "add_watermark", "convert_base64_to_url",
        },
        "details": {
            "prompt": {"type": "string", "maxLength": 400},
            "num_images": {"type": "integer", "maximum": 4, "default": 1},
            "aspect_ratio": {"type": "string", "enum": ["1:1", "9:16", "16:9", "3:4", "4:3"], "default": "1:1"},
            "seed": {"type": "integer", "minimum": 0, "maximum": 4_294_967_295},
        },
    },
    "flux/schnell": {
        "kind": "text_to_image",
        "required": {"prompt"},
        "count_field": "num_images",
        "max_images": 4,
        "size_field": "image_size",
        "base64_field": None,
        "fields": {"prompt", "num_images", "seed", "image_size", "num_inference_steps", "enable_safety_checker"},
        "details": {
            "seed": {"type": "integer", "minimum": 1},
            "image_size": {
                "anyOf": [
                    {
                        "type": "object",
                        "properties": {
                            "width": {**SIDE, "default": 1024},
                            "height": {**SIDE, "default": 768},
                        },
                    },
                    {"type": "string", "enum": PRESETS},
                ],
                "default": "landscape_4_3",
            },
        },
    },
    "openai/gpt-image-1": {
        "kind": "text_to_image",
        "required": {"prompt"},
        "count_field": "n",
        "max_images": 1,
        "size_field": "size",
        "base64_field": "response_format",
        "fields": {
            "prompt", "size", "quality", "output_format", "background", "moderation", "n", "output_compression",
            "response_format",
        },
        "details": {"size": {"type": "string", "enum": SIZES, "default": "1024x1024"}},
    },
    "x-ai/grok-imagine-image": {
        "kind": "text_to_image",
        "required": {"prompt"},
        "count_field": "n",
        "max_images": 10,
        "size_field": "aspect_ratio",
        "base64_field": "response_format",
        "fields": {"prompt", "n", "response_format", "aspect_ratio", "resolution"},
        "details": {
            "prompt": {"type": "string"},
            "resolution": {"type": "string", "enum": ["1k", "2k"], "default": "2k"},
        },
    },
    "bytedance/seedream-4-5": {
        "kind": "text_to_image",
        "required": {"prompt"},
        "count_field": None,
        "max_images": 1,
        "size_field": "image_size",
        "base64_field": "response_format",
        "fields": {"prompt", "image_urls", "image_size", "seed", "response_format", "watermark"},
        "details": {
            "seed": {"type": "integer"},
            "image_urls": {"type": "array", "minItems": 1, "maxItems": 14, "items": URI},
        },
    },
    "topaz-labs/sharpen": {
        "kind": "upscale",
        "required": {"mode", "image_url"},
        "count_field": None,
        "max_images": 1,
        "size_field": None,
        "base64_field": None,
        "fields": {
            "mode", "image_url", "output_format", "subject_detection", "face_enhancement", "strength",
            "face_enhancement_creativity", "face_enhancement_strength", "minor_denoise",
        },
        "details": {"strength": {"type": "number", "minimum": 0.01, "maximum": 1}},
    },
}  # fmt: skip


@pytest.mark.parametrize("model_id", FACTS)
def test_the_catalogue_matches_the_models_page(model_id):
    model, facts = find_model(model_id), FACTS[model_id]
    endpoint = model.generations
    assert endpoint.path == "/v1/images/generations"
    assert model.kind == facts["kind"]
    assert set(endpoint.required) == facts["required"]
    assert set(endpoint.fields) == facts["fields"]
    assert {name: endpoint.fields[name] for name in facts["details"]} == facts["details"]
    for name in ("count_field", "max_images", "size_field", "base64_field"):
        assert getattr(endpoint, name) == facts[name], name


def test_only_four_models_accept_uploads_for_up_to_ten_images():
    with_edits = {model.id: model.edits for model in all_models() if model.edits}
    assert set(with_edits) == {
        "openai/gpt-image-1",
        "openai/gpt-image-2",
        "openai/gpt-image-2.5-flare",
        "openai/gpt-image-2.5-sunburst",
    }
    for edits in with_edits.values():
        assert edits.path == "/v1/images/edits"
        assert set(edits.required) == {"prompt", "image"}
        assert edits.max_images == 10
        assert edits.fields["mask"] == {"type": "file"}
        assert edits.fields["image"]["anyOf"][1] == {"type": "array", "maxItems": 16, "items": {"type": "file"}}


def test_an_image_selects_the_edits_endpoint_only_if_generations_has_no_field_for_it():
    assert find_model("openai/gpt-image-1").endpoint_for({"image"}).path == "/v1/images/edits"
    assert find_model("openai/gpt-image-1").endpoint_for({"prompt"}).path == "/v1/images/generations"
    assert find_model("alibaba/qwen-image-edit").endpoint_for({"image"}).path == "/v1/images/generations"


def test_every_documented_model_is_listed_once():
    ids = [model.id for model in all_models()]
    assert len(ids) == len(set(ids)) == 91
    assert ids == sorted(ids)


def test_an_alias_finds_the_model_and_an_id_wins_over_an_alias():
    model = find_model("google/nano-banana-2")
    assert model.id == "google/nano-banana-2"
    assert model.aliases == ("google/gemini-3-1-flash-image-preview",)
    assert find_model("google/gemini-3-1-flash-image-preview").id == "google/gemini-3-1-flash-image-preview"
    for known in all_models():
        assert all(find_model(alias) is not None for alias in known.aliases)


@pytest.mark.parametrize("unknown", ["", "no/such-model", "Imagen", None, 3, ["flux/dev"]])
def test_an_unknown_model_is_none(unknown):
    assert find_model(unknown) is None


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("google/imagen-3.0-generate-002", "imagen-3.0-generate-002"),
        ("imagen-3", "imagen-3.0-generate-002"),
        ("gpt-image-1", "openai/gpt-image-1"),
        ("flux-schnell", "flux/schnell"),
        ("FLUX/Schnell", "flux/schnell"),
        ("seedream-4.5", "bytedance/seedream-4-5"),
    ],
)
def test_the_intended_model_is_suggested_for_a_misspelt_one(written, meant):
    assert meant in nearest_models(written)


@pytest.mark.parametrize(
    ("schema", "most"),
    [({"enum": [1, 2, 4]}, 4), ({"enum": [1]}, 1), ({"minimum": 1, "maximum": 9}, 9), ({"type": "number"}, None)],
)
def test_the_maximum_number_of_images_is_read_from_the_count_field(schema, most):
    assert Endpoint("/v1/images/generations", (), {"n": schema}).max_images == most


def test_nothing_is_suggested_for_nonsense():
    assert nearest_models("zzzzzzzzzzzzzzzz") == []


def test_retired_models_are_marked_and_imagen_names_its_replacement():
    assert find_model("imagen-3.0-generate-002").successor == "google/gemini-3-1-flash-image-preview"
    assert {model.id for model in all_models() if model.status == "deprecated"} == {
        "bytedance/seededit-3.0-i2i",
        "bytedance/seedream-3.0",
        "dall-e-2",
        "dall-e-3",
        "imagen-4.0-ultra-generate-preview-06-06",
        "microsoft/mai-image-2.5",
        "stabilityai/stable-diffusion-xl-base-1.0",
        "x-ai/grok-2-image",
    }
    known = {model.id for model in all_models()}
    assert {model.successor for model in all_models() if model.successor} <= known


def test_no_replacement_has_an_announced_end():
    for model in all_models():
        if model.successor:
            successor = find_model(model.successor)
            assert (successor.status, successor.ends, successor.successor) == ("listed", None, None), model.id


def test_announced_ends_have_a_date_and_a_source():
    ends = {model.id: model.ends for model in all_models() if model.ends}
    assert ends["google/gemini-2.5-flash-image"].date == "2026-10-02"
    assert ends["openai/gpt-image-1"].date == "2026-10-23"
    assert ends["openai/gpt-image-1-5"].date == ends["openai/gpt-image-1-mini"].date == "2026-12-01"
    assert all(date.fromisoformat(end.date) and end.source and end.seen for end in ends.values())


@pytest.mark.parametrize(
    ("name", "model_id"),
    [
        ("gpt-image-1", "openai/gpt-image-1"),
        ("gpt-image-1-5", "openai/gpt-image-1-5"),
        ("gpt-image-1-mini", "openai/gpt-image-1-mini"),
        ("gpt-image-2", "openai/gpt-image-2"),
        ("gpt-image-2.5-flare", "openai/gpt-image-2.5-flare"),
        ("imagen-4.0-fast-generate-001", "google/imagen-4.0-fast-generate-001"),
        ("gemini-2.5-flash-image", "google/gemini-2.5-flash-image"),
        ("nano-banana-2", "google/nano-banana-2"),
        ("imagen4/preview", "imagen4/preview"),
    ],
)
def test_a_name_without_its_developer_finds_the_same_model(name, model_id):
    assert find_model(name).id == model_id


def test_a_name_without_a_family_finds_no_model():
    assert [find_model(name) for name in ("dev", "schnell", "v1.1", "preview", "")] == [None] * 5


def test_a_known_price_names_its_source():
    price = find_model("google/imagen-4.0-fast-generate-001").price
    assert (price.usd, price.source, price.seen) == (Decimal("0.026"), "observed", "2026-04")
    assert find_model("openai/gpt-image-2").edits_price.usd == Decimal("0.095")
    assert all(0 < model.price.usd < 1 for model in all_models() if model.price)


def test_models_whose_sides_must_be_multiples_of_32_all_say_so():
    stepped = [
        model.id
        for model in all_models()
        for choice in model.generations.fields.get("image_size", {}).get("anyOf", [])
        if choice.get("properties", {}).get("width", {}).get("multipleOf") == 32
    ]
    assert len(stepped) == 29
    assert "bytedance/seedream-4-5" not in stepped


def test_the_catalogue_file_holds_no_descriptions():
    text = resources.files("airflow_provider_imagen.catalogue").joinpath("models.json").read_text(encoding="utf-8")
    assert "description" not in text
    assert len(text) < 120_000


def test_importing_the_catalogue_loads_neither_http_nor_jsonschema_nor_airflow():
    code = (
        "import sys\n"
        "from airflow_provider_imagen.catalogue import aspect_ratio, lookup, pricing, request_builder, validation\n"
        "lookup.find_model('flux/dev')\n"
        "heavy = {'requests', 'jsonschema', 'PIL', 'airflow', 'starlette'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or None)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
