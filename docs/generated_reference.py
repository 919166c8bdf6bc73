"""
The directive ``{generated} NAME [ARGUMENT]``: a part of the reference, written from the code when the site is built.

Each function in :data:`PARTS` returns the Markdown of one part.
"""

from __future__ import annotations

import dataclasses
import inspect
import io
import os
import re
from contextlib import redirect_stdout, suppress
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
from sphinx.util.docutils import SphinxDirective

from airflow_provider_imagen.cli import main
from airflow_provider_imagen.get_provider_info import get_provider_info
from airflow_provider_imagen.image_record import ImageRecord, ManifestLine
from airflow_provider_imagen.run_report import FailureLine, RunSummary, TaskFailure
from airflow_provider_imagen.sandbox import Fault
from airflow_provider_imagen.sandbox.faults import COMMON_PARAMETERS, KINDS
from airflow_provider_imagen.sandbox.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from docutils.nodes import Node
    from sphinx.application import Sphinx

_RECORDS: dict[str, type[msgspec.Struct]] = {
    record.__name__: record for record in (ImageRecord, ManifestLine, RunSummary, TaskFailure, FailureLine)
}
_TYPES = {
    "bool": "boolean",
    "int": "integer",
    "float": "number",
    "str": "string",
    "list": "array",
    "dict": "object",
    "None": "null",
}


def command_help(command: str = "") -> str:
    """Return what a command prints with ``--help``."""
    os.environ.update(COLUMNS="100", NO_COLOR="1")
    printed = io.StringIO()
    with redirect_stdout(printed), suppress(SystemExit):
        main([*command.split(), "--help"])
    return f"```text\n{printed.getvalue().strip()}\n```"


def configuration() -> str:
    """Return a table of the options that Airflow's configuration gets from this provider."""
    options = get_provider_info()["config"]["imagen"]["options"]
    return _table(
        ("option", "default", "example", "meaning"),
        (
            (f"`{name}`", f"`{option['default']}`" if option["default"] else "empty", f"`{option['example']}`", text)
            for name, option in options.items()
            for text in [option["description"]]
        ),
    )


def fields(record: str, without: str = "") -> str:
    """Return a table of a record's fields, except those that another record has."""
    kind = _RECORDS[record]
    described = {name: text for each in reversed(kind.__mro__) for name, text in _parameters(each).items()}
    left_out = _RECORDS[without].__struct_fields__ if without else ()
    return _table(
        ("key", "type", "meaning"),
        (
            (f"`{field.name}`", _type_name(field.type), described.get(field.name, ""))
            for field in msgspec.structs.fields(kind)
            if field.name not in left_out
        ),
    )


def fault_kinds() -> str:
    """Return a table of the sandbox's faults."""
    return _table(
        ("fault", "applies to", "effect", "parameters and their defaults"),
        (
            (
                f"`{name}`",
                ", ".join(kind.where),
                kind.effect,
                ", ".join(f"`{parameter}={_value(value)}`" for parameter, value in kind.parameters.items()),
            )
            for name, kind in KINDS.items()
        ),
    )


def fault_parameters() -> str:
    """Return a table of the parameters of the sandbox's faults, those of every kind first."""
    described = _parameters(Fault)
    names = sorted(described, key=lambda name: name not in COMMON_PARAMETERS)
    return _table(("parameter", "meaning"), ((f"`{name}`", described[name]) for name in names if name != "kind"))


def sandbox_settings() -> str:
    """Return a table of the sandbox's settings."""
    described = _parameters(Settings)
    return _table(
        ("setting", "default", "meaning"),
        (
            (f"`{each.name}`", f"`{_value(each.default)}`", described[each.name])
            for each in dataclasses.fields(Settings)
        ),
    )


PARTS: dict[str, Callable[..., str]] = {
    part.__name__: part
    for part in (command_help, configuration, fields, fault_kinds, fault_parameters, sandbox_settings)
}


class Generated(SphinxDirective):
    """Insert a part of the reference."""

    required_arguments: ClassVar[int] = 1
    optional_arguments: ClassVar[int] = 2

    def run(self) -> list[Node]:
        """Return the parsed Markdown of the part."""
        name, *arguments = self.arguments
        return self.parse_text_to_nodes(PARTS[name](*arguments))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive with Sphinx."""
    app.add_directive("generated", Generated)
    return {"parallel_read_safe": True}


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _parameters(documented: type) -> dict[str, str]:
    """Return the descriptions of the parameters in a docstring, as Markdown."""
    docstring = inspect.cleandoc(vars(documented).get("__doc__") or "")
    found = re.findall(r"^:param (\w+): (.+?)(?=^:|\Z)", docstring, re.MULTILINE | re.DOTALL)
    return {name: _markdown(" ".join(text.split())) for name, text in found}


def _markdown(text: str) -> str:
    """Return a docstring's text as Markdown, without references to other parts of the code."""
    text = re.sub(r" \(:\w+:`[^`]+`\)", "", text)
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", text)
    return text.replace("``", "`").replace("`None`", "null")


def _type_name(kind: Any) -> str:
    """Return the JSON type of a field, for people."""
    if hasattr(kind, "__metadata__"):  # Annotated
        return _type_name(kind.__origin__)
    parts = getattr(kind, "__args__", ())
    if getattr(kind, "__origin__", None) in (list, dict):
        return _TYPES[kind.__origin__.__name__]
    if parts and all(isinstance(part, str) for part in parts):  # Literal
        return ", ".join(f"`{part}`" for part in parts)
    if parts:
        return " or ".join(_type_name(part) for part in parts)
    return _TYPES["None" if kind is type(None) else kind.__name__]


def _value(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
