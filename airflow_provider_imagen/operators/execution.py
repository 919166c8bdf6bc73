"""
One attempt of the operator: validate, submit, store, publish, and decide the task's outcome.

Imported only when the task runs, to keep DAG parsing cheap.
"""

from __future__ import annotations

import contextvars
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn

from airflow_provider_imagen._compat import (
    AirflowFailException,
    AirflowSkipException,
    get_grace_seconds,
    get_metrics,
    has_supervisor,
    machine_lock,
)
from airflow_provider_imagen.api.fields import read_whole_number
from airflow_provider_imagen.catalogue.availability import ending_soon
from airflow_provider_imagen.catalogue.lookup import find_model
from airflow_provider_imagen.catalogue.pricing import PriceList
from airflow_provider_imagen.exceptions import (
    BudgetExceededError,
    ImagenError,
    InvalidArgumentsError,
    ItemsFailedError,
    Problem,
    StoppedError,
    StorageError,
)
from airflow_provider_imagen.hooks.imagen import ImagenHook
from airflow_provider_imagen.hooks.paths import open_folder
from airflow_provider_imagen.hooks.task_instance_key import origin_of
from airflow_provider_imagen.journal.log import WRITE_PATIENCE_SECONDS, Journal, NoStore, read_journal
from airflow_provider_imagen.journal.stores import FolderJournalStore
from airflow_provider_imagen.journal.url_encryption import UrlEncryption
from airflow_provider_imagen.operators.journal_location import journal_store
from airflow_provider_imagen.operators.lineage import lineage_of
from airflow_provider_imagen.operators.publish import Publisher
from airflow_provider_imagen.run.adapters import Adapters
from airflow_provider_imagen.run.image_sink import ImageSink, StoredFiles
from airflow_provider_imagen.run.manifest_recovery import missed_records
from airflow_provider_imagen.run.plan import make_plan
from airflow_provider_imagen.run.replay import previous_result
from airflow_provider_imagen.run.runner import Run, RunOptions
from airflow_provider_imagen.run.shared_state import Cancellation
from airflow_provider_imagen.storage.atomic_write import check_writable, remove_leftovers
from airflow_provider_imagen.storage.convert import IMAGE_FORMATS
from airflow_provider_imagen.storage.manifest import recorded_lines
from airflow_provider_imagen.storage.naming import DEFAULT_FILENAME, check_pattern
from airflow_provider_imagen.storage.paths import path_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow.sdk import Context, ObjectStoragePath

    from airflow_provider_imagen.journal.log import JournalStore
    from airflow_provider_imagen.journal.records import JournalState, Record, StoredFile
    from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
    from airflow_provider_imagen.run.plan import Plan
    from airflow_provider_imagen.run.results import Record as ImageRecord
    from airflow_provider_imagen.run.results import RunResult
    from airflow_provider_imagen.storage.paths import StoragePath

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
"""One line per image; a separate logger, so that others can attach handlers to it."""

ORPHAN_GRACE_SECONDS: Final = 10.0
"""Grace period once the task's supervisor has died: nothing waits for this process any more."""

JOURNAL_PATIENCE_SECONDS: Final = 2.0
"""Longest wait for the last journal records to become durable before publishing."""

PUBLISH_PATIENCE_SECONDS: Final = 30.0
"""Longest wait for a cancelled attempt to publish; Airflow may be unreachable."""


def raise_for_airflow(error: ImagenError | InvalidArgumentsError, operator: ImagenGenerateOperator) -> NoReturn:
    """
    Raise an error so that Airflow does not retry if a retry cannot help, even without a retry policy.

    :raises AirflowFailException: from the error, if a retry cannot help and the task has no retry policy
    """
    if getattr(operator, "retry_policy", None) is not None or getattr(error, "retry_helps", False):
        raise error
    raise AirflowFailException(str(error)) from error


class TaskExecution:
    """
    One attempt of a task.

    The work runs in its own thread, because Airflow raises ``AirflowTaskTimeout`` and runs signal handlers in the main
    thread, where they could interrupt a call to Airflow half-way. The main thread waits, and cancels the attempt when
    it has to end.

    :param operator: the operator, its templates rendered
    :param context: Airflow's context
    :param is_killed: returns whether Airflow has asked the task to end; a signal handler may change its result
    """

    def __init__(self, operator: ImagenGenerateOperator, context: Context, is_killed: Callable[[], bool]) -> None:
        self._operator = operator
        self._context = context
        self._is_killed = is_killed
        self._hook = ImagenHook(operator.imagen_conn_id)
        self._log = operator.log
        self._origin = origin_of(context)
        self._output_path = _or_none(path_text(operator.output_path))
        self._airflow_lock = threading.RLock()
        self._cancellation = Cancellation()
        self._publisher: Publisher | None = None
        self._recovered: list[Record] = []
        self._supervisor = os.getppid() if has_supervisor() else None
        self._is_done = threading.Event()
        self._result: list[str] = []
        self._error: BaseException | None = None

    # --- the main thread ----------------------------------------------------------------------------------------------

    def run(self) -> list[str]:
        """Return the URLs of the generated images; see :meth:`ImagenGenerateOperator.execute`."""
        attempt = threading.Thread(
            target=contextvars.copy_context().run, args=(self._attempt,), name="imagen-attempt", daemon=True
        )
        attempt.start()
        try:
            self._await_end()
        except BaseException as error:  # mainly AirflowTaskTimeout, which is raised in this thread
            self._cancel(type(error).__name__, grace_seconds=get_grace_seconds())
            self._await_end()
            raise
        if not self._is_done.is_set():
            raise_for_airflow(StoppedError("The task was cancelled and could not publish in time."), self._operator)
        if isinstance(self._error, (ImagenError, InvalidArgumentsError)):
            raise_for_airflow(self._error, self._operator)
        if self._error is not None:
            raise self._error
        return self._result

    def _await_end(self) -> None:
        """Wait for the attempt to end; cancel it if Airflow asks to or this process's supervisor has died."""
        while not self._is_done.wait(0.1):
            if self._is_killed():
                self._cancel("Airflow asked it to end", grace_seconds=get_grace_seconds())
            if self._supervisor is not None and os.getppid() != self._supervisor:
                if self._publisher is not None:
                    self._publisher.can_reach_airflow = False
                self._cancel("the supervisor of its process has died", grace_seconds=ORPHAN_GRACE_SECONDS)
            if self._cancellation.is_abandoned(since_seconds=PUBLISH_PATIENCE_SECONDS):
                return

    def _cancel(self, reason: str, *, grace_seconds: float) -> None:
        """Stop sending, publish the results so far, and let requests in flight finish within the grace period."""
        is_first = not self._cancellation.is_cancelled()
        self._cancellation.cancel(reason, grace_seconds=grace_seconds)
        if is_first:
            self._log.warning(
                "The task is cancelled (%s): nothing more is sent. What is in flight is awaited for %.0f s.",
                reason,
                grace_seconds,
            )
            if self._publisher is not None:
                self._publisher.publish_now()

    # --- the attempt's own thread -------------------------------------------------------------------------------------

    def _attempt(self) -> None:
        try:
            self._result = self._make_images()
        except BaseException as error:
            self._error = error
        finally:
            self._hook.close()
            self._is_done.set()

    def _make_images(self) -> list[str]:
        plan: Plan | None = None
        folder: ObjectStoragePath | None = None
        try:
            plan = self._plan()
            if not plan.items:
                raise AirflowSkipException("prompt is an empty list: there is nothing to make.")
            folder = self._open_folder()
            client = self._hook.get_conn()
            links = UrlEncryption(client.settings.api_key)
            journal = self._open_journal()
        except Exception:
            self._publish_earlier_attempts(plan, folder)
            raise
        try:
            reload = partial(self._reload, journal, folder, links)
            if journal.state.has_loose_ends:
                journal.state = reload()
            run = Run(
                plan=plan,
                ports=Adapters(
                    client=client,
                    downloader=self._hook.get_downloader(should_stop=self._cancellation.is_abandoned),
                    sink=self._sink(folder, plan, journal) if folder is not None else None,
                    inputs=self._hook.get_input_reader(),
                ),
                journal=journal,
                options=self._run_options(),
                links=links,
                cancellation=self._cancellation,
                reload=reload,
                on_picture=lambda *picture: self._report_picture(plan, *picture),
            )
            result = self._execute(run, journal, folder)
        except Exception:
            if self._publisher is None:  # the run never started
                self._publish_earlier_attempts(plan, folder)
            raise
        finally:
            # If the store was unreachable, records are still pending; without them, the next attempt would not know
            # about their responses.
            is_hurried = self._cancellation.is_cancelled()
            journal.close(JOURNAL_PATIENCE_SECONDS if is_hurried else WRITE_PATIENCE_SECONDS)
        self._operator.journal = journal
        self._operator.lineage_facts = lineage_of(
            result, base_url=client.settings.base_url, output=None if folder is None else str(folder)
        )
        self._raise_what_counts(result)
        return result.urls

    def _execute(self, run: Run, journal: Journal, folder: ObjectStoragePath | None) -> RunResult:
        """Run to the end, and publish the result whether it succeeds or fails."""
        publisher = self._publisher = self._publisher_for(folder)
        publishing = publisher.start(run.snapshot, journal)
        try:
            result = run.execute()
        except BaseException:
            self._publish_anyway(run.snapshot(), journal)
            raise
        finally:
            publisher.stop()
            publishing.join(PUBLISH_PATIENCE_SECONDS)
        journal.flush(JOURNAL_PATIENCE_SECONDS)
        summary = publisher.publish(result, journal)
        self._log.info("%s", _sentence(summary))
        return result

    def _publish_anyway(self, result: RunResult, journal: Journal) -> None:
        """Publish a result while an error propagates; failing to publish must not replace that error."""
        try:
            if self._publisher is not None:
                self._publisher.publish(result, journal)
        except Exception as error:
            self._log.warning("The results so far could not be published (%s).", error)

    # --- before sending -----------------------------------------------------------------------------------------------

    def _plan(self) -> Plan:
        """
        Return the plan, after checking every argument.

        :raises InvalidArgumentsError: lists every problem, the operator's own arguments first
        """
        operator = self._operator
        problems = list(self._problems())
        wrong = {problem.field for problem in problems}
        fallback_models = () if "fallback_models" in wrong else operator.fallback_models
        parameters = {} if "parameters" in wrong else operator.parameters or {}
        model = self._known_name(_or_none(operator.model) or self._hook.default_model)
        fallback_models = [self._known_name(each) for each in fallback_models]
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

    def _known_name(self, model: Any) -> Any:
        """
        Return a name under which the catalogue knows a model, or the given name if there is none.

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
            self._log.warning("Model %s is not in the catalogue, and the API's list cannot be read: %s", model, error)
            return model
        if live.known_as:
            return live.known_as
        if live.type is not None and not live.can_make_images:
            raise InvalidArgumentsError([Problem("model", model, live.sentence)])
        self._log.warning("%s.", live.sentence)
        return model

    def _problems(self) -> Iterator[Problem]:
        """Yield the problems of the operator's own arguments; :meth:`_plan` checks the API fields."""
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
            if kinds is int:  # a table's column of whole numbers may hold floats
                value = _whole(value)
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
        if self._output_path is not None and not isinstance(self._output_path, str):
            yield Problem("output_path", self._output_path, "a path is allowed, as text or as a path object")
        if isinstance(self._filename, str):
            try:
                check_pattern(self._filename)
            except InvalidArgumentsError as error:
                yield from error.problems
        else:
            yield Problem("filename", self._filename, "text is allowed")

    def _run_options(self) -> RunOptions:
        operator = self._operator
        return RunOptions(
            concurrency=_whole(operator.concurrency),
            requests_per_minute=operator.requests_per_minute,
            max_usd=_decimal(operator.max_usd),
            on_lost_answer=operator.on_lost_answer,
            lost_answer_patience_seconds=operator.lost_answer_patience_seconds,
            answer_timeout_seconds=self._hook.get_conn().settings.read_timeout_seconds,
        )

    def _price_list(self) -> PriceList:
        """Return live prices if there is a spending cap to enforce, else the last known ones."""
        if self._operator.max_usd is None:
            return PriceList()
        try:
            return PriceList.from_response(self._hook.list_models(include_pricing=True))
        except ImagenError as error:
            self._log.warning("No live prices (%s); the last known ones are used for max_usd.", error)
            return PriceList()

    def _open_folder(self) -> ObjectStoragePath | None:
        """Return the output folder, checked to be writable and cleared of temporary files of a killed attempt."""
        if self._output_path is None:
            return None
        folder = open_folder(self._output_path)
        check_writable(folder, owner=self._origin.identity)
        remove_leftovers(folder, owner=self._origin.identity)
        return folder

    @property
    def _filename(self) -> str:
        return _or_none(path_text(self._operator.filename)) or DEFAULT_FILENAME

    @staticmethod
    def _folders_of(store: JournalStore, folder: ObjectStoragePath | None) -> list[StoragePath] | None:
        """Return the folders that a journal's paths must be in; ``None`` if only this task can write to the journal."""
        if not isinstance(store, FolderJournalStore):
            return None
        return [store.output_folder] if folder is None else [store.output_folder, folder]

    def _sink(self, folder: ObjectStoragePath, plan: Plan, journal: Journal) -> ImageSink:
        return ImageSink(
            folder=folder,
            open_path=open_folder,
            stored_folders=self._folders_of(journal.store, folder),
            plan=plan,
            entries=journal.state.requests,
            origin=self._origin,
            filename=self._filename,
            provenance=self._operator.provenance,
            image_format=self._operator.image_format,
            thumbnail_pixels=_whole(self._operator.thumbnail_pixels),
        )

    def _store(self) -> JournalStore:
        return journal_store(self._context, output_path=self._output_path, airflow_lock=self._airflow_lock)

    def _open_journal(self) -> Journal:
        store = self._store()
        if isinstance(store, NoStore) and (self._operator.retries or 0) > 0:
            self._log.warning(
                "There is no place for a journal (Airflow before 3.3 and no output_path): "
                "a retry of this task pays again."
            )
        try_number = getattr(self._context.get("ti"), "try_number", None) or 0
        journal = Journal(store, try_number=try_number, takeover_lock=machine_lock())
        journal.open()
        if requests := journal.state.requests:
            paid = sum(request.response is not None for request in requests.values())
            self._log.info("Continuing an earlier attempt: %d of its requests are paid for and not sent again.", paid)
        return journal

    def _reload(self, journal: Journal, folder: ObjectStoragePath | None, links: UrlEncryption) -> JournalState:
        """
        Return the journal's current state, with records missing from the journal recovered from the manifest.

        :raises JournalError: the journal cannot be read now
        :raises StorageError: the manifest cannot be read
        """
        state = journal.reload()
        if folder is not None and state.has_loose_ends:
            for record in missed_records(state.requests, lines=recorded_lines(folder, self._origin), links=links):
                state.apply(record)
                if record not in self._recovered:
                    self._recovered.append(record)
                    journal.append(record)
        return state

    def _publisher_for(self, folder: ObjectStoragePath | None) -> Publisher:
        return Publisher(
            self._operator, self._context, origin=self._origin, folder=folder, airflow_lock=self._airflow_lock
        )

    def _publish_earlier_attempts(self, plan: Plan | None, folder: ObjectStoragePath | None) -> None:
        """
        Publish what earlier attempts made if this one fails before it runs, because Airflow has cleared their XComs.

        Never raises, so that the original error reaches the user.
        """
        try:
            store = self._store()
            state = read_journal(store)
            if state.requests:
                if folder is None and self._output_path is not None:
                    folder = open_folder(self._output_path)
                links = UrlEncryption(self._hook.get_conn().settings.api_key)
                stored_files = StoredFiles(open_path=open_folder, folders=self._folders_of(store, folder))
                result = previous_result(state, plan=plan, links=links, is_there=partial(_is_there, stored_files))
                self._publisher_for(folder).publish(result, None, keeps_failures=True)
        except Exception as error:
            self._log.warning("What earlier attempts made could not be published (%s).", error)

    # --- while it runs and after --------------------------------------------------------------------------------------

    def _report_picture(self, plan: Plan, record: ImageRecord, seconds: float, done: int) -> None:
        size = "not stored" if record["path"] is None else f"{record['width']}x{record['height']}"
        if record["width"] == 0:  # a vector image without a size
            size = record["mime_type"]
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
        if seconds:  # not reused from an earlier attempt
            metrics, tags = get_metrics(), {"model": record["model"]}
            metrics.incr("imagen.images", tags=tags)
            metrics.incr("imagen.usd", count=record["usd"] or 0.0, tags=tags)
            metrics.timing("imagen.seconds", seconds * 1000, tags=tags)

    def _raise_what_counts(self, result: RunResult) -> None:
        """
        Raise unless the task has succeeded.

        :raises ImagenError: the task has failed
        :raises AirflowSkipException: no image was made, and ``on_failure`` or ``on_filtered`` accepts that
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


def _needs_folder(name: str, value: Any) -> Problem:
    return Problem(name, value, "needs output_path, the folder to store pictures in")


def _with_counts(error: ImagenError, result: RunResult) -> ImagenError:
    """Return the error; a :class:`BudgetExceededError` with the final amount and the number of items done and left."""
    if not isinstance(error, BudgetExceededError):
        return error
    left = len(result.not_sent) + len(result.failures)
    done = len(result.plan.items) - left
    doubt = f" and up to ${result.usd_in_doubt:.4f} more in doubt" if result.usd_in_doubt else ""
    return BudgetExceededError(
        f"max_usd={error.max_usd:g}: ${result.usd_spent:.4f} are spent{doubt}, and the next request could exceed the "
        f"cap. {done} of {len(result.plan.items)} items are done and kept, {left} are left.",
        spent_usd=float(result.usd_spent),
        max_usd=error.max_usd,
        items_done=done,
        items_left=left,
    )


def _is_there(stored_files: StoredFiles, stored: StoredFile) -> bool:
    """Return whether a file exists; assume that it does if its store cannot be reached."""
    try:
        return stored_files.is_there(stored)
    except (StorageError, InvalidArgumentsError):
        return True


def _sentence(summary: Mapping[str, Any]) -> str:
    about = "about " if summary["usd_is_estimate"] else ""
    lost = f", ${summary['usd_lost']:.4f} of it lost" if summary["usd_lost"] else ""
    reused = f", {summary['adopted']} of them paid for by earlier attempts" if summary["adopted"] else ""
    shape = (
        f" {summary['wrong_shape']} of them do not have the requested aspect ratio." if summary["wrong_shape"] else ""
    )
    doubt = ""
    if summary["in_doubt"]:
        requests = len(summary["in_doubt"])
        doubt = f" Up to ${summary['usd_in_doubt']:.4f} more may have been charged for {requests} requests in doubt."
    return (
        f"Made {summary['made']} of {summary['requested']} images{reused} in {summary['seconds']:.1f} s "
        f"for {about}${summary['usd_spent']:.4f}{lost}.{shape}{doubt}"
    )


def _whole(value: Any) -> Any:
    """Return a whole number as an ``int``, and anything else as it is."""
    number = read_whole_number(value)
    return value if number is None else number


def _or_none(value: Any) -> Any:
    """Return ``None`` for a template that rendered to an empty string or ``"None"``, else the value."""
    return None if isinstance(value, str) and value.strip() in ("", "None") else value


def _without_blanks(prompt: Any) -> Any:
    """Return the prompt without blank fields, such as empty table cells: like blank arguments, they are not set."""
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
    text = str(value).strip()
    if not text.isascii() or "_" in text:  # Decimal reads 1_0 as 10, and digits of every script
        return None
    try:
        amount = Decimal(text)
    except InvalidOperation:
        return None
    return amount if amount.is_finite() else None
