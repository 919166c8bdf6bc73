import json
import math
import re
from decimal import Decimal
from fractions import Fraction
from numbers import Integral

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_imagen.catalogue.aspect_ratio import requested_ratio
from airflow_provider_imagen.catalogue.lookup import Endpoint, all_models, find_model
from airflow_provider_imagen.catalogue.request_builder import MAX_IMAGES_PER_PROMPT, build_requests
from airflow_provider_imagen.exceptions import InvalidArgumentsError
from airflow_provider_imagen.run.results import ROUNDING
from airflow_provider_imagen.sandbox.image_sizes import image_size
from airflow_provider_imagen.sandbox.model_specs import find_model as find_sandbox_model

IMAGEN = "imagen-3.0-generate-002"
IMAGE_URL = "https://pictures.example/cat.png"
DATA_URI = "data:image/png;base64,iVBORw0KGgo="
MODELS = {model.id: model for model in all_models()}
ENDPOINTS = [
    pytest.param(model.id, endpoint, id=model.id + ("#edits" if endpoint is model.edits else ""))
    for model in all_models()
    for endpoint in (model.generations, model.edits)
    if endpoint
]


def build(can_store=True, **arguments):
    return build_requests(arguments, can_store=can_store)


def problems_with(can_store=True, **arguments):
    """Return the problems as {field: sentence}."""
    with pytest.raises(InvalidArgumentsError) as caught:
        build_requests(arguments, can_store=can_store)
    return {problem.field: problem.allowed for problem in caught.value.problems}


def try_build(arguments, *, can_store=True):
    """Return (requests, None), or ((), the error)."""
    try:
        return build_requests(arguments, can_store=can_store), None
    except InvalidArgumentsError as error:
        return (), error


def image_value(schema):
    kinds = [choice.get("type") for choice in schema.get("anyOf", [schema])]
    return [IMAGE_URL] if kinds == ["array"] else IMAGE_URL


def minimal(model_id, endpoint):
    """Return the smallest request that the documentation allows."""
    arguments = {"model": model_id}
    if "prompt" in endpoint.fields:
        arguments["prompt"] = "a cat"
    for name in endpoint.required:
        if name not in arguments:
            schema = endpoint.fields[name]
            arguments[name] = schema["enum"][0] if "enum" in schema else image_value(schema)
    return arguments


def edges(schema):
    """Return (accepted, rejected) values at each limit of a schema, computed independently of the package."""
    good, bad = [], [object(), None.__class__]
    if "anyOf" in schema:
        for choice in schema["anyOf"]:
            more_good, more_bad = edges(choice)
            good += more_good
            bad += [value for value in more_bad if not isinstance(value, str)]
        if all(choice.get("type") in ("string", "object") for choice in schema["anyOf"]) and "file" not in str(schema):
            bad.append("not-one-of-them")
        return good, bad
    kind = schema.get("type")
    if "enum" in schema:
        good += schema["enum"]
        bad += ["not-one-of-them"] if kind == "string" else [max(schema["enum"]) + 1 if kind != "boolean" else True]
        bad += [value.upper() + "x" for value in schema["enum"] if isinstance(value, str)]
    elif kind in ("integer", "number"):
        step = 1 if kind == "integer" else 0.001
        if "minimum" in schema:
            good.append(schema["minimum"])
            bad.append(schema["minimum"] - step)
        if "maximum" in schema:
            good.append(schema["maximum"])
            bad.append(schema["maximum"] + step)
        bad += ["many", True, [1], {"a": 1}, math.nan, math.inf, -math.inf]
        if kind == "integer":
            bad.append(1.5)
    elif kind == "boolean":
        good += [True, False, "true", "False"]
        bad += ["yes", 1, 0, [True]]
    elif kind == "file" or schema.get("format") == "uri":
        good += [IMAGE_URL, DATA_URI]
        bad += [
            "",
            "cat.png",
            "/tmp/cat.png",
            "s3://bucket/cat.png",
            "ftp://host/cat.png",
            "https://",
            "data:text/plain;base64,AAAA",
            5,
        ]
    elif "sides" in schema:
        low, high = schema["sides"]
        good += [f"{low}x{low}", f"{high}x{high}", f"{low}x{high}"]
        bad += [f"{low - 1}x{low}", f"{high}x{high + 1}", "1024", "1024*1024", "axb"]
    elif kind == "string":
        if "maxLength" in schema:
            good += ["x" * schema["maxLength"]]
            bad.append("x" * (schema["maxLength"] + 1))
        bad += [5, True, ["x"], {"a": "b"}]
    elif kind == "array":
        inner = edges(schema["items"])
        item = inner[0][0] if inner[0] else None
        least, most = schema.get("minItems", 1), schema.get("maxItems")
        good.append([item] * max(least, 1))
        if most:
            good.append([item] * most)
            bad.append([item] * (most + 1))
        if schema.get("minItems"):
            bad.append([])
        bad += [[item, value] for value in inner[1] if isinstance(value, (str, int))]
        bad += [5, {"a": 1}]
    elif kind == "object":
        parts = {name: edges(part) for name, part in schema["properties"].items()}
        first = {name: (good_ or ["owner/repo" if name == "path" else 1024])[0] for name, (good_, _) in parts.items()}
        last = {name: (good_ or ["owner/repo" if name == "path" else 1024])[-1] for name, (good_, _) in parts.items()}
        good += [first, last]
        bad += [{**first, "unknown": 1}, [first], 5]
        bad += [{**first, name: value} for name, (_, bad_) in parts.items() for value in bad_]
        if "width" in parts:
            bad += [{"width": first["width"]}, {}]
            if schema["properties"]["width"].get("multipleOf"):
                bad.append({**first, "width": first["width"] + 1})
    return good, bad


def companions(name, value):
    """Return the fields that the documentation requires next to a value."""
    if name == "alpha_mode" and value in ("custom", "select"):
        return {"alpha_url": IMAGE_URL}
    return {"image_url": IMAGE_URL} if name == "type" and value == "image_edit" else {}


# ---------------------------------------------------------------- every model


@pytest.mark.parametrize(("model_id", "endpoint"), ENDPOINTS)
def test_the_minimal_documented_request_passes_and_requests_urls(model_id, endpoint: Endpoint):
    (request,) = build(can_store=False, **minimal(model_id, endpoint))
    assert request.path == endpoint.path
    assert request.body["model"] == model_id
    assert request.expected_images == 1
    assert request.returns_base64 is False
    switches = {"convert_base64_to_url": True, "response_format": "url", "sync_mode": False}
    assert {name: request.body[name] for name in switches if name in endpoint.fields} == {
        name: value for name, value in switches.items() if name in endpoint.fields
    }


@pytest.mark.parametrize(("model_id", "endpoint"), ENDPOINTS)
def test_every_limit_is_accepted_and_one_step_outside_rejected(model_id, endpoint: Endpoint):
    checked = 0
    for name, schema in endpoint.fields.items():
        good, bad = edges(schema)
        if name in ("num_images", "n"):
            most = MAX_IMAGES_PER_PROMPT if endpoint.max_images in (1, None) else endpoint.max_images
            good = [1, most]
            bad = [value for value in bad if value != 2] + [0, -1, most + 1, 2.5, "0", "two", ""]
        if name == "image" and endpoint.path.endswith("generations"):
            good, bad = [IMAGE_URL, DATA_URI, "iVBORw0KGgoAAAANSUhEUgAA"], ["", "cat.png", 5]
        for value in good:
            arguments = {**minimal(model_id, endpoint), name: value, **companions(name, value)}
            (request, *_) = build(**arguments)
            assert name in request.body, (name, value)
            checked += 1
        for value in bad:
            arguments = {**minimal(model_id, endpoint), name: value}
            with pytest.raises(InvalidArgumentsError) as caught:
                build(**arguments)
            assert any(problem.field.startswith(name) for problem in caught.value.problems), (name, value)
            checked += 1
    assert checked >= 2 * len(endpoint.fields)


@pytest.mark.parametrize(("model_id", "endpoint"), ENDPOINTS)
def test_every_missing_required_field_is_reported(model_id, endpoint: Endpoint):
    whole = minimal(model_id, endpoint)
    for name in endpoint.required:
        if name == "image" and endpoint.path.endswith("edits"):
            continue  # without an image it is a generation
        left = {key: value for key, value in whole.items() if key != name}
        assert problems_with(**left).keys() == {name}
        assert problems_with(**{**left, name: None}).keys() == {name}


@pytest.mark.parametrize(("model_id", "endpoint"), ENDPOINTS)
def test_a_field_the_model_would_ignore_is_rejected(model_id, endpoint: Endpoint):
    for name in (
        "no_such_field",
        "width",
        "images",
        "seed",
        "image_size",
        "size",
        "n",
        "image_urls",
        "negative_prompt",
    ):
        if name in endpoint.fields:
            continue
        sentence = problems_with(**minimal(model_id, endpoint), **{name: 1})[name]
        assert f"`{name}` is not a field of {model_id}, which would ignore it" in sentence


@pytest.mark.parametrize(("model_id", "endpoint"), ENDPOINTS)
def test_num_images_means_that_many_images_on_every_model(model_id, endpoint: Endpoint):
    requests = build(**minimal(model_id, endpoint), num_images=3)
    assert sum(request.expected_images for request in requests) == 3
    own = endpoint.count_field
    if own and endpoint.max_images != 1:
        assert [request.body[own] for request in requests] == [3]
    else:
        assert [request.body.get(own, 1) for request in requests] == [1, 1, 1]
        assert len(build(**minimal(model_id, endpoint), num_images=MAX_IMAGES_PER_PROMPT)) == MAX_IMAGES_PER_PROMPT
    most = MAX_IMAGES_PER_PROMPT if endpoint.max_images in (1, None) else endpoint.max_images
    problems = problems_with(**minimal(model_id, endpoint), num_images=most + 1)
    assert problems == {"num_images": f"a whole number from 1 to {most} is allowed"}


@pytest.mark.parametrize("model_id", [model.id for model in all_models() if model.generations.size_field])
def test_an_aspect_ratio_is_met_exactly_or_rejected(model_id):
    endpoint = MODELS[model_id].generations
    field, schema = endpoint.size_field, endpoint.fields[endpoint.size_field]
    presets = {"square_hd": (1, 1), "portrait_4_3": (3, 4), "portrait_16_9": (9, 16)}
    presets |= {name.replace("portrait", "landscape"): size[::-1] for name, size in presets.items()}
    accepted = 0
    for ratio in ("1:1", "16:9", "9:16", "4:3", "3:4", "3:2", "2:3", "21:9", "2:1", "7:5"):
        requests, error = try_build({**minimal(model_id, endpoint), "aspect_ratio": ratio})
        if error:
            assert [problem.field for problem in error.problems] == ["aspect_ratio"]
            continue
        accepted += 1
        (request,) = requests
        size = request.body[field]
        if field == "aspect_ratio":
            assert size == ratio
            continue
        assert "aspect_ratio" not in request.body
        if isinstance(size, dict):
            width, height = size["width"], size["height"]
            limits = next(choice for choice in schema["anyOf"] if "properties" in choice)["properties"]
            assert limits["width"].get("minimum", 1) <= min(width, height)
            assert max(width, height) <= limits["width"].get("maximum", 4096)
            assert width % 8 == height % 8 == 0
        else:
            width, height = presets.get(size) or map(int, size.split("x"))
        assert Fraction(width, height) == Fraction(*map(int, ratio.split(":")))
    assert accepted or model_id == "bytedance/seededit-3.0-i2i"


@pytest.mark.parametrize("model_id", [model.id for model in all_models()])
def test_the_models_image_size_has_the_requested_ratio(model_id):
    endpoint = MODELS[model_id].generations
    for ratio in (None, "1:1", "16:9", "9:16", "4:3", "3:4", "3:2", "2:3", "21:9", "4:5", "9:20"):
        requests, error = try_build({**minimal(model_id, endpoint), **({"aspect_ratio": ratio} if ratio else {})})
        for request in requests if not error else ():
            requested = request.aspect_ratio
            if ratio is not None:
                assert requested == Fraction(*map(int, ratio.split(":")))
            if requested is not None:
                generated = Fraction(*image_size(find_sandbox_model(model_id), request.body))
                assert 1 / ROUNDING <= generated / requested <= ROUNDING, (ratio, generated)


@pytest.mark.parametrize(
    ("body", "ratio"),
    [
        ({"image_size": {"width": 768, "height": 512}}, Fraction(3, 2)),
        ({"width": 512, "height": 1024, "size": "1024x1024"}, Fraction(1, 2)),
        ({"size": "1536x1024"}, Fraction(3, 2)),
        ({"size": "2K", "aspect_ratio": "9:19.5"}, Fraction(9) / Fraction("19.5")),
        ({"image_size": "portrait_16_9"}, Fraction(9, 16)),
        ({"size": "auto"}, None),
        ({"size": "adaptive"}, None),
        ({"aspect_ratio": "auto"}, None),
        ({"image_size": {"width": 768}}, None),
        ({"width": 0, "height": 512}, None),
        ({"width": float("inf"), "height": 512}, None),
        ({"width": "1024", "height": "512"}, Fraction(2)),
        ({"size": "1536X1024"}, Fraction(3, 2)),
        ({"size": "1024x00"}, None),
        ({"width": "768", "height": None, "size": ["1:1"], "aspect_ratio": {}}, None),
        ({}, None),
    ],
)
def test_the_requested_ratio_is_read_from_the_body(body, ratio):
    assert requested_ratio(body) == ratio


# ---------------------------------------------------------------- sizes


def test_sizes_are_near_a_megapixel_or_near_the_models_default():
    assert build(model="flux/schnell", prompt="a", aspect_ratio="3:2")[0].body["image_size"] == {
        "width": 1248,
        "height": 832,
    }
    assert build(model="bytedance/seedream-5-0-pro", prompt="a", aspect_ratio="1:1")[0].body["image_size"] == {
        "width": 1536,
        "height": 1536,
    }
    assert build(model="bytedance/seedream-4-5", prompt="a", aspect_ratio="1:1")[0].body["image_size"] == {
        "width": 2048,
        "height": 2048,
    }
    assert build(model="dall-e-2", prompt="a", aspect_ratio="1:1")[0].body["size"] == "1024x1024"
    assert build(model="bytedance/seedream-3.0", prompt="a", aspect_ratio="1:1")[0].body["size"] == "1024x1024"


def test_a_ratio_without_a_size_is_rejected_with_the_choices():
    problems = problems_with(model="dall-e-3", prompt="a", aspect_ratio="16:9")
    assert problems == {
        "aspect_ratio": "dall-e-3 has sizes for 1:1, 4:7, 7:4; or set size: 1024x1024, 1024x1792 or 1792x1024"
    }


@pytest.mark.parametrize(
    "ratio", ["wide", "16/9", "0:1", "1:0", ":", "", "16:9:1", "-1:2", "1e9:1", 1.5, True, [16, 9], "9999:1"]
)
def test_an_invalid_ratio_is_rejected(ratio):
    for model in ("flux/schnell", IMAGEN, "openai/gpt-image-1"):
        assert problems_with(model=model, prompt="a", aspect_ratio=ratio).keys() == {"aspect_ratio"}


def test_a_ratio_and_a_size_together_are_rejected():
    problems = problems_with(model="flux/dev", prompt="a", aspect_ratio="1:1", image_size="square")
    assert problems == {"aspect_ratio": "set either aspect_ratio or image_size, not both"}


# ---------------------------------------------------------------- counts and seeds


def test_the_seed_is_incremented_across_requests():
    requests = build(model="bytedance/seedream-4-5", prompt="a", num_images=3, seed=7)
    assert [request.body["seed"] for request in requests] == [7, 8, 9]
    assert ["seed" in request.body for request in build(model="bytedance/seedream-4-5", prompt="a", num_images=2)] == [
        False,
        False,
    ]


def test_a_model_with_a_count_field_gets_one_request_with_the_given_seed():
    (request,) = build(model=IMAGEN, prompt="a", num_images=4, seed=7)
    assert (request.body["seed"], request.expected_images) == (7, 4)


def test_an_incremented_seed_never_leaves_its_range():
    highest = 2**31 - 1
    assert len(build(model="alibaba/qwen-image-2-0", prompt="a", num_images=3, seed=highest - 2)) == 3
    sentence = problems_with(model="alibaba/qwen-image-2-0", prompt="a", num_images=3, seed=highest - 1)["seed"]
    assert str(highest - 2) in sentence


def test_a_seed_the_model_would_ignore_is_rejected():
    assert "would ignore it" in problems_with(model="openai/gpt-image-1", prompt="a", seed=1)["seed"]


def test_the_models_own_count_field_works_but_not_together_with_num_images():
    (request,) = build(model="x-ai/grok-imagine-image", prompt="a", n="10")
    assert (request.body["n"], request.expected_images) == (10, 10)
    assert problems_with(model="x-ai/grok-imagine-image", prompt="a", n=2, num_images=2) == {
        "n": "set either num_images or n for x-ai/grok-imagine-image, not both"
    }
    assert "its count field is `num_images`" in problems_with(model=IMAGEN, prompt="a", n=2)["n"]


@pytest.mark.parametrize(
    "count", [0, 5, -1, True, False, 2.5, "2.5", "2e0", "", "two", math.nan, math.inf, "nan", "٢", [2], {"n": 2}]
)
def test_imagen_accepts_only_one_to_four_images(count):
    assert problems_with(model=IMAGEN, prompt="a", num_images=count) == {
        "num_images": "a whole number from 1 to 4 is allowed"
    }


@pytest.mark.parametrize("name", ["gpt-image-1", "openai/gpt-image-1"])
def test_an_alias_gets_every_check_and_is_sent_as_written(name):
    (request,) = build(model=name, prompt="a", aspect_ratio="3:2", num_images=1)
    assert request.body == {
        "model": name,
        "prompt": "a",
        "size": "1536x1024",
        "n": 1,
        "response_format": "url",
    }
    assert "size" in problems_with(model=name, prompt="a", aspect_ratio="16:9")["aspect_ratio"]
    assert "would ignore it" in problems_with(model=name, prompt="a", seed=1)["seed"]
    uploads = build(model=name, prompt="a", input_images=[IMAGE_URL])
    assert (uploads[0].path, uploads[0].body["image"]) == ("/v1/images/edits", IMAGE_URL)


# ---------------------------------------------------------------- templates render to text


def test_rendered_text_is_read_as_numbers_and_booleans():
    (request,) = build(
        model=IMAGEN, prompt="a", num_images="4", seed=" 17 ", enhance_prompt="False", add_watermark="false"
    )
    assert (request.body["num_images"], request.body["seed"]) == (4, 17)
    assert (request.body["enhance_prompt"], request.body["add_watermark"]) == (False, False)
    (request,) = build(
        model="flux/dev", prompt="a", guidance_scale="3.5", image_size={"width": "1024", "height": "768"}
    )
    assert request.body["guidance_scale"] == 3.5
    assert request.body["image_size"] == {"width": 1024, "height": 768}


@Integral.register
class NumpyTwo:
    """Like NumPy's ``int64``: an ``Integral`` but not an ``int``."""

    def __int__(self):
        return 2


TWOS = [2, 2.0, "2", "2.0", " 2.00 ", Decimal(2), Decimal("2.0"), Fraction(2), NumpyTwo()]


@pytest.mark.parametrize("two", TWOS)
def test_a_whole_number_may_be_text_or_any_numeric_type(two):
    """In counts, seeds and steps, even where the schema only says number."""
    (request,) = build(model=IMAGEN, prompt="a", seed=two, num_images=two)
    assert repr((request.body["seed"], request.body["num_images"], request.expected_images)) == "(2, 2, 2)"
    (request,) = build(model="flux/schnell", prompt="a", num_inference_steps=two, num_images=two)
    assert repr((request.body["num_inference_steps"], request.body["num_images"])) == "(2, 2)"
    (request,) = build(model="x-ai/grok-imagine-image", prompt="a", n=two)
    assert repr(request.body["n"]) == "2"
    assert len(build(model="recraft-v3", prompt="a", num_images=two)) == 2
    assert repr(build(model="some/new-model", prompt="a", num_images=two)[0].body["num_images"]) == "2"


def test_the_sides_of_a_size_may_be_whole_floats():
    (request,) = build(model="flux/dev", prompt="a", image_size={"width": 1024.0, "height": "768.0"})
    assert repr(request.body["image_size"]) == "{'width': 1024, 'height': 768}"


@pytest.mark.parametrize("seed", [7.5, "7.5", Decimal("7.5"), math.nan, math.inf, Decimal("NaN"), Decimal("1e999999")])
def test_anything_but_a_whole_number_is_rejected(seed):
    assert problems_with(model=IMAGEN, prompt="a", seed=seed).keys() == {"seed"}
    assert problems_with(model=IMAGEN, prompt="a", num_images=seed).keys() == {"num_images"}


def test_sides_are_whole_and_positive_even_where_the_schema_only_says_number():
    model = "hunyuan/hunyuan-image-v3-text-to-image"
    assert build(model=model, prompt="a", image_size={"width": 1, "height": 999})
    for side in (0, -5, 10.5):
        assert problems_with(model=model, prompt="a", image_size={"width": side, "height": 64}) == {
            "image_size.width": "a whole number of at least 1 is allowed"
        }


def test_text_stays_text_in_text_fields():
    assert build(model=IMAGEN, prompt="42")[0].body["prompt"] == "42"
    assert build(model="flux-pro", prompt="a", safety_tolerance="2")[0].body["safety_tolerance"] == "2"


# ---------------------------------------------------------------- prompts


@pytest.mark.parametrize("prompt", [None, "", "   ", "\n\t"])
def test_an_empty_prompt_is_rejected(prompt):
    assert problems_with(model=IMAGEN, prompt=prompt) == {"prompt": "non-empty text is needed"}


@pytest.mark.parametrize("prompt", [5, True, ["a"], {"a": "b"}, b"a"])
def test_a_prompt_that_is_not_text_is_rejected(prompt):
    assert problems_with(model=IMAGEN, prompt=prompt) == {"prompt": "text of at most 400 characters is allowed"}


def test_the_error_for_a_long_prompt_gives_its_length_and_the_limit():
    problem = problems_with(model=IMAGEN, prompt="x" * 401)["prompt"]
    assert problem.startswith("at most 400 characters are allowed, it has 401; ")
    assert build(model=IMAGEN, prompt="é" * 400)


@pytest.mark.parametrize(
    "model",
    [model for model in all_models() if "maxLength" in model.generations.fields.get("prompt", {})],
    ids=lambda model: model.id,
)
@pytest.mark.parametrize("characters", [401, 900, 2_001, 4_001, 6_001, 32_001])
def test_the_error_for_a_long_prompt_names_models_of_the_same_kind_that_accept_it(model, characters):
    limit = model.generations.fields["prompt"]["maxLength"]
    if characters <= limit:
        return
    arguments = minimal(model.id, model.generations) | {"prompt": "x" * characters}
    advice = problems_with(**arguments)["prompt"].partition("; ")[2]
    if found := re.fullmatch(r"the longest that a model of this kind accepts is ([\d,]+) \((\S+)\)", advice):
        named, longest = [found[2]], int(found[1].replace(",", ""))
        assert longest < characters
    else:
        named, longest = advice.removeprefix("models that accept it, cheapest first: ").split(", "), characters
    assert 1 <= len(named) <= 3
    for name in named:
        assert MODELS[name].kind == model.kind
        assert build(**minimal(name, MODELS[name].generations) | {"prompt": "x" * longest})
    prices = [MODELS[name].price.usd for name in named if MODELS[name].price]
    assert prices == sorted(prices)


def test_a_picture_book_prompt_of_900_characters_fits_the_cheapest_models_named():
    problem = problems_with(model=IMAGEN, prompt="x" * 900)["prompt"]
    assert problem == (
        "at most 400 characters are allowed, it has 900; "
        "models that accept it, cheapest first: flux/schnell, alibaba/z-image-turbo, blackforestlabs/flux-2"
    )


@pytest.mark.parametrize(
    "model",
    [model for model in all_models() if model.endpoint_for(["input_images"]).input_fields],
    ids=lambda model: model.id,
)
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("characters", [2_500, 5_000, 33_000])
def test_the_models_named_for_a_long_prompt_take_the_input_images(model, images, characters):
    endpoint = model.endpoint_for(["input_images"])
    limit = endpoint.fields["prompt"].get("maxLength") if "prompt" in endpoint.fields else None
    if limit is None or characters <= limit or (endpoint.max_inputs or images) < images:
        return
    inputs = {"input_images": [IMAGE_URL] * images}
    advice = problems_with(model=model.id, prompt="x" * characters, **inputs)["prompt"].partition("; ")[2]
    named = re.findall(r"[\w.-]+/[\w./-]+", advice) if advice.startswith("models that accept it") else []
    assert named or "accepts" in advice
    for name in named:
        assert build(model=name, prompt="x" * characters, **inputs)


def test_models_without_a_prompt_reject_one_but_accept_an_empty_one():
    arguments = {"model": "topaz-labs/sharpen", "mode": "Standard", "image_url": IMAGE_URL}
    assert "takes no prompt" in problems_with(**arguments, prompt="sharper")["prompt"]
    assert "prompt" not in build(**arguments, prompt="")[0].body


# ---------------------------------------------------------------- URLs and base64


@pytest.mark.parametrize(
    ("model", "own", "links", "base64"),
    [
        (IMAGEN, "convert_base64_to_url", True, False),
        ("openai/gpt-image-1", "response_format", "url", "b64_json"),
        ("bytedance/seedream-v4-text-to-image", "sync_mode", False, True),
    ],
)
def test_base64_is_requested_in_the_models_own_field_and_requires_storage(model, own, links, base64):
    for wanted in ({own: base64}, {"convert_base64_to_url": False}, {"convert_base64_to_url": "false"}):
        (request,) = build(model=model, prompt="a", **wanted)
        assert (request.body[own], request.returns_base64) == (base64, True)
        problems = problems_with(can_store=False, model=model, prompt="a", **wanted)
        assert problems.keys() == wanted.keys()
        assert all("output_path" in sentence for sentence in problems.values())
    for wanted in ({}, {own: links}, {"convert_base64_to_url": True}):
        (request,) = build(can_store=False, model=model, prompt="a", **wanted)
        assert (request.body[own], request.returns_base64) == (links, False)
        assert ("convert_base64_to_url" in request.body) == (own == "convert_base64_to_url")


def test_a_model_that_always_returns_urls_rejects_base64():
    assert "convert_base64_to_url" not in build(model="flux/dev", prompt="a", convert_base64_to_url=True)[0].body
    assert (
        "always returns URLs"
        in problems_with(model="flux/dev", prompt="a", convert_base64_to_url=False)["convert_base64_to_url"]
    )
    assert problems_with(model="flux/dev", prompt="a", convert_base64_to_url="maybe").keys() == {
        "convert_base64_to_url"
    }


def test_two_base64_switches_together_are_rejected():
    problems = problems_with(model="openai/gpt-image-1", prompt="a", convert_base64_to_url=True, response_format="url")
    assert problems.keys() == {"convert_base64_to_url"}


# ---------------------------------------------------------------- rules beyond the schemas


def test_a_seed_together_with_a_watermark_is_rejected():
    assert problems_with(model=IMAGEN, prompt="a", seed=1, add_watermark=True).keys() == {"seed"}
    assert problems_with(model=IMAGEN, prompt="a", seed="1", add_watermark="true").keys() == {"seed"}
    assert build(model=IMAGEN, prompt="a", seed=1, add_watermark=False)
    assert build(model=IMAGEN, prompt="a", add_watermark=True)


def test_a_transparent_background_needs_a_format_with_transparency():
    model = "openai/gpt-image-1"
    assert build(model=model, prompt="a", background="transparent")
    assert build(model=model, prompt="a", background="transparent", output_format="webp")
    problems = problems_with(model=model, prompt="a", background="transparent", output_format="jpeg")
    assert problems == {"background": "requires output_format png or webp"}


def test_beeble_needs_a_prompt_or_a_reference_and_a_mask_for_its_mask_modes():
    base = {"model": "beeble/switchx-image-to-image", "image_url": IMAGE_URL}
    assert problems_with(**base).keys() == {"prompt"}
    assert build(**base, reference_image_url=IMAGE_URL)
    assert problems_with(**base, prompt="a", alpha_mode="custom").keys() == {"alpha_url"}


def test_uploads_go_to_the_edits_endpoint():
    (request,) = build(model="openai/gpt-image-1", prompt="a", image=[IMAGE_URL] * 16, mask=DATA_URI, num_images=10)
    assert (request.path, request.body["n"], request.expected_images) == ("/v1/images/edits", 10, 10)
    assert problems_with(model="openai/gpt-image-1", prompt="a", image=[IMAGE_URL] * 17).keys() == {"image"}
    assert "not a field" in problems_with(model="openai/gpt-image-1-mini", prompt="a", image=IMAGE_URL)["image"]


# ---------------------------------------------------------------- messages


def test_all_problems_are_reported_at_once_with_the_items_prefix():
    with pytest.raises(InvalidArgumentsError) as caught:
        build_requests(
            {"model": IMAGEN, "prompt": "", "num_images": 9, "aspect_ratio": "2:1", "image_size": "square", "seed": -1},
            can_store=True,
            where="prompt[3].",
        )
    assert {problem.field for problem in caught.value.problems} == {
        "prompt[3].prompt",
        "prompt[3].num_images",
        "prompt[3].aspect_ratio",
        "prompt[3].image_size",
        "prompt[3].seed",
    }


def test_the_error_for_an_unknown_field_suggests_the_right_one():
    problems = problems_with(
        model=IMAGEN, prompt="a", image_size="square_hd", enhance_promt=True, response_format="url"
    )
    assert problems == {
        "image_size": "`image_size` is not a field of imagen-3.0-generate-002, which would ignore it; "
        "its size field is `aspect_ratio` (1:1, 9:16, 16:9, 3:4 or 4:3)",
        "enhance_promt": "`enhance_promt` is not a field of imagen-3.0-generate-002, which would ignore it; "
        "did you mean `enhance_prompt`?",
        "response_format": "`response_format` is not a field of imagen-3.0-generate-002, which would ignore it; "
        "its URL or base64 field is `convert_base64_to_url` (true or false)",
    }
    assert (
        "its image field is `image_url`"
        in problems_with(model="flux/dev/image-to-image", prompt="a", image_urls=[IMAGE_URL])["image_urls"]
    )


def test_the_error_for_an_invalid_size_names_the_side_and_the_reason():
    model = "flux/schnell"
    problems = problems_with(model=model, prompt="a", image_size={"width": 1000, "height": 99999})
    sentence = "a whole number from 64 to 1536 that is a multiple of 32 is allowed"
    assert problems == {"image_size.width": sentence, "image_size.height": sentence}
    assert problems_with(model=model, prompt="a", image_size={"width": 1024}) == {
        "image_size": "width and height are required"
    }


@pytest.mark.parametrize(
    "arguments",
    [
        {"model": "klingai/image-o1", "image_urls": ["https://h.example/a.png?X-Sig=SECRET"] * 11},
        {"model": "klingai/image-o1", "image_urls": ["ftp://h.example/a.png?X-Sig=SECRET"]},
        {"model": "klingai/image-o1", "image_urls": "https://h.example/a.png?X-Sig=SECRET"},
        {"model": "klingai/image-o1", "image_urls": {"url": "https://h.example/a.png?X-Sig=SECRET"}},
        {"model": "flux/dev/image-to-image", "image_url": "https://h.example/a b.png?X-Sig=SECRET"},
        {"model": "flux/dev/image-to-image", "image_url": "ftp://me:SECRET@h.example/a.png"},
        {"model": "flux/dev", "image_url": "https://h.example/a.png?X-Sig=SECRET"},
        {"model": "https://h.example/a.png?X-Sig=SECRET "},
        {"model": "no/such", "thing": {"url": "https://h.example/a.png?X-Sig=SECRET", "at": math.nan}},
    ],
)
def test_no_message_shows_a_urls_query_or_login(arguments):
    with pytest.raises(InvalidArgumentsError) as caught:
        build_requests({"prompt": "a", **arguments}, can_store=True)
    assert "SECRET" not in str(caught.value)
    assert "SECRET" not in repr(caught.value.problems)


# ---------------------------------------------------------------- models the catalogue does not know


def test_an_unknown_model_gets_its_arguments_as_they_are():
    (request,) = build(can_store=False, model="new/model", prompt="a", num_images="3", anything={"goes": [1]}, seed="7")
    assert request.body == {
        "model": "new/model",
        "prompt": "a",
        "num_images": 3,
        "anything": {"goes": [1]},
        "seed": "7",
    }
    assert (request.path, request.expected_images, request.returns_base64) == ("/v1/images/generations", 3, False)


def test_basic_checks_apply_to_unknown_models():
    assert problems_with(model="new/model", prompt=5) == {"prompt": "text is allowed"}
    assert problems_with(model="new/model", prompt="a", num_images=1000).keys() == {"num_images"}
    assert problems_with(model="new/model", prompt="a", x=math.nan, y=object()).keys() == {"x", "y"}
    assert problems_with(can_store=False, model="new/model", prompt="a", response_format="b64_json").keys() == {
        "output_path"
    }


@pytest.mark.parametrize("model", [None, "", "  ", " flux/dev", 5, ["flux/dev"]])
def test_a_model_that_is_not_an_id_is_rejected(model):
    assert problems_with(model=model, prompt="a").keys() == {"model"}


def test_an_alias_is_sent_as_written(monkeypatch):
    model = find_model("google/nano-banana-2")
    assert build(model=model.aliases[0], prompt="a")[0].body["model"] == model.aliases[0]


# ---------------------------------------------------------------- robustness and speed

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([IMAGE_URL, DATA_URI, "4", "true", "1:1"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=8) | st.sampled_from(["width", "height", "path"]), inner, max_size=4)
    ),
    max_leaves=8,
)
FIELD_NAMES = st.sampled_from(
    sorted({name for model in all_models() for name in model.generations.fields} | {"mask"})
) | st.text(max_size=10)


@settings(max_examples=600, deadline=None)
@given(
    model=st.sampled_from([*MODELS, "no/such-model"]) | JSON_VALUES,
    arguments=st.dictionaries(FIELD_NAMES, JSON_VALUES, max_size=5),
    prompt=st.just("a cat") | JSON_VALUES,
    can_store=st.booleans(),
)
def test_any_json_gives_valid_requests_or_one_error(model, arguments, prompt, can_store):
    requests, error = try_build({**arguments, "model": model, "prompt": prompt}, can_store=can_store)
    assert bool(requests) != bool(error)
    if error:
        assert error.problems
        assert str(error)
    for request in requests:
        json.dumps(dict(request.body), allow_nan=False)
        assert 1 <= request.expected_images <= MAX_IMAGES_PER_PROMPT
        assert can_store or not request.returns_base64
        known = find_model(model)
        if known:
            endpoint = known.edits if request.path.endswith("edits") else known.generations
            assert set(request.body) - {"model"} <= set(endpoint.fields)


@pytest.mark.parametrize(
    "value",
    [10**6000, -(10**6000), "9" * 6000, [[]] * 3, {"a": {"b": {}}}, "\ud800", "x" * 100_000],
    ids=["huge", "hugely negative", "digits", "lists", "mappings", "surrogate", "long"],
)
def test_extreme_values_are_rejected_or_sent_but_never_crash(value):
    deep = value
    for _ in range(3000):
        deep = [deep]
    for name in (
        "prompt",
        "seed",
        "image_size",
        "aspect_ratio",
        "num_images",
        "convert_base64_to_url",
        "loras",
        "unknown",
    ):
        for monster in (value, deep):
            for model in ("blackforestlabs/flux-2-lora", IMAGEN, "no/such-model"):
                requests, error = try_build({"model": model, "prompt": "a", name: monster})
                assert bool(requests) != bool(error)
                assert len(str(error)) < 2000


def test_the_given_arguments_are_not_modified():
    arguments = {"model": "flux/dev", "prompt": "a", "num_images": "2", "aspect_ratio": "16:9", "image_size": None}
    before = json.dumps(arguments)
    build_requests(arguments, can_store=True)
    assert json.dumps(arguments) == before


def test_problem_names_and_sentences_read_as_one_sentence():
    with pytest.raises(InvalidArgumentsError) as caught:
        build(model=IMAGEN, prompt="a", num_images=9)
    assert re.fullmatch(r"num_images=9: a whole number from 1 to 4 is allowed", str(caught.value))
