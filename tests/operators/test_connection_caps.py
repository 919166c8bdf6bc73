"""``max_usd_per_day`` and ``max_usd_per_month`` of the connection, from the field to the failed task."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG, Connection

from airflow_provider_imagen._compat import AirflowFailException
from airflow_provider_imagen.api.responses import Generation
from airflow_provider_imagen.catalogue.pricing import PriceList
from airflow_provider_imagen.catalogue.request_builder import ImageRequest
from airflow_provider_imagen.exceptions import BudgetExceededError, ImagenError, InvalidRequestError
from airflow_provider_imagen.hooks.capped_spending import CappedSpending
from airflow_provider_imagen.hooks.connection import usage_caps
from airflow_provider_imagen.hooks.imagen import ImagenHook
from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
from airflow_provider_imagen.run.usage_caps import UsageCap
from airflow_provider_imagen.sandbox import Fault

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from pathlib import Path

    from airflow_provider_imagen.sandbox import Sandbox
    from airflow_provider_imagen.testing import RunDag

PRICE = Decimal("0.042")
FIELDS = ("max_usd_per_day", "max_usd_per_month")


@pytest.fixture
def connect(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that gives the connection an extra."""

    def connect(**extra: Any) -> None:
        values = {"conn_type": "imagen", "host": sandbox.url, "password": sandbox.api_key, "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_IMAGEN_DEFAULT", json.dumps(values))

    return connect


def _posts(sandbox: Sandbox) -> int:
    return len(sandbox.seen("/v1/images/generations"))


# --- the fields -------------------------------------------------------------------------------------------------------


def _caps(**extra: Any) -> dict[str, Decimal]:
    return {cap.name: cap.max_usd for cap in usage_caps(Connection(conn_id="c", extra=json.dumps(extra)))}


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize(("value", "usd"), [(20, "20"), (0.5, "0.5"), ("12.50", "12.50"), (" 7 ", "7")])
def test_a_cap_may_be_a_number_or_text(name: str, value: Any, usd: str) -> None:
    assert _caps(**{name: value}) == {name: Decimal(usd)}


@pytest.mark.parametrize("value", [None, ""])
def test_an_empty_cap_is_none(value: Any) -> None:
    assert _caps(**dict.fromkeys(FIELDS, value)) == {}


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("value", [0, -1, "0", "ten", "$10", "nan", float("inf"), "1_0", "1e3", "٣", True, [], {}])
def test_an_invalid_cap_is_reported_before_anything_is_sent(
    name: str, value: Any, connect: Callable[..., None], sandbox: Sandbox
) -> None:
    connect(**{name: value})
    hook = ImagenHook()
    for call in (
        lambda: ImagenGenerateOperator(task_id="paint", prompt="a raccoon").execute({}),
        lambda: hook.generate_images("a raccoon"),
    ):
        with pytest.raises(ValueError, match=rf"Extra {name}=.* of the connection: a number of USD above 0 is allowed"):
            call()
    ok, message = hook.test_connection()
    assert (ok, f"Extra {name}=" in message, _posts(sandbox)) == (False, True, 0)


# --- tasks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIELDS)
def test_a_task_over_the_cap_fails_before_paying_and_says_how_to_go_on(
    name: str, connect: Callable[..., None], run_dag: RunDag, recorded: type[Any], sandbox: Sandbox, tmp_path: Path
) -> None:
    connect(**{name: 0.2})
    ImagenHook().generate_images("somebody else's raccoon", num_images=2)
    errors: list[BaseException] = []
    with DAG("capped", schedule=None) as dag:
        recorded(task_id="paint", errors=errors, prompt=["one", "two", "three"], output_path=str(tmp_path), retries=3)

    assert run_dag(dag).state == "failed"
    (error,) = errors
    assert isinstance(error, BudgetExceededError)
    assert (error.spent_usd, error.max_usd, error.items_left) == (0.084, 0.2, 3)
    when = "today" if error.period == "day" else "this month"
    assert f"the API key has spent $0.084 {when}, and the remaining requests cost about $0.126." in str(error)
    assert "To go on, clear the task after " in str(error)
    assert _posts(sandbox) == 1

    connect(**{name: 0.21})
    assert run_dag(dag).state == "success"


def test_a_task_that_finds_all_its_images_is_not_stopped(
    connect: Callable[..., None], run_dag: RunDag, sandbox: Sandbox, tmp_path: Path
) -> None:
    with DAG("reusing", schedule=None) as dag:
        ImagenGenerateOperator(task_id="paint", prompt=["one", "two"], output_path=str(tmp_path), reuse="unchanged")
    connect()
    assert run_dag(dag).state == "success"
    connect(max_usd_per_day=0.01)
    assert run_dag(dag).state == "success"
    assert _posts(sandbox) == 2
    assert sandbox.seen("/v2/usage") == []


def test_an_api_that_does_not_report_usage_is_not_paid(
    connect: Callable[..., None], run_dag: RunDag, recorded: type[Any], sandbox: Sandbox
) -> None:
    connect(max_usd_per_day=5)
    errors: list[BaseException] = []
    with DAG("without_usage", schedule=None) as dag:
        recorded(task_id="paint", errors=errors, prompt="one")
    sandbox.add_fault(Fault("status", path="/v2/usage", status=404, times=None))

    assert run_dag(dag).state == "failed"
    (error,) = errors
    assert isinstance(error, InvalidRequestError)
    assert "max_usd_per_day of the connection cannot be checked, so nothing more is sent" in str(error)
    assert _posts(sandbox) == 0
    assert sandbox.api_key not in str(error)


@pytest.mark.parametrize(("concurrency", "tasks"), [(1, 5), (4, 3)])
def test_tasks_that_start_at_the_same_time_exceed_the_cap_by_less_than_their_quotes(
    connect: Callable[..., None], sandbox: Sandbox, concurrency: int, tasks: int
) -> None:
    """What is documented: within one reading, each task sees only its own requests; each quote fits when it starts."""
    quote, cap = 6 * PRICE, Decimal("0.30")
    connect(max_usd_per_day=float(cap))
    sandbox.configure(latency_seconds=0.02)
    errors: list[Any] = []
    together = threading.Barrier(tasks)

    def paint(number: int) -> None:
        together.wait()
        try:
            ImagenGenerateOperator(
                task_id=f"paint_{number}",
                prompt=[f"raccoon {number} {each}" for each in range(6)],
                concurrency=concurrency,
            ).execute({})
        except AirflowFailException as error:  # Airflow 3.1 and 3.2
            errors.append(error.args[0])
        except BudgetExceededError as error:
            errors.append(error)

    threads = [threading.Thread(target=paint, args=(number,)) for number in range(tasks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spent = sum((charge.usd for charge in sandbox.ledger()), Decimal(0))
    assert quote <= spent <= cap + (tasks - 1) * quote
    assert all(isinstance(error, BudgetExceededError) for error in errors)

    with pytest.raises((BudgetExceededError, AirflowFailException)):  # whoever comes later sees all of it
        ImagenGenerateOperator(task_id="late", prompt=["late"] * 2).execute({})
    assert sum((charge.usd for charge in sandbox.ledger()), Decimal(0)) == spent


# --- the hook ---------------------------------------------------------------------------------------------------------


def test_the_hook_keeps_the_caps_too(connect: Callable[..., None], sandbox: Sandbox) -> None:
    connect(max_usd_per_month=0.1)
    hook = ImagenHook()
    hook.generate_images("one", num_images=2)
    with pytest.raises(BudgetExceededError, match=r"spent \$0.084 this month, and these images cost about \$0.042. No"):
        hook.generate_images("two")
    assert _posts(sandbox) == 1


def test_the_test_of_a_connection_shows_what_is_left(connect: Callable[..., None], sandbox: Sandbox) -> None:
    connect(max_usd_per_day=10, max_usd_per_month=100)
    hook = ImagenHook()
    hook.generate_images("one")
    ok, message = hook.test_connection()
    assert ok
    assert message.endswith("Spent today (UTC): $0.042 of $10.00. Spent this month (UTC): $0.042 of $100.00.")

    sandbox.add_fault(Fault("status", path="/v2/usage", times=None))
    ok, message = hook.test_connection()
    assert (ok, "max_usd_per_day of the connection cannot be checked" in message) == (False, True)


def test_the_hook_keeps_the_caps_while_the_figures_lag(connect: Callable[..., None], sandbox: Sandbox) -> None:
    connect(max_usd_per_day=0.13)
    sandbox.configure(usage_lag_seconds=600)
    hook = ImagenHook()
    for number in range(3):
        hook.generate_images(f"raccoon {number}")
        hook.close()
    with pytest.raises(BudgetExceededError, match=r"has spent \$0.126 today, and these images cost about \$0.042"):
        hook.generate_images("one more")
    assert _posts(sandbox) == 3


@pytest.mark.parametrize("lag_seconds", [0, 600])
def test_threads_that_share_a_hook_keep_the_cap(
    connect: Callable[..., None], sandbox: Sandbox, lag_seconds: int
) -> None:
    connect(max_usd_per_day=0.13)
    sandbox.configure(usage_lag_seconds=lag_seconds, latency_seconds=0.02)
    hook = ImagenHook()

    def paint(number: int) -> bool:
        try:
            hook.generate_images(f"raccoon {number}")
        except BudgetExceededError:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(paint, range(12))) == 3
    assert sum((charge.usd for charge in sandbox.ledger()), Decimal(0)) == 3 * PRICE


@pytest.mark.parametrize("fault", [Fault("reset", billed=True), Fault("cut_body"), Fault("wrong_json")])
def test_the_hook_counts_requests_that_may_have_been_charged(
    fault: Fault, connect: Callable[..., None], sandbox: Sandbox
) -> None:
    connect(max_usd_per_day=0.05)
    sandbox.configure(usage_lag_seconds=600)
    sandbox.add_fault(fault)
    hook = ImagenHook()
    with pytest.raises(ImagenError):
        hook.generate_images("lost")
    with pytest.raises(BudgetExceededError):
        hook.generate_images("one more")
    assert sandbox.ledger()[0].usd == PRICE
    assert len(sandbox.ledger()) == 1


class LaggingUsage:
    """Figures that show nothing yet."""

    clock_offset_seconds = None

    def get_usage(self, *, start: datetime, end: datetime) -> Decimal:
        return Decimal(0)


def test_the_hook_learns_a_price_that_nobody_states_from_the_charges() -> None:
    spending = CappedSpending([UsageCap("day", Decimal("0.10"))], reader=LaggingUsage())
    request = ImageRequest("/v1/images/generations", {"model": "new/model"}, 1, returns_base64=False)
    paid = Generation((), Decimal("0.06"), "header", "inf", "id", "new/model")
    sent = []
    for _ in range(2):
        spending.check([request], PriceList())
        with suppress(BudgetExceededError):
            spending.pay(request, PriceList(), lambda each: sent.append(each) or paid)
    assert len(sent) == 1


def test_a_short_outage_of_the_figures_does_not_fail_a_call(connect: Callable[..., None], sandbox: Sandbox) -> None:
    connect(max_usd_per_day=5)
    sandbox.add_fault(Fault("status", status=503, path="/v2/usage"))
    assert len(ImagenHook().generate_images("one")[0].pictures) == 1
