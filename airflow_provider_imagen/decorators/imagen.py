"""``@task.imagen``: the operator, with a prompt returned by a function."""

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
    Generates images from the prompt that a function returns.

    :param python_callable: returns a string, a mapping with ``prompt``, or a list of these. The value is data: it is
        never rendered as a template or read as the name of a template file
    """

    template_fields: Sequence[str] = (*DecoratedOperator.template_fields, *ImagenGenerateOperator.template_fields)
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **DecoratedOperator.template_fields_renderers,
        **ImagenGenerateOperator.template_fields_renderers,
    }
    operator_extra_links = ()  # the plugin knows this operator, too
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
            raise TypeError("The prompt of @task.imagen is what the function returns; remove the argument prompt")
        super().__init__(
            python_callable=python_callable,
            op_args=op_args,
            op_kwargs=op_kwargs,
            prompt=SET_DURING_EXECUTION,
            **kwargs,
        )

    def execute(self, context: Context) -> list[str]:
        """
        Call the function, generate the images of the prompt it returns, and return their URLs.

        :raises InvalidArgumentsError: the function did not return a prompt; nothing was spent
        """
        arguments: Any = {**context, **self.op_kwargs}
        kwargs = determine_kwargs(self.python_callable, self.op_args, arguments)
        prompt = self.python_callable(*self.op_args, **kwargs)
        function = f"the function {self.python_callable.__name__!r} of @task.imagen"
        if problems := list(_find_problems(prompt, of=function)):
            from airflow_provider_imagen.operators.execution import error_for_airflow
            from airflow_provider_imagen.operators.publish import push_failure

            error = InvalidArgumentsError(problems)
            push_failure(context, error)
            raise error_for_airflow(error, self)
        self.prompt = prompt  # not rendered: it may hold untrusted text, such as a headline
        return ImagenGenerateOperator.execute(self, context)


def _find_problems(returned: Any, *, of: str) -> Iterator[Problem]:
    """Yield the problems of a returned prompt's type; the contents of mappings are checked with the other arguments."""
    if isinstance(returned, (str, Mapping)):
        return
    if isinstance(returned, (bytes, bytearray)) or not isinstance(returned, Sequence):
        allowed = 'a string, a mapping such as {"prompt": …}, or a list of these is allowed'
        yield Problem("prompt", returned, f"{of} returned {type(returned).__name__}; {allowed}")
        return
    for index, each in enumerate(returned):
        if not isinstance(each, (str, Mapping)):
            allowed = 'a string or a mapping such as {"prompt": …} is allowed'
            yield Problem(f"prompt[{index}]", each, f"{of} returned {type(each).__name__} here; {allowed}")


def imagen_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """
    Turn a function that returns a prompt into a task that generates its images.

    :param python_callable: the function
    :param kwargs: arguments of
        :class:`~airflow_provider_imagen.operators.imagen.ImagenGenerateOperator`, except ``prompt``
    """
    # Airflow infers multiple outputs from a ``-> dict`` annotation, but that is the prompt; the task returns a list.
    kwargs.setdefault("multiple_outputs", False)
    return task_decorator_factory(
        python_callable=python_callable, decorated_operator_class=_ImagenDecoratedOperator, **kwargs
    )
