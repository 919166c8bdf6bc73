from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_imagen.api.cost import read_amount, read_cost


def test_a_dollar_header_wins_over_everything_else():
    headers = {"X-AIMLAPI-USD-Spent": "0.026", "x-aimlapi-credits-used": "1"}

    assert read_cost(headers, {"meta": {"usage": {"usd_spent": 9}}}) == (Decimal("0.026"), "header")


def test_a_credits_header_is_converted_to_dollars():
    assert read_cost({"x-aimlapi-credits-used": "52000"}, {}) == (Decimal("0.026"), "header")


@pytest.mark.parametrize(
    "usage",
    [{"usd_spent": 0.026, "credits_used": 1}, {"credits_used": 52000, "tokens_used": 1}, {"tokens_used": 52000}],
)
@pytest.mark.parametrize("wrap", [lambda usage: {"meta": {"usage": usage}}, lambda usage: {"usage": usage}])
def test_the_body_gives_the_cost_when_the_headers_do_not(usage, wrap):
    assert read_cost({}, wrap(usage)) == (Decimal("0.026"), "usage")


def test_a_language_models_tokens_are_not_money():
    assert read_cost({}, {"usage": {"input_tokens": 5, "total_tokens": 5}}) == (None, None)


def test_a_header_that_is_not_an_amount_is_ignored():
    assert read_cost({"x-aimlapi-usd-spent": "n/a"}, {"meta": {"usage": {"usd_spent": 1}}}) == (Decimal(1), "usage")


@pytest.mark.parametrize("body", [{}, {"meta": None}, {"meta": []}, {"meta": {"usage": "x"}}, {"usage": [1]}])
def test_a_missing_cost_is_unknown(body):
    assert read_cost({}, body) == (None, None)


@pytest.mark.parametrize("value", ["0.1", 0.1, Decimal("0.1"), "1e-1", "0.100"])
def test_an_amount_is_read_exactly(value):
    assert read_amount(value) == Decimal("0.1")


@pytest.mark.parametrize("value", ["0", 0, "-0", "0E-999999999"])
def test_zero_is_an_amount(value):
    assert read_amount(value) == 0


@pytest.mark.parametrize("value", [True, None, "", "x", "-1", -0.01, "NaN", "sNaN", "Infinity", float("inf"), [1], {}])
def test_anything_but_an_amount_of_money_is_none(value):
    assert read_amount(value) is None


@pytest.mark.parametrize(
    "value",
    ["1_0", "١٠", "１０", " 10 ", "10\n", "1e5", "1E+5", "+10", "010", ".5", "10.", "0x10", "1,0", "$10", "10 USD"],
)
def test_only_json_numbers_are_amounts(value):
    """``Decimal`` accepts most of these, so damaged text would count as money."""
    assert read_amount(value) is None
    assert read_cost({"x-aimlapi-usd-spent": value}, {"meta": {"usage": {"usd_spent": value}}}) == (None, None)


def test_small_amounts_are_read_as_javascript_and_python_write_them():
    assert read_amount("5e-7") == read_amount("5E-07") == Decimal("0.0000005")
    assert read_amount(str(Decimal(1) / 2_000_000)) == Decimal("5E-7")


@pytest.mark.parametrize("value", ["1e999999999", 10**300, "9" * 5000, 1e200])
def test_an_impossibly_large_amount_is_none(value):
    assert read_amount(value) is None


@given(
    st.dictionaries(
        st.sampled_from(["x-aimlapi-usd-spent", "X-AIMLAPI-Credits-Used"]), st.text() | st.decimals().map(str)
    ),
    st.decimals() | st.floats() | st.integers() | st.text(),
)
def test_every_cost_can_be_summed(headers, amount):
    for body in ({}, {"meta": {"usage": {"usd_spent": amount}}}, {"usage": {"credits_used": amount}}):
        usd, source = read_cost(headers, body)

        assert (usd is None) == (source is None)
        assert usd is None or 0 <= float(usd + usd) < float("inf")


def test_the_largest_accepted_amount_is_a_quadrillion():
    assert read_amount(10**15) == 10**15
    assert read_amount(10**15 + 1) is None


def test_a_litellm_proxys_cost_counts_unless_it_is_zero():
    assert read_cost({"X-LiteLLM-Response-Cost": "0.04"}, {"usage": {"usd_spent": 1}}) == (Decimal("0.04"), "header")
    assert read_cost({"x-litellm-response-cost": "0"}, {"usage": {"usd_spent": 1}}) == (Decimal(1), "usage")
