"""
The forms of a successful response.

::

    A   {data: [{url, b64_json, …}], meta}                              Imagen, Gemini 3, FLUX.2, Seedream 4.5, Grok …
    B   {images: [{url, width, height, content_type}], seed, timings, …} FLUX.1, Stable Diffusion 3, Recraft
    C   images and data together, with the same images              Seedream v4, USO, FLUX SRPO
    D   {created, data: [{url, b64_json, revised_prompt}], usage, meta}  gpt-image-1, Qwen, Wan
    E   {status, output: {choices: [{image_base64}]}}                    the SDXL era, 2024

(docs, image model pages and specs, 2025-02 to 2026-08)
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from decimal import Decimal

    from airflow_provider_imagen.sandbox.image_store import Recipe

Shape = Literal["A", "B", "C", "D", "E"]


@dataclass(frozen=True)
class Made:
    """
    One image of a response.

    :param url: ``None`` when the image is inline
    :param data: its bytes, ``None`` when there is a URL
    :param prompt: the prompt as the model rewrote it, ``None`` when it did not rewrite it
    """

    recipe: Recipe
    url: str | None = None
    data: bytes | None = None
    prompt: str | None = None

    @property
    def base64(self) -> str | None:
        """The bytes as base64 text."""
        return None if self.data is None else base64.b64encode(self.data).decode("ascii")

    @property
    def data_uri(self) -> str | None:
        """The bytes as a ``data:`` URI."""
        return None if self.data is None else f"data:{self.recipe.content_type};base64,{self.base64}"


def answer(
    shape: Shape, pictures: list[Made], *, model: str, prompt: str, seed: int, seconds: float, now: float
) -> dict[str, Any]:
    """
    Return the body of a successful response, without its usage.

    :param pictures: in order
    :param prompt: as sent
    :param seconds: how long the generation took
    :param now: seconds since the epoch
    """
    if shape == "A":
        return {"data": [_data_item(made, model) for made in pictures]}
    if shape == "B":
        return _images_form(pictures, prompt=prompt, seed=seed, seconds=seconds)
    if shape == "C":
        return {
            **_images_form(pictures, prompt=prompt, seed=seed, seconds=seconds),
            "data": [_plain_item(made) for made in pictures],
        }
    if shape == "D":
        return {
            "created": int(now),
            "data": [{**_plain_item(made), "revised_prompt": made.prompt or prompt} for made in pictures],
            "usage": {"input_tokens": len(prompt.split()), "output_tokens": 0, "total_tokens": len(prompt.split())},
        }
    return {"status": "finished", "output": {"choices": [{"image_base64": made.base64} for made in pictures]}}


def _plain_item(made: Made) -> dict[str, Any]:
    return {"url": made.url, "b64_json": made.base64}


def _data_item(made: Made, model: str) -> dict[str, Any]:
    if "imagen" in model:
        item = {"mime_type": made.recipe.content_type, **_plain_item(made)}
        return item if made.prompt is None else {**item, "prompt": made.prompt}
    item = _plain_item(made)
    if model.startswith("bytedance/"):
        item["size"] = f"{made.recipe.width}x{made.recipe.height}"
    elif model.startswith("reve/"):
        item["content_violation"] = False
    return item


def _images_form(pictures: list[Made], *, prompt: str, seed: int, seconds: float) -> dict[str, Any]:
    return {
        "images": [
            {
                "url": made.url or made.data_uri,
                "width": made.recipe.width,
                "height": made.recipe.height,
                "content_type": made.recipe.content_type,
            }
            for made in pictures
        ],
        "seed": seed,
        "timings": {"inference": round(seconds, 3)},
        "has_nsfw_concepts": [False] * len(pictures),
        "prompt": prompt,
    }


def usage(usd: Decimal, credits_used: int, names: tuple[str, ...] = ("credits_used", "usd_spent")) -> dict[str, Any]:
    """
    Return the ``meta`` of a response.

    :param names: which amounts to report: ``credits_used``, ``usd_spent`` and the older ``tokens_used``
    """
    amounts = {"credits_used": credits_used, "tokens_used": credits_used, "usd_spent": float(usd)}
    return {"usage": {name: amounts[name] for name in names}}


def forced(way: str, pictures: list[Made]) -> dict[str, Any]:
    """
    Return a body that delivers images in a given way, whatever the model.

    :param way: ``data_uri`` ``b64_json`` ``base64`` ``image_base64`` ``nulls``
    """
    items: list[dict[str, Any]] = []
    for made in pictures:
        if way == "data_uri":
            items.append({"url": made.data_uri})
        elif way == "nulls":
            items.append({"url": None, "b64_json": None})
        else:
            items.append({way: made.base64})
    return {"data": items}


def needs_bytes(shape: str) -> bool:
    """Return whether a form holds the image bytes."""
    return shape in ("E", "data_uri", "b64_json", "base64", "image_base64")
