"""The differences between images, and what they have in common."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from airflow_provider_imagen.money import format_usd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow_provider_imagen.plugins.gallery.task_results import GalleryImage

MIN_COMPARED: Final = 2
MAX_COMPARED: Final = 4

_PUNCTUATION: Final = ".,;:!?()[]\"'“”‘’"


class Passage(NamedTuple):
    """
    Part of a value.

    :param is_changed: whether its words are missing in another image's value
    """

    text: str
    is_changed: bool


@dataclass(frozen=True)
class ComparedImage:
    """
    One image of a comparison.

    :param differing: its values of the fields that differ, by the field's heading; the same fields, in the same order,
        for every image; an empty list where it has no value
    """

    image: GalleryImage
    differing: dict[str, list[Passage]]


@dataclass(frozen=True)
class Comparison:
    """
    The differences between images.

    :param images: in the order given
    :param common: values that all images have, by the field's heading
    """

    images: list[ComparedImage]
    common: dict[str, str]


def compare(images: Sequence[GalleryImage]) -> Comparison:
    """Return what differs between images, and what does not."""
    facts = [_facts(image) for image in images]
    headings = dict.fromkeys(heading for each in facts for heading in each)
    values = {heading: [each.get(heading, "") for each in facts] for heading in headings}
    differing = {heading: _mark_changes(texts) for heading, texts in values.items() if len(set(texts)) > 1}
    return Comparison(
        [
            ComparedImage(image, {heading: marked[place] for heading, marked in differing.items()})
            for place, image in enumerate(images)
        ],
        {heading: texts[0] for heading, texts in values.items() if heading not in differing},
    )


def _facts(image: GalleryImage) -> dict[str, str]:
    """Return what is known about an image, by heading; metadata may have any name, so it has headings of its own."""
    known: dict[str, Any] = {
        "Prompt": image.prompt,
        "Name": image.name,
        "Model": image.model,
        "Seed": image.seed,
        "Size": f"{image.width}×{image.height}" if image.width and image.height else None,
        "Type": image.mime_type,
        "Cost": None if image.usd is None else format_usd(image.usd),
    }
    metadata = {f"{name} (metadata)": value for name, value in (image.metadata or {}).items()}
    facts = image.shown_arguments | metadata | {"Rewritten as": image.enhanced_prompt}
    facts = known | {name: value for name, value in facts.items() if name not in known}
    return {heading: str(value) for heading, value in facts.items() if value not in (None, "")}


def _mark_changes(texts: Sequence[str]) -> list[list[Passage]]:
    """Return each text with the words marked that not all others contain."""
    words = [{_plain(word) for word in text.split()} for text in texts]
    common = set.intersection(*words)
    return [_passages(text, common) for text in texts]


def _passages(text: str, common: set[str]) -> list[Passage]:
    passages: list[Passage] = []
    for part in re.findall(r"\S+|\s+", text):
        is_changed = passages[-1].is_changed if part.isspace() and passages else _plain(part) not in common
        if passages and passages[-1].is_changed == is_changed:
            passages[-1] = Passage(passages[-1].text + part, is_changed)
        else:
            passages.append(Passage(part, is_changed))
    return passages


def _plain(word: str) -> str:
    return word.strip(_PUNCTUATION).casefold()
