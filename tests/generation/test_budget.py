from __future__ import annotations

import random
import threading
import time
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_imagen.exceptions import BudgetExceededError, StoppedError
from airflow_provider_imagen.generation.budget import Budget

pytestmark = pytest.mark.timeout(60)

cents = st.integers(1, 40).map(lambda number: Decimal(number) / 100)


@settings(max_examples=40, deadline=None)
@given(
    cap=st.integers(1, 300).map(lambda number: Decimal(number) / 100),
    orders=st.lists(st.tuples(st.none() | cents, st.sampled_from(["at most", "nothing", "unknown"])), max_size=14),
    seed=st.integers(0, 999),
)
def test_spent_and_set_aside_never_pass_the_cap_whatever_the_interleaving(cap, orders, seed):
    budget = Budget(max_usd=cap)
    rng = random.Random(seed)
    charged: list[Decimal] = []
    worst = [Decimal(0)]
    lock = threading.Lock()
    aside = [Decimal(0)]

    def buy(expected: Decimal | None, outcome: str, share: Decimal) -> None:
        try:
            reserved = budget.reserve(model="m", expected_usd=expected, pictures=1)
        except BudgetExceededError:
            return
        with lock:
            aside[0] += reserved.usd
            worst[0] = max(worst[0], aside[0] + sum(charged, Decimal(0)))
        time.sleep(float(share) / 500)
        actual = {"at most": (reserved.usd * share).quantize(Decimal("0.0001")), "nothing": Decimal(0)}.get(outcome)
        with lock:
            if actual is not None:
                aside[0] -= reserved.usd
                charged.append(actual)
        budget.settle(reserved, actual_usd=actual)

    threads = [
        threading.Thread(target=buy, args=(expected, outcome, Decimal(rng.randint(0, 100)) / 100))
        for expected, outcome in orders
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive(), "the budget is stuck"
    assert worst[0] <= cap
    assert budget.spent_usd == sum(charged, Decimal(0))


def test_money_is_exact():
    budget = Budget(max_usd=Decimal("0.30"))
    for _ in range(3):
        budget.settle(
            budget.reserve(model="m", expected_usd=Decimal("0.1"), pictures=3), actual_usd=Decimal("0.10000000")
        )
    assert budget.spent_usd == Decimal("0.3")
    with pytest.raises(BudgetExceededError) as caught:
        budget.reserve(model="m", expected_usd=Decimal("0.0000001"), pictures=1)
    assert caught.value.spent_usd == 0.3
    assert caught.value.max_usd == 0.3


def test_a_price_that_fits_to_the_last_digit_fits_also_after_a_dearer_answer():
    budget = Budget(max_usd=Decimal("0.052"))
    first = budget.reserve(model="m", expected_usd=Decimal("0.021"), pictures=1)
    budget.settle(first, actual_usd=Decimal("0.026"))
    second = budget.reserve(model="m", expected_usd=Decimal("0.021"), pictures=1)
    assert second.usd == Decimal("0.026")


def test_a_dear_model_does_not_make_a_cheap_one_dear():
    budget = Budget(max_usd=Decimal("0.25"))
    budget.settle(budget.reserve(model="dear", expected_usd=Decimal("0.2"), pictures=1), actual_usd=Decimal("0.2"))
    assert budget.reserve(model="cheap", expected_usd=Decimal("0.02"), pictures=1).usd == Decimal("0.02")


def test_an_unknown_price_sends_one_pilot_and_expects_its_cost_of_the_others():
    budget = Budget(max_usd=Decimal("1"))
    pilot = budget.reserve(model="m", expected_usd=None, pictures=2)
    assert pilot.usd == Decimal("1")
    second: list[Decimal] = []
    thread = threading.Thread(
        target=lambda: second.append(budget.reserve(model="m", expected_usd=None, pictures=4).usd)
    )
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    budget.settle(pilot, actual_usd=Decimal("0.10"))
    thread.join(5)
    assert second == [Decimal("0.20")]


def test_a_cost_that_nobody_tells_keeps_its_money_aside():
    budget = Budget(max_usd=Decimal("1"))
    budget.settle(budget.reserve(model="m", expected_usd=None, pictures=1), actual_usd=None)
    with pytest.raises(BudgetExceededError, match="may have been"):
        budget.reserve(model="m", expected_usd=None, pictures=1)
    assert budget.spent_usd == 0


def test_it_waits_rather_than_refuses_while_another_may_settle_lower():
    budget = Budget(max_usd=Decimal("0.10"))
    first = budget.reserve(model="m", expected_usd=Decimal("0.08"), pictures=1)
    got: list[Decimal] = []
    thread = threading.Thread(
        target=lambda: got.append(budget.reserve(model="m", expected_usd=Decimal("0.08"), pictures=1).usd)
    )
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    budget.settle(first, actual_usd=Decimal(0))
    thread.join(5)
    assert got == [Decimal("0.08")]


def test_it_waits_for_the_doubts_of_earlier_tries_too():
    budget = Budget(max_usd=Decimal("0.10"))
    doubt = budget.promise(model="m", usd=Decimal("0.08"), pictures=1)
    failed: list[BaseException] = []

    def buy() -> None:
        try:
            budget.reserve(model="m", expected_usd=Decimal("0.08"), pictures=1)
        except BudgetExceededError as error:
            failed.append(error)

    thread = threading.Thread(target=buy)
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    budget.settle(doubt, actual_usd=Decimal("0.08"))
    thread.join(5)
    assert len(failed) == 1


def test_waiting_ends_when_the_task_is_told_to_stop():
    stop = threading.Event()
    budget = Budget(max_usd=Decimal("0.10"), should_stop=stop.is_set)
    budget.reserve(model="m", expected_usd=Decimal("0.08"), pictures=1)
    threading.Timer(0.1, stop.set).start()
    with pytest.raises(StoppedError):
        budget.reserve(model="m", expected_usd=Decimal("0.08"), pictures=1)


def test_without_a_cap_everything_is_counted_and_nothing_refused():
    budget = Budget(spent_usd=Decimal("5"))
    budget.settle(budget.reserve(model="m", expected_usd=None, pictures=1), actual_usd=Decimal("7"))
    budget.settle(budget.promise(model="m", usd=Decimal("1"), pictures=1), actual_usd=None)
    budget.add(Decimal("0.5"))
    assert budget.spent_usd == Decimal("12.5")
