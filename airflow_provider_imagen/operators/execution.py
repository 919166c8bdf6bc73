"""
One try of the operator: check, buy, keep, report, and decide what it means for the task.

Imported when the task runs, so that parsing a DAG file stays cheap.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Final, NoReturn

from airflow_provider_imagen._compat import AirflowFailException, AirflowSkipException, get_metrics
from airflow_provider_imagen.api.catalogue import find_model
from airflow_provider_imagen.api.pricing import PriceList
from airflow_provider_imagen.exceptions import (
    BudgetExceededError,
    ImagenError,
    InvalidArgumentsError,
    ItemsFailedError,
    Problem,
    StorageError,
)
from airflow_provider_imagen.generation.plan import make_plan
from airflow_provider_imagen.generation.recorded import facts_missed
from airflow_provider_imagen.generation.run import Run, RunOptions
from airflow_provider_imagen.generation.tools import Keeper, RunTools
from airflow_provider_imagen.hooks.imagen import ImagenHook
from airflow_provider_imagen.hooks.origin import origin_of
from airflow_provider_imagen.hooks.paths import open_folder
from airflow_provider_imagen.journal.log import Journal, NoStore
from airflow_provider_imagen.journal.url_encryption import LinkSeal
from airflow_provider_imagen.operators.journal import journal_store
from airflow_provider_imagen.operators.lineage import lineage_of
from airflow_provider_imagen.operators.outlets import fill_outlets
from airflow_provider_imagen.storage.convert import IMAGE_FORMATS
from airflow_provider_imagen.storage.manifest import manifest_line, recorded_lines, write_manifest
from airflow_provider_imagen.storage.naming import DEFAULT_FILENAME, check_pattern
from airflow_provider_imagen.storage.sheet import write_contact_sheet
from airflow_provider_imagen.storage.writing import check_writable, remove_leftovers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow.sdk import Context, ObjectStoragePath

    from airflow_provider_imagen.generation.plan import Plan
    from airflow_provider_imagen.generation.results import Record, RunResult
    from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator

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
"""Arguments of the operator that become fields of the API."""

_CHOICES: Final[Mapping[str, tuple[Any, ...]]] = {
    "on_failure": ("fail", "accept"),
    "on_filtered": ("fail", "accept"),
    "on_lost_answer": ("check", "resend", "fail"),
    "image_format": (None, *IMAGE_FORMATS),
}
_RANGES: Final[Mapping[str, tuple[Any, float, float]]] = {
    "concurrency": (int, 1, 256),
    "thumbnail_pixels": (int, 16, 2048),
    "requests_per_minute": ((int, float), 0.1, 60_000),
    "lost_answer_patience_seconds": ((int, float), 0, 3600),
}
_OPTIONAL: Final = ("thumbnail_pixels", "requests_per_minute")

progress = logging.getLogger("airflow_provider_imagen.progress")
"""One line per picture; a logger of its own, so that others can listen."""

MAX_SHEET_PICTURES: Final = 400
"""Most pictures on a contact sheet; the first ones are taken."""

MAX_XCOM_BYTES: Final = 48 * 1024
"""Longest list of records that goes into XCom; a longer one stays in the manifest."""


def raise_for_airflow(error: ImagenError | InvalidArgumentsError, operator: ImagenGenerateOperator) -> NoReturn:
    """
    Raise an error so that a hopeless one ends the task at once, also where no retry policy says so.

    :raises AirflowFailException: from the error, when it is hopeless and the task has no retry policy
    """
    if getattr(operator, "retry_policy", None) is not None or getattr(error, "retry_helps", False):
        raise error
    raise AirflowFailException(str(error)) from error


class TaskExecution:
    """
    One try of a task.

    :param operator: its arguments, rendered
    :param context: Airflow's context
    :param should_stop: whether the task is being killed
    """

    def __init__(self, operator: ImagenGenerateOperator, context: Context, should_stop: Callable[[], bool]) -> None:
        self._operator = operator
        self._context = context
        self._should_stop = should_stop
        self._hook = ImagenHook(operator.imagen_conn_id)
        self._log = operator.log
        self._origin = origin_of(context)
        self._output_path = _or_none(operator.output_path)

    def run(self) -> list[str]:
        """Make the pictures and return their URLs; see :meth:`ImagenGenerateOperator.execute`."""
        try:
            return self._run()
        except (ImagenError, InvalidArgumentsError) as error:
            raise_for_airflow(error, self._operator)
        finally:
            self._hook.close()

    def _run(self) -> list[str]:
        plan = self._plan()
        if not plan.items:
            raise AirflowSkipException("prompt is an empty list: there is nothing to make.")
        folder = self._open_folder()
        client = self._hook.get_conn()
        downloader = self._hook.get_downloader(should_stop=self._should_stop)
        links = LinkSeal(client.settings.api_key)
        journal = self._open_journal()
        try:
            if folder is not None:
                self._note_what_was_missed(plan, folder, journal, links)
            keeper = self._keeper(folder, plan, journal) if folder is not None else None
            run = Run(
                plan=plan,
                tools=RunTools(
                    client=client, downloader=downloader, keeper=keeper, inputs=self._hook.get_input_reader()
                ),
                journal=journal,
                options=self._run_options(),
                links=links,
                should_stop=self._should_stop,
                on_picture=lambda *picture: self._report_picture(plan, *picture),
            )
            result = run.execute()
        finally:
            journal.close()
        self._operator.journal_segments = journal.segments
        summary = self._publish(result, folder)
        self._operator.lineage_facts = lineage_of(
            result, base_url=client.settings.base_url, output=None if folder is None else str(folder)
        )
        self._raise_what_counts(result)
        self._log.info("%s", _sentence(summary))
        return result.urls

    # --- before paying ------------------------------------------------------------------------------------------------

    def _plan(self) -> Plan:
        """
        Check every argument, and lay out what to buy.

        :raises InvalidArgumentsError: with everything that is wrong, the operator's own arguments first
        """
        operator = self._operator
        problems = list(self._problems())
        wrong = {problem.field for problem in problems}
        fallback_models = () if "fallback_models" in wrong else operator.fallback_models
        parameters = {} if "parameters" in wrong else operator.parameters or {}
        model = _or_none(operator.model) or self._hook.default_model
        for model_id in (model, *fallback_models):
            if isinstance(model_id, str) and find_model(model_id) is None:
                self._log.warning("Model %s is not in the catalogue: its arguments go out unchecked.", model_id)
        prices = PriceList() if problems else self._price_list()
        try:
            plan = make_plan(
                prompt=_without_blanks(operator.prompt),
                arguments={
                    **{name: _or_none(value) for name, value in parameters.items()},
                    **{
                        name: value
                        for name in API_ARGUMENTS
                        if (value := _or_none(getattr(operator, name))) is not None
                    },
                    "model": model,
                },
                fallback_models=fallback_models,
                can_store=self._output_path is not None,
                price=lambda request: prices.quote(request).usd,
                resolve=self._hook.get_input_reader().resolve,
            )
        except InvalidArgumentsError as error:
            raise InvalidArgumentsError([*problems, *error.problems]) from None
        if problems:
            raise InvalidArgumentsError(problems)
        return plan

    def _problems(self) -> Iterator[Problem]:
        """Check the arguments that are ours; those of the API are checked with the plan."""
        operator = self._operator
        for name, allowed in _CHOICES.items():
            if (value := getattr(operator, name)) not in allowed:
                yield Problem(name, value, f"one of {', '.join(map(repr, allowed))} is allowed")
            elif name == "image_format" and value is not None and self._output_path is None:
                yield _needs_folder(name, value)
        for name, (kinds, least, most) in _RANGES.items():
            value = getattr(operator, name)
            if value is None and name in _OPTIONAL:
                continue
            if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
                kind = "whole number" if kinds is int else "number"
                yield Problem(name, value, f"a {kind} from {least} to {most} is allowed")
            elif name == "thumbnail_pixels" and self._output_path is None:
                yield _needs_folder(name, value)
        if operator.max_usd is not None and ((cap := _decimal(operator.max_usd)) is None or cap <= 0):
            yield Problem("max_usd", operator.max_usd, "a number of USD above 0 is allowed")
        if not isinstance(operator.provenance, (bool, Mapping)):
            yield Problem("provenance", operator.provenance, "True, False or a mapping is allowed")
        if isinstance(operator.fallback_models, str) or not isinstance(operator.fallback_models, Sequence):
            yield Problem("fallback_models", operator.fallback_models, "a list of model ids is allowed")
        if operator.parameters is not None and not isinstance(operator.parameters, Mapping):
            yield Problem("parameters", operator.parameters, "a mapping of API fields is allowed")
        if getattr(operator, "multiple_outputs", False):
            yield Problem("multiple_outputs", True, "only False is allowed, as the task returns a list of links")
        if operator.contact_sheet and self._output_path is None:
            yield _needs_folder("contact_sheet", operator.contact_sheet)
        try:
            check_pattern(self._filename)
        except InvalidArgumentsError as error:
            yield from error.problems

    def _run_options(self) -> RunOptions:
        operator = self._operator
        return RunOptions(
            concurrency=operator.concurrency,
            requests_per_minute=operator.requests_per_minute,
            max_usd=_decimal(operator.max_usd),
            on_lost_answer=operator.on_lost_answer,
            lost_answer_patience_seconds=operator.lost_answer_patience_seconds,
            answer_timeout_seconds=self._hook.get_conn().settings.read_timeout_seconds,
        )

    def _price_list(self) -> PriceList:
        """Ask for live prices when a cap is to be kept; else the last known ones do for estimates."""
        if self._operator.max_usd is None:
            return PriceList()
        try:
            return PriceList.from_answer(self._hook.list_models(include_pricing=True))
        except ImagenError as error:
            self._log.warning("No live prices (%s); the last known ones are used for max_usd.", error)
            return PriceList()

    def _open_folder(self) -> ObjectStoragePath | None:
        """Make sure that pictures can be stored before one is paid for, and clean up after a killed try."""
        if self._output_path is None:
            return None
        folder = open_folder(self._output_path)
        check_writable(folder)
        remove_leftovers(folder, owner=self._origin.identity)
        return folder

    @property
    def _filename(self) -> str:
        return _or_none(self._operator.filename) or DEFAULT_FILENAME

    def _keeper(self, folder: ObjectStoragePath, plan: Plan, journal: Journal) -> Keeper:
        return Keeper(
            folder=folder,
            open_path=open_folder,
            plan=plan,
            entries=journal.entries,
            origin=self._origin,
            filename=self._filename,
            provenance=self._operator.provenance,
            image_format=self._operator.image_format,
            thumbnail_pixels=self._operator.thumbnail_pixels,
        )

    def _open_journal(self) -> Journal:
        store = journal_store(self._context, output_path=self._output_path)
        if isinstance(store, NoStore) and (self._operator.retries or 0) > 0:
            self._log.warning(
                "There is no place for a journal (Airflow before 3.3 and no output_path): "
                "a retry of this task pays again."
            )
        journal = Journal(store)
        journal.open()
        if journal.entries:
            paid = sum(entry.paid is not None for entry in journal.entries.values())
            self._log.info("Going on from an earlier try: %d of its requests are paid for and not bought again.", paid)
        return journal

    def _note_what_was_missed(self, plan: Plan, folder: ObjectStoragePath, journal: Journal, links: LinkSeal) -> None:
        """Complete the journal with answers that an earlier try could not write down, but whose pictures it kept."""
        if not any(entry.open_intents for entry in journal.entries.values()):
            return
        lines = recorded_lines(folder, self._origin)
        for fact in facts_missed(plan, entries=journal.entries, lines=lines, links=links):
            journal.commit(fact)
            journal.entries[fact["k"]].apply(fact)

    # --- while it runs and after --------------------------------------------------------------------------------------

    def _report_picture(self, plan: Plan, record: Record, seconds: float, done: int) -> None:
        size = f"{record['width']}x{record['height']}" if record["width"] else "not stored"
        cost = f"{record['usd']:.4f} USD" if record["usd"] is not None else "cost unknown"
        progress.info(
            "Picture %d of %d: prompt %d, image %d, %s, %s, %s.",
            done,
            plan.images,
            record["prompt_index"],
            record["image_index"],
            size,
            f"{seconds:.1f} s" if seconds else "from an earlier try",
            cost,
        )
        if seconds:  # bought in this try
            metrics, tags = get_metrics(), {"model": record["model"]}
            metrics.incr("imagen.images", tags=tags)
            metrics.incr("imagen.usd", count=record["usd"] or 0.0, tags=tags)
            metrics.timing("imagen.seconds", seconds * 1000, tags=tags)

    def _publish(self, result: RunResult, folder: ObjectStoragePath | None) -> dict[str, Any]:
        """Put what there is where others look for it, also when the task is about to fail."""
        summary: dict[str, Any] = {
            **result.summary(),
            "output_path": self._output_path,
            "manifest": None,
            "contact_sheet": None,
        }
        if folder is not None:
            summary["manifest"] = self._write_manifest(result, folder)
            if self._operator.contact_sheet and result.made:
                summary["contact_sheet"] = self._make_contact_sheet(result, folder)
        if (ti := self._context.get("ti")) is not None and hasattr(ti, "xcom_push"):
            ti.xcom_push(key="images", value=_fit_for_xcom(result.records, summary["manifest"]))
            ti.xcom_push(key="summary", value=summary)
        outlet_events: Any = self._context.get("outlet_events")
        if outlet_events is not None:
            fill_outlets(self._operator.outlets, outlet_events, summary=summary, folder=folder)
        return summary

    def _write_manifest(self, result: RunResult, folder: ObjectStoragePath) -> str | None:
        """Record what was stored; that a task fails for another reason is not hidden by a store that is away."""
        try:
            return write_manifest(
                folder,
                origin=self._origin,
                lines=[
                    manifest_line(
                        made.record,
                        file_name=made.stored.file_name,
                        thumbnail=made.stored.thumbnail,
                        origin=self._origin,
                        created_at=datetime.fromtimestamp(made.at, UTC),
                    )
                    for made in result.made
                    if made.stored is not None
                ],
                failures=[failure.to_json() for failure in result.failures],
            )
        except StorageError as error:
            if not result.failures and result.halt is None:
                raise
            self._log.warning("No manifest: %s", error)
            return None

    def _make_contact_sheet(self, result: RunResult, folder: ObjectStoragePath) -> str | None:
        """Put the pictures on one sheet; that they are safe matters more than that the sheet succeeds."""
        labelled = [
            (made.stored.path, made.stored.thumbnail, _label(made.record)) for made in result.made if made.stored
        ][:MAX_SHEET_PICTURES]
        try:
            return write_contact_sheet(
                folder,
                pictures=((open_folder(path), thumbnail, label) for path, thumbnail, label in labelled),
                count=len(labelled),
                title=f"{self._origin.dag_id} · {self._origin.task_id} · {self._origin.run_id}",
                owner=self._origin.identity,
            )
        except ImagenError as error:
            self._log.warning("No contact sheet: %s", error)
            return None

    def _raise_what_counts(self, result: RunResult) -> None:
        """
        Decide what the result means for the task.

        :raises ImagenError: the task has failed
        :raises AirflowSkipException: nothing was made and the author said that this is fine
        """
        operator = self._operator
        if result.failures or result.not_sent:
            self._log.warning("Not everything was made:\n%s", result.table())
        if result.halt is not None:
            raise _with_counts(result.halt, result)
        counted = [
            failure
            for failure in result.failures
            if (operator.on_filtered if failure.is_filtered else operator.on_failure) == "fail"
        ]
        if counted:
            if len(result.plan.items) == 1:
                raise counted[0].error
            raise ItemsFailedError(
                f"{len(counted)} of {len(result.plan.items)} items failed; what worked is kept.\n{result.table()}",
                failures=[failure.error for failure in counted],
            )
        if not result.records:
            raise AirflowSkipException("Not one picture was made, and on_failure or on_filtered accepts that.")


def _label(record: Record) -> str:
    return f"{record['prompt_index']}.{record['image_index']} {record['model']}: {record['prompt']}"


def _needs_folder(name: str, value: Any) -> Problem:
    return Problem(name, value, "needs output_path, the folder to store pictures in")


def _with_counts(error: ImagenError, result: RunResult) -> ImagenError:
    """Tell a spent budget how far the task came."""
    if not isinstance(error, BudgetExceededError):
        return error
    left = len(result.not_sent) + len(result.failures)
    done = len(result.plan.items) - left
    return BudgetExceededError(
        f"{error} {done} of {len(result.plan.items)} items are done and kept, {left} are left.",
        spent_usd=float(result.usd_spent),
        max_usd=error.max_usd,
        items_done=done,
        items_left=left,
    )


def _fit_for_xcom(records: list[Record], manifest: str | None) -> list[Record] | dict[str, Any]:
    """Give the records while they are small, else where they are and how many."""
    if len(json.dumps(records)) <= MAX_XCOM_BYTES:
        return records
    return {"manifest": manifest, "count": len(records)}


def _sentence(summary: Mapping[str, Any]) -> str:
    about = "about " if summary["usd_is_estimate"] else ""
    lost = f", {summary['usd_lost']:.4f} of it lost" if summary["usd_lost"] else ""
    adopted = f", {summary['adopted']} of them paid for by earlier tries" if summary["adopted"] else ""
    return (
        f"Made {summary['made']} of {summary['requested']} pictures{adopted} in {summary['seconds']:.1f} s "
        f"for {about}{summary['usd_spent']:.4f} USD{lost}."
    )


def _or_none(value: Any) -> Any:
    """Take a template that rendered to nothing for "not given"."""
    return None if isinstance(value, str) and value.strip() in ("", "None") else value


def _without_blanks(prompt: Any) -> Any:
    """Take an empty text in a mapping, such as an empty cell of a table, for "not given", as among the arguments."""
    if isinstance(prompt, Mapping):
        return {name: value for name, value in prompt.items() if name == "prompt" or not _is_blank(value)}
    if isinstance(prompt, Sequence) and not isinstance(prompt, (str, bytes, bytearray)):
        return [_without_blanks(each) if isinstance(each, Mapping) else each for each in prompt]
    return prompt


def _is_blank(value: Any) -> bool:
    return value is not None and _or_none(value) is None


def _decimal(value: Any) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str, Decimal)):
        return None
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        return None
    return amount if amount.is_finite() else None
