"""
Draw a recipe: a landscape or a city, with the prompt in a band at the bottom and the model in a corner.

The recipe determines every pixel, so the same recipe and Pillow version yield the same bytes. Each model has its own
light and finish, so that its images can be distinguished.
"""

from __future__ import annotations

import hashlib
import io
import math
import random
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_imagen.sandbox.image_store import Recipe

_MAX_DRAWN_PIXELS = 2048 * 2048
_SCENE_WORDS = re.compile(
    r"\b(?:(?P<city>building|cafe|city|cities|house|market|skyline|skyscraper|street|tower|town)"
    r"|coast|desert|forest|hill|lake|landscape|meadow|mountain|sea\b|valley|volcano)"
)
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "png": {"compress_level": 1},
    "jpeg": {"quality": 90},
    "webp": {"quality": 85, "method": 0},
    "tiff": {"compression": "tiff_deflate"},
}


def draw(recipe: Recipe) -> bytes:
    """Return the encoded image of a recipe; very large images are drawn smaller and scaled up."""
    from airflow_provider_imagen.sandbox.caption import add_caption
    from airflow_provider_imagen.sandbox.scenes import paint

    request = (recipe.model, recipe.prompt, recipe.seed)
    word = _SCENE_WORDS.search(recipe.prompt.lower())
    city = bool(word["city"]) if word else _random(*request).random() < 0.5
    scale = min(1.0, math.sqrt(_MAX_DRAWN_PIXELS / (recipe.width * recipe.height)))
    size = round(recipe.width * scale), round(recipe.height * scale)
    image = paint(
        size, city=city, style=_random(recipe.model), chance=_random(*request, recipe.index), colors=recipe.colors
    )
    label = f"sandbox · {recipe.index + 1}"
    add_caption(image, recipe.prompt, (f"{recipe.model.rpartition('/')[2]} · {label}", label))
    if image.size != (recipe.width, recipe.height):
        image = image.resize((recipe.width, recipe.height))
    out = io.BytesIO()
    image.save(out, format=recipe.format.upper(), **_SAVE_OPTIONS[recipe.format])
    return out.getvalue()


def thumbnail(data: bytes, pixels: int) -> bytes:
    """Return an image as a JPEG with a width and height of at most ``pixels``."""
    from PIL import Image

    out = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.thumbnail((pixels, pixels))
        image.convert("RGB").save(out, format="JPEG", quality=85)
    return out.getvalue()


def dominant_colors(data: bytes, count: int = 5) -> tuple[tuple[int, int, int], ...]:
    """Return the dominant colours of an image, most frequent first; empty if it cannot be read."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            small = image.convert("RGB").resize((32, 32)).quantize(count)
    except (OSError, ValueError, Image.DecompressionBombError):
        return ()
    palette = small.getpalette() or []
    ranked = sorted(small.getcolors() or [], reverse=True)
    starts = [3 * index for _, index in ranked if isinstance(index, int)]
    return tuple((palette[start], palette[start + 1], palette[start + 2]) for start in starts)


def _random(*parts: object) -> random.Random:
    return random.Random(hashlib.sha256(repr(parts).encode("utf-8", "backslashreplace")).digest())
