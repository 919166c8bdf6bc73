from __future__ import annotations

import tracemalloc
from io import BytesIO

import pytest
from PIL import Image, ImageChops, ImageCms, ImageStat

from airflow_provider_imagen.exceptions import BadImageError, InvalidArgumentsError
from airflow_provider_imagen.storage.convert import (
    IMAGE_FORMATS,
    convert_picture,
    make_contact_sheet,
    make_thumbnail,
)
from airflow_provider_imagen.storage.pictures import inspect_picture

from .conftest import picture, pixels

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def opened(data: bytes) -> Image.Image:
    image = Image.open(BytesIO(data))
    image.load()
    return image


def difference(one: Image.Image, two: Image.Image) -> float:
    """Mean distance of two pictures, in steps of 0 to 255."""
    stat = ImageStat.Stat(ImageChops.difference(one.convert("RGB"), two.convert("RGB")))
    return sum(stat.mean) / 3


def smooth(size=(64, 48), mode="RGB") -> Image.Image:
    return Image.radial_gradient("L").resize(size).convert(mode)


def saved(image: Image.Image, image_format: str, **options) -> bytes:
    target = BytesIO()
    image.save(target, format=image_format, **options)
    return target.getvalue()


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
@pytest.mark.parametrize("source", ["PNG", "JPEG", "WEBP", "AVIF", "GIF", "TIFF", "BMP"])
def test_every_format_becomes_every_format(source, image_format):
    before = saved(smooth(), source)
    after = convert_picture(before, image_format=image_format)
    facts = inspect_picture(after)
    assert facts.format.lower() == image_format
    assert (facts.width, facts.height) == (64, 48)
    assert difference(opened(before), opened(after)) < 3


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
def test_a_picture_that_has_the_format_is_returned_as_it_is(image_format):
    data = picture(image_format.upper())
    assert convert_picture(data, image_format=image_format) is data


def test_png_and_lossless_webp_keep_every_pixel():
    before = picture("PNG", mode="RGBA")
    assert pixels(convert_picture(before, image_format="webp", lossless=True)) == pixels(before)
    webp = picture("WEBP")
    assert pixels(convert_picture(webp, image_format="png"))[2] == pixels(webp)[2]


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
def test_the_camera_orientation_is_applied_and_removed(image_format):
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the picture is on the right
    exif[0x010E] = "stays"
    before = saved(smooth((64, 48)), "JPEG", exif=exif)
    after = opened(convert_picture(before, image_format=image_format))
    assert after.size == (48, 64)
    assert after.getexif().get(0x0112, 1) == 1
    assert after.getexif()[0x010E] == "stays"
    assert difference(after, opened(before).transpose(Image.Transpose.ROTATE_270)) < 3


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
def test_the_colour_profile_and_the_xmp_are_kept(image_format):
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>'
    before = saved(smooth(), "WEBP" if image_format == "png" else "JPEG", icc_profile=PROFILE, xmp=packet)
    if image_format == "jpeg":
        before = saved(smooth(), "WEBP", icc_profile=PROFILE, xmp=packet)
    after = opened(convert_picture(before, image_format=image_format))
    assert after.info["icc_profile"] == PROFILE
    found = after.info.get("xmp") or after.info.get("XML:com.adobe.xmp")
    assert found in (packet, packet.decode())


def test_transparency_becomes_white_in_a_jpeg_and_stays_elsewhere():
    image = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    for data in (saved(image, "PNG"), saved(image.convert("P"), "PNG", transparency=0)):
        jpeg = opened(convert_picture(data, image_format="jpeg"))
        assert jpeg.mode == "RGB"
        assert min(jpeg.getpixel((10, 10))) > 250
    for image_format in ("webp", "avif", "png"):
        assert opened(convert_picture(saved(image, "PNG"), image_format=image_format)).mode == "RGBA"


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "I;16", "CMYK"])
def test_unusual_pixels_keep_their_look(mode, image_format):
    grey = smooth()
    if mode == "I;16":
        image = Image.frombytes("I;16", grey.size, b"".join(bytes((v, v)) for v in grey.convert("L").tobytes()))
    else:
        image = grey.convert(mode)
    before = saved(image, "TIFF" if mode == "CMYK" else "PNG")
    after = opened(convert_picture(before, image_format=image_format))
    expected = image if mode in ("1", "P") else grey
    if after.mode == "I;16":
        assert after.tobytes() == image.tobytes()
    else:
        assert difference(after, expected) < 8


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
def test_pure_noise_is_converted_too(image_format):
    """Noise is what encoders' buffers are too small for."""
    noise = Image.merge("RGB", [Image.effect_noise((700, 700), 120) for _ in range(3)])
    after = convert_picture(saved(noise, "BMP"), image_format=image_format)
    assert inspect_picture(after).width == 700
    assert opened(make_thumbnail(after, pixels=300)).size == (300, 300)


def test_quality_decides_the_size():
    before = picture("PNG", size=(200, 200))
    for image_format in ("jpeg", "webp", "avif"):
        small, large = (len(convert_picture(before, image_format=image_format, quality=q)) for q in (20, 95))
        assert small < large
    assert convert_picture(saved(smooth(), "JPEG"), image_format="jpeg", quality=20) != saved(smooth(), "JPEG")


@pytest.mark.parametrize(
    "arguments",
    [
        {"image_format": "gif"},
        {"image_format": "png", "quality": 5},
        {"image_format": "jpeg", "quality": 101},
        {"image_format": "jpeg", "lossless": True},
        {"image_format": "avif", "lossless": True},
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments):
    with pytest.raises(InvalidArgumentsError):
        convert_picture(picture(), **arguments)


def test_a_picture_the_format_cannot_hold_is_an_error_of_ours():
    with pytest.raises(BadImageError, match="webp"):
        convert_picture(saved(Image.new("L", (16_400, 1)), "PNG"), image_format="webp")
    with pytest.raises(BadImageError):
        convert_picture(b"no picture", image_format="png")


@pytest.mark.parametrize("image_format", ["webp", "jpeg"])
@pytest.mark.parametrize("source", ["PNG", "JPEG", "WEBP", "AVIF", "GIF"])
def test_a_preview_has_the_proportions_and_the_look(source, image_format):
    before = saved(smooth((400, 200)), source)
    after = opened(make_thumbnail(before, pixels=100, image_format=image_format))
    assert after.size == (100, 50)
    assert after.format.lower() == image_format
    assert difference(after, opened(before).convert("RGB").resize((100, 50))) < 4


def test_a_preview_is_upright_never_larger_and_keeps_transparency():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert opened(make_thumbnail(saved(smooth((400, 200)), "JPEG", exif=exif), pixels=100)).size == (50, 100)
    assert opened(make_thumbnail(saved(smooth((30, 20)), "PNG"), pixels=100)).size == (30, 20)
    clear = saved(Image.new("RGBA", (200, 200), (0, 0, 0, 0)), "PNG")
    assert opened(make_thumbnail(clear, pixels=50)).mode == "RGBA"
    with pytest.raises(BadImageError):
        make_thumbnail(b"no picture", pixels=50)


def test_a_sheet_shows_every_picture_in_order():
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)]
    items = ((saved(Image.new("RGB", (40, 40), colour), "PNG"), f"picture {colour}") for colour in colours)
    sheet = opened(make_contact_sheet(items, count=5, columns=3, cell_pixels=96))
    assert sheet.format == "WEBP"
    gap, label = 4, 24
    for number, colour in enumerate(colours):
        x = gap + number % 3 * (96 + gap) + 48
        y = gap + number // 3 * (96 + label + gap) + 48
        assert max(abs(a - b) for a, b in zip(sheet.getpixel((x, y)), colour, strict=True)) < 40


def test_a_sheet_survives_missing_pictures_and_any_label():
    labels = ["", "x" * 500, "a b " * 300, "多\x00\n\u202e🦊", "ok"]
    items = [(None, labels[0]), (b"no picture", labels[1]), *((picture(), label) for label in labels[2:])]
    assert opened(make_contact_sheet(items, count=5, title="Üben\n" * 50)).width > 256
    assert opened(make_contact_sheet([], count=0)).width > 0


@pytest.mark.parametrize(("count", "columns"), [(1, None), (7, None), (500, None), (500, 1), (3000, 3), (40, 200)])
def test_a_sheet_stays_within_its_limits(count, columns):
    preview = saved(Image.new("RGB", (8, 8), "red"), "PNG")
    sheet = opened(make_contact_sheet(((preview, str(n)) for n in range(count)), count=count, columns=columns))
    assert sheet.width * sheet.height <= 16_500_000
    assert max(sheet.size) <= 16_383


def test_the_memory_of_a_sheet_does_not_grow_with_its_pictures():
    preview = picture("PNG", size=(256, 256))

    def peak(count: int) -> int:
        tracemalloc.start()
        make_contact_sheet(((preview + b"\0" * 2_000_000, str(n)) for n in range(count)), count=400, cell_pixels=64)
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    assert peak(200) < peak(4) + 8_000_000
