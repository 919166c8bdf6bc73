"""Validation of settings and faults by the types of their fields."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from collections.abc import Collection


@dataclass(frozen=True)
class Range:
    """The valid values of a number: at least ``least``, more than ``above``, at most ``most``."""

    least: float = -math.inf
    above: float = -math.inf
    most: float = math.inf

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
            return False
        try:
            return math.isfinite(value) and self.least <= value <= self.most and value > self.above
        except OverflowError:  # an integer beyond the range of floats
            return False

    def __str__(self) -> str:
        if math.isfinite(self.above):
            return f"above {self.above}, {self.most} at most" if math.isfinite(self.most) else f"above {self.above}"
        return f"{self.least} to {self.most}" if math.isfinite(self.most) else f"{self.least} or more"


def check_values(instance: object) -> None:
    """
    Check the fields of a dataclass against their annotations: types, ``Literal`` choices and :class:`Range`.

    :raises ValueError: a value is not allowed
    """
    owner: type = type(instance)
    for name, (members, ranges) in _field_types(owner).items():
        value, choices = getattr(instance, name), _choices(members)
        if value is None and NoneType in members:
            continue
        if choices:
            check_choice(name, value, choices)
        elif not any(_is_instance(value, member) for member in members):
            allowed = [_TYPE_NAMES[member] for member in members if member in _TYPE_NAMES]
            raise ValueError(f"{name}={value!r}; allowed: {', '.join([*allowed, *map(str, ranges)])}")
        if any(value not in limits for limits in ranges):
            raise ValueError(f"{name}={value!r}; allowed: {ranges[0]}")


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """
    Check a value that must be one of some texts.

    :raises ValueError: it is not; names the choices and the closest one
    """
    if value not in choices:
        raise ValueError(f"{name}={value!r}; allowed: {', '.join(choices)}{closest_name(value, choices)}")


def value_from_text(owner: type, name: str, text: str) -> Any:
    """
    Return the value that a text stands for, by the annotation of a dataclass field.

    Numbers, ``true``, ``false`` and ``null`` are written as in JSON, and texts without quotes. A text that does not
    fit, or is for an unknown field, is returned as it is, and the dataclass rejects it.
    """
    members, _ = _field_types(owner).get(name, ((str,), []))
    if str in members or text in _choices(members):
        return text
    if text == "null" and NoneType in members:
        return None
    if bool in members:
        return {"true": True, "false": False}.get(text, text)
    if int in members or float in members:
        with suppress(ValueError):
            return int(text)
    if float in members:
        with suppress(ValueError):
            return float(text)
    return text


def closest_name(name: object, known: Collection[str]) -> str:
    """Return the end of a message that suggests the known name closest to a wrong one; empty if none is close."""
    from difflib import get_close_matches

    near = get_close_matches(str(name), known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


_TYPE_NAMES = {bool: "true, false", int: "a whole number", float: "a number", str: "text"}


@cache
def _field_types(owner: type) -> dict[str, tuple[tuple[Any, ...], list[Range]]]:
    """Return the members of each field's type, and the ranges it is annotated with."""
    types = {}
    for name, hint in get_type_hints(owner, include_extras=True).items():
        plain, *ranges = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        types[name] = get_args(plain) if get_origin(plain) in (Union, UnionType) else (plain,), ranges
    return types


def _choices(members: tuple[Any, ...]) -> list[str]:
    return [choice for member in members if get_origin(member) is Literal for choice in get_args(member)]


def _is_instance(value: object, member: Any) -> bool:
    if get_origin(member) is list:
        return isinstance(value, list) and all(isinstance(each, *get_args(member)) for each in value)
    if isinstance(value, bool):
        return member is bool
    return isinstance(value, (float, int) if member is float else member)
