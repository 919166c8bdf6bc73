"""The models that DAG files use, found by importing the files as Airflow's DAG processor does."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

_UNSET = ("", "None")
"""Results of a template whose param is empty."""


@dataclass(frozen=True)
class ModelUse:
    """
    A model that a task uses.

    :param model: model id
    :param place: ``file:dag_id.task_id``, with the file relative to the folder
    """

    model: str
    place: str


@dataclass
class Findings:
    """
    The models that the DAG files of a folder use.

    :param uses: models known before the DAG runs, each once per task
    :param unread: ``place (argument)`` of each argument whose model is known only when the DAG runs
    :param broken: ``file: error`` of each DAG file that Airflow cannot import
    """

    uses: list[ModelUse] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


def find_models(folder: Path) -> Findings:
    """
    Return the models that the tasks in a folder of DAG files, or in one file, use; imports the files.

    Airflow decides which files are DAG files (``.airflowignore``, ``[core] dag_discovery_safe_mode``). Templates are
    rendered with the defaults of ``params`` only.
    """
    from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator

    folder = folder.resolve()
    bag = load_dags(folder)
    broken = [f"{path}: {error.strip().splitlines()[-1]}" for path, error in sorted(bag.import_errors.items())]
    findings = Findings(broken=broken)
    for dag in sorted(bag.dags.values(), key=lambda dag: (dag.relative_fileloc, dag.dag_id)):
        for task in dag.tasks:
            if issubclass(getattr(task, "operator_class", type(task)), ImagenGenerateOperator):
                _read_task(task, f"{dag.relative_fileloc}:{dag.dag_id}.{task.task_id}", findings)
    return findings


def load_dags(folder: Path) -> Any:
    """Return a ``DagBag`` of a folder of DAG files or one file, after adding it to ``sys.path`` as Airflow does."""
    from airflow_provider_imagen._compat import get_dag_bag

    bag_class, _ = get_dag_bag()
    root = folder.parent if folder.is_file() else folder
    if str(root) not in sys.path:
        sys.path.append(str(root))
    has_examples = "include_examples" in inspect.signature(bag_class).parameters  # before Airflow 3.3
    return bag_class(str(folder), bundle_path=root, **({"include_examples": False} if has_examples else {}))


def _read_task(task: Any, place: str, findings: Findings) -> None:
    models, unread = dict[str, None](), dict[str, None]()  # ordered sets
    for name, value in _model_values(task):
        model = _render(value, task)
        if model is None:
            unread[f"{place} ({name})"] = None
        elif model not in _UNSET:
            models[model] = None
    findings.uses += [ModelUse(model, place) for model in models]
    findings.unread += unread


def _model_values(task: Any) -> Iterator[tuple[str, Any]]:
    """Yield each value that names a model, or may do so when the DAG runs, with the name of its argument."""
    for arguments in _argument_sets(task):
        for name in ("model", "fallback_models", "prompt"):
            yield from ((name, value) for value in _values_in(arguments.get(name), is_prompt=name == "prompt"))
    if hasattr(task, "python_callable"):  # @task.imagen
        yield "prompt", task.python_callable


def _argument_sets(task: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the arguments of an operator, or the fixed and then the mapped ones of a mapped operator."""
    if not hasattr(task, "partial_kwargs"):
        yield vars(task)
        return
    group_defaults = task.task_group.default_args if task.task_group else {}
    yield {**task.dag.default_args, **group_defaults, **task.partial_kwargs}
    mapped = task.expand_input.value
    if isinstance(mapped, Mapping):  # expand(name=values)
        for name, values in mapped.items():
            yield from ({name: value} for value in (values if isinstance(values, Sequence) else [values]))
    else:  # expand_kwargs
        for item in mapped if isinstance(mapped, Sequence) else [mapped]:
            yield item if isinstance(item, Mapping) else {"model": item}


def _values_in(value: Any, *, is_prompt: bool) -> Iterator[Any]:
    if value is None or (is_prompt and isinstance(value, str)):
        return
    if is_prompt and isinstance(value, Mapping):
        yield from _values_in(value.get("model"), is_prompt=False)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for each in value:
            yield from _values_in(each, is_prompt=is_prompt)
    else:
        yield value


def _render(value: Any, task: Any) -> str | None:
    """Return a template rendered with the defaults of ``params``; ``None`` if its value is known only at run time."""
    if not isinstance(value, str):
        return None
    try:
        rendered = task.render_template(value, {"params": task.params})
    except Exception:  # such as an undefined name, a param without default, an error in the DAG's own filter
        return None
    return str(rendered).strip()
