from __future__ import annotations

import random
import threading
import time
from concurrent.futures import Future
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_imagen.exceptions import BudgetExceededError, StoppedError
from airflow_provider_imagen.image_record import ResponseImage
from airflow_provider_imagen.journal.records import (
    ChargeLost,
    Finished,
    Intent,
    JournalState,
    Missing,
    PresumedUnbilled,
    Response,
    Target,
)
from airflow_provider_imagen.run.budget import Budget, Reservation, reservation_for

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.timeout(60)

CENT = Decimal("0.01")

cents = st.integers(1, 40).map(lambda number: number * CENT)


def reserve(budget: Budget, quoted: Decimal | None = 4 * CENT, *, model: str = "m", images: int = 1) -> Reservation:
    return budget.reserve(model=model, quoted_usd=quoted, images=images)


def charge(budget: Budget, usd: Decimal, quoted: Decimal | None = 4 * CENT, **options: Any) -> None:
    budget.count_charge(reserve(budget, quoted, **options), usd=usd)


def lost(budget: Budget, name: str, quoted: Decimal | None = 4 * CENT, **options: Any) -> Reservation:
    reservation = reserve(budget, quoted, **options)
    reservation.client_request_id = name
    budget.hold_in_doubt(reservation)
    return reservation


def never_waiting(max_usd: Decimal | None) -> Budget:
    """Return a budget that raises StoppedError where it would otherwise wait for another request or refuse this one."""
    return Budget(max_usd=max_usd, is_over=lambda: True)


def in_background(act: Callable[[], Any]) -> Future[Any]:
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(act())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def is_waiting(future: Future[Any]) -> bool:
    time.sleep(0.3)
    return not future.done()


def state_of(*records: Any) -> JournalState:
    state = JournalState()
    for record in records:
        state.apply(record)
    return state


def intent(name: str, *, key: str = "a#1", usd: Decimal | None = 4 * CENT, images: int = 1, model: str = "m") -> Intent:
    target = Target(prompt_index=0, image_index=0, images=images, prompt_images=images, prompt="a cat")
    return Intent(key=key, client_request_id=name, model=model, at=1.0, target=target, usd=usd)


def response(name: str, usd: Decimal | None, *, key: str = "a#1", images: int = 1, **fields: Any) -> Response:
    held = (ResponseImage(url="https://x/y"),) * images
    return Response(key=key, client_request_id=name, images=held, model="m", at=1.0, usd=usd, **fields)


# --- the cap ----------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    cap=st.integers(1, 300).map(lambda number: number * CENT),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["send", "send", "charge", "reject", "lose", "look up"]),
            st.integers(0, 99),
            cents,
            st.sampled_from(["m", "n"]),
        ),
        max_size=40,
    ),
)
def test_the_cap_holds_in_any_order_of_events_when_nothing_costs_more_than_quoted(cap, steps):
    budget = never_waiting(cap)
    charged = Decimal(0)
    in_flight: list[Reservation] = []
    in_doubt: list[Reservation] = []
    for number, (what, share, quoted, model) in enumerate(steps):
        pick = share % max(1, len(in_flight))
        if what == "send":
            try:
                in_flight.append(reserve(budget, quoted, model=model))
            except StoppedError:
                continue
        elif what == "look up" and in_doubt:
            reservation = budget.reopen(in_doubt.pop(share % len(in_doubt)).client_request_id or "")
            assert reservation is not None
            in_flight.append(reservation)
        elif what == "charge" and in_flight:
            reservation = in_flight.pop(pick)
            assert reservation.quoted_usd is not None
            usd = reservation.quoted_usd * share / 100
            budget.count_charge(reservation, usd=usd)
            charged += usd
        elif what == "reject" and in_flight:
            budget.release(in_flight.pop(pick))
        elif what == "lose" and in_flight:
            reservation = in_flight.pop(pick)
            reservation.client_request_id = reservation.client_request_id or f"r{number}"
            budget.hold_in_doubt(reservation)
            in_doubt.append(reservation)
        at_worst = sum((each.quoted_usd or Decimal(0) for each in [*in_flight, *in_doubt]), charged)
        assert at_worst <= cap
        assert budget.spent_usd == charged
        assert budget.in_doubt()[1] == sorted(
            each.client_request_id for each in [*in_flight, *in_doubt] if each.client_request_id is not None
        )


@settings(max_examples=200, deadline=None)
@given(
    cap=st.integers(1, 300).map(lambda number: number * CENT),
    real=cents,
    steps=st.lists(
        st.tuples(
            st.sampled_from(["send", "send", "send", "charge", "reject", "lose"]),
            st.integers(0, 99),
            st.none() | cents,
            st.sampled_from([1, 2, 4]),
        ),
        max_size=40,
    ),
)
def test_the_cap_holds_for_any_quotes_once_the_real_price_is_known(cap, real, steps):
    """Only the very first charge may exceed the cap, because its price cannot be known beforehand."""
    budget = never_waiting(cap)
    charges: list[Decimal] = []
    in_flight: list[Reservation] = []
    lost_images = 0
    for number, (what, place, quoted, images) in enumerate(steps):
        if what == "send":
            try:
                in_flight.append(reserve(budget, quoted, images=images))
            except StoppedError:
                continue
        elif not in_flight:
            continue
        elif what == "charge":
            reservation = in_flight.pop(place % len(in_flight))
            charges.append(real * reservation.images)
            budget.count_charge(reservation, usd=charges[-1])
        elif what == "reject":
            budget.release(in_flight.pop(place % len(in_flight)))
        elif charges:  # lost
            reservation = in_flight.pop(place % len(in_flight))
            reservation.client_request_id = f"r{number}"
            lost_images += reservation.images
            budget.hold_in_doubt(reservation)
        if not charges:
            assert len(in_flight) <= 1
        at_worst = sum(charges) + real * (lost_images + sum(each.images for each in in_flight))
        assert at_worst <= cap or len(charges) + len(in_flight) == 1


@settings(max_examples=25, deadline=None)
@given(
    cap=st.integers(1, 300).map(lambda number: number * CENT),
    orders=st.lists(st.tuples(st.none() | cents, st.sampled_from(["at most", "nothing", "lost"])), max_size=14),
    seed=st.integers(0, 999),
)
def test_threads_never_deadlock_whatever_the_outcome_of_their_requests(cap, orders, seed):
    budget = Budget(max_usd=cap)
    rng = random.Random(seed)

    def send(number: int, quoted: Decimal | None, outcome: str, share: Decimal) -> Decimal:
        try:
            reservation = reserve(budget, quoted)
        except BudgetExceededError:
            return Decimal(0)
        time.sleep(float(share) / 500)
        usd = (quoted or 4 * CENT) * share
        if outcome == "at most":
            budget.count_charge(reservation, usd=usd)
            return usd
        if outcome == "nothing":
            budget.release(reservation)
        else:
            reservation.client_request_id = f"r{number}"
            budget.hold_in_doubt(reservation)
        return Decimal(0)

    shares = [Decimal(rng.randint(0, 100)) / 100 for _ in orders]
    senders = [in_background(partial(send, number, *each, shares[number])) for number, each in enumerate(orders)]
    assert sum(sender.result(timeout=20) for sender in senders) == budget.spent_usd


def spend(budget: Budget, price: Callable[[int], Decimal], *, quoted: Decimal | None, threads: int) -> list[Decimal]:
    """Send from many threads until the budget refuses each of them, and return what was charged."""
    charges: list[Decimal] = []
    lock = threading.Lock()

    def send_until_refused() -> None:
        while len(charges) < 500:
            try:
                reservation = reserve(budget, quoted)
            except BudgetExceededError:
                return
            time.sleep(0.001)
            with lock:
                charges.append(usd := price(len(charges)))
            budget.count_charge(reservation, usd=usd)

    for sender in [in_background(send_until_refused) for _ in range(threads)]:
        sender.result(timeout=50)
    assert budget.spent_usd == sum(charges)
    return charges


@pytest.mark.parametrize(
    ("cap", "quoted", "real", "requests"),
    [
        ("1.20", "0.04", "0.20", 6),
        ("3.20", "0.04", "0.40", 8),
        ("3.19", "0.04", "0.40", 7),
        ("1.20", None, "0.20", 6),
        ("1.20", "0.20", "0.20", 6),
        ("0.03", "0.04", "0.01", 0),
    ],
)
def test_sixteen_threads_stay_below_the_cap_when_the_real_price_differs_from_the_quote(cap, quoted, real, requests):
    budget = Budget(max_usd=Decimal(cap))
    charges = spend(budget, lambda _: Decimal(real), quoted=None if quoted is None else Decimal(quoted), threads=16)
    assert len(charges) == requests


def test_an_unforeseeable_price_exceeds_the_cap_by_one_request_at_most():
    charges = spend(Budget(max_usd=10 * CENT), lambda _: 20 * CENT, quoted=4 * CENT, threads=16)
    assert charges == [20 * CENT]


def test_a_price_that_rises_mid_run_exceeds_the_cap_by_the_requests_in_flight_at_most():
    budget = Budget(max_usd=Decimal(3))
    charges = spend(budget, lambda number: (4 if number < 20 else 40) * CENT, quoted=4 * CENT, threads=8)
    assert len(charges) > 20
    assert sum(charges) <= 3 + 8 * 36 * CENT


def test_a_risen_price_is_expected_of_the_requests_in_flight_and_of_the_next():
    budget = Budget(max_usd=50 * CENT)
    charge(budget, 4 * CENT)
    in_flight = [reserve(budget) for _ in range(4)]
    budget.count_charge(in_flight[0], usd=15 * CENT)
    with pytest.raises(BudgetExceededError, match=r"\$0.19 has been spent, and the next request costs about \$0.36"):
        reserve(budget, 36 * CENT)
    for reservation in in_flight[1:]:
        reservation.client_request_id = str(in_flight.index(reservation))
    assert budget.in_doubt()[0] == 45 * CENT
    assert is_waiting(in_background(lambda: reserve(budget)))


def test_only_one_request_is_in_flight_until_the_real_price_of_its_model_is_known():
    budget = never_waiting(Decimal(1))
    first = reserve(budget)
    for model in ("m", "n"):
        with pytest.raises(StoppedError):
            reserve(budget, model=model)
    budget.release(first)  # says nothing about the price
    second = reserve(budget)
    with pytest.raises(StoppedError):
        reserve(budget)
    budget.count_charge(second, usd=4 * CENT)
    both = [reserve(budget), reserve(budget)]
    with pytest.raises(StoppedError):
        reserve(budget, model="n")
    for reservation in both:
        budget.count_charge(reservation, usd=4 * CENT)
    reserve(budget, model="n")
    with pytest.raises(StoppedError):
        reserve(budget)


def test_a_charge_of_zero_does_not_reveal_the_price():
    budget = never_waiting(Decimal(1))
    charge(budget, Decimal(0))
    reserve(budget)
    with pytest.raises(StoppedError):
        reserve(budget)


def test_with_an_unknown_price_one_request_goes_first_and_its_cost_is_expected_of_the_others():
    budget = Budget(max_usd=Decimal(1))
    first = reserve(budget, None, images=2)
    second = in_background(lambda: reserve(budget, None, images=4))
    assert is_waiting(second)
    budget.count_charge(first, usd=10 * CENT)
    assert budget.price(second.result(timeout=5)) == 20 * CENT


def test_with_an_unknown_price_nothing_is_sent_once_the_budget_is_spent():
    budget = Budget(max_usd=4 * CENT)
    charge(budget, 4 * CENT, model="n")
    with pytest.raises(BudgetExceededError, match="the price of the next is unknown"):
        reserve(budget, None)


def test_money_is_exact():
    budget = Budget(max_usd=Decimal("0.30"))
    for _ in range(3):
        charge(budget, Decimal("0.10000000"), Decimal("0.1"), images=3)
    assert budget.spent_usd == Decimal("0.3")
    with pytest.raises(BudgetExceededError) as caught:
        reserve(budget, Decimal("0.0000001"))
    assert (caught.value.spent_usd, caught.value.max_usd) == (0.3, 0.3)


def test_a_price_that_fits_exactly_still_fits_after_a_more_expensive_response():
    budget = Budget(max_usd=Decimal("0.052"))
    charge(budget, Decimal("0.026"), Decimal("0.021"))
    assert budget.price(reserve(budget, Decimal("0.021"))) == Decimal("0.026")


def test_an_expensive_model_does_not_raise_the_expected_price_of_a_cheap_one():
    budget = Budget(max_usd=25 * CENT)
    charge(budget, 20 * CENT, 20 * CENT, model="dear")
    assert budget.price(reserve(budget, 2 * CENT, model="cheap")) == 2 * CENT


def test_the_highest_price_seen_or_quoted_is_expected_per_image():
    budget = Budget(max_usd=Decimal(9))
    charge(budget, 20 * CENT, images=2)
    charge(budget, 6 * CENT)
    assert budget.price(Reservation("m", 3, 4 * CENT)) == 30 * CENT
    assert budget.price(Reservation("m", 3, 31 * CENT)) == 31 * CENT
    assert budget.price(Reservation("m", 3, None)) == 30 * CENT
    assert budget.price(Reservation("n", 3, 4 * CENT)) == 4 * CENT
    assert budget.price(Reservation("n", 3, None)) is None


# --- waiting ----------------------------------------------------------------------------------------------------------


def test_a_request_waits_while_another_may_still_cost_less():
    budget = Budget(max_usd=12 * CENT)
    charge(budget, 2 * CENT)
    first = reserve(budget, 8 * CENT)
    second = in_background(lambda: reserve(budget, 8 * CENT))
    assert is_waiting(second)
    budget.release(first)
    assert budget.price(second.result(timeout=5)) == 8 * CENT


def test_a_request_that_cannot_fit_is_refused_at_once():
    budget = Budget(max_usd=12 * CENT)
    charge(budget, 5 * CENT)
    reserve(budget, 4 * CENT)
    with pytest.raises(BudgetExceededError):
        reserve(budget, 8 * CENT)


@pytest.mark.parametrize("is_billed", [True, False])
def test_a_request_waits_while_the_outcome_of_one_in_doubt_is_looked_up(is_billed):
    budget = Budget(max_usd=10 * CENT)
    budget.count_previous(state_of(intent("r1", usd=8 * CENT)))
    reservation = budget.reopen("r1")
    assert reservation is not None
    waiting = in_background(lambda: reserve(budget, 8 * CENT))
    assert is_waiting(waiting)
    if is_billed:
        budget.count_charge(reservation, usd=8 * CENT)
        with pytest.raises(BudgetExceededError):
            waiting.result(timeout=5)
    else:
        budget.release(reservation)
        assert waiting.result(timeout=5).quoted_usd == 8 * CENT


@pytest.mark.parametrize("max_usd", [Decimal(1), 8 * CENT])
def test_waiting_ends_when_the_task_is_cancelled(max_usd):
    is_over = threading.Event()
    budget = Budget(max_usd=max_usd, is_over=is_over.is_set)
    reserve(budget, 8 * CENT)
    waiting = in_background(lambda: reserve(budget, 8 * CENT))
    assert is_waiting(waiting)
    is_over.set()
    with pytest.raises(StoppedError, match="cancelled; nothing new was sent"):
        waiting.result(timeout=5)


# --- requests in doubt ------------------------------------------------------------------------------------------------


def test_a_request_in_doubt_keeps_its_money_reserved():
    budget = Budget(max_usd=12 * CENT)
    charge(budget, 4 * CENT)
    lost(budget, "r2")
    assert budget.in_doubt() == (4 * CENT, ["r2"])
    assert budget.spent_usd == 4 * CENT
    lost(budget, "r3")
    with pytest.raises(BudgetExceededError, match=r"\$0.04 has been spent, \$0.08 more may have been charged"):
        reserve(budget)


def test_the_reservation_for_a_request_in_doubt_grows_with_the_highest_price_seen_later():
    budget = Budget(max_usd=Decimal(1))
    lost(budget, "r1")
    assert budget.in_doubt()[0] == 4 * CENT
    charge(budget, 40 * CENT)
    assert budget.in_doubt() == (40 * CENT, ["r1"])
    with pytest.raises(BudgetExceededError):
        reserve(budget)


def test_a_request_in_doubt_at_an_unknown_price_blocks_all_others_under_a_cap():
    budget = Budget(max_usd=Decimal(1))
    lost(budget, "r1", None)
    for model, quoted in (("m", None), ("m", 4 * CENT), ("n", 4 * CENT)):
        with pytest.raises(BudgetExceededError):
            reserve(budget, quoted, model=model)
    assert budget.in_doubt() == (0, ["r1"])
    reservation = budget.reopen("r1")
    assert reservation is not None
    budget.count_charge(reservation, usd=10 * CENT)
    assert budget.price(reserve(budget, 4 * CENT)) == 10 * CENT


def test_the_error_says_that_an_unknown_amount_may_have_been_charged():
    budget = Budget(max_usd=Decimal(1))
    lost(budget, "r1", None)
    with pytest.raises(BudgetExceededError, match="may have been charged"):
        reserve(budget)


def test_a_request_in_flight_is_in_doubt_once_it_is_sent():
    budget = Budget(max_usd=Decimal(1))
    reservation = reserve(budget)
    assert budget.in_doubt() == (0, [])
    reservation.client_request_id = "r1"
    assert budget.in_doubt() == (4 * CENT, ["r1"])
    budget.count_charge(reservation, usd=4 * CENT)
    assert budget.in_doubt() == (0, [])


def test_a_request_that_was_never_sent_cannot_be_in_doubt():
    budget = Budget(max_usd=4 * CENT)
    budget.hold_in_doubt(reserve(budget))
    assert budget.in_doubt() == (0, [])
    reserve(budget)


def test_a_reopened_request_stays_in_doubt_until_its_outcome_is_known():
    budget = never_waiting(10 * CENT)
    lost(budget, "r1", 8 * CENT)
    reservation = budget.reopen("r1")
    assert reservation is not None
    assert budget.reopen("r1") is None
    assert budget.in_doubt() == (8 * CENT, ["r1"])
    budget.hold_in_doubt(reservation)
    assert budget.in_doubt() == (8 * CENT, ["r1"])
    assert budget.reopen("r1") is reservation
    budget.release(reservation)
    assert budget.in_doubt() == (0, [])
    assert budget.reopen("unknown") is None
    assert budget.spent_usd == 0


@pytest.mark.parametrize("usd", [Decimal(0), 5 * CENT])
def test_a_late_outcome_resolves_a_request_presumed_unbilled(usd):
    budget = Budget(max_usd=Decimal(1))
    posted = intent("r1")
    budget.count_previous(state_of(posted, PresumedUnbilled(key="a#1", client_request_id="r1")))
    assert budget.in_doubt() == (4 * CENT, ["r1"])
    if usd:
        budget.count_charge(reservation_for(posted), usd=usd)
    else:
        budget.release(reservation_for(posted))
    assert budget.in_doubt() == (0, [])
    assert budget.spent_usd == usd


# --- previous attempts ------------------------------------------------------------------------------------------------


def test_money_that_previous_attempts_spent_and_lost_counts():
    budget = Budget(max_usd=Decimal(1))
    budget.count_previous(
        state_of(
            intent("r1"),
            response("r1", 10 * CENT, images=2, usd_undelivered=2 * CENT),
            Missing(key="a#1", image=0),
            intent("r2", key="b#1"),
            ChargeLost(key="b#1", client_request_id="r2", usd=7 * CENT),
            intent("r3", key="b#1"),
            response("r3", 5 * CENT, key="b#1"),
        )
    )
    assert (budget.spent_usd, budget.lost_usd) == (22 * CENT, 13 * CENT)
    assert budget.in_doubt() == (0, [])
    assert not budget.is_estimate
    with pytest.raises(BudgetExceededError):
        reserve(budget, 79 * CENT)
    reserve(budget, 78 * CENT)


def test_prices_that_previous_attempts_paid_are_known():
    budget = never_waiting(Decimal(1))
    budget.count_previous(state_of(intent("r1", images=2), response("r1", 20 * CENT, images=2)))
    assert [budget.price(reserve(budget)) for _ in range(8)] == [10 * CENT] * 8
    with pytest.raises(StoppedError):
        reserve(budget)


def test_the_price_per_image_is_per_requested_image_even_if_fewer_were_delivered():
    budget = Budget(max_usd=Decimal(1))
    budget.count_previous(state_of(intent("r1", images=4), response("r1", 20 * CENT, images=1)))
    assert budget.price(reserve(budget, images=2)) == 10 * CENT


@pytest.mark.parametrize("is_replaced", [False, True])
def test_charges_of_unknown_amount_stay_in_doubt_until_an_amount_is_recorded(is_replaced):
    records: list[Any] = [intent("r1", usd=None), response("r1", None)]
    if is_replaced:
        records += [intent("r2", usd=None), response("r2", 4 * CENT)]
    records += [intent("r3", key="b#1", usd=None), ChargeLost(key="b#1", client_request_id="r3")]
    budget = Budget()
    budget.count_previous(state_of(*records))
    assert budget.in_doubt() == ((2 if is_replaced else 0) * 4 * CENT, ["r1", "r3"])
    known = Budget()
    known.count_previous(state_of(*records, response("r3", 5 * CENT, key="b#1")))
    assert known.in_doubt()[1] == ["r1"]
    assert known.spent_usd == (9 if is_replaced else 5) * CENT


def test_each_charge_counts_for_the_model_of_its_request():
    budget = Budget()
    budget.count_previous(
        state_of(
            intent("r1"),
            response("r1", 4 * CENT),
            intent("r2"),  # its response replaces that of r1
            response("r2", 5 * CENT),
            intent("r3", key="b#1"),
            ChargeLost(key="b#1", client_request_id="r3", usd=6 * CENT),
        )
    )
    budget.count_own("r4", 7 * CENT, model="other", at=0.0)
    budget.count_own("r4", 7 * CENT, model="other", at=0.0)
    budget.count_charge(budget.reserve(model="third", quoted_usd=None, images=1), usd=8 * CENT)
    assert budget.spent_usd_by_model == {"m": 15 * CENT, "other": 7 * CENT, "third": 8 * CENT}
    assert sum(budget.spent_usd_by_model.values()) == budget.spent_usd


def test_costs_that_previous_attempts_estimated_stay_estimates():
    budget = Budget()
    budget.count_previous(state_of(intent("r1"), response("r1", 4 * CENT, usd_is_estimate=True)))
    assert budget.is_estimate


@pytest.mark.parametrize("price", [4 * CENT, 40 * CENT])
def test_requests_that_previous_attempts_left_unresolved_keep_their_money_reserved(price):
    budget = Budget(max_usd=Decimal(9))
    budget.count_previous(
        state_of(
            intent("finished", key="z#1"),
            Finished(),
            intent("open"),
            intent("presumed", key="b#1"),
            PresumedUnbilled(key="b#1", client_request_id="presumed"),
            intent("paid", key="c#1"),
            response("paid", price, key="c#1"),
        )
    )
    assert budget.in_doubt() == (3 * price, ["finished", "open", "presumed"])
    assert budget.spent_usd == price
    with pytest.raises(BudgetExceededError):
        reserve(budget, Decimal(9) - 4 * price + CENT)
    reserve(budget, Decimal(9) - 4 * price)


def test_money_that_a_finished_task_spent_does_not_count_after_it_is_cleared():
    budget = Budget(max_usd=4 * CENT)
    budget.count_previous(state_of(intent("r1"), response("r1", 4 * CENT), Finished()))
    assert budget.spent_usd == 0
    reserve(budget)


def test_an_intent_determines_its_reservation():
    reservation = reservation_for(intent("r1", usd=8 * CENT, images=2))
    assert (reservation.model, reservation.images, reservation.quoted_usd) == ("m", 2, 8 * CENT)
    assert reservation.client_request_id == "r1"


# --- what a response costs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stated", [None, Decimal(0), Decimal("0.00")])
def test_images_with_no_stated_cost_or_a_cost_of_zero_count_at_the_quoted_price(stated):
    budget = Budget()
    assert budget.cost(reserve(budget), stated, has_images=True) == 4 * CENT
    assert budget.is_estimate


def test_a_response_without_images_may_cost_nothing():
    budget = Budget()
    assert budget.cost(reserve(budget), Decimal(0), has_images=False) == 0
    assert not budget.is_estimate


@pytest.mark.parametrize("has_images", [True, False])
def test_a_stated_cost_counts_as_stated(has_images):
    budget = Budget()
    assert budget.cost(reserve(budget), 5 * CENT, has_images=has_images) == 5 * CENT
    assert not budget.is_estimate


def test_a_cost_neither_stated_nor_quoted_is_estimated_from_earlier_charges_of_the_model():
    budget = Budget()
    assert budget.cost(reserve(budget, None), None, has_images=True) is None
    charge(budget, 10 * CENT, images=2)
    assert budget.cost(reserve(budget, None, images=3), None, has_images=True) == 15 * CENT


# --- totals -----------------------------------------------------------------------------------------------------------


def test_lost_money_is_part_of_what_was_spent_and_may_be_found_again():
    budget = Budget(max_usd=Decimal(1))
    charge(budget, 10 * CENT)
    budget.count_lost(4 * CENT)
    budget.count_lost(None)
    budget.count_lost(2 * CENT)
    budget.count_lost(-4 * CENT)
    assert (budget.spent_usd, budget.lost_usd) == (10 * CENT, 2 * CENT)


def test_the_error_reports_the_spent_amount_and_the_cost_of_the_next_request():
    budget = Budget(max_usd=Decimal("0.20"))
    charge(budget, 10 * CENT)
    lost(budget, "r1")
    error = budget.exceeded_error(next_usd=12 * CENT)
    assert str(error) == (
        "max_usd=$0.20: $0.10 has been spent, $0.10 more may have been charged, and the next request costs about $0.12."
    )
    assert (error.spent_usd, error.max_usd) == (0.1, 0.2)
    assert str(Budget(max_usd=Decimal(1)).exceeded_error(next_usd=None)) == (
        "max_usd=$1.00: $0.00 has been spent, and the price of the next is unknown."
    )


def test_without_a_cap_everything_is_counted_and_nothing_is_refused():
    budget = never_waiting(None)
    budget.count_previous(state_of(intent("r1"), response("r1", Decimal(5))))
    reservations = [reserve(budget, quoted, model=model) for quoted in (None, Decimal(99)) for model in ("m", "n")]
    for reservation in reservations:
        budget.count_charge(reservation, usd=Decimal(7))
    lost(budget, "r2", None)
    lost(budget, "r3", Decimal(1), model="n")
    reserve(budget, None, model="other")
    assert budget.spent_usd == 33
    assert budget.in_doubt() == (14, ["r2", "r3"])
