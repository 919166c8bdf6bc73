from __future__ import annotations

import struct

import pytest
from PIL import Image, ImageChops, ImageCms, ImageStat
from PIL.PngImagePlugin import PngInfo

from airflow_provider_imagen.exceptions import BadImageError, InvalidArgumentsError
from airflow_provider_imagen.storage.convert import (
    IMAGE_FORMATS,
    convert_and_preview,
    convert_image,
    make_thumbnail,
)
from airflow_provider_imagen.storage.inspect_image import inspect_image
from airflow_provider_imagen.storage.resize_to_limits import resize_to_limits

from .conftest import opened, picture, pixels, saved

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def difference(one: Image.Image, two: Image.Image) -> float:
    """Mean difference of two images, from 0 to 255."""
    stat = ImageStat.Stat(ImageChops.difference(one.convert("RGB"), two.convert("RGB")))
    return sum(stat.mean) / 3


def on_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA"))


def smooth(size=(64, 48), mode="RGB") -> Image.Image:
    return Image.radial_gradient("L").resize(size).convert(mode)


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
@pytest.mark.parametrize("source", ["PNG", "JPEG", "WEBP", "AVIF", "GIF", "TIFF", "BMP"])
def test_every_format_converts_to_every_other(source, image_format):
    before = saved(smooth(), source)
    after = convert_image(before, image_format=image_format)
    info = inspect_image(after)
    assert info.format.lower() == image_format
    assert (info.width, info.height) == (64, 48)
    assert difference(opened(before), opened(after)) < 3


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
def test_an_image_already_in_the_format_is_returned_unchanged(image_format):
    data = picture(image_format.upper())
    assert convert_image(data, image_format=image_format) is data


def test_png_keeps_every_pixel():
    webp = picture("WEBP")
    assert pixels(convert_image(webp, image_format="png"))[2] == pixels(webp)[2]


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
def test_the_camera_orientation_is_applied_and_removed(image_format):
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the image is on the right
    exif[0x010E] = "stays"
    before = saved(smooth((64, 48)), "JPEG", exif=exif)
    after = opened(convert_image(before, image_format=image_format))
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
    after = opened(convert_image(before, image_format=image_format))
    assert after.info["icc_profile"] == PROFILE
    found = after.info.get("xmp") or after.info.get("XML:com.adobe.xmp")
    assert found in (packet, packet.decode())


def grey_profile() -> bytes:
    """The smallest profile for grey pixels: gamma 2.2."""

    def tag(kind: bytes, data: bytes) -> bytes:
        return kind + bytes(4) + data

    white = struct.pack(">iii", 63190, 65536, 54061)
    parts = [
        (b"desc", tag(b"desc", struct.pack(">I", 5) + b"Gray\0" + bytes(79))),
        (b"wtpt", tag(b"XYZ ", white)),
        (b"kTRC", tag(b"curv", struct.pack(">IHH", 1, 563, 0))),
    ]
    table, body, at = struct.pack(">I", len(parts)), b"", 132 + 12 * len(parts)
    for name, data in parts:
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data
    kinds = (b"lcms", 0x02400000, b"mntr", b"GRAY", b"XYZ ", bytes([7, 230, 0, 1, 0, 1]) + bytes(6), b"acsp")
    head = struct.pack(">I4sI4s4s4s12s4s", at + len(body), *kinds)
    return head + bytes(28) + white + bytes(48) + table + body


GREY_PROFILE = grey_profile()
LAB_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
BROKEN_CMYK = PROFILE[:16] + b"CMYK" + PROFILE[20:]
SPACES = {"1": b"GRAY", "L": b"GRAY", "LA": b"GRAY", "I;16": b"GRAY", "CMYK": b"CMYK"}
PROFILES = {"grey": GREY_PROFILE, "rgb": PROFILE, "lab": LAB_PROFILE, "cmyk": BROKEN_CMYK, "broken": b"x" * 200}


@pytest.mark.parametrize("make", [*IMAGE_FORMATS, "preview", "scaled"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "I;16", "P", "RGB", "RGBA", "CMYK", "clear L", "clear P"])
@pytest.mark.parametrize("profile", PROFILES)
def test_a_colour_profile_is_kept_only_with_pixels_it_fits(profile, mode, make):
    options = {"transparency": 0} if "clear" in mode else {}
    mode = mode.removeprefix("clear ")
    grey = smooth((300, 200))
    image = Image.new("I;16", grey.size, 30_000) if mode == "I;16" else grey.convert(mode)
    kind = "JPEG" if mode == "CMYK" else "PNG"
    before = saved(image, kind, icc_profile=PROFILES[profile], **options)
    notes = []
    if make in IMAGE_FORMATS:
        quality = None if make == "png" else 90  # so that a JPEG is re-encoded too
        after = opened(convert_image(before, image_format=make, quality=quality, notes=notes))
    elif make == "scaled":
        after = opened(resize_to_limits(before, max_side_pixels=100)[0])
    else:
        after = opened(make_thumbnail(before, pixels=64))
    kept = after.info.get("icc_profile")
    if kept and not (make == "png" and kind == "PNG"):  # returned unchanged
        assert kept[16:20] == SPACES.get(after.mode, b"RGB ")
    fitting = PROFILES[profile][16:20] == SPACES.get(mode, b"RGB ")
    if make == "jpeg" and fitting and mode != "CMYK":
        assert kept == PROFILES[profile]
    if make in ("webp", "avif") and not fitting:
        assert "colour profile was dropped" in notes[0]
    if make in ("webp", "avif") and profile != "cmyk":
        assert len(notes) == (not fitting)
    if mode not in ("1", "I;16") and not options:
        assert difference(after, (image.convert("RGB") if mode == "P" else grey).resize(after.size)) < 12


@pytest.mark.parametrize("image_format", ["webp", "avif"])
@pytest.mark.parametrize("mode", ["L", "LA"])
def test_converted_grey_pixels_keep_the_look_of_their_profile(mode, image_format):
    dark = GREY_PROFILE.replace(struct.pack(">IHH", 1, 563, 0), struct.pack(">IHH", 1, 1024, 0))  # gamma 4
    image = Image.new("L", (32, 32), 128)
    if mode == "LA":
        image.putalpha(90)
    after = opened(convert_image(saved(image, "PNG", icc_profile=dark), image_format=image_format))
    assert after.info.get("icc_profile") is None
    # 128 at gamma 4 is 6 % of white, which sRGB writes as 71.
    assert after.getpixel((9, 9))[:3] == pytest.approx((71, 71, 71), abs=3)
    assert (after.getpixel((9, 9))[3:] or (90,)) == pytest.approx((90,), abs=2)


def test_a_large_colour_profile_of_a_png_is_kept():
    large = PROFILE + bytes(range(256)) * 6_000  # bytes after its tags are ignored
    large = struct.pack(">I", len(large)) + large[4:]
    before = saved(smooth(), "PNG", icc_profile=large)
    assert opened(convert_image(before, image_format="webp")).info["icc_profile"] == large


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp", "avif"])
@pytest.mark.parametrize("mode", ["RGB", "CMYK", "L"])
def test_structural_tiff_tags_do_not_become_exif(mode, image_format):
    exif = Image.Exif()
    exif[0x010E] = "stays"
    before = saved(smooth().convert(mode), "TIFF", compression="tiff_lzw", icc_profile=BROKEN_CMYK, exif=exif)
    assert 273 in opened(before).getexif()
    assert dict(opened(convert_image(before, image_format=image_format)).getexif()) == {0x010E: "stays"}


@pytest.mark.parametrize("quote", ["'", '"'])
def test_an_applied_orientation_is_also_removed_from_a_given_packet(quote):
    exif = Image.Exif()
    exif[0x0112] = 6
    packet = f"<x:xmpmeta xmlns:x='adobe:ns:meta/' a={quote}1{quote} tiff:Orientation={quote}6{quote}/>".encode()
    before = saved(smooth((64, 48)), "JPEG", exif=exif)
    after = opened(convert_image(before, image_format="avif", xmp=packet))
    assert after.size == (48, 64)
    assert b"Orientation" not in after.info["xmp"]
    assert f"a={quote}1{quote}".encode() in after.info["xmp"]


def test_transparency_becomes_white_in_a_jpeg_and_stays_elsewhere():
    image = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    for data in (saved(image, "PNG"), saved(image.convert("P"), "PNG", transparency=0)):
        jpeg = opened(convert_image(data, image_format="jpeg"))
        assert jpeg.mode == "RGB"
        assert min(jpeg.getpixel((10, 10))) > 250
    for image_format in ("webp", "avif", "png"):
        assert opened(convert_image(saved(image, "PNG"), image_format=image_format)).mode == "RGBA"


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "I;16", "CMYK"])
def test_unusual_pixel_modes_keep_their_look(mode, image_format):
    grey = smooth()
    if mode == "I;16":
        image = Image.frombytes("I;16", grey.size, b"".join(bytes((v, v)) for v in grey.convert("L").tobytes()))
    else:
        image = grey.convert(mode)
    before = saved(image, "TIFF" if mode == "CMYK" else "PNG")
    after = opened(convert_image(before, image_format=image_format))
    expected = image if mode in ("1", "P") else grey
    if after.mode == "I;16":
        assert after.tobytes() == image.tobytes()
    else:
        assert difference(after, expected) < 8


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
def test_pure_noise_can_be_converted(image_format):
    """Noise compresses worst, which tests the size of the encoders' buffers."""
    noise = Image.merge("RGB", [Image.effect_noise((700, 700), 120) for _ in range(3)])
    after = convert_image(saved(noise, "BMP"), image_format=image_format)
    assert inspect_image(after).width == 700
    assert opened(make_thumbnail(after, pixels=300)).size == (300, 300)


def test_quality_decides_the_size():
    before = picture("PNG", size=(200, 200))
    for image_format in ("jpeg", "webp", "avif"):
        small, large = (len(convert_image(before, image_format=image_format, quality=q)) for q in (20, 95))
        assert small < large
    assert convert_image(saved(smooth(), "JPEG"), image_format="jpeg", quality=20) != saved(smooth(), "JPEG")


@pytest.mark.parametrize(
    "arguments",
    [
        {"image_format": "gif"},
        {"image_format": "png", "quality": 5},
        {"image_format": "jpeg", "quality": 101},
    ],
)
def test_invalid_arguments_are_rejected(arguments):
    with pytest.raises(InvalidArgumentsError):
        convert_image(picture(), **arguments)


def test_an_image_the_format_cannot_hold_raises_our_error():
    with pytest.raises(BadImageError, match="webp"):
        convert_image(saved(Image.new("L", (16_400, 1)), "PNG"), image_format="webp")
    with pytest.raises(BadImageError):
        convert_image(b"no picture", image_format="png")


@pytest.mark.parametrize("source", ["PNG", "JPEG", "WEBP", "AVIF", "GIF"])
def test_a_preview_keeps_proportions_and_look(source):
    before = saved(smooth((400, 200)), source)
    after = opened(make_thumbnail(before, pixels=100))
    assert after.size == (100, 50)
    assert after.format == "WEBP"
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


@pytest.mark.parametrize("image_format", [None, *IMAGE_FORMATS])
@pytest.mark.parametrize("profile", ["grey", "rgb", "none"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "I;16", "P", "RGB", "RGBA", "CMYK", "clear P"])
def test_a_preview_made_with_the_conversion_looks_like_one_made_from_the_converted_file(mode, profile, image_format):
    options = {"transparency": 0} if "clear" in mode else {}
    mode = mode.removeprefix("clear ")
    grey = smooth((300, 200))
    image = Image.new("I;16", grey.size, 30_000) if mode == "I;16" else grey.convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(grey.size))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(image, "TIFF" if mode == "CMYK" else "PNG", icc_profile=PROFILES.get(profile), exif=exif, **options)
    derived = convert_and_preview(data, inspect_image(data), image_format=image_format, preview_pixels=64)
    if image_format is not None:
        assert derived.converted == convert_image(data, image_format=image_format)
    expected = make_thumbnail(derived.converted or data, pixels=64)
    before, after = opened(expected), opened(derived.preview)
    assert (after.mode, after.size) == (before.mode, before.size) == (before.mode, (43, 64))
    assert after.info.get("icc_profile") == before.info.get("icc_profile")
    if image_format in (None, "png"):
        assert derived.preview == expected
    assert difference(on_white(before), on_white(after)) < 3


@pytest.mark.parametrize("where", ["eXIf", "XMP"])
def test_a_png_with_an_orientation_is_not_kept_as_it_is(where):
    exif = Image.Exif()
    exif[0x0112] = 6
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"/>')
    data = saved(smooth(), "PNG", **({"exif": exif} if where == "eXIf" else {"pnginfo": info}))
    assert opened(convert_image(data, image_format="png")).size == (48, 64)


def test_a_preview_is_made_of_an_image_that_cannot_be_converted():
    data = saved(Image.linear_gradient("L").resize((16_400, 4)), "PNG")
    derived = convert_and_preview(data, inspect_image(data), image_format="webp", preview_pixels=50)
    assert derived.converted is None
    assert opened(derived.preview).size == (50, 1)
    (note,) = derived.notes
    assert note.startswith("Kept as png: The image cannot be converted to webp:")
