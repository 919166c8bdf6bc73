"""Render the image tasks of a DAG as a run that is triggered now would, without a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import wraps
from inspect import signature
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from airflow_provider_imagen.exceptions import Problem

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator

PLACEHOLDER_PROMPT: Final = "a prompt that only a run knows"
PLACEHOLDER_INPUT: Final = "https://input.invalid/image.png"

PROMPT_TEXT: Final = "text of prompt"
"""Stands for ``prompt`` among the arguments that only a run knows if the number of prompts is known."""

_TEXT_KEYS: Final = ("prompt", "name", "alt_text")
"""Keys of a prompt mapping whose value does not change the price."""

_SOURCE_CHARACTERS: Final = 60


class OnlyInARunError(Exception):
    """A template uses a value that only a run knows."""


class RenderedTask(Struct, frozen=True):
    """
    One instance of a task.

    :param operator: its templates are rendered; an argument that only a run knows is unset or has a placeholder
    :param only_in_a_run: such arguments, and where each comes from
    :param problems: templates that a run could not render either
    """

    operator: ImagenGenerateOperator
    only_in_a_run: Mapping[str, str]
    problems: Sequence[Problem]


def count_instances(task: Any) -> int | None:
    """Return the number of instances of a task, mapped or not; ``None`` if only a run knows it."""
    from airflow.sdk import XComArg

    expansion = _expansion_of(task)
    if expansion is None:
        return 1
    if any(XComArg.iter_xcom_references(expansion)):
        return None
    values = expansion.value
    return math.prod(map(len, values.values())) if isinstance(values, Mapping) else len(values)


def render_instance(task: Any, *, conf: Mapping[str, Any], now: datetime, map_index: int | None) -> RenderedTask:
    """
    Return one instance of a task.

    :param conf: configuration of the run
    :param now: when the run is triggered
    :param map_index: ``None`` for any instance of a mapped task whose number of instances only a run knows
    :raises ParamValidationError: a param has an invalid value, or no value
    """
    from airflow.sdk import XComArg

    from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator

    context = _make_context(task, conf=conf, now=now, map_index=map_index or 0)
    only_in_a_run: dict[str, str] = {}
    if map_index is None and hasattr(task, "partial_kwargs"):
        expansion = _expansion_of(task)
        names = expansion.value if isinstance(expansion.value, Mapping) else ["expand_kwargs"]
        only_in_a_run = dict.fromkeys(names, _xcoms_of(expansion))
    operator = _unmap(task, context, is_known=map_index is not None)
    problems: list[Problem] = []
    if hasattr(operator, "python_callable"):  # @task.imagen
        only_in_a_run = {"prompt": "what the function returns"}
    elif "expand_kwargs" in only_in_a_run and operator.prompt is None:
        only_in_a_run["prompt"] = only_in_a_run["expand_kwargs"]
    for name in ImagenGenerateOperator.template_fields:
        value = getattr(operator, name)
        if name in only_in_a_run:
            pass
        elif any(XComArg.iter_xcom_references(value)):
            only_in_a_run[name] = _xcoms_of(value)
        else:
            try:
                setattr(operator, name, _render(operator, name, value, context, only_in_a_run))
            except OnlyInARunError:
                only_in_a_run[name] = _shorten(value)
            except Exception as error:  # whatever templates and the DAG's own macros and filters raise
                problems.append(Problem(name, value, f"the template cannot be rendered: {error}"))
        if name in only_in_a_run:
            placeholders = {"prompt": PLACEHOLDER_PROMPT, "input_images": PLACEHOLDER_INPUT, "limit": 1}
            setattr(operator, name, placeholders.get(name))
    return RenderedTask(operator, only_in_a_run, problems)


def _expansion_of(task: Any) -> Any:
    """Return what a task, or the task group around it, is mapped over; ``None`` if it is not mapped."""
    for name in ("op_kwargs_expand_input", "expand_input"):  # of @task.imagen, of the operator
        if hasattr(task, name):
            return getattr(task, name)
    group = task.get_closest_mapped_task_group()
    return None if group is None else group._expand_input  # not public in any version


def _unmap(task: Any, context: Mapping[str, Any], *, is_known: bool) -> Any:
    """Return the operator of one instance; arguments that it is mapped over are ``None`` unless they are known."""
    if not hasattr(task, "partial_kwargs"):
        return task.prepare_for_execution()
    expansion = _expansion_of(task)
    is_decorated = hasattr(task, "op_kwargs_expand_input")
    if is_known:
        arguments = expansion.resolve(context)[0]
    elif isinstance(expansion.value, Mapping):
        arguments = dict.fromkeys(expansion.value)
    else:  # expand_kwargs of an XCom: any argument, and for @task.imagen those of the function that are missing
        arguments = dict.fromkeys(signature(task.python_callable).parameters) if is_decorated else {}
        arguments = {name: None for name in arguments if name not in task.partial_kwargs.get("op_kwargs", ())}
    return task.unmap({"op_kwargs": arguments} if is_decorated else arguments)


def _render(operator: Any, name: str, value: Any, context: Mapping[str, Any], only_in_a_run: dict[str, str]) -> Any:
    """
    Return a rendered argument.

    Text in prompts that only a run knows becomes a placeholder, because it does not change the price. With native
    objects, a template may also render to a list, so nothing is known about it.

    :raises OnlyInARunError: only a run knows the value
    """
    environment = operator.get_template_env()
    environment.tests = {name: _refuse_run_only(test) for name, test in environment.tests.items()}
    is_native = getattr(operator, "render_template_as_native_obj", None)  # of a task, from Airflow 3.2 on
    if is_native is None:
        is_native = operator.dag.render_template_as_native_obj

    def render(part: Any, *, is_text: bool = False) -> Any:
        if is_text and isinstance(part, (list, tuple)):
            return [render(each, is_text=True) for each in part]
        if is_text and isinstance(part, Mapping):
            return {key: render(each, is_text=key in _TEXT_KEYS) for key, each in part.items()}
        try:
            return operator.render_template(part, context, environment)
        except Exception as error:
            is_rejected = _RunOnly.__name__ in str(error)  # a function that rejects the type of its argument names it
            if not isinstance(error, OnlyInARunError) and not is_rejected:
                raise
            if is_native or not is_text:
                raise OnlyInARunError from error
            only_in_a_run[PROMPT_TEXT] = _shorten(part)
            return PLACEHOLDER_PROMPT

    return render(value, is_text=name == "prompt")


def _xcoms_of(value: Any) -> str:
    from airflow.sdk import XComArg

    tasks = dict.fromkeys(operator.task_id for operator, _ in XComArg.iter_xcom_references(value))
    return f"XCom of {', '.join(map(repr, tasks))}"


def _shorten(template: Any) -> str:
    text = str(template)
    return text if len(text) <= _SOURCE_CHARACTERS else f"{text[: _SOURCE_CHARACTERS - 1]}…"


class _RunOnly:
    """Something of a run, of which only some attributes are known before; every other use raises."""

    def __init__(self, **known: Any) -> None:
        vars(self).update(known)

    def _refuse(self, *_: Any) -> Any:
        raise OnlyInARunError

    __getattr__ = __getitem__ = __call__ = __iter__ = __reversed__ = __len__ = __contains__ = _refuse
    __bool__ = __str__ = __format__ = __int__ = __float__ = __index__ = __round__ = __hash__ = _refuse
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __add__ = __sub__ = __mul__ = __truediv__ = __floordiv__ = __mod__ = __pow__ = _refuse
    __radd__ = __rsub__ = __rmul__ = __rtruediv__ = __rfloordiv__ = __rmod__ = __rpow__ = _refuse
    __neg__ = __pos__ = __abs__ = _refuse


def _refuse_run_only(test: Callable[..., Any]) -> Callable[..., Any]:
    """Return a test of templates, such as ``is none``, that has no result for what only a run knows."""

    @wraps(test)
    def run_test(*args: Any) -> Any:
        if any(isinstance(each, _RunOnly) for each in args):
            raise OnlyInARunError
        return test(*args)

    return run_test


def _make_context(task: Any, *, conf: Mapping[str, Any], now: datetime, map_index: int) -> dict[str, Any]:
    """
    Return the template context of a task instance in a run that is triggered now, as Airflow documents it.

    :raises ParamValidationError: a param has an invalid value, or no value
    """
    from airflow.sdk import Context
    from airflow.sdk.definitions.param import process_params
    from airflow.sdk.execution_time.context import MacrosAccessor
    from airflow.sdk.timezone import coerce_datetime

    at: Any = coerce_datetime(now)
    run_id = f"manual__{at.isoformat()}"
    ids = {"dag_id": task.dag.dag_id, "task_id": task.task_id, "run_id": run_id}
    ti = _RunOnly(**ids, map_index=map_index, try_number=1, _upstream_map_indexes={})  # None of its XComs is known.
    dag_run = _RunOnly(
        dag_id=task.dag.dag_id,
        run_id=run_id,
        run_type="manual",
        conf=dict(conf),
        logical_date=at,
        run_after=at,
        start_date=at,
        data_interval_start=at,
        data_interval_end=at,
    )
    return {
        **{name: _RunOnly() for name in Context.__annotations__},
        "dag": task.dag,
        "dag_run": dag_run,
        "data_interval_end": at,
        "data_interval_start": at,
        "ds": f"{at:%Y-%m-%d}",
        "ds_nodash": f"{at:%Y%m%d}",
        "inlets": task.inlets,
        "logical_date": at,
        "macros": MacrosAccessor(),
        "outlets": task.outlets,
        "params": process_params(task.dag, task, dict(conf), suppress_exception=False),
        "run_id": run_id,
        "task": task,
        "task_instance": ti,
        "task_instance_key_str": f"{task.dag.dag_id}__{task.task_id}__{at:%Y%m%d}",
        "ti": ti,
        "ts": at.isoformat(),
        "ts_nodash": f"{at:%Y%m%dT%H%M%S}",
        "ts_nodash_with_tz": at.isoformat().replace("-", "").replace(":", ""),
    }
