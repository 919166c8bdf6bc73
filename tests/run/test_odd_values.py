"""Seeds, costs and outcomes of unusual kinds: whatever one attempt records, the next one can read."""

from __future__ import annotations

from decimal import Decimal

import pytest

from airflow_provider_imagen.exceptions import InvalidRequestError, UnreadableResponseError

pytestmark = pytest.mark.timeout(20)


@pytest.mark.parametrize("seed", ["7", 7.0, 7.5, "random", True, 10**40])
def test_a_seed_of_any_kind_leaves_a_journal_that_the_next_attempt_can_read(world, steps, seed):
    world.ports.script("b", steps.fails(lambda: InvalidRequestError("no", status=400)))
    plan = world.plan(["a", "b"], model="somebody/new-model", seed=seed)
    world.run(plan)
    result = world.run(plan)
    assert (len(result.made), result.reused) == (2, 1)
    assert [prompt for prompt, _ in world.ports.posts].count("a") == 1


@pytest.mark.parametrize("usd", ["1500000", "1e15", "0.000000001"])
def test_a_cost_of_any_size_leaves_a_journal_that_the_next_attempt_can_read(world, steps, usd):
    world.ports.script("a", steps.pictures(usd=Decimal(usd)))
    world.run(["a"])
    result = world.run(["a"])
    assert (result.reused, result.usd_spent) == (1, Decimal(usd))


@pytest.mark.parametrize("usd", [None, 0.0])
def test_an_unreadable_success_without_a_cost_counts_at_its_quote_and_is_not_sent_again(world, steps, usd):
    world.ports.script("a", steps.fails(lambda: UnreadableResponseError("odd", status=200, usd=usd)))
    assert world.run(["a"]).usd_spent == Decimal("0.04")
    result = world.run(["a"])
    assert (result.usd_spent, result.usd_lost, len(world.ports.posts)) == (Decimal("0.04"), Decimal("0.04"), 1)
