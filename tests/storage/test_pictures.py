from __future__ import annotations

import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from airflow_provider_imagen.exceptions import BadImageError
from airflow_provider_imagen.storage.pictures import EXTENSIONS, MIME_TYPES, inspect_picture

from .conftest import picture

FORMATS = tuple(EXTENSIONS)


@pytest.mark.parametrize("image_format", FORMATS)
def test_the_bytes_decide_the_format(image_format):
    facts = inspect_picture(picture(image_format, size=(33, 21)))
    assert (facts.format, facts.width, facts.height) == (image_format, 33, 21)
    assert facts.mime_type == MIME_TYPES[image_format] == Image.MIME[image_format]
    assert facts.extension == EXTENSIONS[image_format]


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("part", [0.02, 0.5, 0.9, 0.99])
def test_a_cut_off_picture_is_an_error(image_format, part):
    data = picture(image_format)
    with pytest.raises(BadImageError):
        inspect_picture(data[: int(len(data) * part)])


@pytest.mark.parametrize("image_format", FORMATS)
def test_one_missing_byte_is_noticed(image_format):
    data = picture(image_format)
    with pytest.raises(BadImageError):
        inspect_picture(data[:-1])


def test_a_flipped_bit_in_a_png_is_noticed():
    data = bytearray(picture())
    data[len(data) // 2] ^= 1
    with pytest.raises(BadImageError):
        inspect_picture(bytes(data))


def test_bytes_behind_a_whole_picture_do_no_harm():
    assert inspect_picture(picture("JPEG") + b"\0" * 100).format == "JPEG"
    assert inspect_picture(picture("PNG") + b"trailer").format == "PNG"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>token=secret</html>", "HTML"),
        (b'{"message": "token=secret"}', "JSON"),
        (b"<?xml version='1.0'?><Error>token=secret</Error>", "XML"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"MZ\x90\0\x03token=secret", "4d5a9000"),
    ],
)
def test_what_came_instead_is_named_and_not_repeated(data, said):
    with pytest.raises(BadImageError, match=said) as caught:
        inspect_picture(data)
    assert "secret" not in str(caught.value)


def bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def test_the_size_is_checked_before_anything_is_decoded(monkeypatch):
    def refuse(self):
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)
    with pytest.raises(BadImageError, match="9000x9000 pixels; at most 80000000"):
        inspect_picture(bomb(9000, 9000), max_pixels=80_000_000)


def test_a_picture_past_pillows_own_limit_is_refused_even_when_ours_is_higher():
    with pytest.raises(BadImageError, match="too large"):
        inspect_picture(bomb(60_000, 60_000), max_pixels=10**12)


def test_exactly_the_cap_is_accepted():
    assert inspect_picture(picture(size=(10, 10)), max_pixels=100).width == 10


def test_no_setting_of_pillow_is_changed():
    truncated, limit = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
    inspect_picture(picture(), max_pixels=10**10)
    assert truncated == ImageFile.LOAD_TRUNCATED_IMAGES
    assert limit == Image.MAX_IMAGE_PIXELS


def test_many_threads_may_inspect_at_once():
    pictures = [picture(image_format) for image_format in FORMATS] * 8
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(inspect_picture, pictures))
    assert [facts.format for facts in found] == list(FORMATS) * 8


def test_a_jpeg_with_further_pictures_behind_it_is_a_jpeg():
    target = BytesIO()
    image = Image.new("RGB", (20, 20), "red")
    image.save(target, format="MPO", save_all=True, append_images=[image])
    assert inspect_picture(target.getvalue()).format == "JPEG"


@settings(max_examples=150, deadline=None)
@given(
    image_format=st.sampled_from(FORMATS),
    damage=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_damage_is_an_error_of_ours_or_still_a_picture(image_format, damage):
    data = bytearray(picture(image_format, size=(24, 16)))
    for place, value in damage:
        data[place % len(data)] = value
    try:
        pixels = inspect_picture(bytes(data), max_pixels=10**6)
    except BadImageError:
        return  # any other error fails the test
    assert 0 < pixels.width * pixels.height <= 10**6
