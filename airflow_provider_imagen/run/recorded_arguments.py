"""The arguments that the record of an image carries, so that it alone is enough to request the image again. Pure."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from airflow_provider_imagen.api.fields import IMAGE_FIELDS, plain_number
from airflow_provider_imagen.catalogue.input_images import INPUT_ARGUMENT, flatten, reference_in, reference_kind
from airflow_provider_imagen.image_record import MAX_ARGUMENTS_CHARACTERS
from airflow_provider_imagen.storage.paths import StoragePath

if TYPE_CHECKING:
    from collections.abc import Collection

_IMAGE_ARGUMENTS: Final = (INPUT_ARGUMENT, *IMAGE_FIELDS)


def record_arguments(
    requested: Mapping[str, Any], *, task_arguments: Mapping[str, Any], operator_names: Collection[str]
) -> str | None:
    """
    Return the operator's arguments that request one item alone, as a JSON object, without prompt, name and metadata.

    An argument that holds an embedded image, a URL with a login or a query, which may be a signature, or anything else
    that cannot be recorded, is ``null``.

    :param requested: the item's API fields as given, before input images are read
    :param task_arguments: the operator's other arguments by name, such as ``output_path``
    :param operator_names: API fields that are arguments of the operator; all others go into its ``parameters``
    :return: ``None`` if they are longer than ``MAX_ARGUMENTS_CHARACTERS``
    """
    fields = {
        name: _recorded_images(name, value) if name in _IMAGE_ARGUMENTS else _recorded(value)
        for name, value in requested.items()
        if value is not None and name != "prompt"
    }
    recorded = {name: value for name, value in fields.items() if name in operator_names}
    if parameters := {name: value for name, value in fields.items() if name not in operator_names}:
        recorded["parameters"] = parameters
    recorded |= {name: _recorded(value) for name, value in task_arguments.items()}
    text = json.dumps(recorded, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= MAX_ARGUMENTS_CHARACTERS else None


def _recorded_images(name: str, value: Any) -> Any:
    """Return references to images as text, one or a list; ``None`` if one of them cannot be recorded."""
    references = [
        None if reference is None or reference_kind(reference, field=name) == "base64" else _recorded(reference)
        for part in flatten(value)
        for reference in [str(part) if isinstance(part, StoragePath) else reference_in(part)]
    ]
    if None in references:
        return None
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    return references if is_list else references[0]


def _recorded(value: Any) -> Any:
    """Return a value as JSON can hold it; ``None`` if it or a part of it cannot or must not be recorded."""
    if isinstance(value, str):
        return None if _may_hold_secret(value) else value
    if isinstance(value, StoragePath):
        return str(value)
    if isinstance(value, Mapping):
        parts = {str(name): _recorded(part) for name, part in value.items()}
        return None if None in parts.values() else parts
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        items = [_recorded(part) for part in value]
        return None if None in items else items
    value = plain_number(value)
    return value if isinstance(value, (bool, int, float)) and math.isfinite(value) else None


def _may_hold_secret(text: str) -> bool:
    """Return whether a text is an embedded image, or contains a URL with a login, or with a query that may sign it."""
    if text.lstrip()[:5].lower() == "data:":
        return True
    for before, after in pairwise(text.split("://")):
        url, *_ = re.split(r"\s", after, maxsplit=1)
        login, has_login, _ = url.partition("/")[0].rpartition("@")
        is_connection_id = ":" not in login and not before.lower().endswith(("http", "https"))
        if "?" in url or "#" in url or (has_login and not is_connection_id):
            return True
    return False
