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


def order(budget: Budget, quoted: Decimal | None = 4 * CENT, *, model: str = "m", images: int = 1) -> Reservation:
    return budget.reserve(model=model, quoted_usd=quoted, images=images)


def bought(budget: Budget, usd: Decimal, quoted: Decimal | None = 4 * CENT, **options: Any) -> None:
    budget.settle(order(budget, quoted, **options), usd=usd)


def lost(budget: Budget, name: str, quoted: Decimal | None = 4 * CENT, **options: Any) -> Reservation:
    reservation = order(budget, quoted, **options)
    reservation.client_request_id = name
    budget.doubt(reservation)
    return reservation


def never_waiting(max_usd: Decimal | None) -> Budget:
    """A budget that raises StoppedError where it would have to wait for another request, or to refuse this one."""
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
                in_flight.append(order(budget, quoted, model=model))
            except StoppedError:
                continue
        elif what == "look up" and in_doubt:
            reservation = budget.examine(in_doubt.pop(share % len(in_doubt)).client_request_id or "")
            assert reservation is not None
            in_flight.append(reservation)
        elif what == "charge" and in_flight:
            reservation = in_flight.pop(pick)
            assert reservation.quoted_usd is not None
            usd = reservation.quoted_usd * share / 100
            budget.settle(reservation, usd=usd)
            charged += usd
        elif what == "reject" and in_flight:
            budget.release(in_flight.pop(pick))
        elif what == "lose" and in_flight:
            reservation = in_flight.pop(pick)
            reservation.client_request_id = reservation.client_request_id or f"r{number}"
            budget.doubt(reservation)
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
def test_the_cap_holds_for_any_quotes_once_the_real_price_has_been_seen(cap, real, steps):
    """Only the very first charge may exceed it, because nobody can know it before."""
    budget = never_waiting(cap)
    charges: list[Decimal] = []
    in_flight: list[Reservation] = []
    lost_images = 0
    for number, (what, place, quoted, images) in enumerate(steps):
        if what == "send":
            try:
                in_flight.append(order(budget, quoted, images=images))
            except StoppedError:
                continue
        elif not in_flight:
            continue
        elif what == "charge":
            reservation = in_flight.pop(place % len(in_flight))
            charges.append(real * reservation.images)
            budget.settle(reservation, usd=charges[-1])
        elif what == "reject":
            budget.release(in_flight.pop(place % len(in_flight)))
        elif charges:  # lost
            reservation = in_flight.pop(place % len(in_flight))
            reservation.client_request_id = f"r{number}"
            lost_images += reservation.images
            budget.doubt(reservation)
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
def test_threads_never_get_stuck_whatever_becomes_of_their_requests(cap, orders, seed):
    budget = Budget(max_usd=cap)
    rng = random.Random(seed)

    def buy(number: int, quoted: Decimal | None, outcome: str, share: Decimal) -> Decimal:
        try:
            reservation = order(budget, quoted)
        except BudgetExceededError:
            return Decimal(0)
        time.sleep(float(share) / 500)
        usd = (quoted or 4 * CENT) * share
        if outcome == "at most":
            budget.settle(reservation, usd=usd)
            return usd
        if outcome == "nothing":
            budget.release(reservation)
        else:
            reservation.client_request_id = f"r{number}"
            budget.doubt(reservation)
        return Decimal(0)

    shares = [Decimal(rng.randint(0, 100)) / 100 for _ in orders]
    buyers = [in_background(partial(buy, number, *each, shares[number])) for number, each in enumerate(orders)]
    assert sum(buyer.result(timeout=20) for buyer in buyers) == budget.spent_usd


def spend(budget: Budget, price: Callable[[int], Decimal], *, quoted: Decimal | None, threads: int) -> list[Decimal]:
    """Buy with many threads until the budget refuses each of them, and return what was charged."""
    charges: list[Decimal] = []
    lock = threading.Lock()

    def buy_on() -> None:
        while len(charges) < 500:
            try:
                reservation = order(budget, quoted)
            except BudgetExceededError:
                return
            time.sleep(0.001)
            with lock:
                charges.append(usd := price(len(charges)))
            budget.settle(reservation, usd=usd)

    for buyer in [in_background(buy_on) for _ in range(threads)]:
        buyer.result(timeout=50)
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
def test_sixteen_threads_stay_below_the_cap_though_the_real_price_is_another_than_quoted(cap, quoted, real, requests):
    budget = Budget(max_usd=Decimal(cap))
    charges = spend(budget, lambda _: Decimal(real), quoted=None if quoted is None else Decimal(quoted), threads=16)
    assert len(charges) == requests


def test_a_price_that_nobody_could_know_exceeds_the_cap_with_a_single_request_at_most():
    charges = spend(Budget(max_usd=10 * CENT), lambda _: 20 * CENT, quoted=4 * CENT, threads=16)
    assert charges == [20 * CENT]


def test_a_price_that_rises_in_mid_run_costs_at_most_one_round_of_requests_in_flight():
    budget = Budget(max_usd=Decimal(3))
    charges = spend(budget, lambda number: (4 if number < 20 else 40) * CENT, quoted=4 * CENT, threads=8)
    assert len(charges) > 20
    assert sum(charges) <= 3 + 8 * 36 * CENT


def test_a_price_that_has_risen_is_expected_of_the_requests_in_flight_and_of_the_next():
    budget = Budget(max_usd=50 * CENT)
    bought(budget, 4 * CENT)
    in_flight = [order(budget) for _ in range(4)]
    budget.settle(in_flight[0], usd=15 * CENT)
    with pytest.raises(BudgetExceededError, match=r"\$0.1900 are spent, and the next request costs about \$0.3600"):
        order(budget, 36 * CENT)
    for reservation in in_flight[1:]:
        reservation.client_request_id = str(in_flight.index(reservation))
    assert budget.in_doubt()[0] == 45 * CENT
    assert is_waiting(in_background(lambda: order(budget)))


def test_a_single_request_is_in_flight_until_the_real_price_of_its_model_is_known():
    budget = never_waiting(Decimal(1))
    first = order(budget)
    for model in ("m", "n"):
        with pytest.raises(StoppedError):
            order(budget, model=model)
    budget.release(first)  # which tells nothing
    second = order(budget)
    with pytest.raises(StoppedError):
        order(budget)
    budget.settle(second, usd=4 * CENT)
    both = [order(budget), order(budget)]
    with pytest.raises(StoppedError):
        order(budget, model="n")
    for reservation in both:
        budget.settle(reservation, usd=4 * CENT)
    order(budget, model="n")
    with pytest.raises(StoppedError):
        order(budget)


def test_a_charge_of_zero_does_not_tell_the_price():
    budget = never_waiting(Decimal(1))
    bought(budget, Decimal(0))
    order(budget)
    with pytest.raises(StoppedError):
        order(budget)


def test_an_unknown_price_sends_one_request_and_expects_its_cost_of_the_others():
    budget = Budget(max_usd=Decimal(1))
    first = order(budget, None, images=2)
    second = in_background(lambda: order(budget, None, images=4))
    assert is_waiting(second)
    budget.settle(first, usd=10 * CENT)
    assert budget.price(second.result(timeout=5)) == 20 * CENT


def test_an_unknown_price_is_not_tried_when_nothing_is_left():
    budget = Budget(max_usd=4 * CENT)
    bought(budget, 4 * CENT, model="n")
    with pytest.raises(BudgetExceededError, match="the price of the next is unknown"):
        order(budget, None)


def test_money_is_exact():
    budget = Budget(max_usd=Decimal("0.30"))
    for _ in range(3):
        bought(budget, Decimal("0.10000000"), Decimal("0.1"), images=3)
    assert budget.spent_usd == Decimal("0.3")
    with pytest.raises(BudgetExceededError) as caught:
        order(budget, Decimal("0.0000001"))
    assert (caught.value.spent_usd, caught.value.max_usd) == (0.3, 0.3)


def test_a_price_that_fits_to_the_last_digit_fits_also_after_a_dearer_response():
    budget = Budget(max_usd=Decimal("0.052"))
    bought(budget, Decimal("0.026"), Decimal("0.021"))
    assert budget.price(order(budget, Decimal("0.021"))) == Decimal("0.026")


def test_a_dear_model_does_not_make_a_cheap_one_dear():
    budget = Budget(max_usd=25 * CENT)
    bought(budget, 20 * CENT, 20 * CENT, model="dear")
    assert budget.price(order(budget, 2 * CENT, model="cheap")) == 2 * CENT


def test_the_highest_price_seen_or_quoted_is_expected_per_image():
    budget = Budget(max_usd=Decimal(9))
    bought(budget, 20 * CENT, images=2)
    bought(budget, 6 * CENT)
    assert budget.price(Reservation("m", 3, 4 * CENT)) == 30 * CENT
    assert budget.price(Reservation("m", 3, 31 * CENT)) == 31 * CENT
    assert budget.price(Reservation("m", 3, None)) == 30 * CENT
    assert budget.price(Reservation("n", 3, 4 * CENT)) == 4 * CENT
    assert budget.price(Reservation("n", 3, None)) is None


# --- waiting ----------------------------------------------------------------------------------------------------------


def test_it_waits_rather_than_refuses_while_another_request_may_cost_less():
    budget = Budget(max_usd=12 * CENT)
    bought(budget, 2 * CENT)
    first = order(budget, 8 * CENT)
    second = in_background(lambda: order(budget, 8 * CENT))
    assert is_waiting(second)
    budget.release(first)
    assert budget.price(second.result(timeout=5)) == 8 * CENT


def test_it_refuses_at_once_what_does_not_fit_whatever_becomes_of_the_others():
    budget = Budget(max_usd=12 * CENT)
    bought(budget, 5 * CENT)
    order(budget, 4 * CENT)
    with pytest.raises(BudgetExceededError):
        order(budget, 8 * CENT)


@pytest.mark.parametrize("is_billed", [True, False])
def test_it_waits_for_a_request_in_doubt_while_its_outcome_is_looked_up(is_billed):
    budget = Budget(max_usd=10 * CENT)
    budget.inherit(state_of(intent("r1", usd=8 * CENT)))
    reservation = budget.examine("r1")
    assert reservation is not None
    waiting = in_background(lambda: order(budget, 8 * CENT))
    assert is_waiting(waiting)
    if is_billed:
        budget.settle(reservation, usd=8 * CENT)
        with pytest.raises(BudgetExceededError):
            waiting.result(timeout=5)
    else:
        budget.release(reservation)
        assert waiting.result(timeout=5).quoted_usd == 8 * CENT


@pytest.mark.parametrize("max_usd", [Decimal(1), 8 * CENT])
def test_waiting_ends_when_the_task_is_cancelled(max_usd):
    is_over = threading.Event()
    budget = Budget(max_usd=max_usd, is_over=is_over.is_set)
    order(budget, 8 * CENT)
    waiting = in_background(lambda: order(budget, 8 * CENT))
    assert is_waiting(waiting)
    is_over.set()
    with pytest.raises(StoppedError, match="cancelled; nothing new was sent"):
        waiting.result(timeout=5)


# --- requests in doubt ------------------------------------------------------------------------------------------------


def test_a_request_in_doubt_keeps_its_money_reserved():
    budget = Budget(max_usd=12 * CENT)
    bought(budget, 4 * CENT)
    lost(budget, "r2")
    assert budget.in_doubt() == (4 * CENT, ["r2"])
    assert budget.spent_usd == 4 * CENT
    lost(budget, "r3")
    with pytest.raises(BudgetExceededError, match=r"\$0.0400 are spent, \$0.0800 more may have been charged"):
        order(budget)


def test_money_for_a_request_in_doubt_grows_with_the_highest_price_that_is_learnt_later():
    budget = Budget(max_usd=Decimal(1))
    lost(budget, "r1")
    assert budget.in_doubt()[0] == 4 * CENT
    bought(budget, 40 * CENT)
    assert budget.in_doubt() == (40 * CENT, ["r1"])
    with pytest.raises(BudgetExceededError):
        order(budget)


def test_a_request_in_doubt_whose_price_nobody_knows_lets_no_other_be_sent_under_a_cap():
    budget = Budget(max_usd=Decimal(1))
    lost(budget, "r1", None)
    for model, quoted in (("m", None), ("m", 4 * CENT), ("n", 4 * CENT)):
        with pytest.raises(BudgetExceededError):
            order(budget, quoted, model=model)
    assert budget.in_doubt() == (0, ["r1"])
    reservation = budget.examine("r1")
    assert reservation is not None
    budget.settle(reservation, usd=10 * CENT)
    assert budget.price(order(budget, 4 * CENT)) == 10 * CENT


def test_the_error_says_that_more_may_have_been_charged_also_when_nobody_knows_how_much():
    budget = Budget(max_usd=Decimal(1))
    lost(budget, "r1", None)
    with pytest.raises(BudgetExceededError, match="may have been charged"):
        order(budget)


def test_a_request_in_flight_is_in_doubt_once_it_is_sent():
    budget = Budget(max_usd=Decimal(1))
    reservation = order(budget)
    assert budget.in_doubt() == (0, [])
    reservation.client_request_id = "r1"
    assert budget.in_doubt() == (4 * CENT, ["r1"])
    budget.settle(reservation, usd=4 * CENT)
    assert budget.in_doubt() == (0, [])


def test_a_request_that_was_never_sent_cannot_be_in_doubt():
    budget = Budget(max_usd=4 * CENT)
    budget.doubt(order(budget))
    assert budget.in_doubt() == (0, [])
    order(budget)


def test_a_request_under_examination_stays_in_doubt_until_there_is_an_outcome():
    budget = never_waiting(10 * CENT)
    lost(budget, "r1", 8 * CENT)
    reservation = budget.examine("r1")
    assert reservation is not None
    assert budget.examine("r1") is None
    assert budget.in_doubt() == (8 * CENT, ["r1"])
    budget.doubt(reservation)
    assert budget.in_doubt() == (8 * CENT, ["r1"])
    assert budget.examine("r1") is reservation
    budget.release(reservation)
    assert budget.in_doubt() == (0, [])
    assert budget.examine("unknown") is None
    assert budget.spent_usd == 0


@pytest.mark.parametrize("usd", [Decimal(0), 5 * CENT])
def test_a_charge_that_turns_up_late_takes_the_place_of_the_doubt(usd):
    budget = Budget(max_usd=Decimal(1))
    posted = intent("r1")
    budget.inherit(state_of(posted, PresumedUnbilled(key="a#1", client_request_id="r1")))
    assert budget.in_doubt() == (4 * CENT, ["r1"])
    if usd:
        budget.settle(reservation_for(posted), usd=usd)
    else:
        budget.release(reservation_for(posted))
    assert budget.in_doubt() == (0, [])
    assert budget.spent_usd == usd


# --- earlier attempts -------------------------------------------------------------------------------------------------


def test_what_earlier_attempts_spent_and_lost_counts():
    budget = Budget(max_usd=Decimal(1))
    budget.inherit(
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
        order(budget, 79 * CENT)
    order(budget, 78 * CENT)


def test_prices_that_earlier_attempts_paid_are_known():
    budget = never_waiting(Decimal(1))
    budget.inherit(state_of(intent("r1", images=2), response("r1", 20 * CENT, images=2)))
    assert [budget.price(order(budget)) for _ in range(8)] == [10 * CENT] * 8
    with pytest.raises(StoppedError):
        order(budget)


def test_the_price_per_image_is_that_of_the_images_asked_for_also_when_fewer_came():
    budget = Budget(max_usd=Decimal(1))
    budget.inherit(state_of(intent("r1", images=4), response("r1", 20 * CENT, images=1)))
    assert budget.price(order(budget, images=2)) == 10 * CENT


@pytest.mark.parametrize("is_replaced", [False, True])
def test_charges_of_unknown_amount_stay_in_doubt_until_an_amount_is_recorded(is_replaced):
    records: list[Any] = [intent("r1", usd=None), response("r1", None)]
    if is_replaced:
        records += [intent("r2", usd=None), response("r2", 4 * CENT)]
    records += [intent("r3", key="b#1", usd=None), ChargeLost(key="b#1", client_request_id="r3")]
    budget = Budget()
    budget.inherit(state_of(*records))
    assert budget.in_doubt() == ((2 if is_replaced else 0) * 4 * CENT, ["r1", "r3"])
    known = Budget()
    known.inherit(state_of(*records, response("r3", 5 * CENT, key="b#1")))
    assert known.in_doubt()[1] == ["r1"]
    assert known.spent_usd == (9 if is_replaced else 5) * CENT


def test_costs_that_earlier_attempts_estimated_stay_estimates():
    budget = Budget()
    budget.inherit(state_of(intent("r1"), response("r1", 4 * CENT, usd_is_estimate=True)))
    assert budget.is_estimate


@pytest.mark.parametrize("price", [4 * CENT, 40 * CENT])
def test_requests_that_earlier_attempts_left_unresolved_keep_their_money_reserved(price):
    budget = Budget(max_usd=Decimal(9))
    budget.inherit(
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
        order(budget, Decimal(9) - 4 * price + CENT)
    order(budget, Decimal(9) - 4 * price)


def test_what_a_finished_task_spent_does_not_count_for_the_cleared_one():
    budget = Budget(max_usd=4 * CENT)
    budget.inherit(state_of(intent("r1"), response("r1", 4 * CENT), Finished()))
    assert budget.spent_usd == 0
    order(budget)


def test_an_intent_says_what_is_to_be_reserved_for_it():
    reservation = reservation_for(intent("r1", usd=8 * CENT, images=2))
    assert (reservation.model, reservation.images, reservation.quoted_usd) == ("m", 2, 8 * CENT)
    assert reservation.client_request_id == "r1"


# --- what a response costs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stated", [None, Decimal(0), Decimal("0.00")])
def test_images_without_a_cost_or_at_a_cost_of_zero_count_at_the_quoted_price(stated):
    budget = Budget()
    assert budget.cost(order(budget), stated, has_images=True) == 4 * CENT
    assert budget.is_estimate


def test_a_response_without_images_may_cost_nothing():
    budget = Budget()
    assert budget.cost(order(budget), Decimal(0), has_images=False) == 0
    assert not budget.is_estimate


@pytest.mark.parametrize("has_images", [True, False])
def test_a_cost_that_is_stated_counts_as_stated(has_images):
    budget = Budget()
    assert budget.cost(order(budget), 5 * CENT, has_images=has_images) == 5 * CENT
    assert not budget.is_estimate


def test_a_cost_that_is_neither_stated_nor_quoted_is_taken_from_what_the_model_has_cost():
    budget = Budget()
    assert budget.cost(order(budget, None), None, has_images=True) is None
    bought(budget, 10 * CENT, images=2)
    assert budget.cost(order(budget, None, images=3), None, has_images=True) == 15 * CENT


# --- totals -----------------------------------------------------------------------------------------------------------


def test_lost_money_is_part_of_what_was_spent_and_may_be_found_again():
    budget = Budget(max_usd=Decimal(1))
    bought(budget, 10 * CENT)
    budget.lose(4 * CENT)
    budget.lose(None)
    budget.lose(2 * CENT)
    budget.lose(-4 * CENT)
    assert (budget.spent_usd, budget.lost_usd) == (10 * CENT, 2 * CENT)


def test_the_error_reports_what_is_spent_and_what_the_next_request_costs():
    budget = Budget(max_usd=Decimal("0.20"))
    bought(budget, 10 * CENT)
    lost(budget, "r1")
    error = budget.exceeded(next_usd=12 * CENT)
    assert str(error) == (
        "max_usd=0.20: $0.1000 are spent, $0.1000 more may have been charged, and the next request costs about $0.1200."
    )
    assert (error.spent_usd, error.max_usd) == (0.1, 0.2)
    assert str(Budget(max_usd=Decimal(1)).exceeded(next_usd=None)) == (
        "max_usd=1: $0.0000 are spent, and the price of the next is unknown."
    )


def test_without_a_cap_everything_is_counted_and_nothing_refused():
    budget = never_waiting(None)
    budget.inherit(state_of(intent("r1"), response("r1", Decimal(5))))
    reservations = [order(budget, quoted, model=model) for quoted in (None, Decimal(99)) for model in ("m", "n")]
    for reservation in reservations:
        budget.settle(reservation, usd=Decimal(7))
    lost(budget, "r2", None)
    lost(budget, "r3", Decimal(1), model="n")
    order(budget, None, model="other")
    assert budget.spent_usd == 33
    assert budget.in_doubt() == (14, ["r2", "r3"])
