"""Download, verify, store and record the images of paid requests."""

from __future__ import annotations

import logging
import time
from decimal import Decimal
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
from airflow_provider_imagen.run.losses import charge_lost
from airflow_provider_imagen.run.plan import place_of
from airflow_provider_imagen.run.results import Made, withheld_error

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from airflow_provider_imagen.journal.log import Journal
    from airflow_provider_imagen.journal.records import Response, ResponseImage, StoredFile
    from airflow_provider_imagen.journal.url_encryption import UrlEncryption
    from airflow_provider_imagen.run.budget import Budget
    from airflow_provider_imagen.run.ports import Ports
    from airflow_provider_imagen.run.results import Answered, Record
    from airflow_provider_imagen.run.shared_state import RunState

log = logging.getLogger(__name__)

RECORD_PATIENCE_SECONDS = 3.0
"""
How long to wait for a response to become durable before its images are stored anyway.

The journal's store may be unavailable for longer than the task lives. Stored images are listed in the manifest, where
the next attempt finds them.
"""

_IRRETRIEVABLE = (LinkExpiredError, UnsafeAddressError, UnreadableResponseError, ChargedButLostError)
"""Errors after which a paid image can never be retrieved."""


class Finisher:
    """
    Keeps the images of responses; safe to use from any number of threads.

    :param links: decrypts URLs from the journal
    :param find_file: finds an inline image that a previous attempt may have stored unnoticed
    :param on_picture: called for each finished image with its record, the seconds its request took, and the number of
        images finished so far
    """

    def __init__(
        self,
        *,
        ports: Ports,
        journal: Journal,
        links: UrlEncryption,
        state: RunState,
        budget: Budget,
        find_file: Callable[[str, int], StoredFile | None],
        on_picture: Callable[[Record, float, int], None],
    ) -> None:
        self._ports = ports
        self._journal = journal
        self._links = links
        self._state = state
        self._budget = budget
        self._find_file = find_file
        self._on_picture = on_picture

    def finish(self, answered: Answered) -> None:
        """Keep the images of one paid request; a failure is recorded and does not affect the other images."""
        try:
            if answered.recorded is not None:
                self._await_record(answered.recorded)
                answered.recorded = None  # the result keeps this object long after the request
            withheld = 0
            for place, image in enumerate(answered.response.images):
                if image.withheld:
                    withheld += 1
                else:
                    self._try_to_keep(answered, place, image)
            made = len(answered.response.images) - withheld
            if made < answered.images:
                error = withheld_error(
                    requested=answered.images, made=made, flagged=withheld, response=answered.response
                )
                self._state.record_error(answered.slot_number, error)
        finally:
            if answered.finished is not None:
                answered.finished.set()

    def finish_again(self, answered: Answered, place: int) -> None:
        """Keep an image again after its stored file has disappeared."""
        answered.files.pop(place, None)
        self._try_to_keep(answered, place, answered.response.images[place])

    def _await_record(self, recorded: Future[None]) -> None:
        """Wait briefly for a record to become durable; if it never can, abort the run."""
        try:
            recorded.result(0.3 if self._state.cancellation.is_cancelled() else RECORD_PATIENCE_SECONDS)
        except TimeoutError:
            return
        except JournalError as error:
            self._state.abort(error)

    def _try_to_keep(self, answered: Answered, place: int, image: ResponseImage) -> None:
        """Keep one image, or record why that failed."""
        response = answered.response
        try:
            self._keep(answered, place, image)
        except ImagenError as error:
            error.inference_id = error.inference_id or response.inference_id
            error.client_request_id = error.client_request_id or response.client_request_id
            error.model = error.model or response.model
            self._state.record_error(answered.slot_number, error)
            if isinstance(error, _IRRETRIEVABLE) or (image.is_inline and isinstance(error, BadImageError)):
                self._count_missing(answered, place)
            elif image.is_inline and place not in answered.missing:  # loss not journaled: the file may exist after all
                self._budget.lose(response.usd_per_image)
            if isinstance(error, StorageError):
                self._state.count_not_written(error)
        except Exception as error:  # the other images must not be affected
            log.exception("An image of prompt %d could not be kept.", answered.item.index)
            self._state.record_error(answered.slot_number, _unexpected(error, response))

    def _count_missing(self, answered: Answered, place: int) -> None:
        """Count a paid image that cannot be retrieved as lost, once over all attempts."""
        if place not in answered.missing:
            self._journal.append(Missing(key=answered.key, image=place))
            self._budget.lose(answered.response.usd_per_image)

    def _keep(self, answered: Answered, place: int, image: ResponseImage) -> None:
        if image.broken:
            raise UnreadableResponseError(f"Image {place} of the response is {image.broken}.", status=200)
        url = self._links.decrypt(image.url) if image.url else None
        image_index = place_of(
            place, images=answered.images, first_image=answered.first_image, prompt_images=answered.item.images
        )
        stored = answered.files.get(place)
        if stored is not None and self._ports.stores and (kept := self._ports.keep_stored(stored)) is not stored:
            stored = kept
            if kept is not None:
                self._journal.append(WriteCommitted(key=answered.key, image=place, file=kept), can_wait=True)
        if stored is None and image.is_inline and answered.is_reused and self._ports.stores:
            found = self._find_file(answered.key, place)
            stored = self._ports.keep_stored(found) if found is not None else None
        if stored is None:
            stored = self._store(answered, place, image, url, image_index)
        if place in answered.missing:
            self._budget.lose(-(answered.response.usd_per_image or Decimal(0)))
        made = Made(answered, place, image_index, url, stored)
        if stored is not None and answered.aspect_ratio is not None and made.has_wrong_shape:
            log.warning(
                "Prompt %d, image %d: requested %s, received %dx%d.",
                answered.item.index,
                image_index,
                ratio_text(answered.aspect_ratio),
                stored.width,
                stored.height,
            )
        done = self._state.record_made(answered.slot_number, made)
        try:
            self._on_picture(made.record, answered.seconds, done)
        except Exception:  # the image is stored, whatever the listener does
            log.exception("The report of a finished image failed.")

    def _store(
        self, answered: Answered, place: int, image: ResponseImage, url: str | None, image_index: int
    ) -> StoredFile | None:
        """Return the stored file of one image, or ``None`` when images are not stored."""
        data = answered.inline.pop(place, None)
        if image.is_inline and (data is None or not self._ports.stores):
            response = answered.response
            raise charge_lost(
                response.model,
                client_request_id=response.client_request_id,
                inference_id=response.inference_id,
                usd=response.usd_per_image,
            )
        if not self._ports.stores:
            return None
        if data is None:
            data = self._download(url, given_at=answered.response.at)

        def journal_write_started(expected: StoredFile) -> None:
            """Journal where the only copy will be, so that a crash after the write does not hide it."""
            self._await_record(self._journal.append(WriteStarted(key=answered.key, image=place, file=expected)))

        stored = self._ports.save(
            data,
            item=answered.item,
            image_index=image_index,
            response=answered.response,
            image=image,
            announce=journal_write_started if image.is_inline else None,
        )
        self._state.count_written()
        self._journal.append(WriteCommitted(key=answered.key, image=place, file=stored), can_wait=True)
        return stored

    def _download(self, url: str | None, *, given_at: float) -> bytes:
        if url is None:
            raise LinkExpiredError("The signed URL was encrypted with another API key and cannot be read.")
        if self._state.cancellation.is_abandoned():
            raise StoppedError("The task was cancelled; the image is paid for and the next attempt downloads it.")
        try:
            return self._ports.fetch(url)
        except LinkExpiredError as error:
            error.args = (f"{error} The API gave the URL {_age(time.time() - given_at)} ago.",)
            raise


def _age(seconds: float) -> str:
    """Return a duration as text, in the largest unit that fits."""
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} seconds"


def _unexpected(error: Exception, response: Response) -> StorageError:
    failure = StorageError(
        f"The image could not be kept ({type(error).__name__}); the task's log has the details.",
        inference_id=response.inference_id,
        client_request_id=response.client_request_id,
        model=response.model,
    )
    failure.__cause__ = error
    return failure
