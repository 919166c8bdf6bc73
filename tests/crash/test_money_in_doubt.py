"""Money in doubt: reported, kept in the journal even after a success, and resolved by the next lookup."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_imagen.sandbox import Fault

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_imagen.sandbox import Sandbox

pytestmark = pytest.mark.slow

PROMPTS = ["one", "two", "three"]

KEPT_BY = pytest.mark.parametrize(
    "old_airflow", [pytest.param(False, id="state store"), pytest.param(True, id="folder")]
)


@pytest.fixture
def lagging(sandbox: Sandbox) -> Any:
    """Make the API's log lag by an hour; calling the fixture's value lets it catch up."""
    sandbox.configure(log_lag_seconds=3600.0)
    yield lambda: sandbox.configure(log_lag_seconds=0.0)
    sandbox.configure(log_lag_seconds=0.0)


@KEPT_BY
def test_a_charge_logged_too_late_was_reported_as_in_doubt(
    paint: Callable[..., Any], sandbox: Sandbox, lagging: Callable[[], None], old_airflow: bool
) -> None:
    sandbox.add_fault(Fault("reset", prompt="two", billed=True))
    painting = paint(prompt=PROMPTS, old_airflow=old_airflow)
    painting.finish()

    billed = float(sum(charge.usd for charge in sandbox.ledger()))
    assert painting.last["state"] == "success"
    assert painting.bought() == Counter([*PROMPTS, "two"])
    lost = next(charge for charge in sandbox.ledger() if charge.prompt == "two")
    assert painting.summary["in_doubt"] == [lost.client_request_id]
    assert billed <= painting.summary["usd_spent"] + painting.summary["usd_in_doubt"] <= billed * 1.1
    assert [line["outcome"] for line in painting.failure_lines()] == ["in_doubt"]
    painting.assert_forgotten()  # which says: the journal is still there

    lagging()
    painting.clear()
    painting.finish()
    assert painting.bought() == Counter([*PROMPTS, "two", *PROMPTS])  # cleared after a success: new images ...
    assert painting.summary["in_doubt"] == []  # ... and nothing in doubt any more
    assert painting.summary["adopted"] == 0
    assert painting.summary["usd_lost"] == float(lost.usd)
    painting.assert_forgotten()


@KEPT_BY
def test_a_charge_logged_at_the_end_is_reported_by_id_even_if_its_prompt_has_an_image(
    paint: Callable[..., Any], sandbox: Sandbox, old_airflow: bool
) -> None:
    sandbox.add_fault(Fault("reset", prompt="two", billed=True))
    painting = paint(prompt=PROMPTS, old_airflow=old_airflow, on_lost_answer="resend")
    painting.finish()

    assert painting.last["state"] == "success"
    assert painting.bought() == Counter([*PROMPTS, "two"])
    assert painting.summary["made"] == 3
    (line,) = painting.failure_lines()
    assert line["error"] == "ChargedButLostError"
    assert painting.summary["usd_lost"] == line["usd"]
    assert (line["prompt_index"], line["prompt"], line["requested"]) == (1, "two", 1)
    images = {image["client_request_id"] for image in painting.images}
    assert {line["client_request_id"], *images} == {charge.client_request_id for charge in sandbox.ledger()}


@KEPT_BY
def test_a_loss_of_a_previous_attempt_is_reported_by_id_even_if_its_prompt_was_removed(
    paint: Callable[..., Any], sandbox: Sandbox, old_airflow: bool
) -> None:
    sandbox.add_fault(Fault("reset", prompt="two", billed=True))
    painting = paint(prompt=PROMPTS, old_airflow=old_airflow)
    painting.finish()
    lost = painting.charge("two")
    painting.arguments["prompt"] = ["one", "three"]
    painting.finish()

    assert painting.last["state"] == "success"
    assert painting.bought() == Counter(PROMPTS)
    assert painting.summary["usd_lost"] == float(lost.usd)
    (line,) = painting.failure_lines()
    assert (line["error"], line["prompt"]) == ("ChargedButLostError", "two")
    assert line["client_request_id"] == lost.client_request_id


def test_a_command_resolves_requests_that_a_finished_task_left_in_doubt(
    paint: Callable[..., Any], sandbox: Sandbox, lagging: Callable[[], None]
) -> None:
    sandbox.add_fault(Fault("reset", prompt="two", billed=True))
    painting = paint(prompt=PROMPTS)
    painting.finish()
    assert painting.reconcile()["rows"][0]["outcome"] == "unknown"

    lagging()
    found = painting.reconcile()
    (row,) = found["rows"]
    assert (found["status"], row["outcome"], row["prompt"]) == (0, "billed", "two")
    assert found["journal"] == []


@KEPT_BY
@pytest.mark.parametrize("status", [401, 429, 500])
def test_an_unreadable_log_leaves_the_request_in_doubt_and_nothing_is_sent_again(
    paint: Callable[..., Any], sandbox: Sandbox, status: int, old_airflow: bool
) -> None:
    sandbox.add_fault(Fault("reset", prompt="two", billed=True))
    sandbox.add_fault(Fault("status", status=status, path="/v2/logs", times=None))
    painting = paint(prompt=PROMPTS, old_airflow=old_airflow, on_failure="accept")
    painting.finish()

    assert painting.last["state"] == "success"
    assert painting.bought() == Counter(PROMPTS)
    billed = float(sum(charge.usd for charge in sandbox.ledger()))
    assert billed <= painting.summary["usd_spent"] + painting.summary["usd_in_doubt"] <= billed * 1.1
    assert painting.summary["in_doubt"] == [painting.charge("two").client_request_id]
    painting.assert_forgotten()  # which says: the journal is still there


@KEPT_BY
def test_a_cap_has_room_for_money_that_previous_attempts_left_in_doubt(
    paint: Callable[..., Any], sandbox: Sandbox, lagging: Callable[[], None], old_airflow: bool
) -> None:
    prompts = [f"{number}" for number in range(6)]
    painting = paint(prompt=prompts, old_airflow=old_airflow, max_usd=0.26, concurrency=2)
    painting.die("after", "post", 2)
    painting.finish()

    billed = float(sum(charge.usd for charge in sandbox.ledger()))
    assert billed <= 0.26
    assert painting.summary["usd_spent"] + painting.summary["usd_in_doubt"] >= billed
    assert painting.last["error"]["type"] == "BudgetExceededError"


def test_an_output_folder_deleted_with_its_journal_stops_the_task_with_an_explanation(
    paint: Callable[..., Any], sandbox: Sandbox
) -> None:
    sandbox.add_fault(Fault("slow_after_billing", prompt="two", seconds=3))
    painting = paint(prompt=PROMPTS, old_airflow=True, read_timeout=30)
    fork = painting.start()
    painting.wait_until(lambda: painting.bought()["two"] and painting.pictures())
    painting.folder.rename(painting.folder.with_name("gone"))
    painting.finish(fork)

    assert painting.last["error"]["type"] == "OwnershipLostError"
    assert "a retry does not know what was paid for" in painting.last["error"]["message"]
    assert painting.bought() == Counter(["one", "two"])
    assert [image["prompt"] for image in painting.images] == ["two"]
