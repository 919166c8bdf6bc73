"""Fields with the same meaning on many models, and parsing of numbers that come from tables and templates."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

COUNT_FIELDS = ("num_images", "n")
SIZE_FIELDS = ("aspect_ratio", "image_size", "size")
BASE64_FIELDS = ("convert_base64_to_url", "response_format", "sync_mode")
INPUT_FIELDS = ("image", "image_url", "image_urls")
IMAGE_FIELDS = ("image", "image_url", "image_urls", "mask", "reference_image_url", "alpha_url")

_INTEGER = r"([+-]?[0-9]{1,30})(\.0{1,30})?"
_MAX_DIGITS = 30


def read_whole_number(value: Any) -> int | None:
    """Return a whole number given as ``4``, ``4.0`` or either as text; ``None`` for booleans and anything else."""
    value = plain_number(value)
    if isinstance(value, str) and (found := re.fullmatch(_INTEGER, value.strip())):
        return int(found[1])
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def plain_number(value: Any) -> Any:
    """Return a :mod:`decimal` or NumPy number, as found in tables, as ``int`` or ``float``; other values unchanged."""
    if isinstance(value, (int, float)):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Decimal):
        if not value.is_finite() or value.adjusted() > _MAX_DIGITS:
            return math.nan  # which no field accepts
        return int(value) if value == value.to_integral_value() else float(value)
    return float(value) if isinstance(value, Real) else value
