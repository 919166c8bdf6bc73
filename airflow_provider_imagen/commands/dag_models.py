"""
Find the models that DAG files use, without importing the files.

Only what stands in the text is found: a model written where it is used, or in a name or a ``params`` default of the
same file. What is only known when the DAG runs is told as unread.
"""

from __future__ import annotations

import ast
import re
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_OURS = frozenset({"ImagenGenerateOperator", "imagen_task", "ImagenHook", "generate_images"})
_PACKAGE = "airflow_provider_imagen"
_PARAMS = re.compile(r"\{\{\s*params\.(\w+)\s*\}\}")


@dataclass(frozen=True)
class ModelUse:
    """
    A model that a file names.

    :param model: its id
    :param place: ``file:line``, the file relative to the folder
    """

    model: str
    place: str


@dataclass
class Findings:
    """
    What a folder holds.

    :param uses: models that were found
    :param unread: places whose model is only known when the DAG runs
    :param broken: files that could not be read, and why
    """

    uses: list[ModelUse] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


def find_models(folder: Path) -> Findings:
    """
    Read every Python file of a folder, or one file.

    Hidden folders and those of virtual environments are left out.
    """
    findings = Findings()
    paths = [folder] if folder.is_file() else sorted(folder.rglob("*.py"))
    root = folder.parent if folder.is_file() else folder
    for path in paths:
        parts = path.relative_to(root).parts
        if any(part.startswith(".") or part in ("site-packages", "__pycache__", "node_modules") for part in parts):
            continue
        name = "/".join(parts)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # those of the files are their authors' business
                text = path.read_bytes()
                if _PACKAGE.encode() in text or b".imagen" in text:
                    _File(ast.parse(text), name, findings).read()
        except (OSError, SyntaxError, ValueError, RecursionError) as error:
            findings.broken.append(f"{name}: {error}")
    return findings


class _File:
    """One file: its names, and the calls in it that are ours."""

    def __init__(self, tree: ast.Module, name: str, findings: Findings) -> None:
        self._tree = tree
        self._name = name
        self._findings = findings
        self._ours = set(_OURS)
        self._values: dict[str, list[ast.expr]] = {}
        self._params: dict[str, list[ast.expr]] = {}
        for node in ast.walk(tree):
            self._note_name(node)

    def read(self) -> None:
        """Note the models of every call that is ours, and of the functions that ``@task.imagen`` decorates."""
        seen: set[tuple[str | None, int]] = set()
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Call) and self._is_ours(node.func):
                self._read_call(node, seen)
            elif isinstance(node, ast.FunctionDef) and any(map(self._is_ours, node.decorator_list)):
                for part in node.body:
                    self._read_dicts(part, seen, set())

    def _note_name(self, node: ast.AST) -> None:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(_PACKAGE):
            self._ours |= {alias.asname for alias in node.names if alias.asname and alias.name in _OURS}
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                self._bind(target, node.value)
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            self._bind(node.target, node.value)
        elif isinstance(node, (ast.For, ast.comprehension)):
            self._bind(node.target, node.iter)
        elif isinstance(node, ast.keyword) and node.arg == "params" and isinstance(node.value, ast.Dict):
            for key, value in zip(node.value.keys, node.value.values, strict=True):
                if isinstance(key, ast.Constant):
                    self._params.setdefault(str(key.value), []).append(value)

    def _bind(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name):
            self._values.setdefault(target.id, []).append(value)

    def _is_ours(self, function: ast.expr) -> bool:
        """Follow ``a.b(…).c`` down to its names; ``task.imagen`` counts too."""
        while True:
            if isinstance(function, ast.Call):
                function = function.func
            elif isinstance(function, ast.Attribute):
                is_decorator = function.attr == "imagen" and isinstance(function.value, ast.Name)
                if function.attr in self._ours or (is_decorator and function.value.id == "task"):  # type: ignore[attr-defined]
                    return True
                function = function.value
            else:
                return isinstance(function, ast.Name) and function.id in self._ours

    def _read_call(self, call: ast.Call, seen: set[tuple[str | None, int]]) -> None:
        for keyword in call.keywords:
            if keyword.arg in ("model", "fallback_models"):
                self._note(keyword.value, seen)
            else:
                self._read_dicts(keyword.value, seen, set())
        for argument in call.args:
            self._read_dicts(argument, seen, set())

    def _read_dicts(self, node: ast.AST, seen: set[tuple[str | None, int]], names: set[str]) -> None:
        """Note ``"model": …`` of every mapping in a value, also in the names it is put together from."""
        for part in ast.walk(node):
            if isinstance(part, ast.Dict):
                for key, value in zip(part.keys, part.values, strict=True):
                    if isinstance(key, ast.Constant) and key.value == "model":
                        self._note(value, seen)
            elif isinstance(part, ast.Name) and part.id not in names:
                for value in self._values.get(part.id, ()):
                    self._read_dicts(value, seen, names | {part.id})

    def _note(self, value: ast.expr, seen: set[tuple[str | None, int]]) -> None:
        for model, line in self._texts(value, set()):
            if (model, line) in seen:
                continue
            seen.add((model, line))
            place = f"{self._name}:{line}"
            if model is None:
                self._findings.unread.append(place)
            else:
                self._findings.uses.append(ModelUse(model, place))

    def _texts(self, node: ast.expr, names: set[str]) -> Iterator[tuple[str | None, int]]:
        """Give the texts a value can have, and where they stand; ``None`` for what cannot be told."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from self._rendered(node.value, node.lineno, names)
        elif isinstance(node, ast.Constant) and node.value is None:
            return
        elif isinstance(node, (ast.List, ast.Tuple, ast.Set)):
            for part in node.elts:
                yield from self._texts(part, names)
        elif isinstance(node, ast.IfExp):
            yield from self._texts(node.body, names)
            yield from self._texts(node.orelse, names)
        elif isinstance(node, ast.BoolOp):
            for part in node.values:
                yield from self._texts(part, names)
        elif isinstance(node, ast.Name) and node.id in self._values and node.id not in names:
            for value in self._values[node.id]:
                yield from self._texts(value, names | {node.id})
        elif isinstance(node, ast.Call) and node.args and isinstance(node.func, ast.Name) and node.func.id == "Param":
            yield from self._texts(node.args[0], names)
        else:
            yield None, node.lineno

    def _rendered(self, text: str, line: int, names: set[str]) -> Iterator[tuple[str | None, int]]:
        if "{{" not in text and "{%" not in text:
            if text.strip():
                yield text.strip(), line
            return
        match = _PARAMS.fullmatch(text.strip())
        name = f"params.{match[1]}" if match else ""
        if not match or match[1] not in self._params or name in names:
            yield None, line
            return
        for value in self._params[match[1]]:
            yield from self._texts(value, names | {name})
