"""Contact sheets: all images of a task in one labelled overview."""

from __future__ import annotations

import math
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

from airflow_provider_imagen.exceptions import BadImageError
from airflow_provider_imagen.storage.atomic_write import read_bytes, write_bytes_atomically
from airflow_provider_imagen.storage.convert import PREVIEW_COPIES, make_preview
from airflow_provider_imagen.storage.open_image import open_image
from airflow_provider_imagen.storage.paths import HIDDEN_FOLDER, address_of, descend

if TYPE_CHECKING:
    from collections.abc import Iterable

    from PIL.Image import Image as PillowImage

    from airflow_provider_imagen.storage.paths import StoragePath

_MAX_SHEET_PIXELS: Final = 16_000_000
_MAX_CELL_PIXELS: Final = 256
_MIN_CELL_PIXELS: Final = 15
_LABEL_LINES: Final = 2

SHEET_MIME_TYPE: Final = "image/webp"


def sheet_address(folder: StoragePath, owner: str) -> str:
    """
    Return the location of a contact sheet, whether or not it exists.

    :param owner: short hash of the task-instance key
    """
    return address_of(_sheet_path(folder, owner))


def _sheet_path(folder: StoragePath, owner: str) -> StoragePath:
    return descend(folder, f"{HIDDEN_FOLDER}/contact-sheets/{owner}.webp")


def write_contact_sheet(
    folder: StoragePath,
    *,
    images: Iterable[tuple[str, str]],
    count: int,
    title: str,
    owner: str,
) -> str:
    """
    Write a contact sheet of stored images and return its location; only one image is in memory at a time.

    It goes into the hidden folder, so that readers of the output folder do not mistake it for a generated image.

    :param folder: the output folder
    :param images: per image, the name of its preview or of the image itself, relative to the folder, and its label
    :param count: number of images
    :param title: text above the images
    :param owner: short hash of the task-instance key, which names the sheet
    :raises StorageError: an image cannot be read, or the sheet cannot be written
    """
    items = ((read_bytes(descend(folder, name), within=folder), label) for name, label in images)
    path = _sheet_path(folder, owner)
    sheet = make_contact_sheet(items, count=count, title=title)
    write_bytes_atomically(path, sheet, content_type=SHEET_MIME_TYPE, owner=owner, within=folder)
    return address_of(path)


def make_contact_sheet(items: Iterable[tuple[bytes | None, str]], *, count: int, title: str = "") -> bytes:
    """
    Return a WebP sheet of labelled previews.

    Items are consumed one at a time, and cells shrink to keep the sheet within 16 million pixels, so memory depends on
    the sheet, not on the number of images. The built-in font has only Latin letters; others show as boxes.

    :param items: the bytes of each image (ideally a preview; ``None`` if it is missing) and its label, in order
    :param count: number of items; any beyond it are ignored
    :param title: text above the images
    :raises BadImageError: there are too many images for one sheet
    """
    from PIL import Image, ImageDraw, ImageFont

    count = max(count, 1)
    cell, columns, rows = _sheet_layout(count)
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


def _sheet_layout(count: int) -> tuple[int, int, int]:
    """Return the largest cell side that keeps the sheet within its limit, and the number of columns and rows."""
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    cell = _MAX_CELL_PIXELS
    while cell >= _MIN_CELL_PIXELS:
        gap, text_pixels = max(cell // 24, 2), max(cell // 16, 8)
        width = columns * (cell + gap) + gap
        height = rows * (cell + gap + (text_pixels + 4) * _LABEL_LINES) + text_pixels * 3
        if width * height <= _MAX_SHEET_PIXELS:
            return cell, columns, rows
        cell = cell * 9 // 10
    raise BadImageError(f"{count} images do not fit on one contact sheet.")


def _paste_cell(sheet: PillowImage, draw: Any, data: bytes | None, corner: tuple[int, int], cell: int) -> None:
    left, upper = corner
    if data is not None:
        try:
            with open_image(data, copies=PREVIEW_COPIES) as source:
                options = {"icc_profile": source.info.get("icc_profile")}
                image = make_preview(source, pixels=cell, options=options)
                centred = (left + (cell - image.width) // 2, upper + (cell - image.height) // 2)
                sheet.paste(image, centred, mask=image.getchannel("A") if image.mode == "RGBA" else None)
                return
        except Exception:  # draw an empty frame instead: a contact sheet is no reason to fail
            data = None
    draw.rectangle((left, upper, left + cell - 1, upper + cell - 1), outline=(200, 200, 200))
    draw.line((left, upper, left + cell - 1, upper + cell - 1), fill=(200, 200, 200))


def _wrap(label: str, font: Any, width: int) -> list[str]:
    """Return the lines of a label; text that does not fit ends in an ellipsis."""
    words = "".join(character if character.isprintable() else " " for character in label[:400]).split()
    lines: list[str] = []
    while words and len(lines) < _LABEL_LINES - 1:
        count = 1
        while count < len(words) and font.getlength(" ".join(words[: count + 1])) <= width:
            count += 1
        lines.append(_fit_text(" ".join(words[:count]), font, width))
        words = words[count:]
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
