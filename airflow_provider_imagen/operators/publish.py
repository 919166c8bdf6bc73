"""Publish the results of an attempt: the manifest, XCom, asset events and the contact sheet."""

from __future__ import annotations

import json
import logging
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from airflow_provider_imagen._compat import redact_secrets
from airflow_provider_imagen.exceptions import ImagenError, StorageError
from airflow_provider_imagen.journal.log import OWNERSHIP_MAX_AGE_SECONDS
from airflow_provider_imagen.operators.outlets import fill_outlets
from airflow_provider_imagen.run.plan import fingerprint_in
from airflow_provider_imagen.run_report import MAX_MESSAGE_CHARACTERS, TaskFailure
from airflow_provider_imagen.storage.contact_sheet import write_contact_sheet
from airflow_provider_imagen.storage.manifest import (
    delete_progress,
    has_part,
    manifest_address,
    manifest_line,
    write_manifest,
    write_progress,
)
from airflow_provider_imagen.storage.paths import path_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from airflow.sdk import Context, ObjectStoragePath

    from airflow_provider_imagen.image_record import ImageRecord, ManifestLine
    from airflow_provider_imagen.journal.log import Journal
    from airflow_provider_imagen.operators.arguments import ImageTask
    from airflow_provider_imagen.run.results import FinishedImage, RunResult
    from airflow_provider_imagen.run_report import FailureLine, RunSummary
    from airflow_provider_imagen.storage.task_identity import TaskInstanceKey

log = logging.getLogger(__name__)

PUBLISH_INTERVAL_SECONDS: Final = 10.0
"""Interval at which a running task publishes its results, so that even a SIGKILL loses few of them."""

MAX_PUBLISHING_SHARE: Final = 0.02
"""Largest share of a running task's time spent on such publishing; the interval grows to stay below it."""

PROGRESS_INTERVAL_SECONDS: Final = 2.0
"""Interval at which a running task publishes its progress, so that the gallery shows an image within five seconds."""

MAX_PROGRESS_CPU_SHARE: Final = 0.01
"""Largest share of one processor that the task's process spends on progress; the interval grows to stay below it."""

MAX_JOURNAL_DELAY_SECONDS: Final = 3.0
"""Journal delay beyond which the manifest is written at once, since no other record of the images is durable."""

PUBLISH_TIMEOUT_SECONDS: Final = 30.0
"""Longest wait for a publication when an attempt ends; Airflow may be unreachable."""

MAX_SHEET_PICTURES: Final = 400
"""Maximum number of images on a contact sheet; the first ones are used."""

MAX_XCOM_BYTES: Final = 64 * 1024
"""Largest list of records pushed to XCom, as JSON; a larger one is left to the manifest."""


class Publisher:
    """
    Publishes the results of a run: periodically, when it is cancelled, and when it ends.

    :param operator: the operator, its templates rendered
    :param context: Airflow's context
    :param ti_key: the task instance
    :param folder: output folder; ``None`` if images are not stored
    :param airflow_lock: held during calls to Airflow; ``airflow tasks test`` cannot handle concurrent ones
    """

    def __init__(
        self,
        operator: ImageTask,
        context: Context,
        *,
        ti_key: TaskInstanceKey,
        folder: ObjectStoragePath | None,
        airflow_lock: threading.RLock,
    ) -> None:
        self._operator = operator
        self._context = context
        self._ti_key = ti_key
        self._folder = folder
        self._airflow_lock = airflow_lock
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._is_over = threading.Event()
        self._progress: RunSummary | None = None  # as last published, without the seconds
        self.can_reach_airflow = True
        """False once this process's supervisor has died."""

    # --- publishing once ----------------------------------------------------------------------------------------------

    def publish(
        self, result: RunResult, journal: Journal | None, *, is_final: bool = True, keeps_failures: bool = False
    ) -> RunSummary:
        """
        Publish a result and return its summary.

        An attempt that has lost the journal to another one leaves XCom to it, and lists its own images in a separate
        part of the manifest.

        :param journal: this attempt's journal; ``None`` if it has none
        :param is_final: whether the run has ended; the contact sheet and asset events are created only then
        :param keeps_failures: keep a previous attempt's list of items without images
        :raises StorageError: the manifest cannot be written, and the run has no other error to report
        """
        with self._lock:
            owns_results = self.can_reach_airflow and (journal is None or self._owns_results(journal))
            summary = self._summary_of(result, in_progress=not is_final)
            unwritten: StorageError | None = None
            if self._folder is not None:
                attempt = "" if owns_results or journal is None else journal.owner
                failures = None if keeps_failures else result.failure_lines()
                try:
                    manifest = self._write_manifest(result, self._folder, attempt, failures)
                    summary = replace(summary, manifest=manifest)
                except StorageError as error:
                    log.warning("The manifest could not be written: %s", error)
                    unwritten = error
                if is_final and self._operator.contact_sheet and result.made:
                    summary = replace(summary, contact_sheet=self._make_contact_sheet(result, self._folder))
            is_behind = journal is not None and journal.behind_seconds > MAX_JOURNAL_DELAY_SECONDS
            if owns_results and (is_final or not is_behind):
                self._push_xcoms(result, summary, None if journal is None or journal.is_gone else journal)
                outlet_events: Any = self._context.get("outlet_events")
                if is_final and outlet_events is not None:
                    fill_outlets(self._operator.outlets, outlet_events, summary=summary.to_json(), folder=self._folder)
            if owns_results and is_final and self._folder is not None:
                delete_progress(self._folder, self._ti_key)
            if unwritten is not None and not result.failures and result.abort_reason is None:
                raise unwritten
            return summary

    def publish_progress(self, result: RunResult, journal: Journal) -> None:
        """
        Publish counts, costs and stored images for the gallery, if they have changed since the last time.

        This is much cheaper than :meth:`publish`: one XCom, and one file that holds only this task instance's images.

        :raises StorageError: the file cannot be written
        """
        if journal.behind_seconds > MAX_JOURNAL_DELAY_SECONDS:
            return  # the same database is behind both
        with self._lock:
            summary = self._summary_of(result, in_progress=True)
            if self._folder is not None:
                summary = replace(summary, manifest=manifest_address(self._folder))
            progress = replace(summary, seconds=0.0)
            if progress == self._progress or not self.can_reach_airflow:
                return
            if not journal.still_owns(max_age_seconds=OWNERSHIP_MAX_AGE_SECONDS):
                return
            if self._folder is not None:
                write_progress(self._folder, ti_key=self._ti_key, lines=self._manifest_lines(result))
            self._push_xcom("summary", summary.to_json())
            self._progress = progress

    def _summary_of(self, result: RunResult, *, in_progress: bool) -> RunSummary:
        output_path = None if self._folder is None else path_text(self._operator.output_path)
        return replace(result.summary(), output_path=output_path, in_progress=in_progress)

    def _owns_results(self, journal: Journal) -> bool:
        """
        Return whether this attempt may publish the task's results, because no other attempt does or has.

        If the journal is gone, either another attempt has finished and left its part of the manifest, or the whole
        folder was deleted.
        """
        if journal.still_owns():
            return True
        return journal.is_gone and self._folder is not None and not has_part(self._folder, self._ti_key)

    def _push_xcoms(self, result: RunResult, summary: RunSummary, journal: Journal | None) -> None:
        """Push the records and the summary, unless another attempt has taken over while the manifest was written."""
        xcoms = {"images": _fit_for_xcom(result.listed, summary.manifest), "summary": summary.to_json()}
        for key, value in xcoms.items():
            if journal is None or journal.still_owns(max_age_seconds=OWNERSHIP_MAX_AGE_SECONDS):
                self._push_xcom(key, value)

    def _push_xcom(self, key: str, value: Any) -> None:
        ti = self._context.get("ti")
        if ti is not None and hasattr(ti, "xcom_push"):
            with self._airflow_lock:
                ti.xcom_push(key=key, value=value)

    def _write_manifest(
        self,
        result: RunResult,
        folder: ObjectStoragePath,
        attempt: str,
        failures: Sequence[FailureLine] | None,
    ) -> str:
        return write_manifest(
            folder,
            ti_key=self._ti_key,
            attempt=attempt,
            lines=self._manifest_lines(result),
            failures=failures,
        )

    def _manifest_lines(self, result: RunResult) -> Iterator[ManifestLine]:
        for made in result.listed:
            if made.file is not None:
                yield manifest_line(
                    made.record,
                    made.file,
                    ti_key=self._ti_key,
                    created_at=datetime.fromtimestamp(made.received.response.at, UTC),
                    request_fingerprint=fingerprint_in(made.received.key),
                    response_index=made.position,
                    reused_at=made.reused_at,
                )

    def _make_contact_sheet(self, result: RunResult, folder: ObjectStoragePath) -> str | None:
        """Write the contact sheet and return its path; ``None`` if that fails, since the images themselves are safe."""
        labelled = [
            (made.file.thumbnail or made.file.file_name, _label(made.record)) for made in result.made if made.file
        ][:MAX_SHEET_PICTURES]
        try:
            return write_contact_sheet(
                folder,
                images=labelled,
                count=len(labelled),
                title=f"{self._ti_key.dag_id} · {self._ti_key.task_id} · {self._ti_key.run_id}",
                owner=self._ti_key.identity,
            )
        except ImagenError as error:
            log.warning("No contact sheet: %s", error)
            return None

    # --- during the run -----------------------------------------------------------------------------------------------

    @contextmanager
    def publishing(self, snapshot: Callable[[], RunResult], journal: Journal) -> Iterator[None]:
        """Publish every few seconds, and at once after :meth:`publish_now`, in a thread that ends with the block."""
        thread = threading.Thread(
            target=self._publish_forever, args=(snapshot, journal), name="imagen-publisher", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            self._wake.set()
            thread.join(PUBLISH_TIMEOUT_SECONDS)

    def publish_now(self) -> None:
        """Trigger a publication in the publishing thread, without waiting for it."""
        self._wake.set()

    def _publish_forever(self, snapshot: Callable[[], RunResult], journal: Journal) -> None:
        published, is_urgent = 0, False
        due = time.monotonic() + PUBLISH_INTERVAL_SECONDS
        progress_due = time.monotonic() + PROGRESS_INTERVAL_SECONDS
        while True:
            is_requested = self._wake.wait(min(1.0, max(progress_due - time.monotonic(), 0.05)))
            self._wake.clear()
            if self._is_over.is_set():
                return
            # A cancelled task may be killed at any moment, and an attempt that has taken over the journal looks in the
            # manifest for the results of requests in flight.
            is_urgent = is_urgent or is_requested or journal.is_closed_to_this_attempt
            is_behind = journal.behind_seconds > MAX_JOURNAL_DELAY_SECONDS
            is_due = is_urgent or is_behind or time.monotonic() >= due
            is_progress_due = time.monotonic() >= progress_due
            if not (is_due or is_progress_due):
                continue
            started, cpu_started = time.monotonic(), time.thread_time()
            result = snapshot()
            is_complete = is_due and (is_requested or len(result.listed) != published)
            try:
                if is_complete:
                    self.publish(result, journal, is_final=False)
                elif is_progress_due:
                    self.publish_progress(result, journal)
            except Exception as error:  # published again when the run ends
                log.warning("The results so far could not be published (%s).", error)
            now, cpu_seconds = time.monotonic(), time.thread_time() - cpu_started
            if is_complete:
                published = len(result.listed)
                due = now + max(PUBLISH_INTERVAL_SECONDS, (now - started) / MAX_PUBLISHING_SHARE)
            elif is_progress_due:
                # Waiting for a slow Airflow takes no processor time from the task, and images should not appear late.
                progress_due = now + max(PROGRESS_INTERVAL_SECONDS, cpu_seconds / MAX_PROGRESS_CPU_SHARE)


def push_failure(context: Context, error: BaseException) -> None:
    """
    Push why an attempt failed to XCom ``failure``, for those who look at the results but not at the log.

    Never raises, so that the original error reaches the user.
    """
    ti = context.get("ti")
    if ti is None or not hasattr(ti, "xcom_push"):
        return
    message = redact_secrets(str(error))[:MAX_MESSAGE_CHARACTERS]
    try:
        ti.xcom_push(key="failure", value=TaskFailure(type(error).__name__, message).to_json())
    except Exception as problem:
        log.warning("The reason of the failure could not be published (%s).", problem)


def _label(record: ImageRecord) -> str:
    return f"{record.prompt_index}.{record.image_index} {record.model}: {record.prompt}"


def _fit_for_xcom(images: Sequence[FinishedImage], manifest: str | None) -> list[dict[str, Any]] | dict[str, Any]:
    """Return the records of images, or their manifest and count if the records are too large for XCom."""
    records = []
    size = 0
    for image in images:
        record = image.record.to_json()
        size += len(json.dumps(record)) + len(", ")
        if size > MAX_XCOM_BYTES:
            return {"manifest": manifest, "count": len(images)}
        records.append(record)
    return records
