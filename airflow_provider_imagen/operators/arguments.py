"""The operator's rendered arguments: validation, and the plan and run options built from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from airflow_provider_imagen.api.fields import read_whole_number
from airflow_provider_imagen.catalogue.availability import ending_soon
from airflow_provider_imagen.catalogue.lookup import find_model
from airflow_provider_imagen.catalogue.pricing import PriceList
from airflow_provider_imagen.exceptions import ImagenError, InvalidArgumentsError, Problem
from airflow_provider_imagen.run.plan import make_plan
from airflow_provider_imagen.run.ports import RunOptions
from airflow_provider_imagen.run.recorded_arguments import record_arguments
from airflow_provider_imagen.storage.convert import IMAGE_FORMATS
from airflow_provider_imagen.storage.naming import DEFAULT_FILENAME, check_pattern
from airflow_provider_imagen.storage.paths import path_text
from airflow_provider_imagen.storage.provenance import find_provenance_problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_provider_imagen.hooks.imagen import ImagenHook
    from airflow_provider_imagen.run.ports import OnLostAnswer
    from airflow_provider_imagen.storage.convert import ImageFormat

    Reuse = Literal["unchanged"]
    Tolerance = Literal["fail", "accept"]
    from airflow_provider_imagen.run.plan import Plan

API_ARGUMENTS: Final = (
    "num_images",
    "aspect_ratio",
    "seed",
    "enhance_prompt",
    "person_generation",
    "safety_setting",
    "add_watermark",
    "convert_base64_to_url",
    "input_images",
)
"""Operator arguments that become API fields."""

_RECORDED_ARGUMENTS: Final = (
    *("output_path", "filename", "image_format", "thumbnail_pixels", "contact_sheet", "provenance"),
    *("concurrency", "requests_per_minute", "max_usd", "on_failure", "on_filtered"),
    *("on_lost_answer", "lost_answer_patience_seconds", "fallback_models", "imagen_conn_id"),
)
"""
Operator arguments that records of images carry besides API fields, so that an image can be requested again.

Not ``limit``, which depends on the other prompts, nor ``reuse``, which would find the image instead.
"""

_CHOICES: Final[Mapping[str, tuple[Any, ...]]] = {
    "on_failure": ("fail", "accept"),
    "on_filtered": ("fail", "accept"),
    "on_lost_answer": ("check", "resend", "fail"),
    "image_format": (None, *IMAGE_FORMATS),
    "reuse": (None, "unchanged"),
}
_RANGES: Final[Mapping[str, tuple[Any, float, float]]] = {
    "concurrency": (int, 1, 256),
    "thumbnail_pixels": (int, 16, 2048),
    "requests_per_minute": ((int, float), 0.1, 60_000),
    "lost_answer_patience_seconds": ((int, float), 0, 3600),
    "limit": (int, 1, 1_000_000),
}
_OPTIONAL: Final = ("thumbnail_pixels", "requests_per_minute", "limit")


class ImageTask(Protocol):
    """The attributes of ``ImagenGenerateOperator`` that an attempt reads."""

    prompt: Any
    model: str | None
    metadata_columns: Sequence[str]
    parameters: Mapping[str, Any] | None
    output_path: Any
    reuse: Reuse | None
    reuse_from: Any
    limit: int | str | None
    filename: str | None
    image_format: ImageFormat | None
    thumbnail_pixels: int | None
    contact_sheet: bool
    provenance: bool | Mapping[str, Any]
    concurrency: int
    requests_per_minute: float | None
    max_usd: float | None
    on_failure: Tolerance
    on_filtered: Tolerance
    on_lost_answer: OnLostAnswer
    lost_answer_patience_seconds: float
    fallback_models: Sequence[str]
    imagen_conn_id: str
    retries: int | None
    outlets: list[Any]

    @property
    def log(self) -> Any:
        """The task's logger."""

    @staticmethod
    def argument_defaults() -> dict[str, Any]:
        """Return the default of each argument by its name."""


class Arguments:
    """
    The operator's arguments after rendering.

    A template that renders to an empty string or to ``None`` leaves its argument unset. Integers may come from tables
    as floats or text.

    :param operator: the operator, its templates rendered
    :param hook: provides the default model, live prices and input images
    """

    def __init__(self, operator: ImageTask, hook: ImagenHook) -> None:
        self._operator = operator
        self._hook = hook
        self._log = operator.log
        self.output_path = _blank_to_none(path_text(operator.output_path))
        self.filename = _blank_to_none(path_text(operator.filename)) or DEFAULT_FILENAME
        given = operator.reuse_from
        folders = [path_text(each) for each in (given if isinstance(given, (list, tuple)) else [given])]
        self.reuse_from = [folder for folder in folders if _blank_to_none(folder) is not None]

    @property
    def thumbnail_pixels(self) -> int | None:
        """Longer side of a preview, in pixels; ``None`` for no previews."""
        pixels: int | None = _read_integer(self._operator.thumbnail_pixels)
        return pixels

    @property
    def limit(self) -> int | None:
        """Number of prompts to request images for; ``None`` for all."""
        limit: int | None = _read_integer(_blank_to_none(self._operator.limit))
        return limit

    def plan(self) -> Plan:
        """
        Return the plan, after checking every argument.

        :raises InvalidArgumentsError: lists every problem, the operator's own arguments first
        """
        operator = self._operator
        problems = list(self._find_problems())
        invalid = {problem.field for problem in problems}
        fallback_models = () if "fallback_models" in invalid else operator.fallback_models
        parameters = {} if "parameters" in invalid else operator.parameters or {}
        model = self._catalogue_name(_blank_to_none(operator.model) or self._hook.default_model)
        fallback_models = [self._catalogue_name(each) for each in fallback_models]
        prices = PriceList() if problems else self._price_list()
        try:
            plan = make_plan(
                prompt=_drop_blank_fields(operator.prompt, metadata_columns=operator.metadata_columns),
                arguments={
                    **{name: _blank_to_none(value) for name, value in parameters.items()},
                    **{
                        name: value
                        for name in API_ARGUMENTS
                        if (value := _blank_to_none(getattr(operator, name))) is not None
                    },
                    "model": model,
                },
                metadata_columns=operator.metadata_columns,
                fallback_models=fallback_models,
                can_store=self.output_path is not None,
                limit=None if "limit" in invalid else self.limit,
                price=lambda request: prices.quote(request).usd,
                resolve=self._hook.get_input_reader().resolve,
                record=partial(
                    record_arguments,
                    task_arguments=self._task_arguments(),
                    operator_names=("model", *API_ARGUMENTS),
                ),
            )
        except InvalidArgumentsError as error:
            raise InvalidArgumentsError([*problems, *error.problems]) from None
        if problems:
            raise InvalidArgumentsError(problems)
        return plan

    def _task_arguments(self) -> dict[str, Any]:
        """Return the arguments to record besides API fields, without those that have their default value."""
        defaults = self._operator.argument_defaults()
        given = {name: getattr(self._operator, name) for name in _RECORDED_ARGUMENTS}
        given["output_path"] = self.output_path
        return {name: value for name, value in given.items() if value != defaults[name]}

    def _catalogue_name(self, model: Any) -> Any:
        """
        Return the catalogue's name for a model, or the given name if the catalogue does not have the model.

        Logs a warning if the model is about to be retired or cannot be checked. A model missing from the API's list is
        not rejected, because models about to be retired are not listed either.

        :raises InvalidArgumentsError: the API serves the model, but not for images
        """
        if not isinstance(model, str):
            return model
        if find_model(model) is not None:
            if (ending := ending_soon(model, datetime.now(UTC).date())) is not None:
                self._log.warning("Model %s: %s.", model, ending)
            return model
        try:
            live = self._hook.look_up_model(model)
        except ImagenError as error:
            self._log.warning(
                "Model %s is not in the catalogue, and the API's list could not be read: %s", model, error
            )
            return model
        if live.known_as:
            return live.known_as
        if live.type is not None and not live.can_make_images:
            raise InvalidArgumentsError([Problem("model", model, live.sentence)])
        self._log.warning("%s.", live.sentence)
        return model

    def _find_problems(self) -> Iterator[Problem]:
        """Yield the problems of the operator's own arguments; :meth:`plan` checks the API fields."""
        operator = self._operator
        for name, allowed in _CHOICES.items():
            if (value := getattr(operator, name)) not in allowed:
                yield Problem(name, value, f"one of {', '.join(map(repr, allowed))} is allowed")
            elif name in ("image_format", "reuse") and value is not None and self.output_path is None:
                yield _needs_folder(name, value)
        for name, (kinds, least, most) in _RANGES.items():
            value = _blank_to_none(getattr(operator, name))
            if value is None and name in _OPTIONAL:
                continue
            if kinds is int:  # a table's integer column may hold floats
                value = _read_integer(value)
            if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
                kind = "whole number" if kinds is int else "number"
                yield Problem(name, value, f"a {kind} from {least} to {most} is allowed")
            elif name == "thumbnail_pixels" and self.output_path is None:
                yield _needs_folder(name, value)
        if operator.max_usd is not None and ((cap := _read_decimal(operator.max_usd)) is None or cap <= 0):
            yield Problem("max_usd", operator.max_usd, "a number of USD above 0 is allowed")
        if not isinstance(operator.provenance, (bool, Mapping)):
            yield Problem("provenance", operator.provenance, "True, False or a mapping is allowed")
        elif isinstance(operator.provenance, Mapping) and (problem := find_provenance_problem(operator.provenance)):
            yield problem
        if isinstance(operator.fallback_models, str) or not isinstance(operator.fallback_models, Sequence):
            yield Problem("fallback_models", operator.fallback_models, "a list of model ids is allowed")
        if operator.parameters is not None and not isinstance(operator.parameters, Mapping):
            yield Problem("parameters", operator.parameters, "a mapping of API fields is allowed")
        if getattr(operator, "multiple_outputs", False):
            yield Problem("multiple_outputs", True, "only False is allowed, as the task returns a list of URLs")
        if operator.contact_sheet and self.output_path is None:
            yield _needs_folder("contact_sheet", operator.contact_sheet)
        if self.output_path is not None and not isinstance(self.output_path, str):
            yield Problem("output_path", self.output_path, "a path is allowed, as a string or a path object")
        if self.reuse_from and operator.reuse is None:
            yield Problem("reuse_from", operator.reuse_from, "needs reuse='unchanged'")
        for folder in self.reuse_from:
            if not isinstance(folder, str):
                yield Problem(
                    "reuse_from", folder, "a path, as a string or a path object, or a list of these is allowed"
                )
        if isinstance(self.filename, str):
            try:
                check_pattern(self.filename)
            except InvalidArgumentsError as error:
                yield from error.problems
        else:
            yield Problem("filename", self.filename, "a string is allowed")

    def run_options(self) -> RunOptions:
        """Return the options of a run with these arguments, once :meth:`plan` has checked them."""
        operator = self._operator
        return RunOptions(
            concurrency=_read_integer(operator.concurrency),
            requests_per_minute=operator.requests_per_minute,
            max_usd=_read_decimal(operator.max_usd),
            usage_caps=self._hook.usage_caps,
            on_lost_answer=operator.on_lost_answer,
            lost_answer_patience_seconds=operator.lost_answer_patience_seconds,
            answer_timeout_seconds=self._hook.get_conn().settings.read_timeout_seconds,
        )

    def _price_list(self) -> PriceList:
        """Return live prices if there is a spending cap to enforce, else the last known ones."""
        if self._operator.max_usd is None and not self._hook.usage_caps:
            return PriceList()
        try:
            return PriceList.from_response(self._hook.list_models(include_pricing=True))
        except ImagenError as error:
            self._log.warning("No live prices (%s); spending caps are enforced with the last known ones.", error)
            return PriceList()


def _needs_folder(name: str, value: Any) -> Problem:
    return Problem(name, value, "needs output_path, the folder to store images in")


def _read_integer(value: Any) -> Any:
    """Return a whole number as an ``int``, and any other value unchanged."""
    number = read_whole_number(value)
    return value if number is None else number


def _is_blank(value: Any) -> bool:
    """Return whether a template rendered to nothing."""
    return isinstance(value, str) and value.strip() in ("", "None")


def _blank_to_none(value: Any) -> Any:
    return None if _is_blank(value) else value


def _drop_blank_fields(prompt: Any, *, metadata_columns: Any) -> Any:
    """Return the prompt without blank fields, such as empty table cells; like blank arguments, they are unset."""
    if isinstance(prompt, Mapping):
        kept = ["prompt", *(metadata_columns if isinstance(metadata_columns, (list, tuple)) else ())]
        return {name: value for name, value in prompt.items() if name in kept or not _is_blank(value)}
    if isinstance(prompt, Sequence) and not isinstance(prompt, (str, bytes, bytearray)):
        return [
            _drop_blank_fields(each, metadata_columns=metadata_columns) if isinstance(each, Mapping) else each
            for each in prompt
        ]
    return prompt


def _read_decimal(value: Any) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str, Decimal)):
        return None
    text = str(value).strip()
    if not text.isascii() or "_" in text:  # Decimal reads 1_0 as 10, and digits of every script
        return None
    try:
        amount = Decimal(text)
    except InvalidOperation:
        return None
    return amount if amount.is_finite() else None
