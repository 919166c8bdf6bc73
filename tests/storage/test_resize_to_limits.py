from __future__ import annotations

from io import BytesIO

import pytest
from PIL import Image

from airflow_provider_imagen.exceptions import BadImageError
from airflow_provider_imagen.storage.resize_to_limits import resize_to_limits


def picture(mode="RGB", size=(400, 300), kind="PNG", noise=False, **options):
    image = Image.effect_noise(size, 90).convert(mode) if noise else Image.new(mode, size, 90)
    target = BytesIO()
    image.save(target, format=kind, **options)
    return target.getvalue()


def opened(data):
    image = Image.open(BytesIO(data))
    image.load()
    return image


def test_an_image_within_the_limits_is_unchanged():
    data = picture()
    assert resize_to_limits(
        data, mime_types=("image/png",), max_bytes=len(data), max_side_pixels=400, max_pixels=120_000
    ) == (
        data,
        "image/png",
    )
    assert resize_to_limits(data)[0] is data


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "BMP", "AVIF"])
def test_a_format_that_is_not_accepted_becomes_png(kind):
    data, mime_type = resize_to_limits(picture(kind=kind), mime_types=("image/png", "image/jpeg"))
    assert mime_type == "image/png"
    assert opened(data).format == "PNG"
    assert opened(data).size == (400, 300)


@pytest.mark.parametrize(
    ("limits", "size"),
    [
        ({"max_side_pixels": 200}, (200, 150)),
        ({"max_pixels": 30_000}, (200, 150)),
        ({"max_side_pixels": 399}, (399, 299)),
    ],
)
def test_an_image_that_is_too_large_is_scaled_down_proportionally(limits, size):
    data, _ = resize_to_limits(picture(), **limits)
    assert opened(data).size == size


def test_a_file_that_is_too_large_first_becomes_a_jpeg_of_the_same_dimensions():
    data = picture(noise=True)
    fitted, mime_type = resize_to_limits(data, mime_types=("image/png", "image/jpeg"), max_bytes=len(data) - 1)
    assert mime_type == "image/jpeg"
    assert opened(fitted).size == (400, 300)
    assert len(fitted) < len(data)


def test_transparency_survives_a_file_size_limit():
    data = picture("RGBA", noise=True)
    fitted, mime_type = resize_to_limits(data, mime_types=("image/png", "image/jpeg"), max_bytes=len(data) // 2)
    assert mime_type == "image/png"
    assert opened(fitted).mode == "RGBA"
    assert len(fitted) <= len(data) // 2


def test_an_image_that_cannot_be_made_to_fit_is_an_error():
    with pytest.raises(BadImageError, match="100 bytes"):
        resize_to_limits(picture(noise=True), max_bytes=100)


@pytest.mark.parametrize("data", [b"", b"<html>", picture()[:100]])
def test_an_invalid_or_truncated_image_is_rejected(data):
    with pytest.raises(BadImageError):
        resize_to_limits(data, max_bytes=10)
