"""Bring the pictures of paid requests to safety: fetch, check, store, describe."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from airflow_provider_imagen.exceptions import (
    ImagenError,
    JournalError,
    LinkExpiredError,
    StoppedError,
    StorageError,
    UnreadableResponseError,
)
from airflow_provider_imagen.generation.losses import lost_for_good
from airflow_provider_imagen.generation.plan import place_of
from airflow_provider_imagen.generation.results import describe_picture, withheld_error
from airflow_provider_imagen.journal import records as facts

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_imagen.generation.buying import Bought
    from airflow_provider_imagen.generation.options import Tools
    from airflow_provider_imagen.generation.plan import Item, Plan
    from airflow_provider_imagen.generation.results import Record
    from airflow_provider_imagen.generation.state import RunState
    from airflow_provider_imagen.journal.log import Journal
    from airflow_provider_imagen.journal.records import Paid, PaidPicture, Stored
    from airflow_provider_imagen.journal.url_encryption import LinkSeal

log = logging.getLogger(__name__)


class Finisher:
    """
    Keeps what was bought; for any number of threads.

    :param links: opens the links that were sealed before they were written down
    :param on_picture: told each picture that is done: its record, seconds the request took, pictures done so far
    """

    def __init__(
        self,
        *,
        plan: Plan,
        tools: Tools,
        journal: Journal,
        links: LinkSeal,
        state: RunState,
        on_picture: Callable[[Record, float, int], None],
    ) -> None:
        self._plan = plan
        self._tools = tools
        self._journal = journal
        self._links = links
        self._state = state
        self._on_picture = on_picture

    def finish(self, bought: Bought) -> None:
        """Keep the pictures of one paid request; each failure is noted, and the other pictures are kept."""
        self._await_note(bought)
        paid, slot = bought.paid, self._plan.slots[bought.slot_number]
        requested = bought.unit.request.expected_images
        first_image = slot.first_image + bought.offset
        flagged = 0
        for number, picture in enumerate(paid.pictures):
            if picture.withheld:
                flagged += 1
                continue
            image_index = place_of(number, unit=bought.unit, first_image=first_image, item=self._item(bought))
            try:
                self._keep(bought, number, picture, image_index=image_index)
            except ImagenError as error:
                error.inference_id = error.inference_id or paid.inference_id
                error.client_request_id = error.client_request_id or paid.client_request_id
                error.model = error.model or paid.model
                self._state.note_error(bought.slot_number, error)
                if isinstance(error, StorageError):
                    self._state.note_not_written(error)
            except Exception as error:  # it must not take the other pictures down
                log.exception("A picture of prompt %d could not be kept.", slot.item)
                self._state.note_error(bought.slot_number, _unexpected(error, paid))
        made = len(paid.pictures) - flagged
        if made < requested:
            withheld = withheld_error(requested=requested, made=made, flagged=flagged, paid=paid)
            self._state.note_error(bought.slot_number, withheld)

    def _await_note(self, bought: Bought) -> None:
        """Wait until an answer is durable; if it cannot be, its pictures are kept and nothing more is bought."""
        try:
            if bought.noted is not None:
                bought.noted.result()
        except JournalError as error:
            self._state.end_early(error)

    def _item(self, bought: Bought) -> Item:
        return self._plan.items[self._plan.slots[bought.slot_number].item]

    def _keep(self, bought: Bought, number: int, picture: PaidPicture, *, image_index: int) -> None:
        """Bring one picture to safety and describe it."""
        paid, item = bought.paid, self._item(bought)
        if picture.broken:
            raise UnreadableResponseError(f"Picture {number} of the answer is {picture.broken}.", status=200)
        url = self._links.open(picture.url) if picture.url else None
        stored = bought.stored.get(number)
        if stored is None or not self._tools.is_stored(stored):
            stored = self._store(bought, number, picture, url, image_index)
        made = describe_picture(item=item, image_index=image_index, url=url, paid=paid, picture=picture, stored=stored)
        done = self._state.note_made(bought.slot_number, made, adopted=bought.adopted)
        try:
            self._on_picture(made.record, bought.seconds, done)
        except Exception:  # the picture is safe, whoever listens
            log.exception("The report of a finished picture failed.")

    def _store(
        self, bought: Bought, number: int, picture: PaidPicture, url: str | None, image_index: int
    ) -> Stored | None:
        """Store one picture, if pictures are stored at all."""
        data = bought.inline.pop(number, None)
        if picture.is_inline and (data is None or not self._tools.stores):
            raise self._lose(bought, number)
        if not self._tools.stores:
            return None
        if data is None:
            data = self._fetch(url, given_at=bought.paid.at)

        def announce(expected: Stored) -> None:
            """Write down where the only copy there is will be, so that a crash after the write does not hide it."""
            try:
                self._journal.commit(expected.to_announcement(bought.unit.key, number))
            except JournalError as error:  # the picture is kept all the same
                self._state.end_early(error)

        stored = self._tools.save(
            data,
            item=self._item(bought),
            image_index=image_index,
            paid=bought.paid,
            picture=picture,
            announce=announce if picture.is_inline else None,
        )
        self._state.note_written()
        self._journal.append(stored.to_fact(bought.unit.key, number), can_wait=True)
        return stored

    def _fetch(self, url: str | None, *, given_at: float) -> bytes:
        if url is None:
            raise LinkExpiredError("The signed link was written down with another API key and cannot be opened.")
        if self._state.should_stop():
            raise StoppedError("The task was told to stop; the picture is paid for and the next try fetches it.")
        try:
            return self._tools.fetch(url)
        except LinkExpiredError as error:
            error.args = (f"{error} The API gave the link {_age(time.time() - given_at)} ago.",)
            raise

    def _lose(self, bought: Bought, number: int) -> ImagenError:
        """Count a picture that came inline and is not there any more, and make the error that tells of it."""
        paid = bought.paid
        share = paid.usd / len(paid.pictures) if paid.usd is not None else None
        if number in bought.stored:
            self._journal.append(facts.gone(bought.unit.key, number))
        self._state.add_loss(share)
        return lost_for_good(
            bought.unit, client_request_id=paid.client_request_id, inference_id=paid.inference_id, usd=share
        )


def _age(seconds: float) -> str:
    """Say how long ago something was, in the largest unit that fits."""
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} seconds"


def _unexpected(error: Exception, paid: Paid) -> StorageError:
    failure = StorageError(
        f"The picture could not be kept ({type(error).__name__}); the task's log has the details.",
        inference_id=paid.inference_id,
        client_request_id=paid.client_request_id,
        model=paid.model,
    )
    failure.__cause__ = error
    return failure
