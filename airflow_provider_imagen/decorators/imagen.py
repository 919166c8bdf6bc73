"""``@task.imagen``: the operator, with its prompt supplied by a function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk.bases.decorator import DecoratedOperator, task_decorator_factory

from airflow_provider_imagen._compat import SET_DURING_EXECUTION, determine_kwargs
from airflow_provider_imagen.exceptions import InvalidArgumentsError, Problem
from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow.sdk import Context
    from airflow.sdk.bases.decorator import TaskDecorator


class _ImagenDecoratedOperator(DecoratedOperator, ImagenGenerateOperator):
    """
    Call a function, take what it returns for the prompt, and generate.

    :param python_callable: returns text, a mapping with ``prompt``, or a list of these; it is data, in which no
        template is rendered and no template file is named
    """

    template_fields: Sequence[str] = (*DecoratedOperator.template_fields, *ImagenGenerateOperator.template_fields)
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **DecoratedOperator.template_fields_renderers,
        **ImagenGenerateOperator.template_fields_renderers,
    }
    custom_operator_name = "@task.imagen"
    overwrite_rtif_after_execution = True  # the UI shows the prompt that was sent, not a placeholder

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Sequence[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if "prompt" in kwargs:
            raise TypeError(
                "@task.imagen takes its prompt from what the function returns: leave the argument prompt out"
            )
        super().__init__(
            python_callable=python_callable,
            op_args=op_args,
            op_kwargs=op_kwargs,
            prompt=SET_DURING_EXECUTION,
            **kwargs,
        )

    def execute(self, context: Context) -> list[str]:
        """
        Call the function, and make the images of what it returns.

        :raises InvalidArgumentsError: the function returned something that cannot be a prompt; nothing was paid
        """
        arguments: Any = {**context, **self.op_kwargs}
        kwargs = determine_kwargs(self.python_callable, self.op_args, arguments)
        prompt = self.python_callable(*self.op_args, **kwargs)
        if problems := list(_problems(prompt, of=f"the function {self.python_callable.__name__!r} of @task.imagen")):
            from airflow_provider_imagen.operators.execution import raise_for_airflow

            raise_for_airflow(InvalidArgumentsError(problems), self)
        self.prompt = prompt  # data, never a template: it may hold text from outside, such as a headline
        return ImagenGenerateOperator.execute(self, context)


def _problems(returned: Any, *, of: str) -> Iterator[Problem]:
    """Say what of a function's value cannot be a prompt; what is in a mapping is checked with everything else."""
    if isinstance(returned, (str, Mapping)):
        return
    if isinstance(returned, (bytes, bytearray)) or not isinstance(returned, Sequence):
        allowed = 'text, a mapping such as {"prompt": …}, or a list of these is allowed'
        yield Problem("prompt", returned, f"{of} returned {type(returned).__name__}; {allowed}")
        return
    for index, each in enumerate(returned):
        if not isinstance(each, (str, Mapping)):
            allowed = 'text or a mapping such as {"prompt": …} is allowed'
            yield Problem(f"prompt[{index}]", each, f"{of} returned {type(each).__name__} here; {allowed}")


def imagen_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """
    Turn a function that returns a prompt into a task that generates its pictures.

    :param python_callable: the function
    :param kwargs: arguments of
        :class:`~airflow_provider_imagen.operators.imagen.ImagenGenerateOperator`, all but ``prompt``
    """
    # Airflow infers several outputs from an annotation such as ``-> dict``, but that is the prompt; links are a list.
    kwargs.setdefault("multiple_outputs", False)
    return task_decorator_factory(
        python_callable=python_callable, decorated_operator_class=_ImagenDecoratedOperator, **kwargs
    )
