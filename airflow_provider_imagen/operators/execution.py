"""
One attempt of the operator: validate, submit, store, publish, and decide the task's outcome.

Imported only when the task runs, to keep DAG parsing cheap.
"""

from __future__ import annotations

import contextvars
import logging
import os
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from airflow_provider_imagen._compat import (
    AirflowFailException,
    AirflowSkipException,
    get_grace_seconds,
    get_metrics,
    has_supervisor,
    machine_lock,
)
from airflow_provider_imagen.exceptions import (
    BudgetExceededError,
    ImagenError,
    InvalidArgumentsError,
    ItemsFailedError,
    OwnershipLostError,
    StoppedError,
    StorageError,
)
from airflow_provider_imagen.hooks.folders import open_folder
from airflow_provider_imagen.hooks.imagen import ImagenHook
from airflow_provider_imagen.hooks.task_instance_key import task_instance_key_of
from airflow_provider_imagen.journal.log import WRITE_TIMEOUT_SECONDS, Journal, NoStore, read_journal
from airflow_provider_imagen.journal.stores import FolderJournalStore
from airflow_provider_imagen.journal.url_encryption import UrlEncryption
from airflow_provider_imagen.malloc import limit_arenas
from airflow_provider_imagen.money import format_usd
from airflow_provider_imagen.operators.arguments import Arguments
from airflow_provider_imagen.operators.journal_location import journal_store
from airflow_provider_imagen.operators.lineage import lineage_of
from airflow_provider_imagen.operators.publish import PUBLISH_TIMEOUT_SECONDS, Publisher, push_failure
from airflow_provider_imagen.redaction import scrub_storage_text
from airflow_provider_imagen.run.api_adapter import ApiAdapter
from airflow_provider_imagen.run.image_sink import ImageSink, StoredFiles
from airflow_provider_imagen.run.manifest_recovery import missed_records
from airflow_provider_imagen.run.previous_attempts import previous_result
from airflow_provider_imagen.run.results import failure_table
from airflow_provider_imagen.run.reuse import EarlierRequests
from airflow_provider_imagen.run.runner import Run
from airflow_provider_imagen.run.shared_state import Cancellation
from airflow_provider_imagen.run_report import RunSummary
from airflow_provider_imagen.storage.atomic_write import check_writable, remove_leftovers
from airflow_provider_imagen.storage.manifest import recorded_lines
from airflow_provider_imagen.storage.paths import MANIFEST_NAME, address_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow.sdk import Context, ObjectStoragePath

    from airflow_provider_imagen.image_record import StoredFile
    from airflow_provider_imagen.journal.log import JournalStore
    from airflow_provider_imagen.journal.records import JournalState, Record
    from airflow_provider_imagen.operators.arguments import ImageTask
    from airflow_provider_imagen.operators.lineage import Lineage
    from airflow_provider_imagen.run.plan import Plan
    from airflow_provider_imagen.run.results import Failure, FinishedImage, RunResult
    from airflow_provider_imagen.storage.paths import StoragePath

progress = logging.getLogger("airflow_provider_imagen.progress")
"""One line per image; a separate logger, so that others can attach handlers to it."""

EMPTY_PROMPT: Final = (
    "prompt is an empty list, usually because the upstream task that it comes from returned nothing. There is nothing "
    "to generate, so this task is skipped, and by default the tasks after it are too: those that should run regardless "
    'need trigger_rule="none_failed". To fail instead, let the upstream task raise an error when it finds nothing.'
)

ORPHAN_GRACE_SECONDS: Final = 10.0
"""Grace period once the task's supervisor has died: nothing waits for this process any more."""

JOURNAL_TIMEOUT_SECONDS: Final = 2.0
"""Longest wait for the last journal records to become durable before publishing."""


def error_for_airflow(error: ImagenError | InvalidArgumentsError, operator: ImageTask) -> Exception:
    """
    Return an error to raise ``from None``, so that Airflow logs it once and does not retry if a retry cannot help.

    Its message is complete: the stack of the thread it comes from, and the errors behind it, are left out.

    :return: the error, or an ``AirflowFailException`` with it as its only argument if a retry cannot help and the task
        has no retry policy
    """
    if getattr(operator, "retry_policy", None) is not None or getattr(error, "retry_helps", False):
        return error.with_traceback(None)
    return AirflowFailException(error)


class TaskExecution:
    """
    One attempt of a task.

    The work runs in its own thread, because Airflow raises ``AirflowTaskTimeout`` and runs signal handlers in the main
    thread, where they could interrupt a call to Airflow half-way. The main thread waits, and cancels the attempt when
    it has to end.

    :param operator: the operator, its templates rendered
    :param context: Airflow's context
    :param is_killed: returns whether Airflow has asked the task to end; a signal handler sets it
    :param store: where the journal is kept; by default the most durable store that the context offers
    """

    def __init__(
        self,
        operator: ImageTask,
        context: Context,
        is_killed: Callable[[], bool],
        *,
        store: JournalStore | None = None,
    ) -> None:
        self._operator = operator
        self._context = context
        self._is_killed = is_killed
        self._store = store
        self._hook = ImagenHook(operator.imagen_conn_id)
        self._log = operator.log
        self._ti_key = task_instance_key_of(context)
        self._arguments = Arguments(operator, self._hook)
        self._airflow_lock = threading.RLock()
        self._cancellation = Cancellation()
        self._publisher: Publisher | None = None
        self._started = time.monotonic()
        self._run: Run | None = None
        self._summary: RunSummary | None = None  # as last published
        self._recovered: list[Record] = []  # from the manifest; each is journaled once, however often it is found
        self._supervisor = os.getppid() if has_supervisor() else None
        self._is_done = threading.Event()
        self._result: list[str] = []
        self._error: BaseException | None = None
        self.journal: Journal | None = None
        """The journal, closed; ``None`` until the run has ended without an unexpected error."""
        self.lineage: Lineage | None = None
        """Datasets read and written; ``None`` until then, too."""

    # --- the main thread ----------------------------------------------------------------------------------------------

    @property
    def run_result(self) -> RunResult | None:
        """Results so far, of this and previous attempts; ``None`` if the run has not started."""
        return None if self._run is None else self._run.snapshot()

    def run(self) -> list[str]:
        """Return the URLs of the generated images; see :meth:`ImagenGenerateOperator.execute`."""
        limit_arenas()
        attempt = threading.Thread(
            target=contextvars.copy_context().run, args=(self._run_attempt,), name="imagen-attempt", daemon=True
        )
        attempt.start()
        try:
            self._await_end()
        except BaseException as error:  # mainly AirflowTaskTimeout, which is raised in this thread
            self._cancel(type(error).__name__, grace_seconds=get_grace_seconds())
            self._await_end()
            raise
        finally:
            self._log_totals()
        if not self._is_done.is_set():
            self._error = StoppedError("The task was cancelled and could not publish in time.")
        if isinstance(self._error, (ImagenError, InvalidArgumentsError)):
            raise error_for_airflow(self._error, self._operator) from None
        if self._error is not None:
            raise self._error
        return self._result

    def _await_end(self) -> None:
        """Wait for the attempt to end; cancel it if Airflow ends the task or this process's supervisor has died."""
        while not self._is_done.wait(0.1):
            if self._is_killed():
                self._cancel("Airflow asked the task to end", grace_seconds=get_grace_seconds())
            if self._supervisor is not None and os.getppid() != self._supervisor:
                if self._publisher is not None:
                    self._publisher.can_reach_airflow = False
                self._cancel("the supervisor of the task process has died", grace_seconds=ORPHAN_GRACE_SECONDS)
            if self._cancellation.is_overdue(PUBLISH_TIMEOUT_SECONDS):
                return

    def _cancel(self, reason: str, *, grace_seconds: float) -> None:
        """Stop sending, publish the results so far, and let requests in flight finish within the grace period."""
        is_first = not self._cancellation.is_cancelled()
        self._cancellation.cancel(reason, grace_seconds=grace_seconds)
        if is_first:
            self._log.warning(
                "The task was cancelled (%s). No new requests are sent; requests in flight get %.0f s to finish.",
                reason,
                grace_seconds,
            )
            if self._publisher is not None:
                self._publisher.publish_now()

    def _log_totals(self) -> None:
        """Log one line about the whole attempt, however it has ended: counts, costs and where the images are."""
        summary, seconds = self._summary, time.monotonic() - self._started
        if summary is None:
            summary = RunSummary() if self._run is None else self._run.snapshot().summary()
        folder = self._arguments.output_path
        place = f", stored in {scrub_storage_text(str(folder))}" if folder is not None and summary.made else ""
        self._log.info("Totals: %s%s, %.1f s.", summary.totals, place, seconds)

    # --- the attempt's own thread -------------------------------------------------------------------------------------

    def _run_attempt(self) -> None:
        try:
            self._result = self._generate_images()
        except BaseException as error:
            self._error = error
            self._publish_failure(error)
        finally:
            self._hook.close()
            self._is_done.set()

    def _publish_failure(self, error: BaseException) -> None:
        """Publish why the attempt failed, unless another one has taken over, which publishes its own results."""
        can_reach_airflow = self._publisher is None or self._publisher.can_reach_airflow
        if can_reach_airflow and not isinstance(error, (AirflowSkipException, OwnershipLostError)):
            with self._airflow_lock:
                push_failure(self._context, error)

    def _generate_images(self) -> list[str]:
        """Prepare and run the attempt, and return the URLs, unless images are missing that the author requires."""
        plan: Plan | None = None
        folder: ObjectStoragePath | None = None
        try:
            plan = self._arguments.plan()
            if not plan.items:
                raise AirflowSkipException(EMPTY_PROMPT)
            if plan.beyond_limit:
                count = len(plan.items)
                self._log.info(
                    "limit=%d: only the first %d of %d prompts.", count, count, count + len(plan.beyond_limit)
                )
            folder = self._open_folder()
            client = self._hook.get_conn()
            encryption = UrlEncryption(client.settings.api_key)
            journal = self._open_journal()
        except Exception:
            self._publish_previous_attempts(plan, folder)
            raise
        try:
            reload = partial(self._reload, journal, folder, encryption)
            if journal.state.has_loose_ends:  # the manifest may list images that were not journaled
                journal.state = reload()
            earlier = self._find_earlier(plan, folder, journal)
            run = self._run = Run(
                ti_key=self._ti_key,
                plan=plan,
                api=ApiAdapter(
                    client=client,
                    downloader=self._hook.get_downloader(cancelled=self._cancellation.abandoned),
                    inputs=self._hook.get_input_reader(),
                ),
                sink=self._image_sink(folder, plan, journal, earlier) if folder is not None else None,
                journal=journal,
                options=self._arguments.run_options(),
                encryption=encryption,
                cancellation=self._cancellation,
                reload=reload,
                earlier=earlier,
                on_image=partial(self._report_image, plan.images),
            )
            result = self._run_and_publish(run, journal, folder)
        except Exception:
            if self._publisher is None:  # the run never started
                self._publish_previous_attempts(plan, folder)
            raise
        finally:
            # Records are still pending if the store was unreachable; without them, the next attempt would not know
            # about their responses.
            is_cancelled = self._cancellation.is_cancelled()
            journal.close(JOURNAL_TIMEOUT_SECONDS if is_cancelled else WRITE_TIMEOUT_SECONDS)
        self.journal = journal
        self.lineage = lineage_of(
            result, base_url=client.settings.base_url, output=None if folder is None else str(folder)
        )
        self._raise_if_failed(result)
        return result.urls

    def _run_and_publish(self, run: Run, journal: Journal, folder: ObjectStoragePath | None) -> RunResult:
        """Run to the end, and publish the result whether it succeeds or fails."""
        publisher = self._publisher = self._publisher_for(folder)
        try:
            with publisher.publishing(run.snapshot, journal):
                result = run.execute()
        except BaseException:
            try:
                self._summary = publisher.publish(run.snapshot(), journal)
            except Exception as error:  # must not replace the error of the run
                self._log.warning("The results so far could not be published (%s).", error)
            raise
        journal.flush(JOURNAL_TIMEOUT_SECONDS)
        self._summary = publisher.publish(result, journal)
        return result

    # --- before sending -----------------------------------------------------------------------------------------------

    def _open_folder(self) -> ObjectStoragePath | None:
        """Return the output folder, checked to be writable and cleared of temporary files of a killed attempt."""
        if self._arguments.output_path is None:
            return None
        folder = open_folder(self._arguments.output_path)
        check_writable(folder, owner=self._ti_key.identity)
        remove_leftovers(folder, owner=self._ti_key.identity)
        return folder

    @staticmethod
    def _trusted_folders(store: JournalStore, folder: ObjectStoragePath | None) -> list[StoragePath] | None:
        """Return the folders that a journal's paths must be in; ``None`` if only this task can write to the journal."""
        if not isinstance(store, FolderJournalStore):
            return None
        return [store.output_folder] if folder is None else [store.output_folder, folder]

    def _image_sink(
        self, folder: ObjectStoragePath, plan: Plan, journal: Journal, earlier: EarlierRequests
    ) -> ImageSink:
        return ImageSink(
            folder=folder,
            open_path=open_folder,
            stored_folders=self._trusted_folders(journal.store, folder),
            own_names=earlier.own_names(folder),
            plan=plan,
            requests=journal.state.requests,
            ti_key=self._ti_key,
            filename=self._arguments.filename,
            provenance=self._operator.provenance,
            image_format=self._operator.image_format,
            thumbnail_pixels=self._arguments.thumbnail_pixels,
        )

    def _find_earlier(self, plan: Plan, folder: ObjectStoragePath | None, journal: Journal) -> EarlierRequests:
        """Return the requests of other runs that may be reused; none unless the author allows it."""
        if folder is None or self._operator.reuse is None:
            return EarlierRequests(plan)
        others = [_folder_of(open_folder(address, field="reuse_from")) for address in self._arguments.reuse_from]
        return EarlierRequests(
            plan,
            [folder, *(other for other in others if address_of(other) != address_of(folder))],
            own={name for request in journal.state.requests.values() for name in request.client_request_ids},
            ti_key=self._ti_key,
        )

    def _journal_store(self) -> JournalStore:
        if self._store is not None:
            return self._store
        return journal_store(self._context, output_path=self._arguments.output_path, airflow_lock=self._airflow_lock)

    def _open_journal(self) -> Journal:
        store = self._journal_store()
        if isinstance(store, NoStore) and (self._operator.retries or 0) > 0:
            self._log.warning(
                "This task has no journal, so a retry pays again: a journal needs Airflow 3.3 or later, or output_path."
            )
        try_number = getattr(self._context.get("ti"), "try_number", None) or 0
        journal = Journal(store, try_number=try_number, takeover_lock=machine_lock())
        journal.open()
        if requests := journal.state.requests:
            paid = sum(request.response is not None for request in requests.values())
            self._log.info(
                "Continuing a previous attempt: %d of its requests are already paid for and are not sent again.", paid
            )
        return journal

    def _reload(self, journal: Journal, folder: ObjectStoragePath | None, encryption: UrlEncryption) -> JournalState:
        """
        Return the journal's current state, with records missing from the journal recovered from the manifest.

        :raises JournalError: the journal cannot be read now
        :raises StorageError: the manifest cannot be read
        """
        state = journal.reload()
        for record in self._recover(state, folder, encryption):
            if record not in self._recovered:
                self._recovered.append(record)
                journal.append(record)
        return state

    def _recover(
        self, state: JournalState, folder: ObjectStoragePath | None, encryption: UrlEncryption
    ) -> list[Record]:
        """Apply the records that the journal lacks and the manifest proves, and return them."""
        if folder is None or not state.has_loose_ends:
            return []
        lines = recorded_lines(folder, self._ti_key)
        records = list(missed_records(state.requests, lines=lines, encryption=encryption))
        for record in records:
            state.apply(record)
        return records

    # --- publishing ---------------------------------------------------------------------------------------------------

    def _publisher_for(self, folder: ObjectStoragePath | None) -> Publisher:
        return Publisher(
            self._operator, self._context, ti_key=self._ti_key, folder=folder, airflow_lock=self._airflow_lock
        )

    def _publish_previous_attempts(self, plan: Plan | None, folder: ObjectStoragePath | None) -> None:
        """
        Publish the images of previous attempts if this one fails before it runs; Airflow has cleared their XComs.

        Never raises, so that the original error reaches the user.
        """
        try:
            store = self._journal_store()
            state = read_journal(store)
            if state.requests:
                if folder is None and self._arguments.output_path is not None:
                    folder = open_folder(self._arguments.output_path)
                encryption = UrlEncryption(self._hook.get_conn().settings.api_key)
                self._recover(state, folder, encryption)
                stored_files = StoredFiles(open_path=open_folder, folders=self._trusted_folders(store, folder))
                result = previous_result(
                    state, plan=plan, encryption=encryption, is_there=partial(_exists, stored_files)
                )
                self._summary = self._publisher_for(folder).publish(result, None, keeps_failures=True)
        except Exception as error:
            self._log.warning("The images of previous attempts could not be published (%s).", error)

    # --- while it runs and after --------------------------------------------------------------------------------------

    def _report_image(self, images: int, image: FinishedImage, done: int) -> None:
        received, file, usd = image.received, image.file, image.received.response.usd_per_image
        details = [f"prompt {received.item.index}, image {image.image_index}"]
        if file is not None:
            details.append(f"{file.width}x{file.height}" if file.width else file.mime_type)  # an SVG may state no size
        if image.reused is not None:
            saved = image.reused.usd_saved
            details += ["reused from another run", *([f"{format_usd(saved)} saved"] if saved is not None else [])]
        else:
            details.append("reused" if received.is_reused else f"{received.seconds:.1f} s")
            details.append(format_usd(usd) if usd is not None else "cost unknown")
        progress.info(
            "%s: %s (%s) → %s",
            "No longer requested" if received.item.is_superseded else f"Image {done} of {images}",
            received.item.label,
            ", ".join(details),
            file.file_name if file is not None else "not stored",
        )
        if not received.is_reused:
            metrics, tags = get_metrics(), {"model": received.response.model}
            metrics.incr("imagen.images", tags=tags)
            metrics.incr("imagen.usd", count=float(usd or 0), tags=tags)
            metrics.timing("imagen.seconds", received.seconds * 1000, tags=tags)

    def _raise_if_failed(self, result: RunResult) -> None:
        """
        Raise unless the task has succeeded, and log the failures that the error does not report.

        :raises ImagenError: the task has failed
        :raises AirflowSkipException: no image was generated, and ``on_failure`` or ``on_filtered`` accepts that
        """
        reported = [failure for failure in result.failures if self._is_reported(failure, result.abort_reason)]
        if others := [failure for failure in result.failures if failure not in reported]:
            tolerance = "" if result.abort_reason else ", which on_failure or on_filtered accepts"
            counts = f"{len(others)} of {len(result.plan.items)} items lack{'s' if len(others) == 1 else ''} images"
            self._log.warning("%s%s:\n%s", counts, tolerance, failure_table(others))
        if result.abort_reason is not None:
            raise _with_final_amounts(result.abort_reason, result)
        if reported:
            if len(result.plan.items) == 1:
                raise reported[0].error
            raise ItemsFailedError(
                f"{len(reported)} of {len(result.plan.items)} items failed; all images so far are kept.\n"
                f"{failure_table(reported)}",
                failures=[failure.error for failure in reported],
            )
        if not result.records:
            raise AirflowSkipException(
                "No image was generated; on_failure or on_filtered accepts that, so the task is skipped."
            )

    def _is_reported(self, failure: Failure, abort_reason: ImagenError | None) -> bool:
        """Return whether the error that the task ends with reports a failure; an accepted one is only logged."""
        if abort_reason is not None:
            return str(failure.error) == str(abort_reason)
        return (self._operator.on_filtered if failure.is_filtered else self._operator.on_failure) == "fail"


def _with_final_amounts(error: ImagenError, result: RunResult) -> ImagenError:
    """Return the error; a :class:`BudgetExceededError` with the final amount and the number of items done and left."""
    if not isinstance(error, BudgetExceededError):
        return error
    left = len(result.not_sent) + len(result.failures)
    done = len(result.plan.items) - left
    spent = format_usd(result.usd_spent)
    doubt = f" and up to {format_usd(result.usd_in_doubt)} more in doubt" if result.usd_in_doubt else ""
    reached = f"max_usd={format_usd(error.max_usd)}: {spent} spent{doubt}, and the next request could exceed the cap."
    return BudgetExceededError(
        f"{reached if error.period is None else error} "
        f"{done} of {len(result.plan.items)} items are done and kept; {left} are left.",
        spent_usd=float(result.usd_spent) if error.period is None else error.spent_usd,
        max_usd=error.max_usd,
        items_done=done,
        items_left=left,
        period=error.period,
    )


def _folder_of(path: ObjectStoragePath) -> ObjectStoragePath:
    """Return a folder that is given as its path or as that of its manifest."""
    return path.parent if path.name == MANIFEST_NAME else path


def _exists(stored_files: StoredFiles, stored: StoredFile) -> bool:
    """Return whether a file exists; assume that it does if its store cannot be reached."""
    try:
        return stored_files.find_intact(stored) is not None
    except (StorageError, InvalidArgumentsError):
        return True
