"""
Convert images to another format, and make thumbnails and contact sheets.

A conversion keeps EXIF and XMP, and the colour profile if it fits the new pixels
(:mod:`~airflow_provider_imagen.storage.colours`). An EXIF orientation is applied to the pixels and removed. Text
chunks, comments and C2PA manifests are dropped (a manifest signs bytes that no longer exist). An animation becomes its
first frame.
"""

from __future__ import annotations

import math
import re
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final, Literal

from airflow_provider_imagen.exceptions import BadImageError, InvalidArgumentsError, Problem
from airflow_provider_imagen.storage.colours import change_mode, is_grey, to_eight_bits
from airflow_provider_imagen.storage.jpeg import MAX_APP1_BYTES
from airflow_provider_imagen.storage.open_image import open_image

if TYPE_CHECKING:
    from collections.abc import Iterable

    from PIL.Image import Image as PillowImage

ImageFormat = Literal["png", "jpeg", "webp", "avif"]

IMAGE_FORMATS: Final[tuple[ImageFormat, ...]] = ("png", "jpeg", "webp", "avif")
DEFAULT_QUALITY: Final[dict[ImageFormat, int]] = {"jpeg": 92, "webp": 90, "avif": 80}
"""Quality at which the loss is hard to see; each encoder has its own scale from 0 to 100."""

_MAX_SHEET_PIXELS: Final = 16_000_000
_MAX_WEBP_SIDE: Final = 16_383
_LABEL_LINES: Final = 2
_CONVERSION_COPIES: Final = 4
_PREVIEW_COPIES: Final = 3
_ORIENTATION: Final = 0x0112
_TIFF_STRUCTURE: Final = frozenset(
    (
        *(*range(254, 260), 262, 263, 266, 273, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 330, 338, 339, 347),
        *(529, 530, 531, 532, 700, 33723, 34377, 34675),
    )
)
"""TIFF tags for pixel storage or other embedded metadata, which have no place in another format's EXIF."""


def convert_image(
    data: bytes,
    *,
    image_format: ImageFormat,
    quality: int | None = None,
    lossless: bool | None = None,
    xmp: bytes | None = None,
    notes: list[str] | None = None,
) -> bytes:
    """
    Return the image in another format.

    An upright image that already has the format is returned unchanged, unless ``quality``, ``lossless`` or ``xmp`` ask
    for something else. Transparency is flattened onto white for JPEG. CMYK becomes RGB. 16-bit grey becomes 8-bit
    except in PNG.

    :param data: a complete image file
    :param image_format: the target format
    :param quality: 0 to 100, for jpeg, webp and avif; default :data:`DEFAULT_QUALITY`
    :param lossless: keep every pixel; webp only (png is always lossless, jpeg and avif never here)
    :param xmp: XMP packet to write instead of the image's own
    :param notes: gets a sentence if the colour profile is lost
    :raises InvalidArgumentsError: the arguments contradict each other or are out of range
    :raises BadImageError: the bytes are not an image, or the format cannot hold it (webp allows up to 16,383 pixels
        per side)
    """
    _check_arguments(image_format, quality, lossless)
    try:
        with open_image(data, copies=_CONVERSION_COPIES) as source:
            is_upright = source.getexif().get(_ORIENTATION, 1) == 1
            as_asked = _has_format(source.format, image_format) and is_upright
            if as_asked and quality is None and not lossless and xmp is None:
                return data
            options = _encoder_options(image_format, quality, lossless)
            return _encode(source, image_format, options, xmp, [] if notes is None else notes)
    except Exception as error:
        raise BadImageError(f"The picture cannot be written as {image_format}: {error}") from error


def make_thumbnail(
    data: bytes, *, pixels: int, image_format: Literal["webp", "jpeg"] = "webp", max_pixels: int | None = None
) -> bytes:
    """
    Return a small preview, upright, with the image's proportions, and never larger than the image.

    Of the metadata, only the colour profile is kept.

    :param data: a complete image file
    :param pixels: longer side of the preview
    :param max_pixels: maximum width times height of the image; ``None`` applies only Pillow's own limit
    :raises BadImageError: the bytes are not an image, or it is too large
    """
    try:
        with open_image(data, copies=_PREVIEW_COPIES, max_pixels=max_pixels) as source:
            options: dict[str, Any] = {"icc_profile": source.info.get("icc_profile"), "quality": 80}
            image = _fit_mode(_shrink(source, pixels), image_format, options, [])
            target = BytesIO()
            image.save(target, format=image_format, **options)
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
    Return a WebP sheet of labelled previews.

    Items are consumed one at a time, and cells shrink to keep the sheet within 16 million pixels, so memory depends on
    the sheet, not on the number of images. The built-in font has only Latin letters; others show as boxes.

    :param items: the bytes of each image (ideally a preview; ``None`` if it is missing) and its label, in order
    :param count: number of items; any beyond it are ignored
    :param columns: images per row; by default as many as there are rows, roughly. More are used if the sheet would
        otherwise be too high for WebP
    :param cell_pixels: maximum side of an image's cell
    :param title: text above the images
    :raises BadImageError: there are too many images for one sheet
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


def _encode(
    image: PillowImage, image_format: ImageFormat, options: dict[str, Any], xmp: bytes | None, notes: list[str]
) -> bytes:
    from PIL import ImageOps

    was_tiff = image.format == "TIFF"
    if image.getexif().get(_ORIENTATION, 1) != 1 and xmp is not None:
        xmp = re.sub(rb"<tiff:Orientation>\d</tiff:Orientation>|\btiff:Orientation=(\"\d\"|'\d')", b"", xmp)
    ImageOps.exif_transpose(image, in_place=True)
    options["icc_profile"] = image.info.get("icc_profile")
    exif = image.getexif()
    for tag in _TIFF_STRUCTURE.intersection(exif) if was_tiff else ():
        del exif[tag]
    if exif and (image_format != "jpeg" or len(exif.tobytes()) <= MAX_APP1_BYTES):
        options["exif"] = exif.tobytes()
    packet = xmp if xmp is not None else image.info.get("xmp")
    if isinstance(packet, str):
        packet = packet.encode()
    if packet and image_format == "png":
        options["pnginfo"] = _png_text(packet)
    elif packet and (image_format != "jpeg" or len(packet) <= MAX_APP1_BYTES):
        options["xmp"] = packet
    image = _fit_mode(image, image_format, options, notes)
    target = BytesIO()
    image.save(target, format=image_format, **options)
    return target.getvalue()


def _png_text(packet: bytes) -> Any:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", packet.decode(errors="replace"))
    return info


def _fit_mode(image: PillowImage, image_format: str, options: dict[str, Any], notes: list[str]) -> PillowImage:
    """Return the image in a mode that the format can hold, losing as little as possible."""
    if image_format == "png" and image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        mode = image.mode
    elif image_format in ("jpeg", "png") and is_grey(image.mode):
        mode = "L"
    else:
        mode = "RGBA" if image.has_transparency_data and image_format != "jpeg" else "RGB"
    return change_mode(image, mode, options, notes)


def _encoder_options(image_format: ImageFormat, quality: int | None, lossless: bool | None) -> dict[str, Any]:
    if image_format == "png":
        return {}
    options: dict[str, Any] = {"quality": DEFAULT_QUALITY[image_format] if quality is None else quality}
    if image_format == "jpeg":
        options["subsampling"] = 0  # full colour resolution: generated images have hard edges
    if image_format == "webp" and lossless:
        options.update(
            lossless=True, exact=True, quality=75 if quality is None else quality
        )  # for lossless, quality means effort
    return options


def _shrink(source: PillowImage, pixels: int) -> PillowImage:
    from PIL import Image, ImageOps

    if source.format == "JPEG":
        source.draft(None, (pixels * 2, pixels * 2))  # decode at reduced size; twice the target stays sharp
    ImageOps.exif_transpose(source, in_place=True)
    image = to_eight_bits(source)
    if image.mode == "P":
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    image.thumbnail((pixels, pixels), Image.Resampling.LANCZOS)
    return image


def _sheet_layout(count: int, columns: int | None, cell_pixels: int) -> tuple[int, int, int]:
    """Return cell side, columns and rows that keep the sheet within its limits."""
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
    left, upper = corner
    if data is not None:
        try:
            with open_image(data, copies=_PREVIEW_COPIES) as source:
                image = _fit_mode(_shrink(source, cell), "webp", {"icc_profile": source.info.get("icc_profile")}, [])
                place = (left + (cell - image.width) // 2, upper + (cell - image.height) // 2)
                sheet.paste(image, place, mask=image.getchannel("A") if image.mode == "RGBA" else None)
                return
        except Exception:  # draw an empty frame instead: a sheet is no reason to fail
            data = None
    draw.rectangle((left, upper, left + cell - 1, upper + cell - 1), outline=(200, 200, 200))
    draw.line((left, upper, left + cell - 1, upper + cell - 1), fill=(200, 200, 200))


def _wrap(label: str, font: Any, width: int) -> list[str]:
    """Return the lines of a label; text that does not fit ends in an ellipsis."""
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
