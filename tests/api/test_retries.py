from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_imagen import exceptions
from airflow_provider_imagen.api.client import ApiClient, ClientSettings
from airflow_provider_imagen.api.retries import LONGEST_WAIT_SECONDS, MAX_POSTS, may_resend, resending
from airflow_provider_imagen.exceptions import (
    ChargedButLostError,
    ConnectionFailedError,
    ImagenError,
    InvalidRequestError,
    LostAnswerError,
    RateLimitedError,
    ServerError,
    StoppedError,
    UnreadableResponseError,
)
from airflow_provider_imagen.sandbox import Fault


class Script:
    """Fails with each error in turn, then succeeds; counts the calls."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.calls = 0

    def __call__(self):
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def run(*errors, waits=None, refused=None):
    script = Script(*errors)
    loop = resending(
        wait=(waits if waits is not None else []).append,
        on_refused=lambda error, seconds: None if refused is None else refused.append((error, seconds)),
    )
    try:
        return loop(script), script.calls
    except ImagenError as error:
        return error, script.calls


@pytest.mark.parametrize("error", [ConnectionFailedError("x"), RateLimitedError("x"), ServerError("x")])
def test_an_error_that_certainly_cost_nothing_is_retried(error):
    assert run(error, error) == ("done", 3)


def test_every_other_error_ends_the_loop_at_once():
    """Above all a lost response: resending blindly may pay twice."""
    sure = {ConnectionFailedError, RateLimitedError, ServerError}
    details = {
        exceptions.BudgetExceededError: {"spent_usd": 1, "max_usd": 1, "items_done": 0, "items_left": 1},
        exceptions.FilteredError: {"requested": 1, "made": 0},
        exceptions.EmptyResultError: {"requested": 1, "made": 0},
        exceptions.ItemsFailedError: {"failures": [RateLimitedError("x")]},
    }
    others = [
        kind
        for kind in vars(exceptions).values()
        if isinstance(kind, type) and issubclass(kind, ImagenError) and kind not in sure
    ]
    assert {LostAnswerError, ChargedButLostError, UnreadableResponseError, InvalidRequestError} < set(others)
    for kind in others:
        error = kind("x", **details.get(kind, {}))
        assert run(error) == (error, 1), kind


def test_the_number_of_posts_is_bounded_and_the_last_error_is_raised():
    errors = [ServerError(str(number)) for number in range(MAX_POSTS + 3)]

    assert run(*errors) == (errors[MAX_POSTS - 1], MAX_POSTS)


def test_waits_grow_with_jitter_up_to_a_limit():
    waits = []
    run(*[ServerError("x")] * (MAX_POSTS - 1), waits=waits)

    assert len(waits) == MAX_POSTS - 1
    assert all(2**number <= wait <= 2**number + 1 for number, wait in enumerate(waits))
    assert max(waits) <= LONGEST_WAIT_SECONDS


@pytest.mark.parametrize("kind", [RateLimitedError, ServerError])
def test_a_wait_requested_by_the_api_is_honoured_with_slight_jitter(kind):
    waits = []
    run(kind("x", retry_after=10.0), waits=waits)

    assert 10 <= waits[0] <= 11.25


@given(st.floats(min_value=LONGEST_WAIT_SECONDS, max_value=1e9, exclude_min=True))
def test_a_longer_wait_ends_the_attempt_instead_of_blocking_a_worker(seconds):
    error = RateLimitedError("x", retry_after=seconds)

    assert run(error) == (error, 1)
    assert may_resend(RateLimitedError("x", retry_after=LONGEST_WAIT_SECONDS))


def test_each_retried_error_is_reported_with_its_wait():
    refused, waits = [], []
    errors = [RateLimitedError("x", retry_after=1.0), ServerError("y")]
    run(*errors, refused=refused, waits=waits)

    assert [error for error, _ in refused] == errors
    assert [seconds for _, seconds in refused] == waits


def test_an_error_that_is_not_retried_is_not_reported():
    refused = []
    run(InvalidRequestError("x"), refused=refused)

    assert refused == []


def test_cancellation_while_waiting_ends_the_loop():
    def wait(_seconds):
        raise StoppedError("stop")

    script = Script(ServerError("x"))
    with pytest.raises(StoppedError):
        resending(wait=wait)(script)

    assert script.calls == 1


def test_foreign_errors_are_raised_unchanged():
    script = Script(KeyError("x"))
    with pytest.raises(KeyError):
        resending(wait=pytest.fail)(script)

    assert script.calls == 1


def test_rejected_posts_cost_nothing_and_the_last_one_is_paid_once(sandbox):
    sandbox.add_fault(Fault("status", status=429, retry_after=0))
    sandbox.add_fault(Fault("status", status=503, times=2))
    client = ApiClient(ClientSettings(base_url=sandbox.url, api_key=sandbox.api_key))
    numbers = iter(range(9))

    def post():
        body = {"model": "imagen-3.0-generate-002", "prompt": "a red fox"}
        return client.generate("/v1/images/generations", body, client_request_id=f"job-{next(numbers)}")

    generation = resending(wait=lambda _: None)(post)
    client.close()

    assert [seen.status for seen in sandbox.seen()] == [429, 503, 503, 200]
    assert [charge.client_request_id for charge in sandbox.ledger()] == ["job-3"]
    assert generation.client_request_id == "job-3"


def test_an_error_that_was_charged_is_not_retried():
    error = ServerError("x", usd=0.04)

    assert run(error) == (error, 1)


@pytest.mark.parametrize("retry_after", [None, 10.0])
def test_tasks_throttled_together_do_not_retry_together(retry_after):
    waits = []
    for _ in range(100):
        run(RateLimitedError("x", retry_after=retry_after), waits=waits)

    shortest = retry_after or 1.0
    assert shortest <= min(waits) < shortest + 0.25
    assert shortest + 0.75 < max(waits) <= shortest + 1.25


def test_an_error_that_the_caller_handles_ends_the_loop():
    script = Script(RateLimitedError("x"))
    with pytest.raises(RateLimitedError):
        resending(wait=pytest.fail, without=(RateLimitedError,))(script)

    assert script.calls == 1
