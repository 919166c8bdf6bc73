"""
See a plan through: buy each request once, fetch and keep its pictures, and know at any moment what was paid.

Two groups of threads work side by side. *Buyers* take slots of the plan, look into the journal for what earlier tries
paid, and send the rest; ``concurrency`` of them, so that many requests are in flight. *Finishers* download, check and
store, so that this work runs beside the waiting. A short queue between them bounds the pictures in memory.

This module is the threads and the order of things. What they do is in ``buying``, ``settling`` (lost answers) and
``finishing``; what they know together in ``state``.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING

from airflow_provider_imagen.exceptions import BudgetExceededError, ImagenError, StoppedError
from airflow_provider_imagen.generation.budget import Budget
from airflow_provider_imagen.generation.buying import Buyer
from airflow_provider_imagen.generation.earlier import EarlierTries
from airflow_provider_imagen.generation.finishing import Finisher
from airflow_provider_imagen.generation.options import RunOptions
from airflow_provider_imagen.generation.pace import Pace
from airflow_provider_imagen.generation.results import Failure, Made, RunResult, SlotResult, worst_error
from airflow_provider_imagen.generation.settling import Settler
from airflow_provider_imagen.generation.state import RunState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow_provider_imagen.generation.buying import Bought
    from airflow_provider_imagen.generation.options import Tools
    from airflow_provider_imagen.generation.plan import Plan
    from airflow_provider_imagen.generation.results import Record
    from airflow_provider_imagen.journal.log import Journal
    from airflow_provider_imagen.journal.url_encryption import LinkSeal

__all__ = ["MAX_FINISHERS", "Run", "RunOptions"]

MAX_FINISHERS = 8
"""Threads that download, check and store; more would only queue for the interpreter and the disk."""


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
        self._options = options
        self._earlier = EarlierTries(
            journal.entries, may_buy_again=options.on_lost_answer == "resend", is_stored=tools.is_stored
        )
        self._state = RunState(
            asked_to_stop=should_stop,
            usd_lost=self._earlier.usd_lost,
            usd_is_estimate=self._earlier.usd_is_estimate,
        )
        self._budget = Budget(
            max_usd=options.max_usd, spent_usd=self._earlier.usd_spent, should_stop=self._state.is_over
        )
        self._settler = Settler(
            plan=plan, tools=tools, journal=journal, options=options, state=self._state, budget=self._budget
        )
        self._buyer = Buyer(
            plan=plan,
            tools=tools,
            journal=journal,
            options=options,
            links=links,
            state=self._state,
            budget=self._budget,
            pace=Pace(
                concurrency=options.concurrency,
                requests_per_minute=options.requests_per_minute,
                should_stop=self._state.is_over,
            ),
            earlier=self._earlier,
            settler=self._settler,
            hand_over=self._put,
        )
        self._finisher = Finisher(
            plan=plan, tools=tools, journal=journal, links=links, state=self._state, on_picture=on_picture
        )
        self._lock = threading.Lock()
        self._abandoned = threading.Event()
        self._work = self._things_to_do()
        self._buyers = min(options.concurrency, len(plan.slots))
        self._finishers = min(MAX_FINISHERS, 2 * self._buyers)
        self._bought: queue.Queue[Bought | None] = queue.Queue(maxsize=2 * MAX_FINISHERS)

    def execute(self) -> RunResult:
        """
        Buy, fetch and keep everything, and say what came of it. To be called once.

        Failures of items are in the result; only what no result could tell is raised.

        :raises BudgetExceededError: the plan cannot fit under ``max_usd``; nothing was sent
        """
        started = time.monotonic()
        self._refuse_what_cannot_fit()
        threads = self._threads(self._buy, self._buyers, "imagen-buyer")
        threads += self._threads(self._finish, self._finishers, "imagen-finisher")
        try:
            for thread in threads:
                thread.start()
            self._join(threads)
        except BaseException:  # Airflow's time-out arrives here, in the main thread
            self._state.stop()
            self._join(threads)
            raise
        if self._state.crash is not None:
            raise self._state.crash
        self._settler.look_for_late_charges()
        return self._result(time.monotonic() - started)

    def _refuse_what_cannot_fit(self) -> None:
        """Compare what is left to buy with what is left to spend, before the first request."""
        cap = self._options.max_usd
        if cap is None:
            return
        to_buy = {number: self._earlier.units_to_buy(slot) for number, slot in enumerate(self._plan.slots)}
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

    # --- threads ------------------------------------------------------------------------------------------------------

    def _threads(self, work: Callable[[], None], count: int, name: str) -> list[threading.Thread]:
        """Make daemon threads: a request that hangs must not keep a killed task's process alive."""

        def guarded() -> None:
            try:
                work()
            except BaseException as error:
                self._state.break_down(error)

        return [threading.Thread(target=guarded, name=f"{name}-{number}", daemon=True) for number in range(count)]

    def _join(self, threads: list[threading.Thread]) -> None:
        """Wait for threads; once the task is told to stop, only for the grace time in all."""
        give_up_at: float | None = None
        for thread in threads:
            while thread.is_alive():
                if give_up_at is None and self._state.should_stop():
                    give_up_at = time.monotonic() + self._options.grace_seconds
                if give_up_at is not None and time.monotonic() >= give_up_at:
                    self._abandoned.set()
                    return
                thread.join(0.1)

    def _things_to_do(self) -> Iterator[Callable[[], None]]:
        """
        Order the work: first the doubts of earlier tries, then the slots.

        A slot waits for the doubts about its own requests. All doubts are in someone's hands before the first slot is,
        so that wait always ends.
        """
        for doubt in self._settler.doubts:
            yield partial(self._settler.settle, doubt)
        for number in range(len(self._plan.slots)):
            yield partial(self._buyer.see_through, number)

    def _buy(self) -> None:
        """Do things while there are any; the last buyer to end tells the finishers."""
        try:
            while True:
                with self._lock:
                    thing = None if self._state.is_over() else next(self._work, None)
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

    def _put(self, bought: Bought | None) -> None:
        """Hand over to the finishers; what nobody is there to take any more stays in the journal."""
        while self._state.crash is None and not self._abandoned.is_set():
            try:
                self._bought.put(bought, timeout=0.2)
            except queue.Full:
                continue
            return

    def _finish(self) -> None:
        while (bought := self._bought.get()) is not None:
            self._finisher.finish(bought)

    # --- the end ------------------------------------------------------------------------------------------------------

    def _result(self, seconds: float) -> RunResult:
        made: list[Made] = []
        errors: dict[int, list[ImagenError]] = {}
        unsent: set[int] = set()
        adopted = 0
        results = self._state.results()
        for number, slot in enumerate(self._plan.slots):
            result = results.get(number, SlotResult())
            failed = [error for error in result.errors if not isinstance(error, StoppedError)]
            if failed:
                errors.setdefault(slot.item, []).extend(failed)
            if len(failed) < len(result.errors) or (not failed and len(result.made) < slot.images):
                unsent.add(slot.item)
            adopted += result.adopted
            made += result.made
        made.sort(key=lambda each: (each.record["prompt_index"], each.record["image_index"]))
        counts = Counter(each.record["prompt_index"] for each in made)
        not_sent = sorted(unsent - errors.keys())
        halt = self._state.halt
        if halt is None and not_sent and self._state.should_stop():
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
            usd_lost=self._state.usd_lost,
            usd_is_estimate=self._state.usd_is_estimate,
            seconds=seconds,
        )
