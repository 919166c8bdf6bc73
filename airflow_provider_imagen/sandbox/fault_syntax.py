"""Faults on one line, as ``--fault`` and the sandbox's page take and show them: ``status:status=503,times=2``."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from airflow_provider_imagen.sandbox.faults import KINDS, Fault
from airflow_provider_imagen.sandbox.value_checks import value_from_text

if TYPE_CHECKING:
    from collections.abc import Iterator

_PARAMETER = re.compile(r"(\w+)=(.*)", re.DOTALL)
_SEPARATOR = re.compile(r",(?=\w+=)")


def parse_fault(text: str) -> Fault:
    """
    Return a fault from ``KIND`` or ``KIND:NAME=VALUE,NAME=VALUE``.

    Values are numbers, ``true``, ``false``, ``null`` or text without quotes. Text may contain commas, except before
    another ``NAME=``.

    :raises ValueError: an invalid format, kind, name or value; says what is allowed
    """
    kind, colon, parameters = text.partition(":")
    values: dict[str, Any] = {"kind": kind}
    for part in _SEPARATOR.split(parameters) if colon else ():
        if (match := _PARAMETER.fullmatch(part)) is None:
            raise ValueError(f"{part!r} is not a parameter; allowed: NAME=VALUE")
        name, value = match.groups()
        if name in values:
            raise ValueError(f"{name} must not be given twice")
        values[name] = value_from_text(Fault, name, value)
    return Fault.from_json(values)


def format_fault(fault: Fault) -> str:
    """Return a fault as text, to be shown; :func:`parse_fault` reads it back, unless a value is a list."""
    parameters = ",".join(
        f"{name}={_to_text(value)}"
        for name, value in fault.to_json().items()
        if name != "kind" and (name, value) != ("times", 1)
    )
    return f"{fault.kind}:{parameters}" if parameters else fault.kind


def describe_kinds() -> Iterator[tuple[str, str, str, str]]:
    """Yield each kind, the requests it applies to, its effect, and its parameters with their defaults, if any."""
    for name, kind in KINDS.items():
        where = "any" if "api" in kind.where else kind.where[0]
        parameters = (
            parameter if default is None else f"{parameter}={_to_text(default)}"
            for parameter, default in kind.parameters.items()
        )
        yield name, where, kind.effect, ", ".join(parameters)


def _to_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
