"""A run against a rate-limited sandbox, over the wire: slower is fine, an image lost or paid for twice is not."""

from __future__ import annotations

import threading
from collections import Counter
from decimal import Decimal

import pytest

from airflow_provider_imagen.api.client import ApiClient, ClientSettings
from airflow_provider_imagen.download.downloader import Downloader
from airflow_provider_imagen.exceptions import BudgetExceededError, ChargedButLostError, RateLimitedError
from airflow_provider_imagen.journal.log import Journal
from airflow_provider_imagen.journal.url_encryption import UrlEncryption
from airflow_provider_imagen.run.api_adapter import ApiAdapter
from airflow_provider_imagen.run.plan import make_plan
from airflow_provider_imagen.run.ports import RunOptions
from airflow_provider_imagen.run.runner import Run
from airflow_provider_imagen.run.shared_state import Cancellation
from airflow_provider_imagen.sandbox import Fault, Sandbox
from airflow_provider_imagen.storage.task_identity import TaskInstanceKey

pytestmark = pytest.mark.timeout(100)

PICTURES = 40
TI_KEY = TaskInstanceKey(dag_id="dag", task_id="task", run_id="run")
PATH = "/v1/images/generations"


@pytest.fixture(scope="module")
def server():
    with Sandbox(picture_scale=0.0625, balance_usd=Decimal(1000), latency_seconds=0.05) as server:
        yield server


@pytest.fixture
def limited(server):
    server.reset()
    return server


@pytest.fixture
def run(limited, memory_store):
    """Return a function that generates images without storing them."""

    def execute(pictures=PICTURES, *, quoted_usd=Decimal("0.042"), **options):
        plan = make_plan(
            prompt=[f"picture {number}" for number in range(pictures)],
            arguments={"model": "imagen-3.0-generate-002"},
            can_store=False,
            price=lambda request: quoted_usd,
        )
        client = ApiClient(ClientSettings(base_url=limited.url, api_key=limited.api_key))
        journal = Journal(memory_store)
        journal.open()
        try:
            return Run(
                ti_key=TI_KEY,
                plan=plan,
                api=ApiAdapter(client=client, downloader=Downloader(allow_private_hosts=True)),
                sink=None,
                journal=journal,
                options=RunOptions(**options),
                encryption=UrlEncryption(limited.api_key),
                cancellation=Cancellation(),
            ).execute()
        finally:
            journal.close()
            client.close()

    return execute


@pytest.mark.slow
@pytest.mark.parametrize(
    "limit",
    [
        {"requests_per_minute": 1200, "counting": "bucket"},
        {"requests_per_minute": 1200, "counting": "bucket", "burst": 10},
        {"requests_per_minute": 1200, "counting": "fixed", "window_seconds": 1},
        {"requests_per_minute": 1200, "window_seconds": 1},
        {"max_concurrent": 3, "limit_envelope": "old"},
    ],
    ids=lambda limit: limit.get("counting", "sliding" if "window_seconds" in limit else "at once"),
)
def test_every_image_is_generated_and_billed_once_whatever_the_limit(limited, memory_store, run, limit):
    limited.configure(**limit)
    result = run(concurrency=16)

    assert len(result.made) == PICTURES
    assert result.abort_reason is None
    assert sorted(charge.prompt for charge in limited.ledger()) == sorted(f"picture {n}" for n in range(PICTURES))
    statuses = Counter(seen.status for seen in limited.seen(PATH))
    assert statuses[200] == PICTURES
    assert statuses[429] > 0
    announced = memory_store.text.count('"t":"intent"')
    assert memory_store.text.count('"t":"rejected"') == announced - PICTURES >= statuses[429]  # some were never sent


def test_the_whole_task_obeys_retry_after(limited, run):
    limited.configure(requests_per_minute=1200, window_seconds=1, tells_retry_after=True)
    run(concurrency=16)

    seen = sorted(limited.seen(PATH), key=lambda request: request.at)
    first = next(request.at for request in seen if request.status == 429)
    assert not [
        request for request in seen if first + 0.5 < request.at < first + 0.95
    ]  # requests already on their way arrived before


def test_no_more_requests_than_concurrency_are_ever_in_flight(limited, run):
    limited.configure(max_concurrent=4)
    run(concurrency=4)

    assert Counter(seen.status for seen in limited.seen(PATH)) == {200: PICTURES}


@pytest.mark.slow
def test_sending_just_below_the_rate_limit_is_never_rejected(limited, run):
    """60 in 3 seconds are allowed and 55 are sent: neither the start nor the end has a burst."""
    limited.configure(requests_per_minute=1200, window_seconds=3)
    run(pictures=120, concurrency=16, requests_per_minute=1100)

    assert Counter(seen.status for seen in limited.seen(PATH)) == {200: 120}


def test_an_api_that_returns_only_429_ends_the_attempt_with_that_error(limited, run):
    limited.configure(requests_per_minute=0)
    result = run(concurrency=4, rate_limit_patience_seconds=0.5)

    assert isinstance(result.abort_reason, RateLimitedError)
    assert result.made == []
    assert limited.ledger() == []
    assert len(limited.seen(PATH)) < 40


def test_a_request_rejected_more_than_six_times_still_succeeds(limited, run):
    limited.add_fault(Fault("status", status=429, prompt="picture 3", times=9))
    result = run(pictures=10, concurrency=2)

    assert len(result.made) == 10


def test_a_request_that_is_always_rejected_costs_no_other_image(limited, run):
    limited.add_fault(Fault("status", status=429, prompt="picture 0", times=None))
    result = run(pictures=30, concurrency=2, rate_limit_patience_seconds=0.3)

    (failure,) = result.failures
    assert (failure.item.index, type(failure.error)) == (0, RateLimitedError)
    assert [made.received.item.index for made in result.made] == list(range(1, 30))
    assert result.abort_reason is None


@pytest.mark.parametrize("status", [400, 429, 500, 503])
def test_a_rejection_that_states_a_cost_is_lost_money_and_is_not_sent_again(limited, memory_store, run, status):
    limited.add_fault(Fault("status", status=status, prompt="picture 1", billed=True))
    limited.add_fault(Fault("usage", usage="none", prompt="picture 1"))
    limited.configure(max_concurrent=1)
    result = run(pictures=3, concurrency=1)

    assert Counter(charge.prompt for charge in limited.ledger()) == Counter(f"picture {number}" for number in range(3))
    assert len(limited.seen(PATH)) == 3
    (lost,) = [charge for charge in limited.ledger() if charge.prompt == "picture 1"]
    assert (result.usd_spent, result.usd_lost) == (sum(charge.usd for charge in limited.ledger()), lost.usd)
    (line,) = result.failure_lines()
    assert (line.client_request_id, line.inference_id) == (lost.client_request_id, lost.inference_id)
    assert (line.status, line.usd) == (status, float(lost.usd))
    again = run(pictures=3, concurrency=1)
    assert (again.usd_spent, again.usd_lost) == (result.usd_spent, lost.usd)
    assert [type(failure.error) for failure in again.failures] == [ChargedButLostError]
    assert len(limited.seen(PATH)) == 3


@pytest.mark.parametrize("quoted_usd", [None, Decimal("0.0042"), Decimal("0.01")])
@pytest.mark.parametrize("attempts", [1, 3])
def test_a_cap_holds_over_the_wire_when_the_real_price_differs_from_the_quote(limited, run, quoted_usd, attempts):
    for _ in range(attempts):
        result = run(pictures=30, quoted_usd=quoted_usd, concurrency=16, max_usd=Decimal("0.31"))
        assert result.usd_spent == sum(charge.usd for charge in limited.ledger()) == 7 * Decimal("0.042")
        assert isinstance(result.abort_reason, BudgetExceededError)
        assert len(result.made) == 7


def test_a_limit_lifted_mid_run_is_noticed(limited, run):
    limited.configure(requests_per_minute=0)
    threading.Timer(0.5, lambda: limited.configure(requests_per_minute=None)).start()

    assert len(run(concurrency=4).made) == PICTURES
