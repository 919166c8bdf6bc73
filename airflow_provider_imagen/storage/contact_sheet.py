"""Put the pictures of a task on one sheet beside them."""

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
    Make a labelled sheet of stored pictures; one at a time is in memory.

    It lies in the hidden folder, so that readers of the pictures do not take it for one.

    :param folder: the output folder
    :param pictures: per picture the name of its preview, or its own, relative to the folder, and its label
    :param count: how many pictures there are
    :param title: heading of the sheet
    :param owner: identity of the task instance, which names the sheet
    :returns: where the sheet is
    :raises StorageError: when a picture cannot be read or the sheet not be written
    """
    items = ((read_bytes(descend(folder, name), within=folder), label) for name, label in pictures)
    path = descend(folder, f"{HIDDEN_FOLDER}/contact-sheets/{owner}.webp")
    sheet = make_contact_sheet(items, count=count, title=title)
    write_bytes_atomically(path, sheet, content_type="image/webp", owner=owner, within=folder)
    return address_of(path)
