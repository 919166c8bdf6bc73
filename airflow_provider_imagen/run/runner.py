"""
Carry out a plan: send each request once, store its images, and know at any moment what was paid.

Two groups of threads work side by side. *Submitters* take slots from the plan, reuse what the journal says previous
attempts paid for, and send the rest; there are up to ``concurrency`` of them, to keep many requests in flight.
*Finishers* download, verify and store images while submitters wait for responses. A short queue between them bounds the
number of images in memory.

This module only runs the threads and orders their work. The work itself is in ``submit``, ``reconcile`` (lost
responses) and ``finish``; the data they share is in ``context``.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING

from airflow_provider_imagen.exceptions import (
    ImagenError,
    OwnershipLostError,
    RateLimitedError,
    StoppedError,
    StorageError,
)
from airflow_provider_imagen.money import format_usd
from airflow_provider_imagen.rate_limit.pacer import Pacer
from airflow_provider_imagen.run.budget import Budget
from airflow_provider_imagen.run.context import RunContext
from airflow_provider_imagen.run.finish import Finisher
from airflow_provider_imagen.run.previous_attempts import PreviousAttempts
from airflow_provider_imagen.run.reconcile import Reconciler
from airflow_provider_imagen.run.results import (
    Failure,
    FinishedImage,
    ReceivedResponse,
    RequestWithoutImages,
    RunResult,
    SlotResult,
)
from airflow_provider_imagen.run.reuse import EarlierRequests
from airflow_provider_imagen.run.shared_state import Cancellation, RunState
from airflow_provider_imagen.run.submit import Submitter
from airflow_provider_imagen.run.usage_caps import UsageCaps

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from airflow_provider_imagen.journal.log import Journal
    from airflow_provider_imagen.journal.records import JournalState
    from airflow_provider_imagen.journal.url_encryption import UrlEncryption
    from airflow_provider_imagen.run.plan import ImageSlot, Plan, PlannedRequest
    from airflow_provider_imagen.run.ports import Api, RunOptions, Sink
    from airflow_provider_imagen.storage.task_identity import TaskInstanceKey

log = logging.getLogger(__name__)

MAX_FINISHERS = 8
"""Threads that download, verify and store; more would only contend for the interpreter and the disk."""

MAX_VERIFICATIONS = 3
"""How often a finished run checks its files and downloads the missing ones again."""


class Run:
    """
    One attempt of a task.

    :param ti_key: the task instance, which the client request ids name
    :param plan: the requests to make
    :param sink: stores the images; ``None`` if only their URLs are wanted
    :param journal: open; holds what previous attempts did
    :param encryption: encrypts signed URLs for the journal
    :param cancellation: ends the attempt when cancelled
    :param reload: returns what previous attempts have recorded by now; by default from the journal
    :param earlier: what other runs have paid for; by default nothing is reused from them
    :param on_image: called with each finished image and the number of images finished so far
    """

    def __init__(
        self,
        *,
        ti_key: TaskInstanceKey,
        plan: Plan,
        api: Api,
        sink: Sink | None,
        journal: Journal,
        options: RunOptions,
        encryption: UrlEncryption,
        cancellation: Cancellation,
        reload: Callable[[], JournalState] | None = None,
        earlier: EarlierRequests | None = None,
        on_image: Callable[[FinishedImage, int], None] = lambda *_: None,
    ) -> None:
        state = RunState(cancellation)
        budget = Budget(max_usd=options.max_usd, is_over=state.is_over)
        context = RunContext(
            ti_key=ti_key,
            plan=plan,
            api=api,
            sink=sink,
            journal=journal,
            options=options,
            encryption=encryption,
            state=state,
            budget=budget,
            usage_caps=UsageCaps(
                options.usage_caps,
                reader=api,
                budget=budget,
                state=state,
                max_age_seconds=options.usage_max_age_seconds,
                first_wait_seconds=options.first_wait_seconds,
            ),
        )
        budget.count_previous(journal.state)
        self._plan = plan
        self._sink = sink
        self._journal = journal
        self._options = options
        self._cancellation = cancellation
        self._state = state
        self._budget = budget
        self._usage_caps = context.usage_caps
        self._previous = PreviousAttempts(
            journal.state.requests,
            may_resend=options.on_lost_answer == "resend",
            is_stored=sink.is_stored if sink is not None else lambda _: True,
        )
        self._earlier = earlier or EarlierRequests(plan)
        for model, own in self._earlier.own:
            budget.count_own(own.client_request_id, own.own_usd, model=model, at=own.generated_at)
        self._reconciler = Reconciler(context, reload=reload or journal.reload)
        self._submitter = Submitter(
            context,
            pacer=Pacer(
                concurrency=options.concurrency,
                requests_per_minute=options.requests_per_minute,
                throttled=RateLimitedError,
                check=state.check,
            ),
            previous=self._previous,
            earlier=self._earlier,
            reconciler=self._reconciler,
            hand_over=self._put,
        )
        self._finisher = Finisher(context, find_file=self._reconciler.find_file, on_image=on_image)
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._work = self._work_in_order()
        self._submitters = max(1, min(options.concurrency, len(plan.slots)))
        self._finishers = min(MAX_FINISHERS, 2 * self._submitters)
        self._received: queue.Queue[ReceivedResponse | None] = queue.Queue(maxsize=2 * MAX_FINISHERS)

    def execute(self) -> RunResult:
        """
        Send, download and store everything, and return the result. Call it once.

        Failures of items are part of the result, not raised. A worker crash is raised.

        :raises BudgetExceededError: the plan exceeds a spending cap; nothing was sent
        :raises ImagenError: the usage that the connection caps cannot be read; nothing was sent
        """
        refusal = self._refuse_what_cannot_fit()
        if self._options.on_lost_answer == "check":
            self._reconciler.look_for_late_charges()
        threads = self._threads(self._submit, self._submitters, "imagen-submitter")
        threads += self._threads(self._finish, self._finishers, "imagen-finisher")
        for thread in threads:
            thread.start()
        self._join(threads)
        if refusal is not None:
            self._state.abort(refusal)
        if self._state.crash is not None:
            raise self._state.crash
        goes_on = not self._cancellation.is_cancelled() and not isinstance(self._state.abort_reason, OwnershipLostError)
        if goes_on:
            self._recover_losses()
        self._verify_files(may_download=goes_on)
        if goes_on:
            self._reconciler.look_for_late_charges()
        return self.snapshot()

    def _refuse_what_cannot_fit(self) -> ImagenError | None:
        """
        Return why nothing may be sent if the remaining requests exceed a spending cap, else ``None``.

        It is returned, not raised, when there are images of previous attempts to keep.

        :raises ImagenError: there is nothing to keep
        """
        if self._options.max_usd is None and not self._options.usage_caps:
            return None
        to_send = {
            number: [] if self._earlier.has_any(slot) else self._requests_to_send(slot)
            for number, slot in enumerate(self._plan.slots)
        }
        to_send = {number: requests for number, requests in to_send.items() if requests}
        if not to_send or (refusal := self._find_refusal(to_send)) is None:
            return None
        if not self._journal.state.requests:
            raise refusal
        self._work = self._work_in_order(without=to_send)
        return refusal

    def _find_refusal(self, to_send: Mapping[int, Sequence[PlannedRequest]]) -> ImagenError | None:
        """
        Return why requests may not be sent, else ``None``.

        :param to_send: the requests by slot number
        """
        try:
            self._usage_caps.refresh()
        except ImagenError as error:
            return error
        spent, limit = self._budget.spent_usd, self._budget.tightest_limit
        prices = [planned.quoted_usd for requests in to_send.values() for planned in requests]
        known = [price for price in prices if price is not None]
        usd = sum(known, Decimal(0))
        if limit is None or len(known) < len(prices) or not usd or spent + usd <= limit.most_usd:
            return None
        left = len({self._plan.slots[number].item_index for number in to_send})
        return limit.exceeded(
            spent,
            f", and the remaining requests cost about {format_usd(usd)}. Nothing was sent.",
            items_done=len(self._plan.items) - left,
            items_left=left,
        )

    def _requests_to_send(self, slot: ImageSlot) -> list[PlannedRequest]:
        """Return the requests of a slot that nobody has paid for, as far as known before their images are read."""
        return [planned for planned in self._previous.requests_to_send(slot) if not self._earlier.has(planned)]

    # --- threads ------------------------------------------------------------------------------------------------------

    def _threads(self, work: Callable[[], None], count: int, name: str) -> list[threading.Thread]:
        """Return daemon threads, so that a hanging request cannot keep a killed task's process alive."""

        def guarded() -> None:
            try:
                work()
            except BaseException as error:
                self._state.record_crash(error)

        return [threading.Thread(target=guarded, name=f"{name}-{number}", daemon=True) for number in range(count)]

    def _join(self, threads: list[threading.Thread]) -> None:
        """Wait for threads, unless one crashes or the grace period of a cancelled task ends."""
        for thread in threads:
            while thread.is_alive() and self._state.crash is None and not self._cancellation.abandoned.is_set():
                thread.join(0.1)

    def _work_in_order(self, without: Collection[int] = ()) -> Iterator[Callable[[], None]]:
        """
        Yield the work in order: paid responses, then in-doubt requests of previous attempts, then requests to send.

        That way an error that ends the run cannot hide images that exist. A slot waits until its own in-doubt requests
        are resolved. Workers have picked all of those up before the first such slot, so the wait always ends.

        :param without: numbers of slots to leave out
        """
        in_doubt = list(self._reconciler.in_doubt)
        waiting = {pending.planned.key for pending in in_doubt}
        later = []
        for number, slot in enumerate(self._plan.slots):
            if self._requests_to_send(slot) or any(
                planned.key in waiting for alternative in slot.alternatives for planned in alternative
            ):
                later.append(number)
            else:
                yield partial(self._submitter.submit_slot, number)
        for received in self._previous.superseded(self._plan):
            yield partial(self._put, received)
        for pending in in_doubt:
            yield partial(self._reconciler.resolve_pending, pending)
        for number in later:
            if number not in without:
                yield partial(self._submitter.submit_slot, number)

    def _submit(self) -> None:
        """Work until nothing is left; the last submitter to end stops the finishers."""
        try:
            while True:
                with self._lock:
                    work = None if self._state.is_over() else next(self._work, None)
                if work is None:
                    return
                work()
        finally:
            with self._lock:
                self._submitters -= 1
                is_last = self._submitters == 0
            if is_last:
                for _ in range(self._finishers):
                    self._put(None)

    def _put(self, received: ReceivedResponse | None) -> None:
        """Hand a response to the finishers; once nobody takes it any more, it stays in the journal only."""
        while self._state.crash is None and not self._cancellation.abandoned.is_set():
            try:
                self._received.put(received, timeout=0.2)
            except queue.Full:
                continue
            return

    def _finish(self) -> None:
        while (received := self._received.get()) is not None:
            self._finisher.finish(received)

    # --- after the threads --------------------------------------------------------------------------------------------

    def _recover_losses(self) -> None:
        """Keep the images of responses reported lost that a previous attempt has recorded since."""
        for pending in self._reconciler.recover_losses():
            planned, response = pending.planned, self._previous.requests[pending.planned.key].response
            for number, slot in enumerate(self._plan.slots):
                if response is not None and any(planned in alternative for alternative in slot.alternatives):
                    self._state.forget_error(number, pending.intent.client_request_id)
                    self._finisher.finish(self._submitter.reuse(number, planned, response))

    def _verify_files(self, *, may_download: bool) -> None:
        """Check that every listed file exists; download missing ones again, or take them off the list."""
        for _ in range(MAX_VERIFICATIONS):
            finished = {image.file: image for image in self.snapshot().listed if image.file is not None}
            if self._sink is None or not finished:
                return
            try:
                missing = self._sink.find_missing(finished)
            except StorageError as error:
                log.warning("Whether every stored image still exists could not be checked: %s", error)
                return
            if not missing:
                return
            log.warning("%d images have disappeared since they were stored.", len(missing))
            for file in missing:
                image = finished[file]
                self._state.take_back(image.received.slot_number, image)
                if may_download:
                    self._finisher.finish_again(image.received, image.position)

    def snapshot(self) -> RunResult:
        """Return the result so far; other threads may still be working."""
        made: list[FinishedImage] = []
        errors: dict[int, list[ImagenError]] = {}
        unsent: set[int] = set()
        results = self._state.results()
        for number, slot in enumerate(self._plan.slots):
            result = results.get(number, SlotResult())
            failed = [error for error in result.errors if not isinstance(error, StoppedError)]
            if failed:
                errors.setdefault(slot.item_index, []).extend(failed)
            if len(failed) < len(result.errors) or len(result.made) < slot.images:
                unsent.add(slot.item_index)
            made += result.made
        made.sort(key=lambda each: each.order)
        counts = Counter(each.received.item.index for each in made)
        not_sent = sorted(unsent - errors.keys())
        abort_reason = self._state.abort_reason
        if abort_reason is None and not_sent and self._cancellation.is_cancelled():
            abort_reason = StoppedError(
                f"The task was cancelled ({self._cancellation.reason}); what was paid for is kept."
            )
        usd_in_doubt, in_doubt = self._budget.in_doubt()
        intents = dict(self._journal.unresolved)
        return RunResult(
            plan=self._plan,
            made=made,
            superseded=sorted(self._state.superseded(), key=lambda each: each.order),
            failures=[Failure(self._plan.items[item], failed, counts[item]) for item, failed in sorted(errors.items())],
            not_sent=[self._plan.items[item] for item in not_sent],
            abort_reason=abort_reason,
            usd_spent=self._budget.spent_usd,
            usd_by_model=self._budget.spent_usd_by_model,
            usd_lost=self._budget.lost_usd,
            usd_in_doubt=usd_in_doubt,
            in_doubt=[RequestWithoutImages.in_doubt(name, intents.get(name)) for name in in_doubt],
            lost=self._reconciler.losses(),
            usd_is_estimate=self._budget.is_estimate,
            seconds=time.monotonic() - self._started,
        )
