"""Get the answer a slot is for: adopt what an earlier try paid for, or pay, once, for what is missing."""

from __future__ import annotations

import logging
import secrets
import time
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING

from msgspec import Struct, field

from airflow_provider_imagen.api.resending import MAX_POSTS, may_resend, resending
from airflow_provider_imagen.exceptions import (
    ImagenError,
    LostAnswerError,
    ModelWithdrawnError,
    RateLimitedError,
    StoppedError,
    UnreadableResponseError,
)
from airflow_provider_imagen.generation.losses import known_loss
from airflow_provider_imagen.journal import records as facts

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from airflow_provider_imagen.api.answers import Generation
    from airflow_provider_imagen.generation.budget import Budget
    from airflow_provider_imagen.generation.earlier import EarlierTries
    from airflow_provider_imagen.generation.options import RunOptions, Tools
    from airflow_provider_imagen.generation.pace import Pace
    from airflow_provider_imagen.generation.plan import Plan, Unit
    from airflow_provider_imagen.generation.settling import Settler
    from airflow_provider_imagen.generation.state import RunState
    from airflow_provider_imagen.journal.log import Journal
    from airflow_provider_imagen.journal.records import Paid, Stored
    from airflow_provider_imagen.journal.url_encryption import LinkSeal

log = logging.getLogger(__name__)

MAX_LOST_ANSWERS = 3
"""Answers of one request that may get lost within one try before it is left to the next try."""


class Bought(Struct, frozen=True):
    """
    What one unit brought, on its way from a buyer to a finisher.

    :param slot_number: which slot of the plan it is for
    :param offset: pictures that the units before it make for the same slot
    :param seconds: how long the request took
    :param inline: bytes of the pictures that came with the answer, by their place in it
    :param adopted: an earlier try paid for it
    :param stored: pictures that an earlier try stored, by their place in the answer
    :param noted: done once the answer is durable, ``None`` when it has been for long; nothing may happen to it before
    """

    slot_number: int
    offset: int
    unit: Unit
    paid: Paid
    seconds: float = 0.0
    inline: dict[int, bytes] = field(default_factory=dict)
    adopted: bool = False
    stored: dict[int, Stored] = field(default_factory=dict)
    noted: Future[None] | None = None


class Buyer:
    """
    Sees slots through until they are answered; for any number of threads.

    :param earlier: what earlier tries did
    :param settler: decides about lost answers
    :param hand_over: takes what was bought, as soon as it is
    """

    def __init__(
        self,
        *,
        plan: Plan,
        tools: Tools,
        journal: Journal,
        options: RunOptions,
        links: LinkSeal,
        state: RunState,
        budget: Budget,
        pace: Pace,
        earlier: EarlierTries,
        settler: Settler,
        hand_over: Callable[[Bought], None],
    ) -> None:
        self._plan = plan
        self._tools = tools
        self._journal = journal
        self._options = options
        self._links = links
        self._state = state
        self._budget = budget
        self._pace = pace
        self._earlier = earlier
        self._settler = settler
        self._hand_over = hand_over

    def see_through(self, number: int) -> None:
        """Get what a slot is for, and note what went wrong."""
        try:
            self._buy_slot(number)
        except StoppedError:
            return
        except ImagenError as error:
            self._state.note_error(number, error)
            self._state.weigh(error)

    def _buy_slot(self, number: int) -> None:
        """Get what a slot is for from the first model that is there."""
        for units in (choices := self._earlier.in_order_of_use(self._plan.slots[number])):
            offset = 0
            try:
                for unit in units:
                    self._hand_over(self._obtain(number, offset, unit))
                    offset += unit.request.expected_images
            except ModelWithdrawnError as error:
                self._state.note_withdrawn(units[0].model, error)
                if offset or units is choices[-1]:  # what this model has made already is not bought again elsewhere
                    raise
            else:
                return

    def _obtain(self, number: int, offset: int, unit: Unit) -> Bought:
        """Adopt what was paid for, or pay for it."""
        self._settler.await_verdicts(unit)
        entry = self._earlier.entries.get(unit.key)
        if entry is not None and entry.paid is not None and self._earlier.is_paid(unit):
            return Bought(number, offset, unit, entry.paid, adopted=True, stored=entry.stored)
        if entry is not None and self._earlier.is_lost(unit):
            raise known_loss(unit, *entry.lost.values())
        for _ in range(MAX_LOST_ANSWERS):
            if (bought := self._pay(number, offset, unit)) is not None:
                return bought
        raise LostAnswerError(
            f"{MAX_LOST_ANSWERS} answers of this request got lost, one after the other; the next try sends it again.",
            model=unit.model,
        )

    def _pay(self, number: int, offset: int, unit: Unit) -> Bought | None:
        """
        Send a unit until it is answered, resending only what certainly bought nothing; see :meth:`_post`.

        A request that was answered 429 waits for another turn, however often, as long as others get through.
        """
        item = self._plan.slots[number].item

        def on_refused(error: ImagenError, seconds: float) -> None:
            log.warning("Prompt %d: %s Sending it again in %.1f s.", item, error, seconds)

        again = resending(
            wait=self._pace.wait,
            on_refused=on_refused,
            first_wait_seconds=self._options.first_wait_seconds,
            without=(RateLimitedError,),
        )
        times_limited, limited_at = 0, 0.0
        while True:
            try:
                return again(self._post, number, offset, unit)
            except RateLimitedError as error:
                times_limited += 1
                limited_at = limited_at or time.monotonic()
                patience = self._options.rate_limit_patience_seconds
                is_singled_out = times_limited >= MAX_POSTS and time.monotonic() - limited_at >= patience
                if is_singled_out or self._pace.refused_for_seconds >= patience or not may_resend(error):
                    raise
                log.info("Prompt %d: %s It is sent again at its next turn.", item, error)

    def _post(self, number: int, offset: int, unit: Unit) -> Bought | None:
        """
        Send one POST: intent durable before, answer on its way into the journal after.

        The buyer does not wait for the answer's note, for the next intent, which it does wait for, stands behind it in
        the same journal: no request goes out before the answer to the one before is durable.

        :return: ``None`` when the answer was lost and the request may be sent again
        """
        self._state.refuse_withdrawn(unit.model)
        images = unit.request.expected_images
        reservation = self._budget.reserve(model=unit.model, expected_usd=unit.expected_usd, pictures=images)
        charged: Decimal | None = Decimal(0)
        try:
            lost: LostAnswerError | None = None
            turn = self._pace.turn(partial(self._announce, unit), undo=partial(self._note_nothing, unit))
            with turn as client_request_id:
                started, sent_at, charged = time.monotonic(), time.time(), None
                try:
                    if self._state.is_over():
                        raise StoppedError("The task was told to stop; nothing new was sent.")
                    generation = self._tools.generate(unit.request, client_request_id)
                except LostAnswerError as error:
                    lost = error
                except ImagenError as error:
                    charged = self._note_refusal(unit, client_request_id, error)
                    raise
                seconds = time.monotonic() - started
            if lost is not None:
                verdict = self._settler.judge(unit, client_request_id, lost, sent_at=sent_at, lost_at=time.time())
                charged = verdict.charged_usd
                if verdict.error is not None:
                    raise verdict.error
                return None
            paid, noted = self._note_paid(unit, client_request_id, generation)
            charged = paid.usd
        finally:
            self._budget.settle(reservation, actual_usd=charged)
        inline = {place: picture.data for place, picture in enumerate(generation.pictures) if picture.data is not None}
        return Bought(number, offset, unit, paid, seconds, inline=inline, noted=noted)

    def _announce(self, unit: Unit) -> str:
        """Make it durable that a POST is about to be sent, and give its id."""
        client_request_id = f"imagen.{unit.key.partition('#')[0]}.{secrets.token_hex(8)}"
        self._journal.commit(
            facts.intent(unit.key, client_request_id=client_request_id, model=unit.model, usd=unit.expected_usd)
        )
        return client_request_id

    def _note_nothing(self, unit: Unit, client_request_id: str) -> None:
        """Write down that an announced POST was not sent, or that the API did nothing for it."""
        self._journal.append(facts.refused(unit.key, client_request_id=client_request_id))

    def _note_refusal(self, unit: Unit, client_request_id: str, error: ImagenError) -> Decimal | None:
        """
        Write down that a POST brought nothing, and give what it cost all the same.

        An error answer bills nothing (spec of ``GET /v2/logs``, 2026-08-21), also when it comes with a status of
        success, unless it states a cost. A success that cannot be read is taken for billed.
        """
        usd = Decimal(str(error.usd)) if error.usd is not None else None
        is_success = error.status is not None and 200 <= error.status < 300
        if is_success and usd is None and isinstance(error, UnreadableResponseError):
            usd = self._state.cost_of(unit, None)
        elif not is_success or not usd:
            self._note_nothing(unit, client_request_id)
            return Decimal(0)
        self._settler.note_lost(unit.key, client_request_id, inference_id=error.inference_id, usd=usd)
        return usd

    def _note_paid(self, unit: Unit, client_request_id: str, generation: Generation) -> tuple[Paid, Future[None]]:
        """Hand an answer in to the journal, and give it with what is done once it is durable."""
        paid = facts.Paid(
            client_request_id=client_request_id,
            pictures=tuple(
                facts.PaidPicture(
                    url=self._links.close(picture.url) if picture.url else None,
                    prompt=picture.prompt,
                    seed=picture.seed if picture.seed is not None else unit.request.body.get("seed"),
                    withheld=picture.withheld,
                    broken=picture.broken,
                )
                for picture in generation.pictures
            ),
            usd=self._state.cost_of(unit, generation.usd),
            usd_is_estimate=generation.usd is None,
            inference_id=generation.inference_id,
            model=unit.model,
            at=round(time.time(), 3),
        )
        entry = self._earlier.entries.get(unit.key)
        if entry is not None and entry.paid is not None:  # bought again: what the first answer cost is lost
            self._state.add_loss(entry.paid.usd)
        return paid, self._journal.append(paid.to_fact(unit.key))
