from __future__ import annotations

import pickle
from datetime import timedelta

import pytest
from airflow.sdk.definitions.retry_policy import RetryAction, RetryDecision

from airflow_provider_imagen import exceptions
from airflow_provider_imagen.exceptions import (
    AuthenticationError,
    ImagenError,
    InvalidArgumentsError,
    ItemsFailedError,
    OutOfCreditsError,
    Problem,
    RateLimitedError,
    ServerError,
)
from airflow_provider_imagen.policies.retry import LONGEST_RETRY_DELAY, ImagenRetryPolicy

DETAILS = {
    exceptions.BudgetExceededError: {"spent_usd": 1.0, "max_usd": 1.0, "items_done": 0, "items_left": 1},
    exceptions.FilteredError: {"requested": 1, "made": 0},
    exceptions.EmptyResultError: {"requested": 1, "made": 0},
    exceptions.ItemsFailedError: {"failures": []},
}
KINDS = [kind for kind in vars(exceptions).values() if isinstance(kind, type) and issubclass(kind, ImagenError)]
HOPELESS = {
    "ImagenError",
    "AuthenticationError",
    "OutOfCreditsError",
    "InvalidRequestError",
    "ModelWithdrawnError",
    "BudgetExceededError",
    "ChargedButLostError",
    "UnreadableResponseError",
    "FilteredError",
    "EmptyResultError",
    "UnsafeAddressError",
    "LinkExpiredError",
    "ItemsFailedError",
    "OwnershipLostError",
}


def decide(error):
    return ImagenRetryPolicy().evaluate(error, 1, 3, None)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_each_error_fails_at_once_exactly_when_no_retry_can_help(kind):
    decision = decide(kind("x", **DETAILS.get(kind, {})))

    if kind.__name__ in HOPELESS:
        assert decision.action is RetryAction.FAIL
        assert kind.__name__ in decision.reason
    else:
        assert decision == RetryDecision.default()


def test_wrong_arguments_fail_at_once():
    decision = decide(InvalidArgumentsError([Problem("seed", -1, "0 to 5")]))

    assert decision.action is RetryAction.FAIL
    assert "arguments" in decision.reason


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x"), TimeoutError()])
def test_other_errors_follow_the_tasks_own_settings(error):
    assert decide(error) == RetryDecision.default()


@pytest.mark.parametrize("kind", [RateLimitedError, ServerError])
def test_the_retry_after_of_the_api_is_the_delay(kind):
    decision = decide(kind("x", retry_after=90.0))

    assert (decision.action, decision.retry_delay) == (RetryAction.RETRY, timedelta(seconds=90))
    assert "90 s" in decision.reason


@pytest.mark.parametrize("seconds", [None, 0.0])
def test_without_retry_after_the_tasks_own_delay_counts(seconds):
    assert decide(RateLimitedError("x", retry_after=seconds)) == RetryDecision.default()


@pytest.mark.parametrize("seconds", [1e6, 1e15, 1e300])
def test_no_delay_is_longer_than_the_cap(seconds):
    assert decide(RateLimitedError("x", retry_after=seconds)).retry_delay == LONGEST_RETRY_DELAY


def test_one_retryable_item_is_enough_to_retry_and_the_longest_delay_counts():
    mixed = ItemsFailedError(
        "x", failures=[AuthenticationError("a"), RateLimitedError("b", retry_after=5), ServerError("c", retry_after=70)]
    )
    hopeless = ItemsFailedError("x", failures=[AuthenticationError("a"), OutOfCreditsError("b")])

    assert decide(mixed).retry_delay == timedelta(seconds=70)
    assert decide(hopeless).action is RetryAction.FAIL


def test_an_error_marked_as_final_fails_at_once():
    error = exceptions.LostAnswerError("x")
    error.retry_helps = False

    assert decide(error).action is RetryAction.FAIL


def test_the_policy_survives_serialization():
    policy = ImagenRetryPolicy()

    assert policy.serialize() == {}
    assert isinstance(ImagenRetryPolicy.deserialize(policy.serialize()), ImagenRetryPolicy)
    assert isinstance(pickle.loads(pickle.dumps(policy)), ImagenRetryPolicy)
