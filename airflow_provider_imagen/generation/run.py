"""
See a plan through: buy each request once, fetch and keep its pictures, and know at any moment what was paid.

Two groups of threads work side by side. *Buyers* take slots of the plan, look into the journal for what earlier tries paid, and
send the rest; ``concurrency`` of them, so that many requests are in flight. *Finishers* download, check and store, so that this
work runs beside the waiting. A short queue between them bounds the pictures in memory.
"""

from __future__ import annotations

import logging
import queue
import secrets
import threading
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, Protocol

from airflow_provider_imagen.api.resending import resending
from airflow_provider_imagen.exceptions import (
    AuthenticationError,
    BudgetExceededError,
    ChargedButLostError,
    ConnectionFailedError,
    DownloadError,
    ImagenError,
    JournalError,
    LostAnswerError,
    ModelWithdrawnError,
    OutOfCreditsError,
    RateLimitedError,
    StoppedError,
    UnreadableResponseError,
)
from airflow_provider_imagen.generation import facts
from airflow_provider_imagen.generation.budget import Budget
from airflow_provider_imagen.generation.charges import ChargeLookup
from airflow_provider_imagen.generation.pace import Pace
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

_ENDS_THE_TASK = (
    AuthenticationError,
    OutOfCreditsError,
    BudgetExceededError,
    JournalError,
    RateLimitedError,
    ConnectionFailedError,
)
"""Errors that would meet every further request too; raised only after the resends inside the task are used up."""


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
    :param grace_seconds: how long answers in flight are awaited when the task is told to stop; Airflow kills after 5
    """

    concurrency: int = 4
    requests_per_minute: float | None = None
    max_usd: Decimal | None = None
    on_lost_answer: OnLostAnswer = "check"
    lost_answer_patience_seconds: float = 90.0
    grace_seconds: float = 4.0


@dataclass(frozen=True)
class _Bought:
    """What one unit brought, on its way from a buyer to a finisher."""

    slot: Slot
    offset: int
    unit: Unit
    paid: Paid
    seconds: float
    inline: dict[int, bytes] = field(default_factory=dict)
    adopted: bool = False
    stored: dict[int, Stored] = field(default_factory=dict)


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
        self._lock = threading.Lock()
        self._crash: BaseException | None = None
        self._halt: ImagenError | None = None
        self._withdrawn: dict[str, ModelWithdrawnError] = {}
        self._unsettled: dict[str, float] = {}
        self._results: dict[int, SlotResult] = {}
        self._done = 0
        earlier = journal.entries.values()
        self._usd_lost = sum((entry.usd_lost for entry in earlier), Decimal(0))
        self._usd_is_estimate = any(entry.paid.usd_is_estimate for entry in earlier if entry.paid)
        for entry in earlier:
            self._unsettled.update({name: fact["at"] for name, fact in entry.unbilled.items() if "at" in fact})
        self._budget = Budget(
            max_usd=options.max_usd,
            spent_usd=sum((entry.usd_spent for entry in earlier), Decimal(0)),
            should_stop=self._should_stop,
        )
        self._pace = Pace(
            concurrency=options.concurrency,
            requests_per_minute=options.requests_per_minute,
            should_stop=self._should_stop,
        )
        self._charges = ChargeLookup(
            iter_request_logs=tools.iter_request_logs,
            wait=self._pace.wait,
            patience_seconds=options.lost_answer_patience_seconds,
        )
        self._slots = iter(enumerate(plan.slots))
        self._bought: queue.Queue[_Bought | None] = queue.Queue(maxsize=4 * options.concurrency)

    def execute(self) -> RunResult:
        """
        Buy, fetch and keep everything, and say what came of it.

        Failures of items are in the result; only what no result could tell is raised.

        :raises BudgetExceededError: the plan cannot fit under ``max_usd``; nothing was sent
        """
        started = time.monotonic()
        self._refuse_what_cannot_fit()
        buyers = self._start(self._buy_slots, min(self._options.concurrency, len(self._plan.slots)), "imagen-buyer")
        finishers = self._start(self._finish_bought, min(MAX_FINISHERS, max(2, len(buyers))), "imagen-finisher")
        try:
            if self._join(buyers):
                for _ in finishers:
                    self._put(None)
                self._join(finishers)
        except BaseException:  # Airflow's time-out arrives here, in the main thread
            self._stopping.set()
            self._join([*buyers, *finishers])
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
        to_buy = self._plan.expected_usd(lambda unit: not self._is_paid(unit))
        spent = self._budget.spent_usd
        if to_buy is not None and to_buy > 0 and spent + to_buy > cap:
            done = sum(all(self._is_paid(unit) for unit in slot.choices[0]) for slot in self._plan.slots)
            raise BudgetExceededError(
                f"max_usd={cap}: {spent:.4f} USD are spent and what is left to make costs about {to_buy:.4f}. "
                f"Nothing was sent.",
                spent_usd=float(spent),
                max_usd=float(cap),
                items_done=done,
                items_left=len(self._plan.slots) - done,
            )

    def _is_paid(self, unit: Unit) -> bool:
        entry = self._journal.entries.get(unit.key)
        return entry is not None and entry.paid is not None

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

    def _join(self, threads: list[threading.Thread]) -> bool:
        """Wait for threads; once the task is told to stop, only for the grace time. Say whether all ended."""
        give_up_at: float | None = None
        for thread in threads:
            while thread.is_alive():
                if give_up_at is None and self._should_stop():
                    give_up_at = time.monotonic() + self._options.grace_seconds
                if give_up_at is not None and time.monotonic() >= give_up_at:
                    return False
                thread.join(0.1)
        return True

    def _should_stop(self) -> bool:
        return self._stopping.is_set() or self._asked_to_stop()

    def _put(self, bought: _Bought | None) -> None:
        while True:
            try:
                self._bought.put(bought, timeout=0.5)
            except queue.Full:
                if self._crash is not None:
                    return
            else:
                return

    # --- buyers -------------------------------------------------------------------------------------------------------

    def _buy_slots(self) -> None:
        while True:
            with self._lock:
                if self._halt is not None or self._should_stop():
                    return
                number, slot = next(self._slots, (-1, None))
            if slot is None:
                return
            try:
                self._buy(slot)
            except StoppedError:
                return
            except ImagenError as error:
                self._note_error(slot, error)
                if isinstance(error, _ENDS_THE_TASK):
                    self._end_early(error)

    def _end_early(self, error: ImagenError) -> None:
        with self._lock:
            self._halt = self._halt or error

    def _buy(self, slot: Slot) -> None:
        """Get what a slot is for from the first model that is there."""
        for units in self._in_order_of_use(slot):
            model = units[0].model
            try:
                if (gone := self._withdrawn.get(model)) is not None:
                    raise gone
                offset = 0
                for unit in units:
                    self._put(replace(self._obtain(slot, unit), offset=offset))
                    offset += unit.request.expected_images
            except ModelWithdrawnError as error:
                if model not in self._withdrawn:
                    self._withdrawn[model] = error
                    log.warning("%s", error)
                last = error
            else:
                return
        raise last

    def _in_order_of_use(self, slot: Slot) -> list[tuple[Unit, ...]]:
        """Put the model first that an earlier try already sent this slot to."""
        return sorted(slot.choices, key=lambda units: not any(self._was_sent(unit) for unit in units))

    def _was_sent(self, unit: Unit) -> bool:
        entry = self._journal.entries.get(unit.key)
        return entry is not None and bool(entry.paid or entry.open_intents or entry.lost)

    def _obtain(self, slot: Slot, unit: Unit) -> _Bought:
        """Adopt what was paid for, or pay for it."""
        entry = self._journal.entries.get(unit.key)
        if entry is not None:
            if entry.paid is not None:
                return _Bought(slot, 0, unit, entry.paid, 0.0, adopted=True, stored=entry.stored)
            for client_request_id, intent in list(entry.open_intents.items()):
                cause = LostAnswerError(
                    "An earlier try ended while this request was on its way.",
                    client_request_id=client_request_id,
                    model=unit.model,
                )
                self._settle_lost(unit, cause, sent_at=intent["at"], lost_at=intent["at"])
            if entry.lost and self._options.on_lost_answer != "resend":
                raise _known_loss(unit, *entry.lost.values())
        for left in range(MAX_LOST_ANSWERS - 1, -1, -1):
            sent_at = time.time()
            try:
                return self._pay(slot, unit)
            except LostAnswerError as error:
                self._settle_lost(unit, error, sent_at=sent_at, lost_at=time.time())
                if left == 0:
                    raise
        raise AssertionError("unreachable")

    def _pay(self, slot: Slot, unit: Unit) -> _Bought:
        """Send a unit until it is answered, resending only what certainly bought nothing."""

        def on_refused(error: ImagenError, seconds: float) -> None:
            if isinstance(error, RateLimitedError):
                self._pace.slow_down(seconds)
            log.warning("Item %d: %s Sending it again in %.1f s.", slot.item, error, seconds)

        for attempt in resending(wait=self._pace.wait, on_refused=on_refused):
            with attempt:
                return self._post(slot, unit)
        raise AssertionError("unreachable")

    def _post(self, slot: Slot, unit: Unit) -> _Bought:
        """Send one POST: intent durable before, answer durable after."""
        images = unit.request.expected_images
        reserved = self._budget.reserve(expected_usd=unit.expected_usd, pictures=images)
        charged = Decimal(0)
        try:
            with self._pace.turn():
                client_request_id = f"imagen.{unit.key.partition('#')[0]}.{secrets.token_hex(8)}"
                self._journal.commit(
                    facts.intent(unit.key, client_request_id=client_request_id, model=unit.model, usd=unit.expected_usd)
                )
                started = time.monotonic()
                try:
                    if self._should_stop():
                        raise StoppedError("The task was told to stop; nothing new was sent.")
                    generation = self._tools.generate(unit.request, client_request_id)
                except LostAnswerError:
                    raise
                except ImagenError as error:
                    charged = self._note_refusal(unit, client_request_id, error)
                    raise
                seconds = time.monotonic() - started
            self._pace.speed_up()
            paid = self._note_paid(unit, client_request_id, generation)
            charged = paid.usd or Decimal(0)
        finally:
            self._budget.settle(reserved, actual_usd=charged, pictures=images)
        inline = {
            number: picture.data for number, picture in enumerate(generation.pictures) if picture.data is not None
        }
        return _Bought(slot, 0, unit, paid, seconds, inline=inline)

    def _note_refusal(self, unit: Unit, client_request_id: str, error: ImagenError) -> Decimal:
        """Write down that a POST brought nothing, and give what it cost all the same."""
        if error.status is None or not 200 <= error.status < 300 or error.usd == 0:
            self._journal.append(facts.refused(unit.key, client_request_id=client_request_id))
            return Decimal(0)
        usd = Decimal(str(error.usd)) if error.usd is not None else None
        self._note_lost(unit, client_request_id, inference_id=error.inference_id, usd=usd)
        return usd or Decimal(0)

    def _note_paid(self, unit: Unit, client_request_id: str, generation: Generation) -> Paid:
        """Make an answer durable. When that fails, its pictures are kept all the same and nothing more is bought."""
        usd, is_estimate = generation.usd, False
        if usd is None and unit.expected_usd is not None:
            usd, is_estimate = unit.expected_usd, True
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
            usd=usd,
            usd_is_estimate=is_estimate,
            inference_id=generation.inference_id,
            model=unit.model,
            at=round(time.time(), 3),
        )
        if is_estimate:
            self._usd_is_estimate = True
        try:
            self._journal.commit(paid.to_fact(unit.key))
        except JournalError as error:
            self._end_early(error)
        return paid

    # --- lost answers -------------------------------------------------------------------------------------------------

    def _settle_lost(self, unit: Unit, cause: LostAnswerError, *, sent_at: float, lost_at: float) -> None:
        """
        Find out what became of a POST without an answer. Returning means that it may be sent again.

        :raises ChargedButLostError: it was billed
        :raises LostAnswerError: nobody knows, or the author wants it given up
        """
        client_request_id = cause.client_request_id or ""
        if self._options.on_lost_answer == "fail":
            cause.retry_helps = False
            raise cause
        if self._options.on_lost_answer == "check":
            log.warning("%s Looking the request up in the API's log (%s).", cause, client_request_id)
            try:
                charge = self._charges.find(client_request_id, sent_at=sent_at, lost_at=lost_at)
            except StoppedError:
                raise
            except ImagenError as error:
                raise LostAnswerError(
                    f"{cause} Whether it was billed could not be looked up: {error}",
                    client_request_id=client_request_id,
                    model=unit.model,
                ) from error
            if charge is not None and charge.billed:
                self._note_lost(unit, client_request_id, inference_id=charge.inference_id, usd=charge.usd)
                self._budget.add(charge.usd or Decimal(0))
                raise _lost_for_good(unit, client_request_id, charge.inference_id, charge.usd) from cause
            if charge is not None:
                self._journal.commit(facts.refused(unit.key, client_request_id=client_request_id))
                return
        self._journal.commit(facts.unbilled(unit.key, client_request_id=client_request_id))
        with self._lock:
            self._unsettled[client_request_id] = sent_at

    def _note_lost(self, unit: Unit, client_request_id: str, *, inference_id: str | None, usd: Decimal | None) -> None:
        self._journal.append(
            facts.lost(unit.key, client_request_id=client_request_id, inference_id=inference_id, usd=usd)
        )
        with self._lock:
            self._usd_lost += usd or Decimal(0)

    def _look_for_late_charges(self) -> None:
        """Look a last time for POSTs taken for never billed, so that a charge that came late is at least counted."""
        if not self._unsettled or self._should_stop():
            return
        for client_request_id, charge in self._charges.look_once(self._unsettled).items():
            if not charge.billed:
                continue
            log.error(
                "A request taken for lost was billed after all: %s USD, inference id %s, client request id %s.",
                charge.usd,
                charge.inference_id,
                client_request_id,
            )
            key = next(
                (key for key, entry in self._journal.entries.items() if client_request_id in entry.unbilled), "late"
            )
            self._journal.append(
                facts.lost(key, client_request_id=client_request_id, inference_id=charge.inference_id, usd=charge.usd)
            )
            self._usd_lost += charge.usd or Decimal(0)
            self._budget.add(charge.usd or Decimal(0))

    # --- finishers ----------------------------------------------------------------------------------------------------

    def _finish_bought(self) -> None:
        while (bought := self._bought.get()) is not None:
            self._finish(bought)

    def _finish(self, bought: _Bought) -> None:
        """Keep the pictures of one paid request; each failure is noted, and the other pictures are kept."""
        paid, slot = bought.paid, bought.slot
        item = self._plan.items[slot.item]
        flagged = 0
        for number, picture in enumerate(paid.pictures):
            if picture.withheld:
                flagged += 1
                continue
            beyond, place = divmod(bought.offset + number, slot.images)
            image_index = slot.first_image + place + beyond * item.images  # more than asked for: numbered behind
            try:
                self._keep(bought, number, picture, image_index=image_index)
            except ImagenError as error:
                error.inference_id = error.inference_id or paid.inference_id
                error.client_request_id = error.client_request_id or paid.client_request_id
                error.model = error.model or paid.model
                self._note_error(slot, error)
        requested, made = bought.unit.request.expected_images, len(paid.pictures) - flagged
        if made < requested:
            self._note_error(slot, withheld_error(requested=requested, made=made, flagged=flagged, paid=paid))

    def _keep(self, bought: _Bought, number: int, picture: PaidPicture, *, image_index: int) -> None:
        """Bring one picture to safety and describe it."""
        paid, item = bought.paid, self._plan.items[bought.slot.item]
        if picture.broken:
            raise UnreadableResponseError(f"Picture {number} of the answer is {picture.broken}.", status=200)
        url = self._links.open(picture.url) if picture.url else None
        stored = bought.stored.get(number)
        if stored is None or not self._tools.is_stored(stored):
            stored = self._store(bought, number, picture, url, image_index) if self._tools.stores else None
        made = describe_picture(
            item=item, image_index=image_index, url=url, paid=paid, picture=picture, stored=stored
        )
        with self._lock:
            result = self._results.setdefault(id(bought.slot), SlotResult())
            result.made.append(made)
            result.adopted += bought.adopted
            self._done += 1
            done = self._done
        self._on_picture(made.record, bought.seconds, done)

    def _store(self, bought: _Bought, number: int, picture: PaidPicture, url: str | None, image_index: int) -> Stored:
        paid, item = bought.paid, self._plan.items[bought.slot.item]
        data = bought.inline.pop(number, None)
        if data is None:
            if picture.url is None:
                share = paid.usd / len(paid.pictures) if paid.usd is not None else None
                with self._lock:
                    self._usd_lost += share or Decimal(0)
                raise _lost_for_good(bought.unit, paid.client_request_id, paid.inference_id, share)
            if url is None:
                raise DownloadError("The signed link was written down with another API key and cannot be opened.")
            if self._should_stop():
                raise StoppedError("The task was told to stop; the picture is paid for and the next try fetches it.")
            data = self._tools.fetch(url)
        stored = self._tools.save(data, item=item, image_index=image_index, paid=paid, picture=picture)
        self._journal.append(stored.to_fact(bought.unit.key, number))
        return stored

    def _note_error(self, slot: Slot, error: ImagenError) -> None:
        with self._lock:
            self._results.setdefault(id(slot), SlotResult()).errors.append(error)

    # --- the end ------------------------------------------------------------------------------------------------------

    def _result(self, seconds: float) -> RunResult:
        with self._lock:  # threads that outlived the grace time may still write
            results = {number: self._results.get(id(slot)) for number, slot in enumerate(self._plan.slots)}
            halt = self._halt
        made: list[Made] = []
        errors: dict[int, list[ImagenError]] = {}
        unsent: set[int] = set()
        adopted = 0
        for number, slot in enumerate(self._plan.slots):
            result = results[number]
            if result is None or any(isinstance(error, StoppedError) for error in result.errors):
                unsent.add(slot.item)
            if result is None:
                continue
            adopted += result.adopted
            made += result.made
            errors.setdefault(slot.item, []).extend(
                error for error in result.errors if not isinstance(error, StoppedError)
            )
        made.sort(key=lambda each: (each.record["prompt_index"], each.record["image_index"]))
        counts = Counter(each.record["prompt_index"] for each in made)
        failures = [
            Failure(self._plan.items[item], worst_error(errors[item]), counts[item])
            for item in sorted(errors)
            if errors[item]
        ]
        failed = {failure.item.index for failure in failures}
        if halt is None and (unsent - failed) and self._should_stop():
            halt = StoppedError("The task was told to stop; what was paid is kept for the next try.")
        return RunResult(
            plan=self._plan,
            made=made,
            failures=failures,
            not_sent=[self._plan.items[item] for item in sorted(unsent - failed)],
            adopted=adopted,
            halt=halt,
            usd_spent=self._budget.spent_usd,
            usd_lost=self._usd_lost,
            usd_is_estimate=self._usd_is_estimate,
            seconds=seconds,
        )


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
