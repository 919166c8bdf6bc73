"""
See a plan through: buy each request once, fetch and keep its pictures, and know at any moment what was paid.

Two groups of threads work side by side. *Buyers* take slots of the plan, look into the journal for what earlier tries
paid, and send the rest; ``concurrency`` of them, so that many requests are in flight. *Finishers* download, check and
store, so that this work runs beside the waiting. A short queue between them bounds the pictures in memory.
"""

from __future__ import annotations

import logging
import queue
import secrets
import threading
import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

from airflow_provider_imagen.api.money import read_amount
from airflow_provider_imagen.api.resending import FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS, resending
from airflow_provider_imagen.exceptions import (
    AuthenticationError,
    BudgetExceededError,
    ChargedButLostError,
    ConnectionFailedError,
    ImagenError,
    JournalError,
    LinkExpiredError,
    LostAnswerError,
    ModelWithdrawnError,
    OutOfCreditsError,
    RateLimitedError,
    ServerError,
    StoppedError,
    StorageError,
    UnreadableResponseError,
)
from airflow_provider_imagen.generation import facts
from airflow_provider_imagen.generation.budget import Budget
from airflow_provider_imagen.generation.charges import ChargeLookup
from airflow_provider_imagen.generation.pace import Pace, sleep_unless
from airflow_provider_imagen.generation.results import (
    Failure,
    Made,
    Record,
    RunResult,
    SlotResult,
    describe_picture,
    withheld_error,
    worst_error,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow_provider_imagen.api.answers import Generation
    from airflow_provider_imagen.api.request import ImageRequest
    from airflow_provider_imagen.generation.budget import Reservation
    from airflow_provider_imagen.generation.facts import Paid, PaidPicture, Stored
    from airflow_provider_imagen.generation.journal import Journal
    from airflow_provider_imagen.generation.plan import Item, Plan, Slot, Unit
    from airflow_provider_imagen.generation.sealing import LinkSeal

log = logging.getLogger(__name__)

OnLostAnswer = Literal["check", "resend", "fail"]

MAX_FINISHERS = 8
"""Threads that download, check and store; more would only queue for the interpreter and the disk."""

MAX_LOST_ANSWERS = 3
"""Answers of one request that may get lost within one try before it is left to the next try."""

MAX_STORAGE_FAILURES = 3
"""Pictures that may fail to be written one after the other before buying more of them ends."""

_MEETS_ALL = (
    AuthenticationError,
    OutOfCreditsError,
    BudgetExceededError,
    JournalError,
    RateLimitedError,
    ConnectionFailedError,
)
"""Errors that would meet every further request too."""


class Tools(Protocol):
    """What a run needs of the world."""

    stores: bool
    """Whether pictures are stored at all."""

    def generate(self, request: ImageRequest, client_request_id: str) -> Generation:
        """Send one paid request, once."""

    def fetch(self, url: str) -> bytes:
        """Download one picture."""

    def save(self, data: bytes, *, item: Item, image_index: int, paid: Paid, picture: PaidPicture) -> Stored:
        """Check and store one picture under its deterministic name."""

    def is_stored(self, stored: Stored) -> bool:
        """Say whether a picture that an earlier try stored is still there and whole."""

    def iter_request_logs(self, **window: Any) -> Iterator[dict[str, Any]]:
        """Give the rows of the API's request log."""


@dataclass(frozen=True)
class RunOptions:
    """
    How a run behaves.

    :param concurrency: requests in flight, 1 or more
    :param requests_per_minute: most requests started in a minute; ``None`` for no limit
    :param max_usd: cap over all tries, in USD
    :param on_lost_answer: what to do when an answer is lost: look it up, send again, or give the item up
    :param lost_answer_patience_seconds: how long the API's log may take to show a request
    :param first_wait_seconds: wait before a refused request is sent again when the API asks for none; it doubles
    :param grace_seconds: how long answers in flight are awaited when the task is told to stop; Airflow kills after 5
    """

    concurrency: int = 4
    requests_per_minute: float | None = None
    max_usd: Decimal | None = None
    on_lost_answer: OnLostAnswer = "check"
    lost_answer_patience_seconds: float = 90.0
    first_wait_seconds: float = FIRST_WAIT_SECONDS
    grace_seconds: float = 4.0


@dataclass(frozen=True)
class _Bought:
    """
    What one unit brought, on its way from a buyer to a finisher.

    :param slot_number: which slot of the plan it is for
    :param offset: pictures that the units before it make for the same slot
    :param seconds: how long the request took
    :param inline: bytes of the pictures that came with the answer, by their place in it
    :param adopted: an earlier try paid for it
    :param stored: pictures that an earlier try stored, by their place in the answer
    """

    slot_number: int
    offset: int
    unit: Unit
    paid: Paid
    seconds: float = 0.0
    inline: dict[int, bytes] = field(default_factory=dict)
    adopted: bool = False
    stored: dict[int, Stored] = field(default_factory=dict)


@dataclass(frozen=True)
class _Doubt:
    """
    A POST of an earlier try whose outcome nobody knows yet.

    :param sent_at: when, in seconds since the epoch
    :param reservation: the money set aside for it
    :param verdict: done once it may be sent again, or fails with the reason why not
    """

    unit: Unit
    client_request_id: str
    sent_at: float
    reservation: Reservation
    verdict: Future[None] = field(default_factory=Future)


@dataclass(frozen=True)
class _Verdict:
    """
    What became of a POST without an answer.

    :param charged_usd: what it was charged; ``None`` when nobody knows
    :param error: why it is not sent again; ``None`` when it may be
    """

    charged_usd: Decimal | None
    error: LostAnswerError | None = None


class Run:
    """
    One try of a task.

    :param plan: what to buy
    :param tools: what to buy and keep it with
    :param journal: open; holds what earlier tries did
    :param options: how to behave
    :param links: seals signed links before they are written down
    :param should_stop: asked often; true when the task is being killed
    :param on_picture: told each picture that is done: its record, seconds the request took, pictures done so far
    """

    def __init__(
        self,
        *,
        plan: Plan,
        tools: Tools,
        journal: Journal,
        options: RunOptions,
        links: LinkSeal,
        should_stop: Callable[[], bool] = lambda: False,
        on_picture: Callable[[Record, float, int], None] = lambda *_: None,
    ) -> None:
        self._plan = plan
        self._tools = tools
        self._journal = journal
        self._options = options
        self._links = links
        self._asked_to_stop = should_stop
        self._on_picture = on_picture
        self._stopping = threading.Event()
        self._abandoned = threading.Event()
        self._lock = threading.Lock()
        self._crash: BaseException | None = None
        self._halt: ImagenError | None = None
        self._withdrawn: dict[str, ModelWithdrawnError] = {}
        self._results: dict[int, SlotResult] = {}
        self._done = 0
        self._storage_failures = 0
        earlier = journal.entries.values()
        self._usd_lost = sum((entry.usd_lost for entry in earlier), Decimal(0))
        self._usd_is_estimate = any(entry.paid.usd_is_estimate for entry in earlier if entry.paid)
        self._budget = Budget(
            max_usd=options.max_usd,
            spent_usd=sum((entry.usd_spent for entry in earlier), Decimal(0)),
            should_stop=self._is_over,
        )
        self._pace = Pace(
            concurrency=options.concurrency,
            requests_per_minute=options.requests_per_minute,
            should_stop=self._is_over,
        )
        self._charges = ChargeLookup(
            iter_request_logs=tools.iter_request_logs,
            wait=partial(sleep_unless, self._should_stop),  # goes on when buying is over: what was paid is to be known
            patience_seconds=options.lost_answer_patience_seconds,
        )
        self._doubts = {
            unit.key: [self._doubt(unit, fact) for fact in entry.open_intents.values()]
            for unit in plan.units
            if (entry := journal.entries.get(unit.key)) is not None and entry.open_intents
        }
        self._unsettled = self._unsettled_of_earlier_tries()
        self._work = self._things_to_do()
        self._buyers = min(options.concurrency, len(plan.slots))
        self._finishers = min(MAX_FINISHERS, 2 * self._buyers)
        self._bought: queue.Queue[_Bought | None] = queue.Queue(maxsize=2 * MAX_FINISHERS)

    def execute(self) -> RunResult:
        """
        Buy, fetch and keep everything, and say what came of it. To be called once.

        Failures of items are in the result; only what no result could tell is raised.

        :raises BudgetExceededError: the plan cannot fit under ``max_usd``; nothing was sent
        """
        started = time.monotonic()
        self._refuse_what_cannot_fit()
        threads = self._start(self._buy, self._buyers, "imagen-buyer")
        threads += self._start(self._finish_bought, self._finishers, "imagen-finisher")
        try:
            self._join(threads)
        except BaseException:  # Airflow's time-out arrives here, in the main thread
            self._stopping.set()
            self._join(threads)
            raise
        if self._crash is not None:
            raise self._crash
        self._look_for_late_charges()
        return self._result(time.monotonic() - started)

    # --- money before the first request -------------------------------------------------------------------------------

    def _refuse_what_cannot_fit(self) -> None:
        cap = self._options.max_usd
        if cap is None:
            return
        to_buy = {number: self._units_to_buy(slot) for number, slot in enumerate(self._plan.slots)}
        prices = [unit.expected_usd for units in to_buy.values() for unit in units]
        spent = self._budget.spent_usd
        known = [price for price in prices if price is not None]
        if len(known) < len(prices) or not any(known) or spent + sum(known, Decimal(0)) <= cap:
            return
        left = {self._plan.slots[number].item for number, units in to_buy.items() if units}
        raise BudgetExceededError(
            f"max_usd={cap}: {spent:.4f} USD are spent and what is left to make costs about "
            f"{sum(known, Decimal(0)):.4f}. Nothing was sent.",
            spent_usd=float(spent),
            max_usd=float(cap),
            items_done=len(self._plan.items) - len(left),
            items_left=len(left),
        )

    def _units_to_buy(self, slot: Slot) -> list[Unit]:
        """List what this try would have to pay for, unless its model is withdrawn."""
        return [unit for unit in self._in_order_of_use(slot)[0] if not self._is_paid(unit) and not self._is_lost(unit)]

    def _is_paid(self, unit: Unit) -> bool:
        """Say whether there is an answer to adopt; one whose pictures are gone is no answer if it may be resent."""
        entry = self._journal.entries.get(unit.key)
        if entry is None or entry.paid is None:
            return False
        return not (self._options.on_lost_answer == "resend" and entry.has_unreachable_pictures)

    def _is_lost(self, unit: Unit) -> bool:
        """Say whether an earlier try was charged for a lost answer, and it is not to be bought again."""
        entry = self._journal.entries.get(unit.key)
        return entry is not None and bool(entry.lost) and self._options.on_lost_answer != "resend"

    # --- threads ------------------------------------------------------------------------------------------------------

    def _start(self, work: Callable[[], None], count: int, name: str) -> list[threading.Thread]:
        """Start daemon threads: a request that hangs must not keep a killed task's process alive."""

        def guarded() -> None:
            try:
                work()
            except BaseException as error:
                with self._lock:
                    self._crash = self._crash or error
                self._stopping.set()

        threads = [threading.Thread(target=guarded, name=f"{name}-{number}", daemon=True) for number in range(count)]
        for thread in threads:
            thread.start()
        return threads

    def _join(self, threads: list[threading.Thread]) -> None:
        """Wait for threads; once the task is told to stop, only for the grace time in all."""
        give_up_at: float | None = None
        for thread in threads:
            while thread.is_alive():
                if give_up_at is None and self._should_stop():
                    give_up_at = time.monotonic() + self._options.grace_seconds
                if give_up_at is not None and time.monotonic() >= give_up_at:
                    self._abandoned.set()
                    return
                thread.join(0.1)

    def _should_stop(self) -> bool:
        return self._stopping.is_set() or self._asked_to_stop()

    def _is_over(self) -> bool:
        """Say whether nothing more is to be bought, although what is under way may still be finished."""
        return self._halt is not None or self._should_stop()

    def _put(self, bought: _Bought | None) -> None:
        """Hand over to the finishers; what nobody is there to take any more stays in the journal."""
        while self._crash is None and not self._abandoned.is_set():
            try:
                self._bought.put(bought, timeout=0.2)
            except queue.Full:
                continue
            return

    # --- buyers -------------------------------------------------------------------------------------------------------

    def _things_to_do(self) -> Iterator[Callable[[], None]]:
        """
        Order the work: first the doubts of earlier tries, then the slots.

        A slot waits for the doubts about its own requests. All doubts are in someone's hands before the first slot is,
        so that wait always ends.
        """
        for doubts in self._doubts.values():
            for doubt in doubts:
                yield partial(self._settle_doubt, doubt)
        for number in range(len(self._plan.slots)):
            yield partial(self._see_through, number)

    def _buy(self) -> None:
        try:
            while True:
                with self._lock:
                    thing = None if self._is_over() else next(self._work, None)
                if thing is None:
                    return
                thing()
        finally:
            with self._lock:
                self._buyers -= 1
                is_last = self._buyers == 0
            if is_last:
                for _ in range(self._finishers):
                    self._put(None)

    def _end_early(self, error: ImagenError) -> None:
        with self._lock:
            self._halt = self._halt or error

    def _see_through(self, number: int) -> None:
        """Get what a slot is for, and note what went wrong."""
        try:
            self._buy_slot(number)
        except StoppedError:
            return
        except ImagenError as error:
            self._note_error(number, error)
            if _ends_the_task(error):
                self._end_early(error)

    def _buy_slot(self, number: int) -> None:
        """Get what a slot is for from the first model that is there."""
        for units in (choices := self._in_order_of_use(self._plan.slots[number])):
            offset = 0
            try:
                for unit in units:
                    self._put(self._obtain(number, offset, unit))
                    offset += unit.request.expected_images
            except ModelWithdrawnError as error:
                self._note_withdrawn(units[0].model, error)
                if offset or units is choices[-1]:  # what this model has made already is not bought again elsewhere
                    raise
            else:
                return

    def _note_withdrawn(self, model: str, error: ModelWithdrawnError) -> None:
        with self._lock:
            is_news = model not in self._withdrawn
            self._withdrawn.setdefault(model, error)
        if is_news:
            log.warning("%s", error)

    def _in_order_of_use(self, slot: Slot) -> list[tuple[Unit, ...]]:
        """Put the model first that an earlier try paid for this slot, then one that it at least sent the slot to."""

        def rank(units: tuple[Unit, ...]) -> int:
            entries = [entry for unit in units if (entry := self._journal.entries.get(unit.key)) is not None]
            if any(entry.paid for entry in entries):
                return 0
            return 1 if any(entry.open_intents or entry.lost for entry in entries) else 2

        return sorted(slot.choices, key=rank)

    def _obtain(self, number: int, offset: int, unit: Unit) -> _Bought:
        """Adopt what was paid for, or pay for it."""
        for doubt in self._doubts.get(unit.key, ()):
            doubt.verdict.result()
        entry = self._journal.entries.get(unit.key)
        if entry is not None and entry.paid is not None and self._is_paid(unit):
            return _Bought(number, offset, unit, entry.paid, adopted=True, stored=entry.stored)
        if entry is not None and self._is_lost(unit):
            raise _known_loss(unit, *entry.lost.values())
        for _ in range(MAX_LOST_ANSWERS):
            if (bought := self._pay(number, offset, unit)) is not None:
                return bought
        raise LostAnswerError(
            f"{MAX_LOST_ANSWERS} answers of this request got lost, one after the other; the next try sends it again.",
            model=unit.model,
        )

    def _pay(self, number: int, offset: int, unit: Unit) -> _Bought | None:
        """Send a unit until it is answered, resending only what certainly bought nothing; see :meth:`_post`."""

        def on_refused(error: ImagenError, seconds: float) -> None:
            if isinstance(error, RateLimitedError):
                self._pace.slow_down(seconds)
            item = self._plan.slots[number].item
            log.warning("Prompt %d: %s Sending it again in %.1f s.", item, error, seconds)

        again = resending(
            wait=self._pace.wait, on_refused=on_refused, first_wait_seconds=self._options.first_wait_seconds
        )
        return again(self._post, number, offset, unit)

    def _post(self, number: int, offset: int, unit: Unit) -> _Bought | None:
        """
        Send one POST: intent durable before, answer durable after.

        :return: ``None`` when the answer was lost and the request may be sent again
        """
        self._refuse_withdrawn(unit.model)
        images = unit.request.expected_images
        reservation = self._budget.reserve(model=unit.model, expected_usd=unit.expected_usd, pictures=images)
        charged: Decimal | None = Decimal(0)
        try:
            client_request_id = f"imagen.{unit.key.partition('#')[0]}.{secrets.token_hex(8)}"
            lost: LostAnswerError | None = None
            with self._pace.turn():
                self._journal.commit(
                    facts.intent(unit.key, client_request_id=client_request_id, model=unit.model, usd=unit.expected_usd)
                )
                started, sent_at, charged = time.monotonic(), time.time(), None
                try:
                    if self._is_over():
                        raise StoppedError("The task was told to stop; nothing new was sent.")
                    generation = self._tools.generate(unit.request, client_request_id)
                except LostAnswerError as error:
                    lost = error
                except ImagenError as error:
                    charged = self._note_refusal(unit, client_request_id, error)
                    raise
                seconds = time.monotonic() - started
            if lost is not None:
                verdict = self._judge(unit, client_request_id, lost, sent_at=sent_at, lost_at=time.time())
                charged = verdict.charged_usd
                if verdict.error is not None:
                    raise verdict.error
                return None
            self._pace.speed_up()
            paid = self._note_paid(unit, client_request_id, generation)
            charged = paid.usd
        finally:
            self._budget.settle(reservation, actual_usd=charged)
        inline = {place: picture.data for place, picture in enumerate(generation.pictures) if picture.data is not None}
        return _Bought(number, offset, unit, paid, seconds, inline=inline)

    def _refuse_withdrawn(self, model: str) -> None:
        if (gone := self._withdrawn.get(model)) is not None:
            raise ModelWithdrawnError(str(gone), replaced_by=gone.replaced_by, model=model, status=gone.status)

    def _note_refusal(self, unit: Unit, client_request_id: str, error: ImagenError) -> Decimal | None:
        """
        Write down that a POST brought nothing, and give what it cost all the same.

        An error answer bills nothing (spec of ``GET /v2/logs``, 2026-08-21), also when it comes with a status of
        success, unless it states a cost. A success that cannot be read is taken for billed.
        """
        usd = Decimal(str(error.usd)) if error.usd is not None else None
        is_success = error.status is not None and 200 <= error.status < 300
        if is_success and usd is None and isinstance(error, UnreadableResponseError):
            usd = self._estimate(unit)
        elif not is_success or not usd:
            self._journal.append(facts.refused(unit.key, client_request_id=client_request_id))
            return Decimal(0)
        self._note_lost(unit.key, client_request_id, inference_id=error.inference_id, usd=usd)
        return usd

    def _estimate(self, unit: Unit) -> Decimal | None:
        """Take the known price for a cost that the API does not state."""
        with self._lock:
            self._usd_is_estimate = True
        return unit.expected_usd

    def _note_paid(self, unit: Unit, client_request_id: str, generation: Generation) -> Paid:
        """Make an answer durable. When that fails, its pictures are kept all the same and nothing more is bought."""
        paid = facts.Paid(
            client_request_id=client_request_id,
            pictures=tuple(
                facts.PaidPicture(
                    url=self._links.close(picture.url) if picture.url else None,
                    prompt=picture.prompt,
                    seed=picture.seed,
                    withheld=picture.withheld,
                    broken=picture.broken,
                )
                for picture in generation.pictures
            ),
            usd=generation.usd if generation.usd is not None else self._estimate(unit),
            usd_is_estimate=generation.usd is None,
            inference_id=generation.inference_id,
            model=unit.model,
            at=round(time.time(), 3),
        )
        entry = self._journal.entries.get(unit.key)
        if entry is not None and entry.paid is not None:  # bought again: what the first answer cost is lost
            with self._lock:
                self._usd_lost += entry.paid.usd or Decimal(0)
        try:
            self._journal.commit(paid.to_fact(unit.key))
        except JournalError as error:
            self._end_early(error)
        return paid

    # --- lost answers -------------------------------------------------------------------------------------------------

    def _doubt(self, unit: Unit, intent: facts.Fact) -> _Doubt:
        usd = read_amount(intent.get("usd"))
        reservation = self._budget.promise(model=unit.model, usd=usd, pictures=unit.request.expected_images)
        return _Doubt(unit, intent["id"], intent["at"], reservation)

    def _unsettled_of_earlier_tries(self) -> dict[str, tuple[str, float]]:
        """Find POSTs that may still turn up as billed: taken for unbilled, or sent for a prompt that is gone."""
        unsettled: dict[str, tuple[str, float]] = {}
        for key, entry in self._journal.entries.items():
            loose = entry.unbilled if key in self._doubts else {**entry.unbilled, **entry.open_intents}
            unsettled |= {name: (key, fact["at"]) for name, fact in loose.items() if "at" in fact}
        return unsettled

    def _settle_doubt(self, doubt: _Doubt) -> None:
        """Find out what became of a POST of an earlier try, for the slot that waits for it."""
        cause = LostAnswerError(
            "An earlier try ended while this request was on its way.",
            client_request_id=doubt.client_request_id,
            model=doubt.unit.model,
        )
        # Nobody saw its answer get lost: the API may have worked on it for as long again as its log takes to show it.
        lost_at = doubt.sent_at + self._options.lost_answer_patience_seconds
        charged: Decimal | None = None
        try:
            verdict = self._judge(doubt.unit, doubt.client_request_id, cause, sent_at=doubt.sent_at, lost_at=lost_at)
            charged = verdict.charged_usd
            if verdict.error is not None:
                raise verdict.error
            doubt.verdict.set_result(None)
        except ImagenError as error:
            doubt.verdict.set_exception(error)
            if _ends_the_task(error):
                self._end_early(error)
        except BaseException as error:
            doubt.verdict.set_exception(error)
            raise
        finally:
            self._budget.settle(doubt.reservation, actual_usd=charged)

    def _judge(
        self, unit: Unit, client_request_id: str, cause: LostAnswerError, *, sent_at: float, lost_at: float
    ) -> _Verdict:
        """
        Decide about a POST without an answer: look it up if the author wants that, and note the outcome.

        :raises StoppedError: the task was told to stop before there was a verdict
        """
        cause.client_request_id, cause.model = client_request_id, unit.model
        if self._options.on_lost_answer == "fail":
            cause.retry_helps = False
            return _Verdict(None, cause)
        charged: Decimal | None = None
        if self._options.on_lost_answer == "check":
            log.warning("%s Looking the request up in the API's log (%s).", cause, client_request_id)
            try:
                charge = self._charges.find(client_request_id, sent_at=sent_at, lost_at=lost_at)
            except StoppedError:
                raise
            except ImagenError as error:
                return _Verdict(None, _unknown(unit, client_request_id, cause, error))
            if charge is not None and charge.billed:
                usd = charge.usd if charge.usd is not None else self._estimate(unit)
                self._note_lost(unit.key, client_request_id, inference_id=charge.inference_id, usd=usd)
                return _Verdict(usd, _lost_for_good(unit, client_request_id, charge.inference_id, usd))
            charged = Decimal(0)
            if charge is not None:
                self._journal.commit(facts.refused(unit.key, client_request_id=client_request_id))
                return _Verdict(charged)
        self._journal.commit(facts.unbilled(unit.key, client_request_id=client_request_id))
        with self._lock:
            self._unsettled[client_request_id] = (unit.key, sent_at)
        return _Verdict(charged)

    def _note_lost(self, key: str, client_request_id: str, *, inference_id: str | None, usd: Decimal | None) -> None:
        self._journal.append(facts.lost(key, client_request_id=client_request_id, inference_id=inference_id, usd=usd))
        with self._lock:
            self._usd_lost += usd or Decimal(0)

    def _look_for_late_charges(self) -> None:
        """Look a last time for POSTs taken for never billed, so that a charge that came late is at least counted."""
        if not self._unsettled or self._should_stop():
            return
        sent = {client_request_id: sent_at for client_request_id, (_, sent_at) in self._unsettled.items()}
        for client_request_id, charge in self._charges.look_once(sent).items():
            if not charge.billed:
                continue
            log.error(
                "A request taken for lost was billed after all: %s USD, inference id %s, client request id %s.",
                charge.usd,
                charge.inference_id,
                client_request_id,
            )
            key, _ = self._unsettled[client_request_id]
            self._note_lost(key, client_request_id, inference_id=charge.inference_id, usd=charge.usd)
            self._budget.add(charge.usd or Decimal(0))

    # --- finishers ----------------------------------------------------------------------------------------------------

    def _finish_bought(self) -> None:
        while (bought := self._bought.get()) is not None:
            self._finish(bought)

    def _finish(self, bought: _Bought) -> None:
        """Keep the pictures of one paid request; each failure is noted, and the other pictures are kept."""
        paid, slot = bought.paid, self._plan.slots[bought.slot_number]
        item, requested = self._plan.items[slot.item], bought.unit.request.expected_images
        flagged = 0
        for number, picture in enumerate(paid.pictures):
            if picture.withheld:
                flagged += 1
                continue
            beyond, place = divmod(number, requested)
            image_index = slot.first_image + bought.offset + place + beyond * item.images  # extra ones come behind
            try:
                self._keep(bought, number, picture, image_index=image_index)
            except ImagenError as error:
                error.inference_id = error.inference_id or paid.inference_id
                error.client_request_id = error.client_request_id or paid.client_request_id
                error.model = error.model or paid.model
                self._note_error(bought.slot_number, error)
                self._note_storage(error)
            except Exception as error:  # it must not take the other pictures down
                log.exception("A picture of prompt %d could not be kept.", slot.item)
                self._note_error(bought.slot_number, _unexpected(error, paid))
        made = len(paid.pictures) - flagged
        if made < requested:
            withheld = withheld_error(requested=requested, made=made, flagged=flagged, paid=paid)
            self._note_error(bought.slot_number, withheld)

    def _keep(self, bought: _Bought, number: int, picture: PaidPicture, *, image_index: int) -> None:
        """Bring one picture to safety and describe it."""
        paid, item = bought.paid, self._plan.items[self._plan.slots[bought.slot_number].item]
        if picture.broken:
            raise UnreadableResponseError(f"Picture {number} of the answer is {picture.broken}.", status=200)
        url = self._links.open(picture.url) if picture.url else None
        stored = bought.stored.get(number)
        if stored is None or not self._tools.is_stored(stored):
            stored = self._store(bought, number, picture, url, image_index)
        made = describe_picture(item=item, image_index=image_index, url=url, paid=paid, picture=picture, stored=stored)
        with self._lock:
            result = self._results.setdefault(bought.slot_number, SlotResult())
            result.made.append(made)
            result.adopted += bought.adopted
            self._done += 1
            done = self._done
        try:
            self._on_picture(made.record, bought.seconds, done)
        except Exception:  # the picture is safe, whoever listens
            log.exception("The report of a finished picture failed.")

    def _store(
        self, bought: _Bought, number: int, picture: PaidPicture, url: str | None, image_index: int
    ) -> Stored | None:
        """Store one picture, if pictures are stored at all."""
        paid, item = bought.paid, self._plan.items[self._plan.slots[bought.slot_number].item]
        data = bought.inline.pop(number, None)
        if picture.is_inline and (data is None or not self._tools.stores):
            share = paid.usd / len(paid.pictures) if paid.usd is not None else None
            if number in bought.stored:
                self._journal.append(facts.gone(bought.unit.key, number))
            with self._lock:
                self._usd_lost += share or Decimal(0)
            raise _lost_for_good(bought.unit, paid.client_request_id, paid.inference_id, share)
        if not self._tools.stores:
            return None
        if data is None:
            if url is None:
                raise LinkExpiredError("The signed link was written down with another API key and cannot be opened.")
            if self._should_stop():
                raise StoppedError("The task was told to stop; the picture is paid for and the next try fetches it.")
            data = self._tools.fetch(url)
        stored = self._tools.save(data, item=item, image_index=image_index, paid=paid, picture=picture)
        with self._lock:
            self._storage_failures = 0
        self._journal.append(stored.to_fact(bought.unit.key, number))
        return stored

    def _note_storage(self, error: ImagenError) -> None:
        """Stop buying what cannot be stored; a single failure may be chance."""
        if not isinstance(error, StorageError):
            return
        with self._lock:
            self._storage_failures += 1
            is_chance = self._storage_failures < MAX_STORAGE_FAILURES
        if not is_chance:
            self._end_early(error)

    def _note_error(self, number: int, error: ImagenError) -> None:
        with self._lock:
            self._results.setdefault(number, SlotResult()).errors.append(error)

    # --- the end ------------------------------------------------------------------------------------------------------

    def _result(self, seconds: float) -> RunResult:
        made: list[Made] = []
        errors: dict[int, list[ImagenError]] = {}
        unsent: set[int] = set()
        adopted = 0
        with self._lock:  # threads that outlived the grace time may still write
            for number, slot in enumerate(self._plan.slots):
                result = self._results.get(number, SlotResult())
                failed = [error for error in result.errors if not isinstance(error, StoppedError)]
                if failed:
                    errors.setdefault(slot.item, []).extend(failed)
                if len(failed) < len(result.errors) or not (failed or result.made):
                    unsent.add(slot.item)
                adopted += result.adopted
                made += result.made
            halt, usd_lost = self._halt, self._usd_lost
        made.sort(key=lambda each: (each.record["prompt_index"], each.record["image_index"]))
        counts = Counter(each.record["prompt_index"] for each in made)
        not_sent = sorted(unsent - errors.keys())
        if halt is None and not_sent and self._should_stop():
            halt = StoppedError("The task was told to stop; what was paid is kept for the next try.")
        return RunResult(
            plan=self._plan,
            made=made,
            failures=[
                Failure(self._plan.items[item], worst_error(failed), counts[item])
                for item, failed in sorted(errors.items())
            ],
            not_sent=[self._plan.items[item] for item in not_sent],
            adopted=adopted,
            halt=halt,
            usd_spent=self._budget.spent_usd,
            usd_lost=usd_lost,
            usd_is_estimate=self._usd_is_estimate,
            seconds=seconds,
        )


def _ends_the_task(error: ImagenError) -> bool:
    """Say whether an error would meet every further request too; raised only after the resends are used up."""
    if isinstance(error, ServerError):  # it asks for a longer wait than the task makes
        return error.retry_after is not None and error.retry_after > LONGEST_WAIT_SECONDS
    return isinstance(error, _MEETS_ALL)


def _unknown(unit: Unit, client_request_id: str, cause: LostAnswerError, error: ImagenError) -> LostAnswerError:
    return LostAnswerError(
        f"{cause} Whether it was billed could not be looked up: {error}",
        client_request_id=client_request_id,
        inference_id=cause.inference_id,
        model=unit.model,
    )


def _unexpected(error: Exception, paid: Paid) -> StorageError:
    failure = StorageError(
        f"The picture could not be kept ({type(error).__name__}); the task's log has the details.",
        inference_id=paid.inference_id,
        client_request_id=paid.client_request_id,
        model=paid.model,
    )
    failure.__cause__ = error
    return failure


def _lost_for_good(
    unit: Unit, client_request_id: str, inference_id: str | None, usd: Decimal | None
) -> ChargedButLostError:
    cost = f"{usd:.4f} USD" if usd is not None else "an unknown amount"
    return ChargedButLostError(
        f"Charged but lost: {unit.model} billed {cost} and its answer is gone (inference id {inference_id}, client "
        f'request id {client_request_id}). It is not bought again; on_lost_answer="resend" would.',
        inference_id=inference_id,
        client_request_id=client_request_id,
        model=unit.model,
        usd=float(usd) if usd is not None else None,
    )


def _known_loss(unit: Unit, *losses: facts.Fact) -> ChargedButLostError:
    """Report again a loss that an earlier try found."""
    last = losses[-1]
    usd = last.get("usd")
    return _lost_for_good(unit, last["id"], last.get("inf"), Decimal(usd) if usd is not None else None)
