"""Python code that requests an image again, from the image's record alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_provider_imagen.plugins.gallery.task_results import GalleryImage

_TEMPLATE_MARKS: Final = ("{{", "{%", "{#", "\r")
_TEMPLATE_ENDINGS: Final = (".prompt", "\n")


def snippet(image: GalleryImage) -> str:
    """
    Return the code of a task that sends the same request, with the item's name and metadata and all recorded arguments.

    Comments name what the record lacks.
    """
    arguments: dict[str, Any] = {"task_id": image.ti.task_id}
    if (prompt := _prompt_argument(image)) is not None:
        arguments["prompt"] = prompt
    recorded = image.operator_arguments
    comments = []
    if recorded is None:
        recorded = {"model": image.model, "seed": image.seed}
        comments.append("# This image's record does not hold the other arguments.")
    else:
        comments += [
            f"# {name}: not recorded; it held an image, or a URL with a login or a query." for name in _gaps(recorded)
        ]
        if image.seed is not None and "seed" not in recorded:
            comments.append(f"# seed={image.seed} is what the API reported for this image; none was requested.")
    arguments |= {
        name: _without_gaps(value) for name, value in recorded.items() if _without_gaps(value) not in (None, {})
    }
    lines = [
        f"{name}={_to_code(value, is_rendered=name in ImagenGenerateOperator.template_fields)},"
        for name, value in arguments.items()
    ]
    imports = ["from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator"]
    rendered = {name: arguments.get(name) for name in ImagenGenerateOperator.template_fields}
    if any(map(_needs_literal, _texts(rendered))):
        imports.insert(0, "from airflow.sdk import literal")
    body = [f"    {line}" for line in (*lines, *comments)]
    return "\n".join([*imports, "", "ImagenGenerateOperator(", *body, ")", ""])


def _prompt_argument(image: GalleryImage) -> Any:
    """Return the prompt, with name and metadata if it has some; ``None`` if there is nothing to give."""
    metadata = {name: value for name, value in (image.metadata or {}).items() if value is not None}
    item = {"prompt": image.prompt, "name": image.name, "metadata": metadata}
    given = {name: value for name, value in item.items() if value}
    return given.get("prompt") if given.keys() <= {"prompt"} else given


def _gaps(recorded: Mapping[str, Any]) -> list[str]:
    """Return the names of the arguments that could not be recorded; untrusted ones as Python strings."""
    parameters = recorded.get("parameters")
    fields = parameters.items() if isinstance(parameters, Mapping) else ()
    return [
        *(name for name, value in recorded.items() if value is None),
        *(f"parameters[{name!r}]" for name, value in fields if value is None),
    ]


def _without_gaps(value: Any) -> Any:
    """Return ``parameters`` without those that were not recorded; other values unchanged."""
    return {name: part for name, part in value.items() if part is not None} if isinstance(value, Mapping) else value


def _texts(value: Any) -> Iterator[str]:
    """Yield every string in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, Sequence):
        for part in value:
            yield from _texts(part)


def _needs_literal(text: str) -> bool:
    """Return whether Airflow's template rendering would change the text, or read it as a file name."""
    return any(mark in text for mark in _TEMPLATE_MARKS) or text.endswith(_TEMPLATE_ENDINGS)


def _to_code(value: Any, *, is_rendered: bool) -> str:
    """
    Return a JSON value as Python code.

    :param is_rendered: whether it is rendered as a template, so that ``literal`` must protect some strings from that
    """
    if isinstance(value, str):
        return f"literal({value!r})" if is_rendered and _needs_literal(value) else repr(value)
    if isinstance(value, Mapping):
        parts = (f"{name!r}: {_to_code(part, is_rendered=is_rendered)}" for name, part in value.items())
        return "{" + ", ".join(parts) + "}"
    if isinstance(value, Sequence):
        return f"[{', '.join(_to_code(part, is_rendered=is_rendered) for part in value)}]"
    return repr(value)
