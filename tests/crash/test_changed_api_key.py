"""The API key changes between attempts: no request is looked up in the log of another key, or paid for again."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_imagen.sandbox import Fault, Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.slow

PROMPTS = ["one", "two", "three"]

KEPT_BY = pytest.mark.parametrize(
    "old_airflow", [pytest.param(False, id="state store"), pytest.param(True, id="folder")]
)


@pytest.fixture
def other_account() -> Iterator[Sandbox]:
    """Start an API with another key that knows nothing about the charges of the first account."""
    with Sandbox(picture_scale=0.0625, api_key="key-of-the-other-account") as server:
        yield server


def use(painting: Any, account: Sandbox) -> None:
    connection = painting.order["connection"]
    connection |= {"host": account.url, "password": account.api_key}
    connection["extra"]["sandbox"] = True  # so that images may come from another port


@KEPT_BY
def test_a_request_in_doubt_is_neither_looked_up_with_another_key_nor_sent_again(
    paint: Callable[..., Any], sandbox: Sandbox, other_account: Sandbox, old_airflow: bool
) -> None:
    painting = paint(prompt=PROMPTS, old_airflow=old_airflow)
    painting.die("after", "post", 2)
    in_doubt = painting.charge("two")

    use(painting, other_account)
    painting.finish()
    assert painting.last["state"] == "failed"
    assert painting.last["error"]["type"] == "ItemsFailedError"
    assert "was sent with another API key" in painting.last["error"]["message"]
    assert "client request id " + in_doubt.client_request_id in painting.last["error"]["message"]
    assert Counter(charge.prompt for charge in other_account.ledger()) == Counter(["three"])
    assert other_account.seen("/v2/logs") == []
    assert painting.summary["in_doubt"] == [in_doubt.client_request_id]
    assert painting.summary["usd_in_doubt"] >= float(in_doubt.usd)
    assert [image["prompt"] for image in painting.images] == ["one", "three"]

    if not old_airflow:  # what follows reads the task state store
        found = painting.reconcile()  # with the other key
        assert (found["status"], [row["outcome"] for row in found["rows"]]) == (1, ["other key"])

    use(painting, sandbox)
    painting.clear()
    painting.finish()
    assert painting.summary["in_doubt"] == []
    assert painting.summary["usd_lost"] == float(in_doubt.usd)
    assert painting.bought() == Counter(["one", "two"])


def test_a_request_in_doubt_is_sent_again_with_another_key_with_resend(
    paint: Callable[..., Any], sandbox: Sandbox, other_account: Sandbox
) -> None:
    painting = paint(prompt=PROMPTS, on_lost_answer="resend")
    painting.die("after", "post", 2)
    in_doubt = painting.charge("two")

    use(painting, other_account)
    painting.finish()
    assert painting.last["state"] == "success"
    assert Counter(charge.prompt for charge in other_account.ledger()) == Counter(["two", "three"])
    assert painting.summary["in_doubt"] == [
        in_doubt.client_request_id
    ]  # even after a success, because it may have been billed
    (line,) = painting.failure_lines()
    assert (line["outcome"], line["client_request_id"]) == ("in_doubt", in_doubt.client_request_id)


@KEPT_BY
def test_images_paid_for_with_another_key_are_reused(
    paint: Callable[..., Any], sandbox: Sandbox, other_account: Sandbox, old_airflow: bool
) -> None:
    sandbox.add_fault(Fault("upstream_4xx", prompt="two"))
    painting = paint(prompt=PROMPTS, old_airflow=old_airflow)
    painting.finish()
    assert painting.bought() == Counter(["one", "three"])

    use(painting, other_account)
    painting.finish()
    assert painting.last["state"] == "success"
    assert Counter(charge.prompt for charge in other_account.ledger()) == Counter(["two"])
    assert painting.summary["adopted"] == 2


def test_the_log_of_a_key_shows_only_its_own_late_charges(
    paint: Callable[..., Any], sandbox: Sandbox, other_account: Sandbox
) -> None:
    sandbox.configure(log_lag_seconds=3600.0)
    sandbox.add_fault(Fault("reset", prompt="two", billed=True))
    painting = paint(prompt=PROMPTS)
    painting.finish()
    assert painting.last["state"] == "success"  # sent again, because the log showed no charge
    (in_doubt,) = painting.summary["in_doubt"]

    use(painting, other_account)
    painting.clear()
    painting.finish()
    assert painting.summary["in_doubt"] == [in_doubt]
    assert other_account.seen("/v2/logs") == []
