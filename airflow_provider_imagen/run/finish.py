"""Download, verify, store and record the images of paid requests."""

from __future__ import annotations

import logging
import time
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING

from airflow_provider_imagen.catalogue.aspect_ratio import ratio_text
from airflow_provider_imagen.exceptions import (
    BadImageError,
    ChargedButLostError,
    ImagenError,
    JournalError,
    LinkExpiredError,
    StoppedError,
    StorageError,
    UnreadableResponseError,
    UnsafeAddressError,
)
from airflow_provider_imagen.journal.records import Missing, WriteCommitted, WriteStarted
from airflow_provider_imagen.run.results import FinishedImage, withheld_error

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from airflow_provider_imagen.image_record import ResponseImage, StoredFile
    from airflow_provider_imagen.journal.records import Response
    from airflow_provider_imagen.run.context import RunContext
    from airflow_provider_imagen.run.ports import Sink
    from airflow_provider_imagen.run.results import ReceivedResponse

log = logging.getLogger(__name__)

JOURNAL_PATIENCE_SECONDS = 3.0
"""
How long to wait for a response to become durable before its images are stored anyway.

The journal's store may be unavailable for longer than the task lives. Stored images are listed in the manifest, where
the next attempt finds them.
"""

_IRRETRIEVABLE = (LinkExpiredError, UnsafeAddressError, UnreadableResponseError, ChargedButLostError)
"""Errors after which a paid image can never be retrieved."""


class Finisher:
    """
    Stores the images of responses; safe to use from any number of threads.

    :param find_file: finds an inline image that a previous attempt may have stored unnoticed
    :param on_image: called with each finished image and the number of images finished so far
    """

    def __init__(
        self,
        context: RunContext,
        *,
        find_file: Callable[[str, int], StoredFile | None],
        on_image: Callable[[FinishedImage, int], None],
    ) -> None:
        self._api = context.api
        self._sink = context.sink
        self._journal = context.journal
        self._encryption = context.encryption
        self._state = context.state
        self._budget = context.budget
        self._find_file = find_file
        self._on_image = on_image

    def finish(self, received: ReceivedResponse) -> None:
        """Store the images of one response; a failure is recorded and does not affect the other images."""
        try:
            if received.journaled is not None:
                self._await_durable(received.journaled)
                received.journaled = None  # the result keeps this object long after the request
            withheld = 0
            for position, image in enumerate(received.response.images):
                if image.withheld:
                    withheld += 1
                else:
                    self._try_to_finish(received, position, image)
            requested, made = received.target.images, len(received.response.images) - withheld
            if made < requested:
                error = withheld_error(requested=requested, made=made, flagged=withheld, response=received.response)
                self._state.record_error(received.slot_number, error)
        finally:
            if received.finished is not None:
                received.finished.set()

    def finish_again(self, received: ReceivedResponse, position: int) -> None:
        """Store an image again after its file has disappeared."""
        received.files.pop(position, None)
        self._try_to_finish(received, position, received.response.images[position])

    def _await_durable(self, journaled: Future[None]) -> None:
        """Wait briefly for a record to become durable; if it never can, abort the run."""
        try:
            journaled.result(0.3 if self._state.cancellation.is_cancelled() else JOURNAL_PATIENCE_SECONDS)
        except TimeoutError:
            return
        except JournalError as error:
            self._state.abort(error)

    def _try_to_finish(self, received: ReceivedResponse, position: int, image: ResponseImage) -> None:
        """Finish one image, or record why that failed."""
        response = received.response
        try:
            self._finish_image(received, position, image)
        except ImagenError as error:
            error.inference_id = response.inference_id
            error.client_request_id = response.client_request_id
            error.model = response.model
            self._state.record_error(received.slot_number, error)
            if isinstance(error, _IRRETRIEVABLE) or (image.is_inline and isinstance(error, BadImageError)):
                self._count_missing(received, position)
            elif image.is_inline and position not in received.missing:  # not journaled: the file may exist after all
                self._budget.count_lost(response.usd_per_image)
            if isinstance(error, StorageError):
                self._state.count_not_written(error)
        except Exception as error:  # the other images must not be affected
            log.exception("An image of prompt %d could not be stored.", received.item.index)
            self._state.record_error(received.slot_number, _unexpected(error, response))

    def _count_missing(self, received: ReceivedResponse, position: int) -> None:
        """Count a paid image that cannot be retrieved as lost, once over all attempts."""
        if position not in received.missing:
            self._journal.append(Missing(key=received.key, image=position))
            self._budget.count_lost(received.response.usd_per_image)

    def _finish_image(self, received: ReceivedResponse, position: int, image: ResponseImage) -> None:
        if image.broken:
            raise UnreadableResponseError(f"Image {position} of the response is {image.broken}.", status=200)
        url = self._encryption.decrypt(image.url) if image.url else None
        file = received.files.get(position)
        if received.reused and file is None:
            raise StorageError(
                f"{received.reused[position].file.path}, reused from another run, has disappeared; the next attempt "
                "reuses or generates it again."
            )
        if self._sink is not None and not received.reused:
            file = self._keep_file(self._sink, received, position, image)
        if file is None:
            file = self._store(received, position, image, url)
        if position in received.missing:
            self._budget.count_lost(-(received.response.usd_per_image or Decimal(0)))
        finished = FinishedImage(received, position, url, file)
        if file is not None and received.aspect_ratio is not None and finished.has_wrong_shape:
            log.warning(
                "Prompt %d, image %d: requested %s, received %dx%d.",
                received.item.index,
                finished.image_index,
                ratio_text(received.aspect_ratio),
                file.width,
                file.height,
            )
        count = self._state.record_finished(received.slot_number, finished)
        try:
            self._on_image(finished, count)
        except Exception:  # the image is stored, whatever the listener does
            log.exception("The report of a finished image failed.")

    def _keep_file(
        self, sink: Sink, received: ReceivedResponse, position: int, image: ResponseImage
    ) -> StoredFile | None:
        """Return the file in which a previous attempt stored an image, if it is still intact."""
        if (file := received.files.get(position)) is not None:
            kept = sink.keep(file)
            if kept is not None and kept is not file:
                self._journal.append(WriteCommitted(key=received.key, image=position, file=kept), can_wait=True)
            if kept is not None:
                return kept
        if image.is_inline and received.is_reused:
            found = self._find_file(received.key, position)
            return sink.keep(found) if found is not None else None
        return None

    def _store(
        self, received: ReceivedResponse, position: int, image: ResponseImage, url: str | None
    ) -> StoredFile | None:
        """Download an image if necessary and return its stored file; ``None`` when images are not stored."""
        data = received.inline.pop(position, None)
        response = received.response
        if image.is_inline and (data is None or self._sink is None):
            raise ChargedButLostError.of_charge(
                response.usd_per_image,
                model=response.model,
                client_request_id=response.client_request_id,
                inference_id=response.inference_id,
            )
        if self._sink is None:
            return None
        if data is None:
            data = self._download(url, received_at=response.at)
        before_write = partial(self._journal_write_started, received.key, position) if image.is_inline else _do_nothing
        file = self._sink.save(data, received, position, before_write)
        self._state.count_written()
        self._journal.append(WriteCommitted(key=received.key, image=position, file=file), can_wait=True)
        return file

    def _journal_write_started(self, key: str, position: int, expected: StoredFile) -> None:
        """Journal where the only copy of an image will be, so that a crash after the write does not hide it."""
        self._await_durable(self._journal.append(WriteStarted(key=key, image=position, file=expected)))

    def _download(self, url: str | None, *, received_at: float) -> bytes:
        if url is None:
            raise LinkExpiredError("The signed URL was encrypted with another API key and cannot be read.")
        if self._state.cancellation.abandoned.is_set():
            raise StoppedError("The task was cancelled; the image is paid for and the next attempt downloads it.")
        try:
            return self._api.fetch(url)
        except LinkExpiredError as error:
            error.args = (f"{error} The API returned the URL {_age(time.time() - received_at)} ago.",)
            raise


def _do_nothing(_: StoredFile) -> None:
    """Journal nothing: an image with a URL can be downloaded again."""


def _age(seconds: float) -> str:
    """Return a duration as text, in the largest unit that fits."""
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} seconds"


def _unexpected(error: Exception, response: Response) -> StorageError:
    failure = StorageError(
        f"The image could not be stored ({type(error).__name__}); the task's log has the details.",
        inference_id=response.inference_id,
        client_request_id=response.client_request_id,
        model=response.model,
    )
    failure.__cause__ = error
    return failure
