"""Find out what became of POSTs without an answer, so that none is paid for twice and none goes uncounted."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING

from msgspec import Struct, field

from airflow_provider_imagen.api.money import read_amount
from airflow_provider_imagen.exceptions import ImagenError, LostAnswerError, StoppedError
from airflow_provider_imagen.generation.charges import ChargeLookup
from airflow_provider_imagen.generation.losses import lost_for_good, unknown_charge
from airflow_provider_imagen.generation.pace import sleep_unless
from airflow_provider_imagen.journal import records as facts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_provider_imagen.generation.budget import Budget, Reservation
    from airflow_provider_imagen.generation.options import RunOptions, Tools
    from airflow_provider_imagen.generation.plan import Plan, Unit
    from airflow_provider_imagen.generation.state import RunState
    from airflow_provider_imagen.journal.log import Journal

log = logging.getLogger(__name__)


class Doubt(Struct, frozen=True):
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


class Verdict(Struct, frozen=True):
    """
    What became of a POST without an answer.

    :param charged_usd: what it was charged; ``None`` when nobody knows
    :param error: why it is not sent again; ``None`` when it may be
    """

    charged_usd: Decimal | None
    error: LostAnswerError | None = None


class Settler:
    """
    Decides about POSTs without an answer, those of this try and those that earlier tries left behind.

    :param plan: what is going to be bought; a request that is not in it any more cannot hold anything up
    :param tools: reads the API's request log
    :param journal: open; where verdicts are written down
    :param budget: keeps money aside until there is a verdict
    """

    def __init__(
        self, *, plan: Plan, tools: Tools, journal: Journal, options: RunOptions, state: RunState, budget: Budget
    ) -> None:
        self._journal = journal
        self._options = options
        self._state = state
        self._budget = budget
        self._lock = threading.Lock()
        self._charges = ChargeLookup(
            iter_request_logs=tools.iter_request_logs,
            wait=partial(sleep_unless, state.should_stop),  # goes on when buying is over: what was paid is to be known
            patience_seconds=options.lost_answer_patience_seconds,
        )
        self._doubts = {
            unit.key: [self._doubt(unit, fact) for fact in entry.open_intents.values()]
            for unit in plan.units
            if (entry := journal.entries.get(unit.key)) is not None and entry.open_intents
        }
        self._unsettled = self._unsettled_of_earlier_tries()

    def _doubt(self, unit: Unit, intent: facts.Fact) -> Doubt:
        usd = read_amount(intent.get("usd"))
        reservation = self._budget.promise(model=unit.model, usd=usd, pictures=unit.request.expected_images)
        return Doubt(unit, intent["id"], intent["at"], reservation)

    def _unsettled_of_earlier_tries(self) -> dict[str, tuple[str, float]]:
        """Find POSTs that may still turn up as billed: taken for unbilled, or sent for a prompt that is gone."""
        unsettled: dict[str, tuple[str, float]] = {}
        for key, entry in self._journal.entries.items():
            loose = entry.unbilled if key in self._doubts else {**entry.unbilled, **entry.open_intents}
            unsettled |= {name: (key, fact["at"]) for name, fact in loose.items() if "at" in fact}
        return unsettled

    @property
    def doubts(self) -> Iterator[Doubt]:
        """Every doubt that earlier tries left about a request of the plan; each is to be settled once."""
        for doubts in self._doubts.values():
            yield from doubts

    def await_verdicts(self, unit: Unit) -> None:
        """
        Wait until all doubts about a request are settled.

        :raises LostAnswerError: one of its POSTs was billed, or nobody can say
        :raises StoppedError: the task was told to stop before there was a verdict
        """
        for doubt in self._doubts.get(unit.key, ()):
            doubt.verdict.result()

    def settle(self, doubt: Doubt) -> None:
        """Find out what became of a POST of an earlier try, for the slot that waits for it."""
        cause = LostAnswerError(
            "An earlier try ended while this request was on its way.",
            client_request_id=doubt.client_request_id,
            model=doubt.unit.model,
        )
        # Nobody saw its answer get lost: the API may work on it for as long as an answer may take.
        options = self._options
        lost_at = doubt.sent_at + max(options.lost_answer_patience_seconds, options.answer_timeout_seconds)
        charged: Decimal | None = None
        try:
            verdict = self.judge(doubt.unit, doubt.client_request_id, cause, sent_at=doubt.sent_at, lost_at=lost_at)
            charged = verdict.charged_usd
            if verdict.error is not None:
                raise verdict.error
            doubt.verdict.set_result(None)
        except ImagenError as error:
            doubt.verdict.set_exception(error)
            self._state.weigh(error)
        except BaseException as error:
            doubt.verdict.set_exception(error)
            raise
        finally:
            self._budget.settle(doubt.reservation, actual_usd=charged)

    def judge(
        self, unit: Unit, client_request_id: str, cause: LostAnswerError, *, sent_at: float, lost_at: float
    ) -> Verdict:
        """
        Decide about a POST without an answer: look it up if the author wants that, and note the outcome.

        :param cause: how its answer got lost
        :param sent_at: when it was sent, in seconds since the epoch
        :param lost_at: when its answer was given up, in seconds since the epoch
        :raises StoppedError: the task was told to stop before there was a verdict
        """
        cause.client_request_id, cause.model = client_request_id, unit.model
        if cause.usd:  # the head of the answer states the charge, so nothing needs to be looked up
            stated = Decimal(str(cause.usd))
            self.note_lost(unit.key, client_request_id, inference_id=cause.inference_id, usd=stated)
            if self._options.on_lost_answer == "resend":
                return Verdict(stated)
            return Verdict(
                stated,
                lost_for_good(unit, client_request_id=client_request_id, inference_id=cause.inference_id, usd=stated),
            )
        if self._options.on_lost_answer == "fail":
            cause.retry_helps = False
            return Verdict(None, cause)
        charged: Decimal | None = None
        if self._options.on_lost_answer == "check":
            log.warning("%s Looking the request up in the API's log (%s).", cause, client_request_id)
            try:
                charge = self._charges.find(client_request_id, sent_at=sent_at, lost_at=lost_at)
            except StoppedError:
                raise
            except ImagenError as error:
                return Verdict(None, unknown_charge(unit, client_request_id, cause, error))
            if charge is not None and charge.billed:
                usd, inference_id = self._state.cost_of(unit, charge.usd), charge.inference_id
                self.note_lost(unit.key, client_request_id, inference_id=inference_id, usd=usd)
                loss = lost_for_good(unit, client_request_id=client_request_id, inference_id=inference_id, usd=usd)
                return Verdict(usd, loss)
            charged = Decimal(0)
            if charge is not None:
                self._journal.commit(facts.refused(unit.key, client_request_id=client_request_id))
                return Verdict(charged)
        self._journal.commit(facts.unbilled(unit.key, client_request_id=client_request_id))
        with self._lock:
            self._unsettled[client_request_id] = (unit.key, sent_at)
        return Verdict(charged)

    def note_lost(self, key: str, client_request_id: str, *, inference_id: str | None, usd: Decimal | None) -> None:
        """Write down, and count, that a POST was billed and brought nothing."""
        fact = facts.lost(key, client_request_id=client_request_id, inference_id=inference_id, usd=usd)
        self._state.add_loss(usd)
        self._journal.commit(fact)  # the API's log may never show it, so this note is all there is

    def look_for_late_charges(self) -> None:
        """Look a last time for POSTs taken for never billed, so that a charge that came late is at least counted."""
        if not self._unsettled or self._state.should_stop():
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
            self.note_lost(key, client_request_id, inference_id=charge.inference_id, usd=charge.usd)
            self._budget.add(charge.usd or Decimal(0))
