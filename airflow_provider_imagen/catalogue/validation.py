"""
Validate a value against the JSON Schema of its field, and describe its problems.

Templates render values as text, so ``"4"`` counts as a number and ``"true"`` as a boolean where the field expects one.
Table columns with missing values turn whole numbers into floats, so ``4.0`` and its rendered text ``"4.0"`` count as
the whole number 4. jsonschema is imported and a validator built when a field is first used.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow_provider_imagen.api.data_uris import is_data_uri, read_data_uri
from airflow_provider_imagen.api.fields import IMAGE_FIELDS, plain_number
from airflow_provider_imagen.catalogue.input_images import BARE_BASE64, ImageFile
from airflow_provider_imagen.exceptions import Problem
from airflow_provider_imagen.redaction import elide_url

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jsonschema.exceptions import ValidationError
    from jsonschema.protocols import Validator

    from airflow_provider_imagen.catalogue.lookup import Endpoint

_IMAGE_REFERENCE = "a URL (https://…) or a data URI (data:image/png;base64,…)"
_INTEGER = r"([+-]?[0-9]{1,30})(\.0{1,30})?"
_NUMBER = r"[+-]?[0-9]{1,30}(\.[0-9]{1,30})?"
_IMAGE_TYPE = r"image/[a-z0-9.+-]+"
_SHOWN_CHARACTERS = 80
_PROBLEMS_SHOWN = 10


def check_field(endpoint: Endpoint, name: str, value: Any, *, where: str = "") -> tuple[Any, list[Problem]]:
    """
    Validate a value for a field of an endpoint.

    :param name: one of the endpoint's fields
    :param where: prefix of the field names in problems
    :return: the value as it is sent, and its problems
    """
    checker, schema = _checker(endpoint, name)
    value = coerce(schema, value)
    problems: list[Problem] = []
    try:
        for error in islice(checker.iter_errors(value), _PROBLEMS_SHOWN):
            problems += [problem for problem in _problems(error, where + name) if problem not in problems]
    except (RecursionError, ValueError):  # jsonschema's message includes the value, which may be too large to format
        problems = [problem_with(where + name, value, describe(schema))]
    if not problems:
        if _takes_urls(name, schema):
            bare_base64 = name == "image" and "anyOf" not in schema
            value, problems = _check_urls(where + name, value, bare_base64=bare_base64)
        elif "sides" in schema:
            problems = _check_sides(where + name, value, schema)
        elif not _is_finite(value):
            problems = [problem_with(where + name, value, describe(schema))]
    return value, problems


def coerce(schema: Mapping[str, Any], value: Any) -> Any:
    """Return numbers and booleans that a template or table changed as the schema expects them; others unchanged."""
    expected = schema.get("type")
    value = plain_number(value)
    if isinstance(value, str):
        return _read_text(expected, value.strip()) if expected in ("integer", "number", "boolean") else value
    if isinstance(value, float):
        return int(value) if expected == "integer" and value.is_integer() else value
    choices = schema.get("anyOf", (schema,))
    if isinstance(value, Mapping):
        parts: Mapping[str, Any] = next((choice["properties"] for choice in choices if "properties" in choice), {})
        return {key: coerce(parts[key], part) if key in parts else part for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        items = next((choice["items"] for choice in choices if "items" in choice), None)
        return [coerce(items, part) if items else part for part in value]
    return value


def describe(schema: Mapping[str, Any]) -> str:
    """Return a short description of what a schema allows, such as ``a whole number from 1 to 4``."""
    if "anyOf" in schema:
        return " or ".join(describe(choice) for choice in schema["anyOf"])
    kind = schema.get("type")
    if "enum" in schema and kind != "boolean":
        choices = [str(choice) for choice in schema["enum"]]
        return choices[0] if len(choices) == 1 else f"{', '.join(choices[:-1])} or {choices[-1]}"
    if kind in ("integer", "number"):
        step = f" that is a multiple of {schema['multipleOf']}" if "multipleOf" in schema else ""
        noun = "a whole number" if kind == "integer" else "a number"
        return f"{noun}{_describe_range(schema.get('minimum'), schema.get('maximum'))}{step}"
    if kind == "array":
        return f"a list{_describe_length(schema)}, each {describe(schema.get('items', {}))}"
    if kind == "object":
        parts = {name: describe(part) for name, part in schema["properties"].items()}
        if len(set(parts.values())) == 1:
            return f"{{{', '.join(parts)}}}, each {next(iter(parts.values()))}"
        return "{" + ", ".join(f"{name}: {allowed}" for name, allowed in parts.items()) + "}"
    if kind == "file" or schema.get("format") == "uri":
        return _IMAGE_REFERENCE
    if "sides" in schema:
        smallest, largest = schema["sides"]
        return f"WIDTHxHEIGHT, each from {smallest} to {largest} pixels"
    if kind == "boolean":
        return str(schema["enum"][0]).lower() if "enum" in schema else "true or false"
    return f"text of at most {schema['maxLength']} characters" if "maxLength" in schema else "text"


def problem_with(field: str, value: Any, allowed: str) -> Problem:
    """Return a problem that says what is allowed and shows the value as :func:`show` does."""
    return Problem(field, show(value), f"{allowed} is allowed")


def show(value: Any, depth: int = 3) -> Any:
    """Return a value shortened for a message; URLs lose their login and their query, which may be a signature."""
    if isinstance(value, str):
        text = elide_url(value[: 4 * _SHOWN_CHARACTERS])
        return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 1]}…"
    if isinstance(value, ImageFile):
        return show(value.address)
    if isinstance(value, (bool, float)) or value is None:
        return value
    if isinstance(value, int):
        return value if value.bit_length() < 512 else f"a number of {value.bit_length()} bits"
    if depth == 0:
        return "…"
    if isinstance(value, dict):
        return {show(str(key)): show(part, depth - 1) for key, part in list(value.items())[:5]}
    if isinstance(value, (list, tuple)):
        return [show(part, depth - 1) for part in value[:5]]
    return show(f"<{type(value).__name__}>")


@cache
def _checker(endpoint: Endpoint, name: str) -> tuple[Validator, Mapping[str, Any]]:
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    strict = _make_strict(endpoint.fields[name])
    if name not in IMAGE_FIELDS:
        return Draft202012Validator(strict), strict
    types = Draft202012Validator.TYPE_CHECKER.redefine(
        "string", lambda _, instance: isinstance(instance, (str, ImageFile))
    )
    make: Any = extend
    return make(Draft202012Validator, type_checker=types)(strict), strict


def _make_strict(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stricter schema: no unknown keys, which the API would ignore, no partial sizes, and files as text."""
    strict: dict[str, Any] = dict(schema)
    if strict.get("type") == "file":
        strict |= {"type": "string", "format": "uri"}
    if "anyOf" in strict:
        strict["anyOf"] = [_make_strict(choice) for choice in strict["anyOf"]]
    if "items" in strict:
        strict["items"] = _make_strict(strict["items"])
    if "properties" in strict:
        parts = {name: _make_strict(part) for name, part in strict["properties"].items()}
        if {"width", "height"} == parts.keys():
            parts = {side: {"minimum": 1, **parts[side], "type": "integer"} for side in ("width", "height")}
            strict["required"] = list(parts)  # the API would choose the other side
        strict |= {"properties": parts, "additionalProperties": False}
    return strict


def _read_text(expected: str, text: str) -> Any:
    if expected == "boolean":
        return {"true": True, "false": False}.get(text.lower(), text)
    if found := re.fullmatch(_INTEGER, text):
        return int(found[1])
    return float(text) if expected == "number" and re.fullmatch(_NUMBER, text) else text


def _problems(error: ValidationError, name: str) -> Iterator[Problem]:
    """Yield the problems of one validation error; of an ``anyOf``, those of the intended branch."""
    field = name + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
    value: Any = error.instance
    schema: Any = error.schema
    limit: Any = error.validator_value
    match error.validator:
        case "anyOf" if branch := _intended_branch(error):
            for part in branch:
                yield from _problems(part, name)
        case "maxLength":
            yield Problem(field, show(value), f"at most {limit:,} characters are allowed, it has {len(value):,}")
        case "required":
            yield Problem(field, show(value), f"{' and '.join(limit)} are required")
        case "additionalProperties":
            unknown = next(part for part in value if part not in schema["properties"])
            known = " and ".join(schema["properties"])
            yield Problem(field, show(value), f"only {known} are allowed, not {show(str(unknown))}")
        case "minItems" | "maxItems":
            yield Problem(field, show(value), f"{describe(schema)} is allowed, it has {len(value)}")
        case _:
            yield problem_with(field, value, describe(schema))


def _intended_branch(error: ValidationError) -> list[ValidationError]:
    """Return the errors of the only ``anyOf`` branch whose type matches the value; empty if not exactly one does."""
    branches: dict[Any, list[ValidationError]] = {}
    for part in error.context or ():
        branches.setdefault(part.relative_schema_path[0], []).append(part)
    matching = [
        parts
        for parts in branches.values()
        if not any(part.validator in ("type", "enum") and not part.relative_path for part in parts)
    ]
    return matching[0] if len(matching) == 1 else []


def _takes_urls(name: str, schema: Mapping[str, Any]) -> bool:
    if name in IMAGE_FIELDS:
        return True
    return schema.get("format") == "uri" or schema.get("items", {}).get("format") == "uri"


def _check_urls(name: str, value: Any, *, bare_base64: bool) -> tuple[Any, list[Problem]]:
    """Return URLs and ``data:`` URIs as they are sent, the latter in their simplest form, and their problems."""
    if isinstance(value, list):
        checked = [_check_urls(f"{name}[{index}]", part, bare_base64=False) for index, part in enumerate(value)]
        return [part for part, _ in checked], [problem for _, problems in checked for problem in problems]
    if isinstance(value, ImageFile) or (bare_base64 and re.fullmatch(BARE_BASE64, value)):
        return value, []
    if not is_data_uri(value):
        return value, [] if _is_url(value) else [problem_with(name, value, _IMAGE_REFERENCE)]
    try:
        uri = read_data_uri(value)
    except ValueError as error:
        return value, [Problem(name, show(value), f"{_IMAGE_REFERENCE} is required, not {error}")]
    if not uri.is_base64 or not re.fullmatch(_IMAGE_TYPE, uri.mime_type):
        return value, [problem_with(name, value, _IMAGE_REFERENCE)]
    return str(uri), []


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and not re.search(r"\s", text)
    except ValueError:
        return False


def _check_sides(name: str, value: str, schema: Mapping[str, Any]) -> list[Problem]:
    smallest, largest = schema["sides"]
    sides = [int(side[:9]) for side in value.split("x")]
    return [] if all(smallest <= side <= largest for side in sides) else [problem_with(name, value, describe(schema))]


def _is_finite(value: Any) -> bool:
    """Return whether every number in a schema-checked value is finite, as JSON requires."""
    if isinstance(value, float):
        return math.isfinite(value)
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return all(_is_finite(part) for part in parts)


def _describe_range(low: Any, high: Any) -> str:
    if low is not None and high is not None:
        return f" from {low} to {high}"
    if low is not None:
        return f" of at least {low}"
    return f" of at most {high}" if high is not None else ""


def _describe_length(schema: Mapping[str, Any]) -> str:
    low, high = schema.get("minItems"), schema.get("maxItems")
    if low is not None and high is not None:
        return f" of {low} to {high}"
    return f" of up to {high}" if high is not None else ""
