"""
Make other pictures out of a picture: another format, a small preview, a sheet of previews.

What becomes of the metadata when a picture is converted: the colour profile, EXIF and XMP are carried over; an EXIF
orientation is applied to the pixels and removed; text chunks, comments and C2PA manifests are not carried over (a
manifest signs bytes that no longer exist). An animation becomes its first frame.
"""

from __future__ import annotations

import math
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final, Literal

from airflow_provider_imagen.exceptions import BadImageError, InvalidArgumentsError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterable

    from PIL.Image import Image as PillowImage

ImageFormat = Literal["png", "jpeg", "webp", "avif"]

IMAGE_FORMATS: Final[tuple[ImageFormat, ...]] = ("png", "jpeg", "webp", "avif")
DEFAULT_QUALITY: Final[dict[ImageFormat, int]] = {"jpeg": 92, "webp": 90, "avif": 80}
"""Where the loss is hard to see; each encoder has its own scale from 0 to 100."""

_MAX_JPEG_SEGMENT: Final = 65_502  # what an APP1 segment holds besides the name of its kind (XMP part 3, JPEG)
_MAX_SHEET_PIXELS: Final = 16_000_000
_MAX_WEBP_SIDE: Final = 16_383
_LABEL_LINES: Final = 2


def convert_picture(
    data: bytes,
    *,
    image_format: ImageFormat,
    quality: int | None = None,
    lossless: bool | None = None,
    xmp: bytes | None = None,
) -> bytes:
    """
    Convert a picture to another format; one that has it already is returned unchanged.

    Transparency is flattened on white for JPEG. CMYK becomes RGB and loses its profile. 16-bit grey becomes 8-bit
    except in PNG.

    :param data: a whole picture
    :param image_format: what to make
    :param quality: 0 to 100 for jpeg, webp and avif; default :data:`DEFAULT_QUALITY`; asked for, the picture is encoded
        anew even when it has the format
    :param lossless: keep every pixel; webp only (png always does, jpeg and avif cannot here)
    :param xmp: XMP packet to write instead of the picture's own
    :raises InvalidArgumentsError: when the arguments do not fit together
    :raises BadImageError: when the bytes are no picture, or the format cannot hold it (webp ends at 16,383 pixels
        a side)
    """
    from PIL import Image, ImageOps

    _check_arguments(image_format, quality, lossless)
    try:
        with Image.open(BytesIO(data)) as source:
            orientation = source.getexif().get(0x0112, 1)
            as_asked = _has_format(source.format, image_format) and orientation == 1
            if as_asked and quality is None and not lossless and xmp is None:
                return data
            upright = ImageOps.exif_transpose(source)
            options = _metadata_options(upright, source, image_format, xmp)
            image = _fit_mode(upright, image_format, options)
            options.update(_encoder_options(image_format, quality, lossless))
            target = BytesIO()
            image.save(target, format=image_format, **options)
    except Exception as error:
        raise BadImageError(f"The picture cannot be written as {image_format}: {error}") from error
    return target.getvalue()


def make_thumbnail(data: bytes, *, pixels: int, image_format: Literal["webp", "jpeg"] = "webp") -> bytes:
    """
    Make a small preview, upright and with the picture's proportions; never larger than the picture.

    Metadata is left out, except the colour profile.

    :param data: a whole picture
    :param pixels: its longer side
    :raises BadImageError: when the bytes are no picture
    """
    from PIL import Image

    try:
        with Image.open(BytesIO(data)) as source:
            image = _shrink(source, pixels)
            options: dict[str, Any] = {"icc_profile": source.info.get("icc_profile")}
            image = _fit_mode(image, image_format, options)
            target = BytesIO()
            image.save(target, format=image_format, quality=80, **options)
    except Exception as error:
        raise BadImageError(f"No preview can be made of the picture: {error}") from error
    return target.getvalue()


def make_contact_sheet(
    items: Iterable[tuple[bytes | None, str]],
    *,
    count: int,
    columns: int | None = None,
    cell_pixels: int = 256,
    title: str = "",
) -> bytes:
    """
    Put previews with their labels on one sheet, as WebP.

    The items are taken one at a time and the sheet is never larger than 16 million pixels (cells shrink to keep it so):
    memory depends on the sheet, not on the number or size of the pictures. The built-in font has Latin letters;
    others show as boxes.

    :param items: picture bytes (best a preview; ``None`` for one that is missing) and its label, in order
    :param count: number of items; further ones are left out
    :param columns: pictures side by side; default as many as make the sheet about as wide as high. More are used when
        the sheet would become too high for WebP.
    :param cell_pixels: side of a picture's cell, at most
    :param title: text above the pictures
    """
    from PIL import Image, ImageDraw, ImageFont

    count = max(count, 1)
    cell, columns, rows = _sheet_layout(count, columns, cell_pixels)
    gap = max(cell // 24, 2)
    text_pixels = max(cell // 16, 8)
    font = ImageFont.load_default(text_pixels)
    label_height = (text_pixels + 4) * _LABEL_LINES
    top = text_pixels * 3 if title else gap
    sheet = Image.new("RGB", (columns * (cell + gap) + gap, top + rows * (cell + label_height + gap)), (250, 250, 250))
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((gap, text_pixels // 2), _fit_text(title, font, sheet.width - 2 * gap), fill=(20, 20, 20), font=font)
    for number, (data, label) in zip(range(count), items, strict=False):
        row, column = divmod(number, columns)
        left = gap + column * (cell + gap)
        upper = top + row * (cell + label_height + gap)
        _paste_cell(sheet, draw, data, (left, upper), cell)
        for line, text in enumerate(_wrap(label, font, cell)):
            draw.text((left, upper + cell + 2 + line * (text_pixels + 4)), text, fill=(40, 40, 40), font=font)
    target = BytesIO()
    sheet.save(target, format="webp", quality=85)
    return target.getvalue()


def _check_arguments(image_format: ImageFormat, quality: int | None, lossless: bool | None) -> None:
    problems = []
    if image_format not in IMAGE_FORMATS:
        problems.append(Problem("image_format", image_format, f"one of {', '.join(IMAGE_FORMATS)}"))
    if quality is not None and not (0 <= quality <= 100 and image_format != "png"):
        problems.append(Problem("quality", quality, "0 to 100, for jpeg, webp and avif"))
    if lossless and image_format not in ("webp", "png"):
        problems.append(Problem("lossless", lossless, "only webp and png can keep every pixel"))
    if problems:
        raise InvalidArgumentsError(problems)


def _has_format(pillow_format: str | None, image_format: ImageFormat) -> bool:
    return (pillow_format or "").lower().replace("mpo", "jpeg") == image_format


def _metadata_options(
    upright: PillowImage, source: PillowImage, image_format: ImageFormat, xmp: bytes | None
) -> dict[str, Any]:
    options: dict[str, Any] = {"icc_profile": source.info.get("icc_profile")}
    exif = upright.getexif()
    if exif:
        packed = exif.tobytes()
        if image_format != "jpeg" or len(packed) <= _MAX_JPEG_SEGMENT:
            options["exif"] = packed
    packet = xmp if xmp is not None else upright.info.get("xmp")
    if isinstance(packet, str):
        packet = packet.encode()
    if packet and image_format == "png":
        options["pnginfo"] = _png_text(packet)
    elif packet and (image_format != "jpeg" or len(packet) <= _MAX_JPEG_SEGMENT):
        options["xmp"] = packet
    return options


def _png_text(packet: bytes) -> Any:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", packet.decode(errors="replace"))
    return info


def _fit_mode(image: PillowImage, image_format: str, options: dict[str, Any]) -> PillowImage:
    """Turn the pixels into a kind the format can hold, losing as little as possible."""
    from PIL import Image

    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        options["icc_profile"] = None  # it describes the old colours
        image = image.convert("RGB")
    if image_format == "png" and image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        return image
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    transparent = image.has_transparency_data
    if image_format == "jpeg":
        if transparent:
            layer = image.convert("RGBA")
            image = Image.new("RGB", image.size, (255, 255, 255))
            image.paste(layer, mask=layer.getchannel("A"))
        return image if image.mode in ("L", "RGB") else image.convert("RGB")
    wanted = "RGBA" if transparent else "RGB"
    return image if image.mode == wanted else image.convert(wanted)


def _encoder_options(image_format: ImageFormat, quality: int | None, lossless: bool | None) -> dict[str, Any]:
    if image_format == "png":
        return {}
    options: dict[str, Any] = {"quality": DEFAULT_QUALITY[image_format] if quality is None else quality}
    if image_format == "jpeg":
        options["subsampling"] = 0  # full colour resolution: generated pictures have hard edges
    if image_format == "webp" and lossless:
        options.update(lossless=True, exact=True, quality=75 if quality is None else quality)  # here: effort
    return options


def _shrink(source: PillowImage, pixels: int) -> PillowImage:
    from PIL import Image, ImageOps

    if source.format == "JPEG":
        source.draft(None, (pixels * 2, pixels * 2))  # decode at a fraction of the size; twice is enough to stay sharp
    image = ImageOps.exif_transpose(source)
    if image.mode == "P":
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    image.thumbnail((pixels, pixels), Image.Resampling.LANCZOS)
    return image


def _sheet_layout(count: int, columns: int | None, cell_pixels: int) -> tuple[int, int, int]:
    """Choose the cell's side, the columns and the rows so that the sheet stays within its limits."""
    columns = min(max(columns or math.ceil(math.sqrt(count)), 1), count)
    cell = max(cell_pixels, 16)
    while True:
        pitch = cell + max(cell // 24, 2)
        rows = math.ceil(count / columns)
        height = rows * (pitch + (max(cell // 16, 8) + 4) * _LABEL_LINES) + max(cell // 16, 8) * 3
        width = columns * pitch + max(cell // 24, 2)
        if width > _MAX_WEBP_SIDE or width * height > _MAX_SHEET_PIXELS:
            if cell <= 16:
                raise BadImageError(f"{count} pictures are too many for one sheet.")
            cell = max(cell * 9 // 10, 16)
        elif height > _MAX_WEBP_SIDE:
            columns += 1
        else:
            return cell, columns, rows


def _paste_cell(sheet: PillowImage, draw: Any, data: bytes | None, corner: tuple[int, int], cell: int) -> None:
    from PIL import Image

    left, upper = corner
    image = None
    if data is not None:
        try:
            with Image.open(BytesIO(data)) as source:
                image = _fit_mode(_shrink(source, cell), "webp", {})
        except Exception:
            image = None  # an empty frame says as much; a sheet is no reason to fail
    if image is None:
        draw.rectangle((left, upper, left + cell - 1, upper + cell - 1), outline=(200, 200, 200))
        draw.line((left, upper, left + cell - 1, upper + cell - 1), fill=(200, 200, 200))
        return
    place = (left + (cell - image.width) // 2, upper + (cell - image.height) // 2)
    sheet.paste(image, place, mask=image.getchannel("A") if image.mode == "RGBA" else None)


def _wrap(label: str, font: Any, width: int) -> list[str]:
    """Break a label into the lines under its picture; what does not fit ends in an ellipsis."""
    words = "".join(character if character.isprintable() else " " for character in label[:400]).split()
    lines: list[str] = []
    while words and len(lines) < _LABEL_LINES - 1:
        taken = 1
        while taken < len(words) and font.getlength(" ".join(words[: taken + 1])) <= width:
            taken += 1
        lines.append(_fit_text(" ".join(words[:taken]), font, width))
        words = words[taken:]
    if words:
        lines.append(_fit_text(" ".join(words), font, width))
    return lines


def _fit_text(text: str, font: Any, width: int) -> str:
    text = " ".join(text[:400].split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"
