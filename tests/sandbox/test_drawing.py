from __future__ import annotations

import io
import random
from dataclasses import replace

import pytest
from PIL import Image, ImageChops, ImageStat

from airflow_provider_imagen.sandbox.drawing import draw, main_colors
from airflow_provider_imagen.sandbox.palettes import palette_for
from airflow_provider_imagen.sandbox.pictures import PictureStore, Recipe
from airflow_provider_imagen.sandbox.scenes import city, planets, scene_for, sea

RECIPE = Recipe("a red fox in an autumn forest", seed=7, width=256, height=256, index=0, format="png")


def opened(recipe):
    return Image.open(io.BytesIO(draw(recipe))).convert("RGB")


def test_the_same_recipe_gives_the_same_bytes():
    assert draw(RECIPE) == draw(replace(RECIPE))


@pytest.mark.parametrize(
    "change",
    [{"prompt": "a blue fox"}, {"seed": 8}, {"index": 1}, {"width": 288}, {"colors": ((9, 9, 90), (200, 200, 250))}],
)
def test_prompt_seed_size_index_and_colours_each_change_the_picture(change):
    assert draw(RECIPE) != draw(replace(RECIPE, **change))


@pytest.mark.parametrize("seed", range(12))
def test_a_picture_is_rich_in_colour(seed):
    picture = opened(replace(RECIPE, prompt="something else", seed=seed))

    assert len(picture.getcolors(256 * 256)) > 1000
    assert max(ImageStat.Stat(picture).stddev) > 15


def test_the_prompt_stands_in_the_band_below():
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


def test_a_very_large_picture_is_enlarged_to_its_size():
    assert opened(replace(RECIPE, width=4096, height=2048, format="jpeg")).size == (4096, 2048)


@pytest.mark.parametrize("picture_format", ["png", "jpeg", "webp", "tiff"])
def test_each_format_holds_the_same_picture(picture_format):
    difference = ImageChops.difference(opened(RECIPE), opened(replace(RECIPE, format=picture_format)))

    assert max(ImageStat.Stat(difference).mean) < 6


def test_words_choose_the_motif():
    chance = random.Random(1)

    assert scene_for("old sailing ships", chance) is sea
    assert scene_for("Neon City at night", chance) is city
    assert scene_for("two moons", chance) is planets


def test_words_choose_the_colours():
    hues = [palette_for(prompt, random.Random(seed)).hue % 1 for seed in range(5) for prompt in ("a green thing",)]

    assert all(0.33 < hue < 0.39 for hue in hues)
    assert palette_for("midnight", random.Random(1)).light == "night"


def test_main_colours_of_a_picture_and_of_rubbish():
    out = io.BytesIO()
    Image.new("RGB", (40, 40), (10, 200, 30)).save(out, "PNG")
    ((red, green, blue), *_) = main_colors(out.getvalue())

    assert abs(red - 10) + abs(green - 200) + abs(blue - 30) < 12
    assert main_colors(b"no picture") == ()


def test_a_recipe_is_drawn_once():
    drawn = []
    store = PictureStore(lambda recipe: drawn.append(recipe) or b"bytes")
    first, second = store.bytes_of(RECIPE), store.bytes_of(replace(RECIPE))

    assert first is second
    assert len(drawn) == 1
