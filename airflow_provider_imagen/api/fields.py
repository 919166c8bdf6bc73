"""Names of the API's fields that mean the same on many models, and numbers as tables and templates write them."""

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
_MOST_DIGITS = 30


def read_whole_number(value: Any) -> int | None:
    """Read a whole number: ``4``, ``4.0`` or either as text; ``None`` for booleans, fractions and everything else."""
    value = plain_number(value)
    if isinstance(value, str) and (found := re.fullmatch(_INTEGER, value.strip())):
        return int(found[1])
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def plain_number(value: Any) -> Any:
    """Turn a number of :mod:`decimal` or NumPy, as tables hold them, into one of Python's own; leave all else."""
    if isinstance(value, (int, float)):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Decimal):
        if not value.is_finite() or value.adjusted() > _MOST_DIGITS:
            return math.nan  # which no field accepts
        return int(value) if value == value.to_integral_value() else float(value)
    return float(value) if isinstance(value, Real) else value
