"""
Check a request body the way the API does: refuse what breaks a limit, ignore what it does not know.

The complaints come as a tree whose branches are field names and whose leaves are ``_errors`` lists, the form of the
API's "Body validation error!" answers (docs, "Errors and messages" pages, 2026-08).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_imagen.sandbox.models import SandboxModel

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:\S+")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{40,}={0,2}")
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "boolean": (bool,),
    "integer": (int, float),
    "number": (int, float),
    "object": (dict,),
    "array": (list,),
}


def check_body(model: SandboxModel, body: dict[str, Any]) -> dict[str, Any]:
    """Give the tree of complaints; empty when the body is fine."""
    tree: dict[str, Any] = {}
    for name, schema in model.fields.items():
        if name not in body:
            if name in model.required:
                tree[name] = {"_errors": ["Required"]}
        elif complaints := _check(body[name], schema):
            tree[name] = complaints
    return {"_errors": [], **tree} if tree else {}


def _check(value: Any, schema: dict[str, Any]) -> dict[str, Any]:
    if "anyOf" in schema:
        results = [_check(value, choice) for choice in schema["anyOf"]]
        if not all(results):
            return {}
        deepest = max(results, key=len)
        return deepest if len(deepest) > 1 else {"_errors": ["Invalid input"]}
    kind = schema.get("type")
    if kind is not None and not _is(value, kind):
        return {"_errors": [f"Expected {kind}, received {_name(value)}"]}
    if "enum" in schema and value not in schema["enum"]:
        allowed = " | ".join(repr(choice) for choice in schema["enum"])
        return {"_errors": [f"Invalid enum value. Expected {allowed}, received {value!r}"]}
    if errors := list(_limits(value, schema)):
        return {"_errors": errors}
    if isinstance(value, list) and "items" in schema:
        branches = {str(place): found for place, item in enumerate(value) if (found := _check(item, schema["items"]))}
    elif isinstance(value, dict):
        branches = {name: {"_errors": ["Required"]} for name in schema.get("required", ()) if name not in value}
        branches |= {
            name: found
            for name, part in schema.get("properties", {}).items()
            if name in value and (found := _check(value[name], part))
        }
        if not branches and (step := schema.get("sides_multiple_of")):
            branches = {
                side: {"_errors": [f"Number must be a multiple of {step}"]}
                for side in ("width", "height")
                if side in value and value[side] % step
            }
    else:
        branches = {}
    return {"_errors": [], **branches} if branches else {}


def _limits(value: Any, schema: dict[str, Any]) -> list[str]:
    errors = []
    if isinstance(value, str):
        if len(value) > schema.get("maxLength", len(value)):
            errors.append(f"String must contain at most {schema['maxLength']} character(s)")
        if len(value) < schema.get("minLength", 0):
            errors.append(f"String must contain at least {schema['minLength']} character(s)")
        if schema.get("format") == "uri" and not (_URI.fullmatch(value) or _BASE64.fullmatch(value)):
            errors.append("Invalid url")
    elif isinstance(value, list):
        if len(value) > schema.get("maxItems", len(value)):
            errors.append(f"Array must contain at most {schema['maxItems']} element(s)")
        if len(value) < schema.get("minItems", 0):
            errors.append(f"Array must contain at least {schema['minItems']} element(s)")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        if value > schema.get("maximum", value):
            errors.append(f"Number must be less than or equal to {schema['maximum']}")
        if value < schema.get("minimum", value):
            errors.append(f"Number must be greater than or equal to {schema['minimum']}")
    return errors


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool) and kind != "boolean":
        return False
    if kind == "integer" and isinstance(value, float) and not value.is_integer():
        return False
    return isinstance(value, _TYPES[kind])


def _name(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    return {str: "string", int: "number", float: "number", dict: "object", list: "array"}[type(value)]
