"""Detect text that is not a prompt: values stringified by a template, and broken characters. Pure."""

from __future__ import annotations

import ast
import json
import re
from typing import Final

_MISSING_VALUES: Final = frozenset({"None", "null", "nan", "NaN", "NaT", "<NA>"})
"""How Python, JSON and pandas write a missing value."""

_BRACKETS: Final = {"[": "]", "(": ")", "{": "}"}
_OBJECT_REPR: Final = re.compile(
    r"Lazy\w*Sequence\(.*\)"  # a mapped task's results
    r"|<[\w.<> ]{1,200} at 0x[0-9a-fA-F]+>"  # a generator, as Jinja's map makes without list
    r"|(?:dict_(?:keys|values|items)|deque|set|frozenset|array|range|OrderedDict|defaultdict)\(.*\)",
    re.DOTALL,
)
"""The ``repr`` of Python objects that are not literals."""

_MAX_LITERAL_CHARACTERS: Final = 1_000_000

_ADVICE: Final = (
    "pass the upstream task's result itself (prompt=upstream() or upstream.output), not a template that turns it "
    "into text"
)


def prompt_problem(text: str) -> str | None:
    """
    Return why text is not a usable prompt and what to do instead; ``None`` if it is usable.

    JSON objects are prompts (FLUX.2 and others take them); the repr of a Python ``dict`` is not.
    """
    stripped = text.strip()
    if stripped in _MISSING_VALUES:
        return "this is a missing value that a template turned into text; the upstream task must return a prompt"
    if _OBJECT_REPR.fullmatch(stripped) or _is_rendered_collection(stripped):
        return f"this is the text of a list or mapping, not a prompt; {_ADVICE}"
    return text_problem(text)


def text_problem(text: str) -> str | None:
    """Return which character of a text cannot be stored, and where; ``None`` if all are fine."""
    for index, character in enumerate(text):
        if "\ud800" <= character <= "\udfff":
            return (
                f"a lone surrogate (such as half of an emoji) at index {index}; keep the character whole or remove it"
            )
        if character == "\0":
            return f"a null character (U+0000) at index {index}, which databases reject; remove it"
    return None


def _is_rendered_collection(text: str) -> bool:
    """Return whether text is the repr of a list, tuple, set or ``dict``, a JSON list, or an empty JSON object."""
    if len(text) < 2 or _BRACKETS.get(text[0]) != text[-1] or len(text) > _MAX_LITERAL_CHARACTERS:
        return False
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        pass
    else:
        return isinstance(value, list) or not value
    try:
        tree = ast.parse(text, mode="eval").body
        return isinstance(tree, (ast.List, ast.Tuple, ast.Set, ast.Dict)) and _is_repr(tree)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return False


def _is_repr(node: ast.expr | None) -> bool:
    """Return whether an expression could be the ``repr`` of data: literals, also inside calls like ``datetime(…)``."""
    match node:
        case ast.Constant():
            return True
        case ast.Name(id=name):
            return name in ("nan", "inf", "NaT")
        case ast.UnaryOp(operand=operand):
            return _is_repr(operand)
        case ast.List(elts=parts) | ast.Tuple(elts=parts) | ast.Set(elts=parts):
            return all(map(_is_repr, parts))
        case ast.Dict(keys=keys, values=values):
            return all(map(_is_repr, (*keys, *values)))
        case ast.Call(args=arguments, keywords=keywords):
            values = [keyword.value for keyword in keywords]
            return all(
                isinstance(value, ast.Attribute) or _is_repr(value)  # tzinfo=datetime.timezone.utc
                for value in (*arguments, *values)
            )
    return False
