from __future__ import annotations

import io
from decimal import Decimal

import pytest
import requests
from PIL import Image

from airflow_provider_imagen.sandbox.image_sizes import image_size
from airflow_provider_imagen.sandbox.model_specs import all_models, find_model

LIVE = [model for model in all_models().values() if model.status == "live"]


def minimal_body(model):
    body = {"model": model.id}
    for name in model.required:
        schema = model.fields[name]
        forms = [schema, *schema.get("anyOf", ())]
        if "enum" in schema:
            body[name] = schema["enum"][0]
        elif any(form.get("type") == "array" for form in forms) and name == "image_urls":
            body[name] = ["https://example.com/picture.png"]
        else:
            body[name] = "https://example.com/picture.png" if name.startswith("image") else "a quiet harbour"
    return body


@pytest.mark.parametrize("model", LIVE, ids=lambda model: model.id)
def test_every_model_responds_to_its_smallest_request_in_its_own_shape(model, sandbox, key):
    answer = requests.post(f"{sandbox.url}/v1/images/generations", json=minimal_body(model), headers=key, timeout=30)

    assert answer.status_code == 200, answer.text
    body = answer.json()
    places = {"A": ["data"], "B": ["images"], "C": ["data", "images"], "D": ["data", "created"]}[model.shape]
    assert set(places) <= set(body)
    assert ("images" in body) == (model.shape in "BC")
    url = (body.get("data") or body["images"])[0]["url"]
    if model.shape == "C":
        assert [item["url"] for item in body["data"]] == [item["url"] for item in body["images"]]
    picture = Image.open(io.BytesIO(requests.get(url, timeout=30).content))
    assert picture.format == model.format.upper()
    assert sandbox.ledger()[0].usd == model.price({})


@pytest.mark.parametrize("model", LIVE, ids=lambda model: model.id)
def test_every_model_rejects_a_request_without_its_required_fields(model, sandbox, key):
    for missing in model.required:
        body = {name: value for name, value in minimal_body(model).items() if name != missing}
        answer = requests.post(f"{sandbox.url}/v1/images/generations", json=body, headers=key, timeout=30)

        assert answer.json()["meta"][missing] == {"_errors": ["Required"]}


@pytest.mark.parametrize(
    ("name", "shape", "usd", "count_field", "prompt_limit"),
    [
        ("imagen-3.0-generate-002", "A", "0.042", "num_images", 400),
        ("flux/schnell", "B", "0.004", "num_images", 4000),
        ("bytedance/seedream-v4-text-to-image", "C", "0.0315", "num_images", 4000),
        ("openai/gpt-image-1-mini", "A", "0.013", "n", 32000),
        ("alibaba/qwen-image", "D", "0.0455", "num_images", 4000),
        ("reve/create-image", "A", "0.063", None, 2560),
        ("x-ai/grok-imagine-image", "A", "0.026", "n", None),
    ],
)
def test_the_data_matches_the_documentation(name, shape, usd, count_field, prompt_limit):
    """Written by hand from the model pages, to find mistakes in the data file."""
    model = find_model(name)

    assert (model.shape, model.usd, model.count_field) == (shape, Decimal(usd), count_field)
    assert model.fields["prompt"].get("maxLength") == prompt_limit


def test_aliases_refer_to_the_same_model():
    assert find_model("gpt-image-1") is find_model("openai/gpt-image-1")
    assert find_model("google/gemini-3-pro-image-preview") is find_model("google/nano-banana-pro")
    assert find_model("GPT-IMAGE-1") is None
    assert find_model(None) is None


@pytest.mark.parametrize(
    ("name", "body", "size"),
    [
        ("flux/schnell", {"image_size": "portrait_16_9"}, (576, 1024)),
        ("flux/schnell", {"image_size": {"width": 640, "height": 320}}, (640, 320)),
        ("flux/schnell", {"image_size": {"width": 640}}, (640, 768)),
        ("flux/schnell", {}, (1024, 768)),
        ("openai/gpt-image-1", {"size": "1024x1536"}, (1024, 1536)),
        ("bytedance/seedream-4-5", {"image_size": "2K"}, (2048, 2048)),
        ("google/nano-banana-2", {"aspect_ratio": "16:9", "resolution": "2K"}, (2816, 1536)),
        ("flux-pro/v1.1-ultra", {}, (1408, 768)),
        ("x-ai/grok-imagine-image", {"aspect_ratio": "auto", "resolution": "1k"}, (1024, 1024)),
        ("beeble/switchx-image-to-image", {"max_resolution": 720}, (1280, 720)),
        ("topaz-labs/sharpen", {}, (1024, 1024)),
    ],
)
def test_every_size_format_is_understood(name, body, size):
    assert image_size(find_model(name), body) == size


def test_sizes_that_are_not_multiples_of_32_are_rejected(generate):
    answer = generate(model="flux/schnell", image_size={"width": 1000, "height": 512})

    assert answer.json()["meta"]["image_size"]["width"]["_errors"] == ["Number must be a multiple of 32"]


def test_a_price_that_depends_on_a_field_is_charged(generate, sandbox):
    for quality in ("low", "high"):
        generate(model="openai/gpt-image-2", quality=quality)

    low, high = (charge.usd for charge in sandbox.ledger())
    assert low < find_model("openai/gpt-image-2").usd < high


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_the_image_has_the_requested_format(generate, output_format):
    url = generate(model="openai/gpt-image-2", output_format=output_format).json()["data"][0]["url"]
    answer = requests.get(url, timeout=10)

    assert answer.headers["content-type"] == f"image/{output_format}"
    assert Image.open(io.BytesIO(answer.content)).format == output_format.upper()


def test_response_format_and_sync_mode_return_inline_images(generate):
    encoded = generate(model="openai/gpt-image-2", response_format="b64_json").json()["data"][0]
    inline = generate(model="bytedance/seedream-v4-text-to-image", sync_mode=True).json()["images"][0]

    assert encoded["url"] is None
    assert encoded["b64_json"]
    assert inline["url"].startswith("data:image/png;base64,")


def test_a_transparent_jpeg_is_rejected(generate):
    answer = generate(model="openai/gpt-image-2", background="transparent", output_format="jpeg")

    assert answer.status_code == 400
