"""Contact sheets: all images of a task on one sheet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_imagen.storage.atomic_write import read_bytes, write_bytes_atomically
from airflow_provider_imagen.storage.convert import make_contact_sheet
from airflow_provider_imagen.storage.paths import HIDDEN_FOLDER, address_of, descend

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airflow_provider_imagen.storage.paths import StoragePath


def write_contact_sheet(
    folder: StoragePath,
    *,
    pictures: Iterable[tuple[str, str]],
    count: int,
    title: str,
    owner: str,
) -> str:
    """
    Write a labelled sheet of stored images and return its location; only one image is in memory at a time.

    The sheet goes to the hidden folder, so that readers of the output folder do not mistake it for an image.

    :param folder: the output folder
    :param pictures: per image, the name of its preview or of the image itself, relative to the folder, and its label
    :param count: number of images
    :param title: heading of the sheet
    :param owner: short hash of the task-instance key, which names the sheet
    :raises StorageError: an image cannot be read, or the sheet cannot be written
    """
    items = ((read_bytes(descend(folder, name), within=folder), label) for name, label in pictures)
    path = descend(folder, f"{HIDDEN_FOLDER}/contact-sheets/{owner}.webp")
    sheet = make_contact_sheet(items, count=count, title=title)
    write_bytes_atomically(path, sheet, content_type="image/webp", owner=owner, within=folder)
    return address_of(path)
