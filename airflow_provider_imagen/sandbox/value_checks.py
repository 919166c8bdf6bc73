"""Validation of settings and faults by the types of their fields."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from types import NoneType
from typing import Annotated, Literal, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Range:
    """The valid values of a number: at least ``least``, more than ``above``, at most ``most``."""

    least: float = -math.inf
    above: float = -math.inf
    most: float = math.inf

    def __contains__(self, value: object) -> bool:
        return (
            isinstance(value, (int, float, Decimal))
            and not isinstance(value, bool)
            and math.isfinite(value)
            and self.least <= value <= self.most
            and value > self.above
        )

    def __str__(self) -> str:
        if math.isfinite(self.above):
            return f"above {self.above}, {self.most} at most" if math.isfinite(self.most) else f"above {self.above}"
        return f"{self.least} to {self.most}" if math.isfinite(self.most) else f"{self.least} or more"


def check_values(instance: object) -> None:
    """
    Check the fields of a dataclass that are annotated with a ``Literal`` or a :class:`Range`.

    :raises ValueError: a value is not allowed
    """
    for name, hint in get_type_hints(type(instance), include_extras=True).items():
        value = getattr(instance, name)
        plain, *ranges = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        members = get_args(plain) if get_origin(plain) is not Literal else (plain,)
        if value is None and NoneType in members:
            continue
        choices = [choice for member in members if get_origin(member) is Literal for choice in get_args(member)]
        if choices and value not in choices:
            raise ValueError(f"{name}={value!r}; allowed: {', '.join(choices)}")
        if any(value not in limits for limits in ranges):
            raise ValueError(f"{name}={value!r}; allowed: {ranges[0]}")
