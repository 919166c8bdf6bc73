"""
Metadata of prompt items: values that travel with an image, such as columns of its table row, and are never sent. Pure.

They are stored as text, so that each column has one type in every task and run that writes to the same manifest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import date, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from airflow_provider_imagen.catalogue.lookup import find_model
from airflow_provider_imagen.catalogue.prompt_text import text_problem
from airflow_provider_imagen.catalogue.validation import show
from airflow_provider_imagen.exceptions import Problem
from airflow_provider_imagen.image_record import (
    MAX_METADATA_CHARACTERS,
    MAX_METADATA_NAME_CHARACTERS,
    MAX_METADATA_NAMES,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from airflow_provider_imagen.image_record import Metadata

_KEY: Final = "metadata"
_ITEM_KEYS: Final = frozenset(
    {
        *("prompt", "name", "model", "seed", _KEY),
        *("num_images", "aspect_ratio", "input_images", "convert_base64_to_url"),
    }
)
"""Keys of an item that have a meaning for every model."""

_MAX_EXACT_FLOAT: Final = 2**53
_MAX_DECIMAL_DIGITS: Final = 30

Entry = tuple[Mapping[str, Any], str]
"""An item as given, and the prefix of its field names in problems."""


def take_metadata(
    entries: Sequence[Entry], *, columns: Any, models: Sequence[object], problems: list[Problem]
) -> tuple[list[Entry], list[Metadata | None]]:
    """
    Split the items of a task into what is sent, and their metadata: some of their keys, and the mapping ``metadata``.

    :param columns: names of the keys that are metadata; one that an item lacks is ``None``
    :param models: ids of the models that every item may be sent to; an item may name another one
    :param problems: receives the problems found
    :return: the items without metadata, and the metadata of each. All have the same names, so that every line of the
        manifest has the same columns; ``None`` for each item if no item has metadata
    """
    valid = _read_columns(columns, problems)
    problems += _find_sent_columns(valid, models=[*models, *(entry.get("model") for entry, _ in entries)])
    rest: list[Entry] = []
    taken = []
    for entry, where in entries:
        rest.append(({name: value for name, value in entry.items() if name != _KEY and name not in valid}, where))
        taken.append(_read_metadata(entry, valid, where, problems))
    names = list(dict.fromkeys(name for metadata in taken for name in metadata))
    if len(names) > MAX_METADATA_NAMES:
        allowed = f"at most {MAX_METADATA_NAMES} different names are allowed in a task, it has {len(names):,}"
        problems.append(Problem(_KEY, show(names), allowed))
    return rest, [{name: metadata.get(name) for name in names} if names else None for metadata in taken]


def _read_columns(columns: Any, problems: list[Problem]) -> list[str]:
    """Return the valid names in ``metadata_columns``."""
    if isinstance(columns, (str, bytes)) or not isinstance(columns, Sequence):
        problems.append(Problem("metadata_columns", show(columns), "a list of names is allowed"))
        return []
    valid = []
    for name in columns:
        if isinstance(name, str) and name in _ITEM_KEYS:
            reason: str | None = "it is an argument of each item, so it cannot be metadata; rename the column"
        else:
            reason = _name_problem(name)
        if reason is None:
            valid.append(name)
        else:
            problems.append(Problem("metadata_columns", show(name), reason))
    return valid


def _find_sent_columns(columns: Sequence[str], *, models: Iterable[object]) -> Iterator[Problem]:
    """Yield a problem for each column that is an API field of one of the models."""
    for model_id in dict.fromkeys(model for model in models if isinstance(model, str)):
        if (model := find_model(model_id)) is not None:
            fields = {*model.generations.fields, *(model.edits.fields if model.edits else ())}
            reason = f"it is a field of {model_id}, so it cannot be metadata; rename the column"
            yield from (Problem("metadata_columns", name, reason) for name in columns if name in fields)


def _read_metadata(
    entry: Mapping[str, Any], columns: Sequence[str], where: str, problems: list[Problem]
) -> dict[str, str | None]:
    """Return the metadata of an item as text."""
    given = entry.get(_KEY)
    if not isinstance(given, Mapping):
        if not _is_missing(given):
            problems.append(Problem(where + _KEY, show(given), "a mapping of names to values is allowed"))
        given = {}
    metadata = {name: _read_value(where + name, entry.get(name), problems) for name in columns}
    for name, value in given.items():
        if reason := _name_problem(name):
            problems.append(Problem(where + _KEY, show(name), reason))
        elif name in columns and name in entry:
            problems.append(Problem(where + name, show(entry[name]), "it is also in `metadata`; remove one of them"))
        else:
            metadata[name] = _read_value(f"{where}{_KEY}.{name}", value, problems)
    characters = sum(len(text) for text in metadata.values() if text is not None)
    if characters > MAX_METADATA_CHARACTERS:
        allowed = f"at most {MAX_METADATA_CHARACTERS:,} characters are allowed in all its values, they have "
        problems.append(Problem(where + _KEY, show(metadata), f"{allowed}{characters:,}"))
    return metadata


def _name_problem(name: Any) -> str | None:
    """Return why a value cannot have this name; ``None`` if it can."""
    if not isinstance(name, str) or not name.strip() or len(name) > MAX_METADATA_NAME_CHARACTERS:
        return f"a name of 1 to {MAX_METADATA_NAME_CHARACTERS} characters is allowed"
    if name == "file_name" or name.endswith("_file_name"):  # its ImageFolder does so in nested mappings, too
        return "Hugging Face datasets would open its values as image files; choose another name"
    return text_problem(name)


def _read_value(field: str, value: Any, problems: list[Problem]) -> str | None:
    """Return a value as text, or add what is wrong with it to the problems."""
    try:
        text = _to_text(value)
    except (TypeError, ValueError):
        allowed = "text, a number, true or false, a date or None is allowed; convert other values to text first"
        problems.append(Problem(field, show(value), allowed))
        return None
    if text is not None and (reason := text_problem(text)):
        problems.append(Problem(field, show(text), reason))
    return text


def _to_text(value: Any) -> str | None:
    """
    Return a table cell as text; ``None`` if it is missing, blank or NaN.

    :raises TypeError: it has a type that is not allowed
    :raises ValueError: it is an integer of thousands of digits
    """
    kind = type(value).__name__
    if value is None or kind in ("NAType", "NaTType"):  # of pandas
        return None
    if kind == "datetime64":  # of NumPy
        return None if str(value) == "NaT" else str(value)
    if getattr(value, "ndim", None) == 0:  # another NumPy scalar
        value = value.item()
    match value:
        case str():
            return str(value) if value.strip() else None
        case bool():
            return str(value).lower()
        case date() | time():
            return value.isoformat()
        case int() | UUID():
            return str(value)
        case float() if value.is_integer() and abs(value) <= _MAX_EXACT_FLOAT:
            return str(int(value))
        case float():
            return None if math.isnan(value) else repr(value)
        case Decimal():
            is_short = value.is_finite() and abs(value.adjusted()) <= _MAX_DECIMAL_DIGITS
            return None if value.is_nan() else format(value, "f") if is_short else str(value)
    raise TypeError(kind)


def _is_missing(value: Any) -> bool:
    try:
        return _to_text(value) is None
    except (TypeError, ValueError):
        return False
