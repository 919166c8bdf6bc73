from __future__ import annotations

import tracemalloc

import pytest
from PIL import Image

from airflow_provider_imagen.exceptions import BadImageError
from airflow_provider_imagen.storage.contact_sheet import make_contact_sheet

from .conftest import opened, picture, saved


def test_a_sheet_shows_every_image_in_order():
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)]
    items = ((saved(Image.new("RGB", (40, 40), colour), "PNG"), f"picture {colour}") for colour in colours)
    sheet = opened(make_contact_sheet(items, count=5))
    assert sheet.format == "WEBP"
    cell, gap, label = 256, 10, 40
    for number, colour in enumerate(colours):
        x = gap + number % 3 * (cell + gap) + cell // 2
        y = gap + number // 3 * (cell + label + gap) + cell // 2
        assert max(abs(a - b) for a, b in zip(sheet.getpixel((x, y)), colour, strict=True)) < 40


def test_a_sheet_survives_missing_images_and_any_label():
    labels = ["", "x" * 500, "a b " * 300, "多\x00\n\u202e🦊", "ok"]
    items = [(None, labels[0]), (b"no picture", labels[1]), *((picture(), label) for label in labels[2:])]
    assert opened(make_contact_sheet(items, count=5, title="Üben\n" * 50)).width > 256
    assert opened(make_contact_sheet([], count=0)).width > 0


@pytest.mark.parametrize("count", [1, 7, 40, 500, 3000])
def test_a_sheet_stays_within_its_limits(count):
    preview = saved(Image.new("RGB", (8, 8), "red"), "PNG")
    sheet = opened(make_contact_sheet(((preview, str(n)) for n in range(count)), count=count))
    assert sheet.width * sheet.height <= 16_500_000
    assert max(sheet.size) <= 16_383


def test_memory_use_does_not_grow_with_the_number_of_images():
    preview = picture("PNG", size=(256, 256))

    def peak(count: int) -> int:
        tracemalloc.start()
        make_contact_sheet(((preview + b"\0" * 2_000_000, str(n)) for n in range(count)), count=400)
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    assert peak(200) < peak(4) + 8_000_000


def test_more_images_than_a_sheet_can_show_are_rejected():
    with pytest.raises(BadImageError, match="1000000 images"):
        make_contact_sheet([], count=1_000_000)
