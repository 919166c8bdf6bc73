"""Quotes of DAGs: the cost of a run, task by task, without running anything."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from airflow_provider_imagen._compat import ParamValidationError
from airflow_provider_imagen.api.cost import read_amount
from airflow_provider_imagen.catalogue.availability import judge_models_offline
from airflow_provider_imagen.catalogue.input_images import ImageFile
from airflow_provider_imagen.catalogue.pricing import PriceList
from airflow_provider_imagen.commands.dag_rendering import count_instances, render_instance
from airflow_provider_imagen.exceptions import ImagenError, InvalidArgumentsError
from airflow_provider_imagen.hooks.folders import open_folder
from airflow_provider_imagen.hooks.imagen import DEFAULT_MODEL, ImagenHook
from airflow_provider_imagen.money import format_usd
from airflow_provider_imagen.operators.arguments import Arguments
from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
from airflow_provider_imagen.run.input_reader import InputReader
from airflow_provider_imagen.run.plan import Plan, PlanQuote, add_quotes, quote_requests

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping, Sequence

    from airflow_provider_imagen.catalogue.availability import LiveModel, ModelHealth

UNCOUNTED: Final = frozenset({"prompt", "model", "num_images", "limit", "expand_kwargs"})
"""Arguments without which only the price of one prompt or image is known."""


class TaskQuote(Struct, frozen=True):
    """
    What a task would cost.

    :param instances: number of task instances; ``None`` if only a run knows it
    :param prompts: number of prompts of all instances; of one if the task is not counted
    :param quote: the cost of all of them, or of one prompt if the task is not counted; ``None`` without a model
    :param is_counted: whether ``quote`` is the cost of the whole task
    :param only_in_a_run: arguments that only a run knows, and where each comes from
    :param fallbacks: the fallback model that is quoted in place of each retired model
    :param problems: why the task would fail before it sends anything
    """

    task_id: str
    instances: int | None
    prompts: int
    quote: PlanQuote | None
    is_counted: bool
    only_in_a_run: Mapping[str, str]
    fallbacks: Mapping[str, str]
    problems: Sequence[str]

    @property
    def is_exact(self) -> bool:
        """Whether ``quote`` is the cost of the whole task, with no field of the API left to a run."""
        return self.is_counted and "parameters" not in self.only_in_a_run


class DagQuote(Struct, frozen=True):
    """
    What a run would cost.

    :param notices: which prices could not be looked up, in sentences
    """

    dag_id: str
    tasks: Sequence[TaskQuote]
    notices: Sequence[str]

    @property
    def total(self) -> PlanQuote:
        """The cost of the tasks that are counted; it has no amount if a price is unknown."""
        return add_quotes(task.quote for task in self.tasks if task.is_counted and task.quote is not None)


def quote_dag(dag: Any, *, conf: Mapping[str, Any], now: datetime) -> DagQuote:
    """
    Return what a run of a DAG would cost if it were triggered now and every task ran. Sends nothing paid.

    :param conf: configuration of the run
    :raises ParamValidationError: a param has an invalid value, or no value
    """
    hooks: dict[str, QuoteHook] = {}
    try:
        tasks = [
            _quote_task(task, conf=conf, now=now, hooks=hooks)
            for task in dag.tasks
            if issubclass(getattr(task, "operator_class", type(task)), ImagenGenerateOperator)
        ]
    finally:
        for hook in hooks.values():
            hook.close()
    notices = dict.fromkeys(notice for hook in hooks.values() for notice in hook.notices)
    return DagQuote(dag.dag_id, tasks, list(notices))


def _quote_task(task: Any, *, conf: Mapping[str, Any], now: datetime, hooks: dict[str, QuoteHook]) -> TaskQuote:
    instances = count_instances(task)
    quotes: list[PlanQuote] = []
    only_in_a_run: dict[str, str] = {}
    fallbacks: dict[str, str] = {}
    problems: dict[str, None] = {}
    prompts = 0
    for map_index in [None] if instances is None else range(instances):
        try:
            rendered = render_instance(task, conf=conf, now=now, map_index=map_index)
        except ParamValidationError:
            raise
        except Exception as error:  # raised by the author's subclass
            problems[f"the operator cannot be created: {error}"] = None
            continue
        operator = rendered.operator
        only_in_a_run |= rendered.only_in_a_run
        problems |= dict.fromkeys(map(str, rendered.problems))
        if rendered.problems or "model" in rendered.only_in_a_run:
            continue
        hook = hooks.setdefault(operator.imagen_conn_id, QuoteHook(operator.imagen_conn_id))
        try:
            plan = Arguments(operator, hook).plan()
        except InvalidArgumentsError as error:
            problems |= dict.fromkeys(map(str, error.problems))
            continue
        retired = hook.find_retired(plan)
        for slot in plan.slots:
            requested, used = slot.alternatives[0][0].model, slot.first_alternative(retired)[0].model
            if used != requested:
                fallbacks[requested] = used
            elif used in retired:
                problems[f"model={used!r}: {retired[used]}"] = None
        quote = quote_requests(plan, hook.prices, retired=retired)
        hook.note_missing_prices(plan, retired)
        if quote.usd and (cap := read_amount(operator.max_usd)) and quote.usd > cap:
            problems[f"max_usd={format_usd(cap)}: the images cost about {format_usd(quote.usd)}"] = None
        quotes.append(quote)
        prompts += len(plan.items)
        if only_in_a_run.keys() & UNCOUNTED:
            break
    return TaskQuote(
        task_id=task.task_id,
        instances=instances,
        prompts=prompts,
        quote=add_quotes(quotes) if quotes or not instances else None,
        is_counted=instances is not None and not only_in_a_run.keys() & UNCOUNTED and not problems,
        only_in_a_run=only_in_a_run,
        fallbacks=fallbacks,
        problems=list(problems),
    )


class QuoteHook(ImagenHook):
    """
    The hook of a quote: it looks up prices, at most once, and reads no input images.

    Without prices from the API, the catalogue's apply, and :attr:`notices` says why.
    """

    def __init__(self, imagen_conn_id: str) -> None:
        super().__init__(imagen_conn_id)
        self.notice: str | None = None
        self._unlisted_prices: dict[str, None] = {}
        self._health: dict[str, ModelHealth] = {}
        self._listed: list[dict[str, Any]] | None = None
        self._deprecations: list[dict[str, Any]] | None = None

    @property
    def default_model(self) -> str:
        """The connection's model, else that of the operator."""
        try:
            return super().default_model
        except Exception:  # the notice reports what is wrong with the connection
            return DEFAULT_MODEL

    @property
    def usage_caps(self) -> tuple[()]:
        """No caps: a quote is the same whatever has been spent."""
        return ()

    @property
    def notices(self) -> list[str]:
        """Why last known prices apply, in sentences."""
        if self.notice is not None:
            return [self.notice]
        return [f"The API states no price for {model}; its last known one applies." for model in self._unlisted_prices]

    def find_retired(self, plan: Plan) -> dict[str, str]:
        """Return the models of a plan that are retired, each with a sentence about its end and its replacement."""
        models = dict.fromkeys(planned.model for planned in plan.requests)
        for health in self.check_models([model for model in models if model not in self._health]):
            self._health[health.model] = health
        found = [self._health[model] for model in models]
        return {health.model: health.sentence for health in found if health.state == "withdrawn"}

    def check_models(self, models: Iterable[str]) -> list[ModelHealth]:
        """Return whether models are available by the API's lists or, if they cannot be read, by the catalogue."""
        asked = list(models)
        if not asked:
            return []
        self.list_models()
        if self.notice is None:
            try:
                return super().check_models(asked)
            except ImagenError as error:
                self.notice = f"Retired models of the connection {self.imagen_conn_id} could not be looked up: {error}"
        return judge_models_offline(asked, today=datetime.now(UTC).date())

    def note_missing_prices(self, plan: Plan, retired: Container[str]) -> None:
        """Record for which models of a plan the API states no price."""
        for slot in plan.slots:
            for planned in slot.first_alternative(retired):
                if planned.model not in retired and self.prices.quote(planned.request).source == "last known":
                    self._unlisted_prices[planned.model] = None

    @cached_property
    def prices(self) -> PriceList:
        """The API's prices."""
        return PriceList.from_response(self.list_models())

    def list_models(self, *, include_pricing: bool = True) -> list[dict[str, Any]]:  # noqa: ARG002 - always with prices
        """Return the API's image models with their prices; an empty list if the API cannot be asked."""
        if self._listed is None:
            try:
                self._listed = super().list_models(include_pricing=True)
            except Exception as error:  # no connection, an invalid one, no network
                self._listed = []
                self.notice = f"Prices of the connection {self.imagen_conn_id} could not be looked up: {error}"
        return self._listed

    def list_deprecations(self) -> list[dict[str, Any]]:
        """Return the API's deprecated models."""
        if self._deprecations is None:
            self._deprecations = super().list_deprecations()
        return self._deprecations

    def look_up_model(self, model_id: str) -> LiveModel:
        """
        Look up a model that is not in the catalogue.

        :raises ImagenError: the API cannot be asked
        """
        self.list_models()
        if self.notice is not None:
            raise ImagenError(self.notice)
        return super().look_up_model(model_id)

    def get_input_reader(self) -> InputReader:
        """Return a reader that reads nothing."""
        return _UnreadInputs(open_path=open_folder, fetch=self.download)


class _UnreadInputs(InputReader):
    """Assumes 1024x1024 pixels for every stored input image, since many do not exist before the run."""

    def _inspect(self, address: str) -> ImageFile:
        return ImageFile(address, sha256="0" * 64, bytes=0, mime_type="image/png", width=1024, height=1024)
