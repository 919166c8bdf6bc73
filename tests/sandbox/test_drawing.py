from __future__ import annotations

import io
from dataclasses import replace
from itertools import combinations

import pytest
from PIL import Image, ImageChops, ImageStat

from airflow_provider_imagen.sandbox.drawing import dominant_colors, draw
from airflow_provider_imagen.sandbox.image_store import ImageStore, Recipe

IMAGEN = "imagen-3.0-generate-002"
RECIPE = Recipe(IMAGEN, "a red fox in an autumn forest", seed=7, width=256, height=256, index=0, format="png")


def opened(recipe):
    return Image.open(io.BytesIO(draw(recipe))).convert("RGB")


def test_the_same_recipe_yields_the_same_bytes():
    assert draw(RECIPE) == draw(replace(RECIPE))


@pytest.mark.parametrize(
    "change",
    [
        {"model": "flux/dev"},
        {"prompt": "a blue fox"},
        {"seed": 8},
        {"index": 1},
        {"width": 288},
        {"colors": ((9, 9, 90), (200, 200, 250))},
    ],
)
def test_model_prompt_seed_size_index_and_colours_each_change_the_image(change):
    assert draw(RECIPE) != draw(replace(RECIPE, **change))


def test_models_can_be_told_apart_at_a_glance():
    """Even as thumbnails, without the label in the corner."""
    models = [IMAGEN, "flux/schnell", "openai/gpt-image-1", "google/nano-banana-pro", "recraft-v3", "reve/create-image"]
    looks = [opened(replace(RECIPE, model=model)).crop((0, 32, 256, 256)).resize((32, 32)) for model in models]

    for one, other in combinations(looks, 2):
        assert sum(ImageStat.Stat(ImageChops.difference(one, other)).mean) > 40


def test_a_model_keeps_its_light():
    def brightness(model):
        prompts = ("a red fox", "two otters", "a castle")
        pictures = [opened(replace(RECIPE, model=model, prompt=prompt)).convert("L") for prompt in prompts]
        return [ImageStat.Stat(picture.crop((0, 0, 256, 128))).mean[0] for picture in pictures]

    assert max(brightness("x-ai/grok-imagine-image")) < min(brightness("openai/gpt-image-1"))


@pytest.mark.parametrize("colors", [(), ((200, 30, 40),), ((200, 30, 40), (240, 240, 90), (10, 60, 30))])
@pytest.mark.parametrize("prompt", ["a city", "a forest"])
@pytest.mark.parametrize("model", [IMAGEN, "flux/schnell", "recraft-v3", "x-ai/grok-imagine-image"])
def test_an_image_has_many_colours(model, prompt, colors):
    picture = opened(replace(RECIPE, model=model, prompt=prompt, colors=colors))

    assert len(picture.getcolors(256 * 256)) > (300 if colors else 1000)
    assert max(ImageStat.Stat(picture).stddev) > 15


def test_the_prompt_is_in_the_bottom_band():
    with_prompt = opened(replace(RECIPE, prompt="fox", width=512, height=512))
    band = with_prompt.crop((0, 512 - 30, 512, 512)).convert("L")

    assert band.getextrema()[1] > 230
    assert ImageStat.Stat(band).mean[0] < 130


@pytest.mark.parametrize(
    "prompt", ["", " \n\t", "x" * 3000, "ein " * 900, "日本語の絵", "🦊" * 40, "a\x00b\x1b[31m", "ǅ́", "\ud800 half"]
)
@pytest.mark.parametrize("size", [(8, 8), (64, 176), (1500, 100)])
def test_any_prompt_can_be_drawn_at_any_size(prompt, size):
    picture = opened(replace(RECIPE, prompt=prompt, width=size[0], height=size[1]))

    assert picture.size == size


def test_a_very_large_image_is_scaled_up_to_its_size():
    assert opened(replace(RECIPE, width=4096, height=2048, format="jpeg")).size == (4096, 2048)


@pytest.mark.parametrize("picture_format", ["png", "jpeg", "webp", "tiff"])
def test_every_format_contains_the_same_image(picture_format):
    difference = ImageChops.difference(opened(RECIPE), opened(replace(RECIPE, format=picture_format)))

    assert max(ImageStat.Stat(difference).mean) < 6


def test_the_prompt_can_name_the_scene():
    """A city has lit windows: bright and dark pixels side by side."""

    def edges(prompt):
        lower = opened(replace(RECIPE, prompt=prompt, model="x-ai/grok-imagine-image")).crop((0, 110, 256, 170))
        return ImageStat.Stat(ImageChops.difference(lower, ImageChops.offset(lower, 2, 0)).convert("L")).mean[0]

    cities = [edges(prompt) for prompt in ("Old Towns at night", "street markets", "two cities")]
    lands = [edges(prompt) for prompt in ("Forests at night", "mountain huts", "an alpine lake")]
    assert min(cities) > 2 * max(lands)


def test_dominant_colours_of_an_image_and_of_garbage():
    out = io.BytesIO()
    Image.new("RGB", (40, 40), (10, 200, 30)).save(out, "PNG")
    ((red, green, blue), *_) = dominant_colors(out.getvalue())

    assert abs(red - 10) + abs(green - 200) + abs(blue - 30) < 12
    assert dominant_colors(b"no picture") == ()


def test_a_recipe_is_drawn_once():
    drawn = []
    store = ImageStore(lambda recipe: drawn.append(recipe) or b"bytes")
    first, second = store.bytes_of(RECIPE), store.bytes_of(replace(RECIPE))

    assert first is second
    assert len(drawn) == 1
