from __future__ import annotations

import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, PngImagePlugin

from airflow_provider_imagen.exceptions import BadImageError
from airflow_provider_imagen.storage.inspect_image import EXTENSIONS, MIME_TYPES, inspect_image
from airflow_provider_imagen.storage.open_image import decode, open_image

from .conftest import picture

FORMATS = tuple(EXTENSIONS)


@pytest.mark.parametrize("image_format", FORMATS)
def test_the_bytes_decide_the_format(image_format):
    info = inspect_image(picture(image_format, size=(33, 21)))
    assert (info.format, info.width, info.height) == (image_format, 33, 21)
    assert info.mime_type == MIME_TYPES[image_format] == Image.MIME[image_format]
    assert info.extension == EXTENSIONS[image_format]


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("part", [0.02, 0.5, 0.9, 0.99])
def test_a_truncated_image_is_an_error(image_format, part):
    data = picture(image_format)
    with pytest.raises(BadImageError):
        inspect_image(data[: int(len(data) * part)])


@pytest.mark.parametrize("image_format", FORMATS)
def test_one_missing_byte_is_detected(image_format):
    data = picture(image_format)
    with pytest.raises(BadImageError):
        inspect_image(data[:-1])


def test_a_flipped_bit_in_a_png_is_detected():
    data = bytearray(picture())
    data[len(data) // 2] ^= 1
    with pytest.raises(BadImageError):
        inspect_image(bytes(data))


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize(
    "padding",
    [
        b"\0",
        bytes(16),
        bytes(512),
        bytes(2**20),
        b"\xff" * 100,
        b"\r\n",
        b"<!-- cached -->" * 20,
        bytes(range(256)) * 4,
    ],
    ids=["one zero", "16 zeros", "512 zeros", "1 MiB of zeros", "ones", "line end", "text", "anything"],
)
def test_trailing_bytes_after_a_complete_image_are_ignored(image_format, padding):
    data = picture(image_format)
    assert inspect_image(data + padding) == inspect_image(data)


@pytest.mark.parametrize("options", [{}, {"interlace": 1}, {"mode": "L"}, {"comment": b"; is no end"}])
def test_a_gif_ends_at_its_trailer_and_not_at_the_first_semicolon(options):
    data = picture("GIF", **options)
    assert inspect_image(data + bytes(600)).format == "GIF"
    for missing in range(1, 20):
        with pytest.raises(BadImageError):
            inspect_image(data[:-missing])


def test_an_animated_gif_truncated_in_a_later_frame_is_an_error():
    target = BytesIO()
    frames = [Image.effect_noise((40, 40), 20 * number) for number in range(1, 6)]
    frames[0].save(target, format="GIF", save_all=True, append_images=frames[1:])
    data = target.getvalue()
    assert inspect_image(data + bytes(100)).width == 40
    with pytest.raises(BadImageError, match="no trailer"):
        inspect_image(data[:-600])


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


LARGE = zlib.compress(bytes(range(97, 123)) * 60_000)
HUGE = zlib.compress(bytes(200_000_000), 1)
ASIDE = {
    "zTXt of 1.5 MB": chunk(b"zTXt", b"workflow\0\0" + LARGE),
    "zTXt of 200 MB": chunk(b"zTXt", b"workflow\0\0" + HUGE),
    "80 zTXt that are too much together": chunk(b"zTXt", b"workflow\0\0" + zlib.compress(bytes(10**6))) * 80,
    "iTXt": chunk(b"iTXt", b"workflow\0\1\0\0\0" + LARGE),
    "tEXt": chunk(b"tEXt", b"workflow\0" + b"x" * 3_000_000),
    "XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LARGE),
    "EXIF as text": chunk(b"zTXt", b"Raw profile type exif\0\0" + LARGE),
    "iCCP of 1.5 MB": chunk(b"iCCP", b"icc\0\0" + LARGE),
    "iCCP of 200 MB": chunk(b"iCCP", b"icc\0\0" + HUGE),
    "iCCP of another compression": chunk(b"iCCP", b"icc\0\7" + LARGE),
    "iCCP that is broken": chunk(b"iCCP", b"icc\0\0nonsense"),
    "iCCP that is empty": chunk(b"iCCP", b""),
    "zTXt of another compression": chunk(b"zTXt", b"a\0\7b"),
    "short sRGB": chunk(b"sRGB", b""),
    "short gAMA": chunk(b"gAMA", b"\0"),
    "short cHRM": chunk(b"cHRM", b"\0"),
    "short pHYs": chunk(b"pHYs", b"\0"),
    "short animation": chunk(b"acTL", b"\0"),
    "frame out of order": chunk(b"acTL", struct.pack(">II", 2, 0)) + chunk(b"fcTL", struct.pack(">I", 7) + bytes(22)),
    "unknown": chunk(b"prVt", b"\0" * 100),
}


@pytest.mark.parametrize("aside", ASIDE)
@pytest.mark.parametrize("place", [b"IDAT", b"IEND"])
def test_no_ancillary_chunk_makes_a_png_unusable(aside, place):
    data = picture("PNG")
    at = data.index(place) - 4
    assert inspect_image(data[:at] + ASIDE[aside] + data[at:]) == inspect_image(data)


def segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content


@pytest.mark.parametrize(
    "aside",
    [
        segment(0xE2, b"ICC_PROFILE\0"),
        segment(0xE2, b"ICC_PROFILE\0\2\5abc"),
        segment(0xE2, b"MPF\0garbage"),
        segment(0xE1, b"Exif\0\0garbage"),
        segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\x7f"),
        segment(0xED, b"Photoshop 3.0\x008BIM\3\xed\0\0\0\0\x10\0ab"),
        segment(0xEE, b"Adobe\0"),
        segment(0xE0, b"JFIF\0\1"),
        segment(0xFE, b"\xff\xfe\0"),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_no_metadata_segment_makes_a_jpeg_unusable(aside, mode):
    data = picture("JPEG", mode=mode)
    odd = data[:2] + aside + data[2:]
    assert inspect_image(odd) == inspect_image(data)
    with open_image(odd) as image, open_image(data) as whole:
        assert image.tobytes() == whole.tobytes()
    with pytest.raises(BadImageError):
        inspect_image(odd[: len(odd) // 2])


def test_a_truncated_or_damaged_png_is_detected_despite_ancillary_chunks():
    data = picture("PNG")
    at = data.index(b"IDAT") - 4
    data = data[:at] + ASIDE["zTXt of 1.5 MB"] + data[at:]
    damaged = bytearray(data)
    damaged[at + 100] ^= 1
    for wrong in (data[:-1], data[:-12], data[:-40], bytes(damaged)):
        with pytest.raises(BadImageError):
            inspect_image(wrong)


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
def test_other_content_is_named_but_not_quoted(data, said):
    with pytest.raises(BadImageError, match=said) as caught:
        inspect_image(data)
    assert "secret" not in str(caught.value)


def bomb(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def test_pixel_data_that_was_corrupt_when_it_was_encoded_is_noticed_only_when_it_is_decoded():
    data = bomb(64, 48)
    assert inspect_image(data).width == 64
    with open_image(data) as image, pytest.raises(BadImageError, match="truncated or corrupt"):
        decode(image, data)


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "GIF"])
def test_an_image_over_the_pixel_limit_is_named_as_such_even_if_it_is_truncated(image_format):
    data = picture(image_format, size=(100, 90))
    with pytest.raises(BadImageError, match="100x90 pixels; at most 8999 are allowed"):
        inspect_image(data[:-20], max_pixels=8999)


def test_the_size_is_checked_before_anything_is_decoded(monkeypatch):
    def refuse(self):
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)
    with pytest.raises(BadImageError, match="9000x9000 pixels; at most 80000000"):
        inspect_image(bomb(9000, 9000), max_pixels=80_000_000)


def test_pillows_own_pixel_limit_applies_even_if_ours_is_higher():
    with pytest.raises(BadImageError, match="too large"):
        inspect_image(bomb(60_000, 60_000), max_pixels=10**12)


def test_an_image_of_exactly_the_pixel_limit_is_accepted():
    assert inspect_image(picture(size=(10, 10)), max_pixels=100).width == 10


def test_pillow_settings_are_neither_changed_nor_needed(monkeypatch):
    """Settings changed by another task of the process are kept and do not affect inspection."""
    data = picture()
    at = data.index(b"IDAT") - 4
    data = data[:at] + ASIDE["zTXt of 1.5 MB"] + ASIDE["iCCP of 1.5 MB"] + data[at:]
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_CHUNK", 10)
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_MEMORY", 10)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 12_345_678)
    settings = [
        (module, name, value)
        for module in (Image, ImageFile, PngImagePlugin)
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, int | float | bool)
    ]
    seen = []
    real = ImageFile.ImageFile.load

    def load(self):
        seen.extend(name for module, name, value in settings if getattr(module, name) != value)
        return real(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    inspect_image(data, max_pixels=10**10)
    inspect_image(picture("TIFF"), max_pixels=10**10)  # is decoded
    with open_image(data) as image:
        decode(image, data)
    assert not seen
    assert all(getattr(module, name) == value for module, name, value in settings)


def test_many_threads_can_inspect_at_once():
    images = [picture(image_format) for image_format in FORMATS] * 8
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(inspect_image, images))
    assert [info.format for info in found] == list(FORMATS) * 8


def test_a_jpeg_followed_by_further_images_is_a_jpeg():
    target = BytesIO()
    image = Image.new("RGB", (20, 20), "red")
    image.save(target, format="MPO", save_all=True, append_images=[image])
    assert inspect_image(target.getvalue()).format == "JPEG"


@settings(max_examples=150, deadline=None)
@given(
    image_format=st.sampled_from(FORMATS),
    damage=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_damage_raises_our_error_or_leaves_a_valid_image(image_format, damage):
    data = bytearray(picture(image_format, size=(24, 16)))
    for place, value in damage:
        data[place % len(data)] = value
    try:
        pixels = inspect_image(bytes(data), max_pixels=10**6)
    except BadImageError:
        return  # any other error fails the test
    assert 0 < pixels.width * pixels.height <= 10**6
