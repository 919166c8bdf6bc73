"""Short ids for the images of a run, as forms and URLs that name several images hold them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from airflow_provider_imagen.plugins.gallery.task_results import GalleryImage

MAX_INTEGER: Final = 2**31 - 1
"""Largest integer that Airflow's database accepts."""


def image_id(image: GalleryImage) -> str:
    """Return ``task_id:map_index:prompt_index:image_index``."""
    return f"{image.ti.task_id}:{image.ti.map_index}:{image.prompt_index}:{image.image_index}"


def parse_image_id(text: str) -> tuple[str, int, int, int] | None:
    """Return the task id, map index, prompt index and image index; ``None`` if the text is not such an id."""
    match = re.fullmatch(r"(.{1,250}):(-1|\d{1,10}):(\d{1,10}):(\d{1,10})", text, re.ASCII)
    if match is None:
        return None
    map_index, prompt_index, image_index = map(int, match.groups()[1:])
    if max(map_index, prompt_index, image_index) > MAX_INTEGER:
        return None
    return match[1], map_index, prompt_index, image_index
