"""
The shapes of a successful response.

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
class RenderedImage:
    """
    One image of a response.

    :param url: ``None`` if the image is inline
    :param data: its bytes, ``None`` if it has a URL
    :param prompt: the rewritten prompt, ``None`` if the model did not rewrite it
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


def response_body(
    shape: Shape, images: list[RenderedImage], *, model: str, prompt: str, seed: int, seconds: float, now: float
) -> dict[str, Any]:
    """
    Return the body of a successful response, without its cost.

    :param prompt: prompt as sent
    :param seconds: duration of the generation
    :param now: seconds since the epoch
    """
    if shape == "A":
        return {"data": [_data_item(image, model) for image in images]}
    if shape == "B":
        return _images_body(images, prompt=prompt, seed=seed, seconds=seconds)
    if shape == "C":
        return {
            **_images_body(images, prompt=prompt, seed=seed, seconds=seconds),
            "data": [_plain_item(image) for image in images],
        }
    if shape == "D":
        return {
            "created": int(now),
            "data": [{**_plain_item(image), "revised_prompt": image.prompt or prompt} for image in images],
            "usage": {"input_tokens": len(prompt.split()), "output_tokens": 0, "total_tokens": len(prompt.split())},
        }
    return {"status": "finished", "output": {"choices": [{"image_base64": image.base64} for image in images]}}


def _plain_item(image: RenderedImage) -> dict[str, Any]:
    return {"url": image.url, "b64_json": image.base64}


def _data_item(image: RenderedImage, model: str) -> dict[str, Any]:
    if "imagen" in model:
        item = {"mime_type": image.recipe.content_type, **_plain_item(image)}
        return item if image.prompt is None else {**item, "prompt": image.prompt}
    item = _plain_item(image)
    if model.startswith("bytedance/"):
        item["size"] = f"{image.recipe.width}x{image.recipe.height}"
    elif model.startswith("reve/"):
        item["content_violation"] = False
    return item


def _images_body(images: list[RenderedImage], *, prompt: str, seed: int, seconds: float) -> dict[str, Any]:
    return {
        "images": [
            {
                "url": image.url or image.data_uri,
                "width": image.recipe.width,
                "height": image.recipe.height,
                "content_type": image.recipe.content_type,
            }
            for image in images
        ],
        "seed": seed,
        "timings": {"inference": round(seconds, 3)},
        "has_nsfw_concepts": [False] * len(images),
        "prompt": prompt,
    }


def cost_meta(
    usd: Decimal, credits_used: int, names: tuple[str, ...] = ("credits_used", "usd_spent")
) -> dict[str, Any]:
    """
    Return the ``meta`` of a response, which states its cost.

    :param names: amounts to include: ``credits_used``, ``usd_spent`` and the older ``tokens_used``
    """
    amounts = {"credits_used": credits_used, "tokens_used": credits_used, "usd_spent": float(usd)}
    return {"usage": {name: amounts[name] for name in names}}


def forced_body(field: str, images: list[RenderedImage]) -> dict[str, Any]:
    """
    Return a body with the images in a given field, whatever the model.

    :param field: ``data_uri`` ``b64_json`` ``base64`` ``image_base64``, or ``nulls`` for none
    """
    items: list[dict[str, Any]] = []
    for image in images:
        if field == "data_uri":
            items.append({"url": image.data_uri})
        elif field == "nulls":
            items.append({"url": None, "b64_json": None})
        else:
            items.append({field: image.base64})
    return {"data": items}


def is_inline(shape: str) -> bool:
    """Return whether a shape contains the image bytes."""
    return shape in ("E", "data_uri", "b64_json", "base64", "image_base64")
