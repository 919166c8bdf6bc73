from __future__ import annotations

import base64
import io
import re
from decimal import Decimal

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from .conftest import IMAGEN


def test_imagen_responds_in_the_observed_format(generate, sandbox):
    answer = generate(num_images=2)

    assert answer.status_code == 200
    body = answer.json()
    assert list(body) == ["data", "meta"]
    assert len(body["data"]) == 2
    for item in body["data"]:
        assert item["mime_type"] == "image/png"
        assert item["b64_json"] is None
        link = rf"{re.escape(sandbox.cdn_url)}/generations/[a-z]+/\d{{13}}-[0-9a-f-]{{36}}\.png"
        assert re.fullmatch(link, item["url"])
        assert item["prompt"].startswith("a red fox, ")
    assert body["meta"]["usage"] == {"credits_used": 168000, "usd_spent": 0.084}


def test_cost_and_ids_are_in_the_headers(generate):
    answer = generate(headers={"X-Client-Request-Id": "dag.task-1:0_a"})

    assert answer.headers["x-client-request-id"] == "dag.task-1:0_a"
    assert len(answer.headers["x-inference-id"]) == 21
    assert answer.headers["x-aimlapi-credits-used"] == "84000"
    assert answer.headers["x-aimlapi-usd-spent"] == "0.042"


@pytest.mark.parametrize("bad", ["with space", "ä".encode().decode("latin-1"), "x" * 129, "a/b"])
def test_an_invalid_client_request_id_is_dropped_silently(generate, sandbox, bad):
    answer = generate(headers={"X-Client-Request-Id": bad})

    assert answer.status_code == 200
    assert "x-client-request-id" not in answer.headers
    assert sandbox.ledger()[0].client_request_id is None


def test_a_client_request_id_of_128_characters_is_kept(generate, sandbox):
    generate(headers={"X-Client-Request-Id": "x" * 128})

    assert sandbox.ledger()[0].client_request_id == "x" * 128


def test_the_prompt_is_not_rewritten_with_enhance_prompt_false(generate):
    assert "prompt" not in generate(enhance_prompt=False).json()["data"][0]


@pytest.mark.parametrize(
    ("ratio", "size"),
    [("1:1", (64, 64)), ("16:9", (88, 48)), ("9:16", (48, 88)), ("4:3", (80, 56)), ("3:4", (56, 80))],
)
def test_the_aspect_ratio_determines_the_size(generate, ratio, size):
    url = generate(aspect_ratio=ratio).json()["data"][0]["url"]

    assert Image.open(io.BytesIO(requests.get(url, timeout=10).content)).size == size


def test_base64_replaces_the_url_on_request(generate, sandbox):
    item = generate(convert_base64_to_url=False).json()["data"][0]

    assert item["url"] is None
    assert Image.open(io.BytesIO(base64.b64decode(item["b64_json"], validate=True))).format == "PNG"
    assert sandbox.seen("/generations/") == []


def test_the_ledger_has_one_charge_per_billed_request(generate, sandbox):
    answer = generate(num_images=3, headers={"X-Client-Request-Id": "one"})
    generate(prompt="")
    generate(num_images=9)

    first, second = sandbox.ledger()
    assert (first.client_request_id, first.model, first.prompt, first.images) == ("one", IMAGEN, "a red fox", 3)
    assert first.usd == Decimal("0.126")
    assert first.inference_id == answer.headers["x-inference-id"]
    assert second.prompt == ""
    assert sandbox.balance_usd == Decimal(100) - Decimal("0.168")


@pytest.mark.parametrize("header", [None, "", "Bearer wrong", "Basic 5a9db0c5000000000000000000000000"])
def test_a_request_without_the_key_is_401(sandbox, header):
    headers = {} if header is None else {"Authorization": header}
    answer = requests.post(f"{sandbox.url}/v1/images/generations", json={}, headers=headers, timeout=10)

    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert {"title", "status", "message", "instance", "requestId", "timestamp", "error"} == set(answer.json())


def test_a_body_outside_the_limits_is_rejected_with_a_tree_of_fields(generate, sandbox):
    answer = generate(prompt="x" * 401, num_images=5, aspect_ratio="2:1", seed=2**32, enhance_prompt="yes")

    assert answer.status_code == 400
    body = answer.json()
    assert body["message"] == "Body validation error!"
    assert body["statusCode"] == 400
    assert set(body["meta"]) == {"_errors", "prompt", "num_images", "aspect_ratio", "seed", "enhance_prompt"}
    assert body["meta"]["prompt"]["_errors"] == ["String must contain at most 400 character(s)"]
    assert body["meta"]["enhance_prompt"]["_errors"] == ["Expected boolean, received string"]
    assert sandbox.ledger() == []


@pytest.mark.parametrize(
    ("body", "meta"),
    [
        ({"model": "flux/schnell", "image_size": "huge"}, {"image_size": {"_errors": ["Invalid input"]}}),
        (
            {"model": "flux/schnell", "image_size": {"width": 1000, "height": "512"}},
            {
                "image_size": {
                    "_errors": [],
                    "width": {"_errors": ["Number must be a multiple of 32"]},
                    "height": {"_errors": ["Expected integer, received string"]},
                }
            },
        ),
        (
            {"model": "alibaba/qwen-image-2-0", "image_size": {"width": 512}},
            {"image_size": {"_errors": [], "height": {"_errors": ["Required"]}}},
        ),
        (
            {"model": "alibaba/qwen-image-2-0", "image_urls": ["https://example.com/a.png", "a.png", None]},
            {
                "image_urls": {
                    "_errors": [],
                    "1": {"_errors": ["Invalid url"]},
                    "2": {"_errors": ["Expected string, received null"]},
                }
            },
        ),
        (
            {"model": "alibaba/qwen-image-2-0", "image_urls": []},
            {"image_urls": {"_errors": ["Array must contain at least 1 element(s)"]}},
        ),
        (
            {"aspect_ratio": 5, "num_images": True, "seed": 1.5},
            {
                "aspect_ratio": {"_errors": ["Expected string, received number"]},
                "num_images": {"_errors": ["Expected integer, received boolean"]},
                "seed": {"_errors": ["Expected integer, received number"]},
            },
        ),
        (
            {"model": "openai/gpt-image-2", "quality": "best"},
            {"quality": {"_errors": ["Invalid enum value. Expected 'low' | 'high' | 'medium', received 'best'"]}},
        ),
    ],
)
def test_each_validation_error_is_listed_at_its_field(generate, body, meta):
    answer = generate(**body)

    assert answer.status_code == 400
    assert answer.json()["meta"] == {"_errors": [], **meta}


def test_the_edges_of_the_limits_are_accepted(generate):
    assert generate(prompt="x" * 400, num_images=4, seed=2**32 - 1).status_code == 200
    assert generate(seed=0, aspect_ratio="9:16", person_generation="dont_allow").status_code == 200


def test_unknown_fields_are_ignored_silently(generate):
    answer = generate(size="256x256", n=3, image_size={"width": 1024, "height": 320})

    assert answer.status_code == 200
    assert len(answer.json()["data"]) == 1


def test_a_missing_prompt_or_model_is_rejected(generate, sandbox, key):
    url = f"{sandbox.url}/v1/images/generations"
    without_prompt = requests.post(url, json={"model": IMAGEN}, headers=key, timeout=10)
    without_model = requests.post(url, json={"prompt": "x"}, headers=key, timeout=10)

    assert without_prompt.json()["meta"]["prompt"] == {"_errors": ["Required"]}
    assert without_model.json()["meta"]["model"] == {"_errors": ["Required"]}


@pytest.mark.parametrize("raw", [b"", b"{", b"[1]", b'"x"', b"\xff\xfe"])
def test_a_body_that_is_not_a_json_object_is_rejected(sandbox, key, raw):
    answer = requests.post(f"{sandbox.url}/v1/images/generations", data=raw, headers=key, timeout=10)

    assert answer.status_code == 400


@pytest.mark.parametrize("count", [0, -1])
def test_less_than_one_image_is_rejected(generate, count):
    assert generate(num_images=count).status_code == 400


def test_a_seed_with_a_watermark_is_rejected(generate, sandbox):
    answer = generate(seed=1, add_watermark=True)

    assert answer.status_code == 400
    assert answer.json()["message"] == "Seed is not supported when watermark is enabled"
    assert sandbox.ledger() == []


@pytest.mark.parametrize("model", ["no-such-model", "google/imagen-3.0-generate-002", "dall-e-3", 7, ""])
def test_an_unknown_or_withdrawn_model_is_404(generate, model):
    assert generate(model=model).status_code == 404


def test_the_path_without_v1_is_an_alias(sandbox, key):
    body = {"model": IMAGEN, "prompt": "x"}

    assert requests.post(f"{sandbox.url}/images/generations", json=body, headers=key, timeout=10).status_code == 200


def test_an_empty_account_gets_a_403_of_the_documented_kind(generate, sandbox):
    sandbox.configure(balance_usd=Decimal("0.05"))

    assert generate().status_code == 200
    answer = generate()

    assert answer.status_code == 403
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["error"]["data"]["kind"] == "err_insufficent_credits"
    assert len(sandbox.ledger()) == 1


def test_an_edit_accepts_uploaded_files(sandbox, key):
    out = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 40, 40)).save(out, "PNG")
    answer = requests.post(
        f"{sandbox.url}/v1/images/edits",
        headers=key,
        data={"model": "openai/gpt-image-1", "prompt": "make it warmer", "n": "2"},
        files=[
            ("image", ("one.png", out.getvalue(), "image/png")),
            ("image", ("two.png", out.getvalue(), "image/png")),
        ],
        timeout=10,
    )

    assert answer.status_code == 200
    assert len(answer.json()["data"]) == 2
    picture = Image.open(io.BytesIO(requests.get(answer.json()["data"][0]["url"], timeout=10).content)).convert("RGB")
    red, green, blue = picture.resize((1, 1)).getpixel((0, 0))
    assert red > 1.5 * max(green, blue)


def test_an_edit_without_a_file_or_with_too_many_is_rejected(sandbox, key):
    url, data = f"{sandbox.url}/v1/images/edits", {"model": "openai/gpt-image-1", "prompt": "x"}
    many = [("image", (f"{number}.png", b"x", "image/png")) for number in range(17)]
    mask_only = [("mask", ("m.png", b"x", "image/png"))]

    assert requests.post(url, headers=key, data=data, files=many, timeout=10).status_code == 400
    assert requests.post(url, headers=key, data=data, files=mask_only, timeout=10).status_code == 400
    assert requests.post(url, headers=key, json=data, timeout=10).status_code == 400


def test_a_model_without_edits_is_404_there(sandbox, key):
    answer = requests.post(
        f"{sandbox.url}/v1/images/edits",
        headers=key,
        data={"model": IMAGEN, "prompt": "x"},
        files=[("image", ("one.png", b"x", "image/png"))],
        timeout=10,
    )

    assert answer.status_code == 404


def test_an_edited_image_keeps_the_colours_of_its_input(generate):
    out = io.BytesIO()
    Image.new("RGB", (16, 16), (30, 60, 210)).save(out, "PNG")
    uri = f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
    url = generate(model="reve/edit-image", prompt="night market", image_url=uri).json()["data"][0]["url"]

    picture = Image.open(io.BytesIO(requests.get(url, timeout=10).content)).convert("RGB")
    red, green, blue = picture.resize((1, 1)).getpixel((0, 0))
    assert blue > 1.5 * max(red, green)


def test_requests_per_minute_are_limited_until_the_minute_ends(generate, sandbox, clock):
    sandbox.configure(requests_per_minute=2)

    assert [generate().status_code for _ in range(3)] == [200, 200, 429]
    clock.now += 61
    assert generate().status_code == 200


def test_a_fixed_window_is_aligned_with_the_clock(generate, sandbox, clock):
    clock.now = 1_795_000_000.0 + 19  # 19 s into a window of 20
    sandbox.configure(requests_per_minute=6, counting="fixed", window_seconds=20)

    assert [generate().status_code for _ in range(3)] == [200, 200, 429]
    clock.now += 1
    assert [generate().status_code for _ in range(3)] == [200, 200, 429]


def test_a_token_bucket_accepts_a_burst_and_refills_evenly(generate, sandbox, clock):
    sandbox.configure(requests_per_minute=60, counting="bucket", burst=3)

    assert [generate().status_code for _ in range(4)] == [200, 200, 200, 429]
    clock.now += 1
    assert [generate().status_code for _ in range(2)] == [200, 429]
    clock.now += 60
    assert [generate().status_code for _ in range(4)] == [200, 200, 200, 429]


def test_counts_survive_a_change_of_the_limit(generate, sandbox):
    sandbox.configure(requests_per_minute=2)
    assert [generate().status_code for _ in range(3)] == [200, 200, 429]
    sandbox.configure(requests_per_minute=3)

    assert [generate().status_code for _ in range(2)] == [200, 429]


@pytest.mark.parametrize(
    ("settings", "seconds"),
    [
        ({"requests_per_minute": 1}, "60"),
        ({"requests_per_minute": 3, "counting": "bucket"}, "20"),
        ({"requests_per_minute": 600, "counting": "bucket"}, "1"),  # a tenth of a second, in whole seconds
        ({"max_concurrent": 0}, "1"),
    ],
)
def test_a_limit_can_send_retry_after(generate, sandbox, settings, seconds):
    sandbox.configure(**settings)
    while (answer := generate()).status_code == 200:
        pass
    assert "retry-after" not in answer.headers
    sandbox.configure(tells_retry_after=True)

    assert generate().headers["retry-after"] == seconds


@pytest.mark.parametrize(("envelope", "status"), [("problem", "status"), ("old", "statusCode")])
def test_a_limit_can_use_either_error_format(generate, sandbox, envelope, status):
    sandbox.configure(requests_per_minute=0, limit_envelope=envelope)

    answer = generate()
    assert answer.status_code == answer.json()[status] == 429
    assert (answer.headers["content-type"] == "application/problem+json") == (envelope == "problem")


@pytest.mark.parametrize(
    "settings", [{"counting": "weekly"}, {"window_seconds": 0}, {"burst": 0}, {"limit_envelope": "new"}]
)
def test_an_invalid_limit_is_rejected(sandbox, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        sandbox.configure(**settings)


texts = st.text(st.characters(exclude_categories=()), max_size=8)  # half surrogate pairs too, as JSON may hold them
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
field_names = st.sampled_from(
    ["prompt", "num_images", "n", "seed", "image_size", "size", "aspect_ratio", "image_urls", "image_url", "colors"]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    model=st.sampled_from([IMAGEN, "recraft-v3", "openai/gpt-image-2", "flux/kontext-pro/image-to-image"])
    | json_values,
    body=st.dictionaries(field_names, json_values, max_size=4),
)
def test_no_body_breaks_the_server(generate, model, body):
    assert generate(**{"model": model, **body}).status_code in (200, 400, 403, 404)
