import json
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_imagen.catalogue.input_images import ImageFile
from airflow_provider_imagen.catalogue.lookup import all_models, find_model
from airflow_provider_imagen.catalogue.pricing import PriceList, Quote
from airflow_provider_imagen.catalogue.request_builder import ImageRequest, build_requests

IMAGEN = "imagen-3.0-generate-002"


IMAGE_FOR_A_DOLLAR = {"name": "image", "measure": "output", "price": 1, "per": 1}


def request(**arguments):
    arguments.setdefault("prompt", "a cat")
    return build_requests(arguments, can_store=True)[0]


def quote(pricing, *, aliases=(), **arguments):
    """Quote a request from a ``pricing`` block as returned by ``GET /v1/models?include=pricing``."""
    row = {"id": arguments["model"], "aliases": list(aliases), "type": "openai/image-generations", "pricing": pricing}
    return PriceList.from_response({"object": "list", "data": [row]}).quote(request(**arguments))


def last_known_price(model_id, body):
    """Quote a body without live prices, for the endpoint that it is sent to."""
    model = find_model(model_id)
    path = model.endpoint_for(body).path if model else "/v1/images/generations"
    return PriceList().quote(ImageRequest(path, {**body, "model": model_id}, 1, returns_base64=False)).usd


def fixed(*units, currency="USD"):
    return {"kind": "fixed", "currency": currency, "units": list(units)}


def variants(*rates, dimensions=("quality",)):
    return {"kind": "variants", "currency": "USD", "dimensions": list(dimensions), "variants": list(rates)}


def test_the_last_known_price_covers_all_images_of_the_request():
    assert last_known_price("google/imagen-4.0-fast-generate-001", {"prompt": "a"}) == Decimal("0.026")
    assert last_known_price("google/imagen-4.0-fast-generate-001", {"num_images": 4}) == Decimal("0.104")
    assert last_known_price("x-ai/grok-imagine-image", {"n": 10}) == Decimal("0.26")


def test_an_upload_has_the_last_known_price_of_its_endpoint():
    assert last_known_price("openai/gpt-image-2", {"prompt": "a", "n": 1}) == Decimal("0.054")
    assert last_known_price("openai/gpt-image-2", {"prompt": "a", "n": 2, "image": "…"}) == Decimal("0.190")
    assert last_known_price("openai/gpt-image-1", {"prompt": "a", "image": "…"}) is None


def known_price(model_id, **body):
    return last_known_price(model_id, body)


@pytest.mark.parametrize(
    ("model_id", "usd"),
    [
        ("bytedance/seedream-v4-edit", "0.0315"),
        ("blackforestlabs/flux-2-lora", "0.02205"),
        ("flux/srpo/image-to-image", "0.02625"),
        ("google/nano-banana-pro-edit", "0.1575"),
    ],
)
def test_documented_prices_are_known(model_id, usd):
    """USD per image in the examples on the model pages, 2026-08."""
    assert known_price(model_id) == Decimal(usd)


@pytest.mark.parametrize(
    ("model_id", "usd"),
    [
        ("blackforestlabs/flux-2-edit", "0.0378"),
        ("blackforestlabs/flux-2-lora-edit", "0.06615"),
        ("blackforestlabs/flux-2-pro-edit", "0.0945"),
    ],
)
def test_inputs_cost_as_in_the_documented_examples(model_id, usd):
    """The pages' examples combine two images; a third one and further outputs cost more (2026-08)."""
    two = ["https://h.example/a.png", "https://h.example/b.png"]
    assert known_price(model_id, image_urls=two) == Decimal(usd)
    assert known_price(model_id, image_urls=[*two, two[0]]) == Decimal(usd) * 4 / 3
    assert known_price(model_id, image_urls=two[:1]) == Decimal(usd) * 2 / 3 == known_price(model_id)
    count_field = find_model(model_id).generations.count_field
    assert count_field is None or known_price(model_id, image_urls=two, **{count_field: 2}) == 2 * Decimal(usd)


@pytest.mark.parametrize(
    ("model_id", "field", "rising"),
    [
        ("openai/gpt-image-2", "quality", ("low", "medium", "high")),
        ("openai/gpt-image-1-mini", "quality", ("low", "medium", "high")),
        ("google/nano-banana-pro", "resolution", ("1K", "4K")),
        ("google/gemini-3-pro-image-preview", "resolution", ("1K", "4K")),
        ("google/nano-banana-pro-edit", "resolution", ("1K", "4K")),
        ("google/nano-banana-2", "resolution", ("1K", "2K", "4K")),
        ("google/gemini-3-1-flash-image-preview", "resolution", ("1K", "2K", "4K")),
        ("dall-e-3", "quality", ("standard", "hd")),
    ],
)
def test_a_more_expensive_setting_has_a_higher_last_known_price(model_id, field, rising):
    prices = [known_price(model_id, **{field: value}) for value in rising]
    assert prices == sorted(set(prices))
    assert known_price(model_id, **{field: "auto"}) == prices[-1]
    default = find_model(model_id).generations.fields[field]["default"]
    assert known_price(model_id) == known_price(model_id, **{field: default})


def test_upload_prices_depend_on_quality_and_on_inputs_beyond_two():
    high = known_price("openai/gpt-image-2", image="…", quality="high")
    assert known_price("openai/gpt-image-2", image="…") < high
    assert known_price("openai/gpt-image-2", image=["…"] * 2) == Decimal("0.095")
    assert known_price("openai/gpt-image-2", image=["…"] * 3) == Decimal("0.116")


@pytest.mark.parametrize("model_id", [model.id for model in all_models() if model.price and "megapixel" in str(model)])
def test_images_above_a_megapixel_cost_more(model_id):
    one = known_price(model_id, image_size={"width": 1024, "height": 1024})
    assert one == known_price(model_id, image_size="square_hd") == known_price(model_id, image_size="square")
    assert known_price(model_id, image_size={"width": 1056, "height": 1024}) > one


def test_the_largest_size_is_assumed_for_an_unknown_one():
    largest = known_price("blackforestlabs/flux-2", image_size={"width": 2048, "height": 2048})
    assert known_price("blackforestlabs/flux-2", image_size="of tomorrow") == largest == 4 * Decimal("0.0126")
    assert known_price("bytedance/uso", image_size="of tomorrow") is None


def test_every_last_known_price_with_rates_states_its_basis():
    for model in all_models():
        for price in (model.price, model.edits_price):
            assert price is None or (price.pricing is None) == (price.basis is None), model.id


@pytest.mark.parametrize("name", ["gpt-image-2", "openai/gpt-image-2"])
def test_a_price_is_known_under_every_name(name):
    assert known_price(name, quality="high") == Decimal("0.275")


@pytest.mark.parametrize("model_id", ["no/such-model", "", "flux-realism/none"])
def test_an_unknown_model_has_no_price(model_id):
    assert last_known_price(model_id, {"num_images": 2}) is None
    assert PriceList().quote(ImageRequest("/v1/images/generations", {"model": model_id}, 1, False)) == Quote(
        None, "unknown"
    )


def test_a_quote_without_a_live_price_is_marked_as_last_known():
    assert PriceList().quote(request(model="flux/schnell", num_images=3)) == Quote(Decimal("0.012"), "last known")
    assert PriceList().quote(request(model="recraft-v3")) == Quote(None, "unknown")


def test_a_quote_for_uploads_uses_the_upload_price():
    wanted = request(model="openai/gpt-image-2", image="https://h.example/a.png", num_images=2)
    assert PriceList().quote(wanted) == Quote(Decimal("0.190"), "last known")


def test_a_fixed_price_is_divided_by_per_and_multiplied_by_images():
    assert quote(fixed({"price": 0.04, "name": "image", "measure": "output", "per": 1}), model=IMAGEN) == Quote(
        Decimal("0.04"), "live"
    )
    assert quote(
        fixed({"price": "40", "name": "image", "measure": "output", "per": 1000}), model=IMAGEN, num_images=4
    ).usd == Decimal("0.16")
    assert quote(fixed({"price": 0.04, "per": "image"}), model=IMAGEN, num_images=2).usd == Decimal("0.08")


DOCUMENTED_FIXED = {
    "kind": "fixed",
    "currency": "USD",
    "units": [{"name": "token", "measure": "output", "price": 3.25, "per": 1000000}],
}
DOCUMENTED_VARIANTS = {
    "kind": "variants",
    "dimensions": ["resolution"],
    "variants": [
        {"when": {"resolution": "720p"}, "price": 0.39, "unit": "second", "per": 1},
        {"when": {"resolution": "1080p"}, "price": 0.65, "unit": "second", "per": 1},
    ],
}


def test_the_documented_examples_are_read():
    """Both blocks as shown on the complete-model-list page (2026-08-19), then the same for images."""
    assert quote(DOCUMENTED_FIXED, model="recraft-v3") == Quote(None, "unknown")
    assert quote(DOCUMENTED_VARIANTS, model="recraft-v3") == Quote(None, "unknown")
    fixed_text = json.dumps(DOCUMENTED_FIXED).replace("token", "image")
    variants_text = json.dumps(DOCUMENTED_VARIANTS).replace("second", "image").replace("720p", "1K")
    assert quote(json.loads(fixed_text), model="recraft-v3") == Quote(Decimal("3.25") / 1_000_000, "live")
    assert quote(json.loads(variants_text), model="google/nano-banana-pro").usd == Decimal("0.39")


def test_an_input_rate_counts_the_input_images():
    pricing = fixed(
        {"name": "image", "measure": "output", "price": 0.1, "per": 1},
        {"name": "image", "measure": "input", "price": 0.01, "per": 1},
    )
    urls = ["https://h.example/a.png", "https://h.example/b.png"]
    arguments = {"model": "blackforestlabs/flux-2-edit", "image_urls": urls}
    assert quote(pricing, **arguments, num_images=2).usd == Decimal("0.22")
    assert quote(pricing, model="flux/dev").usd == Decimal("0.1")


def test_an_input_megapixel_rate_needs_images_of_known_size():
    pricing = fixed({"name": "megapixel", "measure": "input", "price": 0.01, "per": 1})
    stored = ImageFile("a.png", "0" * 64, 10, "image/png", 2000, 1000)
    assert quote(pricing, model="blackforestlabs/flux-2-edit", image_urls=[stored]).usd == Decimal("0.02")
    url = "https://h.example/a.png"
    assert quote(pricing, model="blackforestlabs/flux-2-edit", image_urls=[url, stored]).source != "live"


def test_an_unknown_measure_gives_no_price():
    assert quote(fixed({"name": "image", "measure": "cached", "price": 1, "per": 1}), model="recraft-v3").usd is None


def test_variants_for_the_same_values_are_added_up():
    out = {"when": {"quality": "high"}, "price": 0.2, "unit": "image", "per": 1}
    request_fee = {"when": {"quality": "high"}, "price": 0.05, "unit": "request", "per": 1}
    low = {"when": {"quality": "low"}, "price": 0.21, "unit": "image", "per": 1}
    assert quote(variants(out, request_fee, low), model="openai/gpt-image-1", quality="high").usd == Decimal("0.25")


def test_the_highest_price_is_assumed_for_what_the_model_decides():
    small = {"when": {"size": "1024x1024"}, "price": 0.05, "unit": "image", "per": 1}
    wide = {"when": {"size": "1536x1024"}, "price": 0.08, "unit": "image", "per": 1}
    pricing = variants(small, wide, dimensions=("size",))
    assert quote(pricing, model="openai/gpt-image-2.5-flare", size="auto").usd == Decimal("0.08")
    assert quote(pricing, model="openai/gpt-image-2.5-flare", size="1024x1024").usd == Decimal("0.05")


def test_a_live_price_is_found_by_any_name_of_the_model():
    row = {"id": "google/gemini-3-1-flash-image-preview", "aliases": [], "pricing": fixed(IMAGE_FOR_A_DOLLAR)}
    assert PriceList.from_response([row]).quote(request(model="google/nano-banana-2")) == Quote(Decimal(1), "live")


def test_combined_rates_are_added_up():
    pricing = fixed(
        {"price": 0.01, "name": "request", "measure": "output", "per": 1},
        {"price": 0.02, "name": "image", "measure": "output", "per": 1},
    )
    assert quote(pricing, model=IMAGEN, num_images=4).usd == Decimal("0.09")


@pytest.mark.parametrize(
    ("size", "pixels"),
    [
        ({"width": 1024, "height": 512}, 1024 * 512),
        ("square_hd", 1024 * 1024),
        ("portrait_16_9", 576 * 1024),
        (None, 1024 * 768),
    ],
)
def test_a_price_per_megapixel_counts_the_requested_pixels(size, pixels):
    pricing = fixed({"price": "0.02", "name": "megapixel", "measure": "output", "per": 1})
    found = quote(pricing, model="flux/dev", image_size=size, num_images=2)
    assert found == Quote(Decimal("0.02") * pixels * 2 / 1_000_000, "live")


def test_a_price_per_megapixel_accepts_a_size_as_text():
    pricing = fixed({"price": "1", "name": "megapixel", "measure": "output", "per": 1})
    assert quote(pricing, model="openai/gpt-image-1", size="1024x1536").usd == Decimal(1024 * 1536) / 1_000_000


def test_a_price_per_megapixel_needs_a_known_size():
    pricing = fixed({"price": "0.02", "name": "megapixel", "measure": "output", "per": 1})
    assert quote(pricing, model="google/imagen-4.0-fast-generate-001").source == "last known"


def test_the_variant_that_matches_the_request_sets_the_price():
    low = {"when": {"quality": "low"}, "price": 0.01, "unit": "image", "per": 1}
    high = {"when": {"quality": "high"}, "price": 0.2, "unit": "image", "per": 1}
    assert quote(variants(low, high), model="openai/gpt-image-1", quality="low").usd == Decimal("0.01")
    assert quote(variants(low, high), model="openai/gpt-image-1", quality="high").usd == Decimal("0.2")


def test_the_models_default_counts_as_requested():
    medium = {"when": {"quality": "medium"}, "price": 0.05, "unit": "image", "per": 1}
    high = {"when": {"quality": "high"}, "price": 0.2, "unit": "image", "per": 1}
    assert quote(variants(medium, high), model="openai/gpt-image-1").usd == Decimal("0.05")


def test_the_highest_price_is_assumed_where_the_request_leaves_it_open():
    small = {"when": {"tier": "a"}, "price": 0.05, "unit": "image", "per": 1}
    large = {"when": {"tier": "b"}, "price": 0.2, "unit": "image", "per": 1}
    assert quote(variants(small, large), model=IMAGEN, num_images=2).usd == Decimal("0.4")


def test_the_highest_price_is_assumed_where_no_variant_matches():
    low = {"when": {"quality": "draft"}, "price": 0.01, "unit": "image", "per": 1}
    high = {"when": {"quality": "best"}, "price": 0.2, "unit": "image", "per": 1}
    assert quote(variants(low, high), model="openai/gpt-image-1", quality="low").usd == Decimal("0.2")


def test_numbers_and_text_match_the_same_variant():
    small = {"when": {"max_resolution": "720"}, "price": 0.05, "unit": "image", "per": 1}
    large = {"when": {"max_resolution": "1080"}, "price": 0.1, "unit": "image", "per": 1}
    arguments = {"model": "beeble/switchx-image-to-image", "image_url": "https://h.example/a.png"}
    assert quote(variants(small, large), **arguments, max_resolution=720).usd == Decimal("0.05")


@pytest.mark.parametrize(
    "pricing",
    [
        {"kind": "variable"},
        {"kind": "new kind"},
        {},
        fixed(),
        fixed({"price": 5, "name": "token", "measure": "output", "per": 1_000_000}),
        fixed(
            {"price": 5, "name": "token", "measure": "output", "per": 1_000_000},
            {"price": 0.1, "name": "image", "measure": "output", "per": 1},
        ),
        fixed({"price": 0.1, "name": "image", "measure": "output", "per": 0}),
        fixed({"price": -0.1, "name": "image", "measure": "output", "per": 1}),
        fixed({"price": "NaN", "name": "image", "measure": "output", "per": 1}),
        fixed({"name": "image", "measure": "output", "per": 1}),
        fixed("0.1"),
        fixed({"price": 0.1, "name": "image", "measure": "output", "per": 1}, currency="EUR"),
        variants(),
        variants({"when": {}, "price": 0.1, "unit": "second", "per": 1}),
        variants({"when": {}, "price": 0.1, "unit": "second", "per": 1}, {"when": {}, "price": 0.1, "unit": "image"}),
    ],
)
def test_a_price_that_cannot_be_computed_in_advance_is_not_guessed(pricing):
    assert quote(pricing, model="flux/schnell") == Quote(Decimal("0.004"), "last known")
    assert quote(pricing, model="recraft-v3") == Quote(None, "unknown")


IMAGE_FOR_A_CENT = {"price": 0.01, "name": "image", "measure": "output", "per": 1}


@pytest.mark.parametrize("odd", [None, "0.1", {"price": 5, "name": "token", "measure": "output", "per": 1_000_000}])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_unreadable_rate_makes_the_price_unknown_at_any_position(odd, place):
    rates = [dict(IMAGE_FOR_A_CENT), dict(IMAGE_FOR_A_CENT)]
    rates.insert(place, odd)
    assert quote(fixed(*rates), model="recraft-v3") == Quote(None, "unknown")
    rated = [rate if rate is odd else {"when": {"quality": str(n)}, **rate} for n, rate in enumerate(rates)]
    assert quote(variants(*rated), model="recraft-v3") == Quote(None, "unknown")


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_matching_and_the_highest_rate_are_found_at_any_position(place):
    rates = [{"when": {"quality": name}, "price": 0.01, "unit": "image", "per": 1} for name in ("low", "medium")]
    rates.insert(place, {"when": {"quality": "high"}, "price": 0.2, "unit": "image", "per": 1})
    for quality, usd in (("high", "0.2"), ("low", "0.01"), ("medium", "0.01")):
        assert quote(variants(*rates), model="openai/gpt-image-1", quality=quality).usd == Decimal(usd)
    assert quote(variants(*rates), model="recraft-v3").usd == Decimal("0.2")  # it has no quality, so any rate may apply
    fee = [dict(IMAGE_FOR_A_CENT), dict(IMAGE_FOR_A_CENT)]
    fee.insert(place, {"price": 0.5, "name": "request", "measure": "output", "per": 1})
    assert quote(fixed(*fee), model=IMAGEN, num_images=2).usd == Decimal("0.54")


@pytest.mark.parametrize("odd", [None, "row", {}, {"id": "flux/dev"}, {"id": "flux/dev", "pricing": "0.1"}])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_model_without_a_price_hides_no_other_at_any_position(odd, place):
    rows = [{"id": name, "aliases": None, "pricing": fixed(IMAGE_FOR_A_CENT)} for name in ("recraft-v3", "flux/pro")]
    rows.insert(place, odd)
    for answer in (rows, {"data": rows}):
        prices = PriceList.from_response(answer)
        assert [prices.quote(request(model=name)).source for name in ("recraft-v3", "flux/pro")] == ["live"] * 2
        assert prices.by_model.keys() == {"recraft-v3", "flux/pro"}


def test_a_free_model_costs_nothing():
    assert quote(fixed({"price": 0, "name": "image", "measure": "output", "per": 1}), model=IMAGEN) == Quote(
        Decimal(0), "live"
    )
    free = {"when": {}, "price": 0, "unit": "image", "per": 1}
    assert quote(variants(free), model=IMAGEN) == Quote(Decimal(0), "live")


def test_a_model_is_found_by_its_alias_and_ids_win_over_aliases():
    answer = {
        "data": [
            {
                "id": "new/name",
                "aliases": ["flux/dev"],
                "pricing": fixed({"price": 1, "name": "image", "measure": "output", "per": 1}),
            },
            {
                "id": "flux/schnell",
                "aliases": [],
                "pricing": fixed({"price": 2, "name": "image", "measure": "output", "per": 1}),
            },
            {
                "id": "other",
                "aliases": ["flux/schnell"],
                "pricing": fixed({"price": 3, "name": "image", "measure": "output", "per": 1}),
            },
            {"id": "dall-e-2", "aliases": None, "pricing": None},
        ]
    }
    for prices in (PriceList.from_response(answer), PriceList.from_response(answer["data"])):
        assert prices.quote(request(model="flux/dev")) == Quote(Decimal(1), "live")
        assert prices.quote(request(model="flux/schnell")) == Quote(Decimal(2), "live")
        assert prices.quote(request(model="dall-e-2")).source == "last known"


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["image", "fixed", "variants"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "kind",
                    "units",
                    "variants",
                    "when",
                    "price",
                    "per",
                    "unit",
                    "name",
                    "measure",
                    "data",
                    "id",
                    "pricing",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(pricing=JSON_VALUES, answer=JSON_VALUES)
def test_a_quote_is_never_negative_whatever_the_response(pricing, answer):
    wanted = request(model="flux/dev", num_images=2)
    row = {"id": "flux/dev", "aliases": [], "pricing": pricing}
    for found in (PriceList.from_response(answer).quote(wanted), PriceList.from_response([row]).quote(wanted)):
        assert found.usd is None or found.usd >= 0


def test_every_models_price_scales_with_the_number_of_images():
    for model in all_models():
        if model.price and model.generations.max_images not in (1, None):
            body = {model.generations.count_field: 2}
            assert last_known_price(model.id, body) == 2 * last_known_price(model.id, {})


def test_an_unset_field_excludes_no_otherwise_matching_variant():
    """IMAGEN has no field ``tier``, so the request leaves it open."""
    rates = [
        {"when": {"aspect_ratio": ratio, "tier": tier}, "price": price, "unit": "image", "per": 1}
        for ratio, tier, price in [("1:1", "a", 0.01), ("1:1", "b", 0.02), ("16:9", "a", 0.5)]
    ]
    assert quote(variants(*rates), model=IMAGEN, aspect_ratio="1:1").usd == Decimal("0.02")


def test_a_rates_numbers_may_be_text():
    pricing = fixed({"price": "5", "name": "image", "measure": "output", "per": "100"})
    assert quote(pricing, model="flux/schnell").usd == Decimal("0.05")
