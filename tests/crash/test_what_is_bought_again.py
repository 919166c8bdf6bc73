"""
What another attempt sends and what it reuses: after a failure, a success, a change of the DAG, a timeout, a SIGTERM.

The rule: a request that the journal has a response for is not sent again, and success ends the journal.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
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


def test_clearing_a_failed_task_reuses_its_images(paint: Callable[..., Any], sandbox: Sandbox) -> None:
    sandbox.add_fault(Fault("upstream_4xx", prompt="two"))
    painting = paint(prompt=PROMPTS)
    painting.finish()
    assert painting.last["state"] == "failed"
    assert painting.bought() == Counter(["one", "three"])

    painting.clear()
    painting.finish()
    painting.assert_whole(PROMPTS)
    assert painting.summary["adopted"] == 2


def test_clearing_a_successful_task_generates_new_images(paint: Callable[..., Any]) -> None:
    painting = paint(prompt=PROMPTS)
    painting.finish()
    before = {image["inference_id"] for image in painting.images}
    painting.clear()
    painting.finish()

    assert painting.last["state"] == "success"
    assert painting.bought() == Counter(PROMPTS * 2)
    assert before.isdisjoint(image["inference_id"] for image in painting.images)
    assert painting.summary["adopted"] == 0
    assert len(painting.manifest()) == len(painting.pictures()) == 3


def test_a_task_killed_after_success_and_before_its_journal_is_deleted_reuses_its_images(
    paint: Callable[..., Any],
) -> None:
    painting = paint(prompt=PROMPTS)
    painting.die("before", "deletion", 1)
    assert painting.look()["state"] == "success"

    painting.clear()
    painting.finish()
    painting.assert_whole(PROMPTS)


def test_only_the_changed_prompt_is_sent(paint: Callable[..., Any]) -> None:
    painting = paint(prompt=PROMPTS)
    painting.die("before", "message SetXCom images")
    painting.arguments["prompt"] = ["one", "zwei", "three"]
    painting.finish()

    assert painting.last["state"] == "success"
    assert painting.bought() == Counter([*PROMPTS, "zwei"])
    assert [image["prompt"] for image in painting.images] == ["one", "zwei", "three", "two"]
    assert painting.last["xcoms"]["return_value"] == [image["url"] for image in painting.images[:3]]
    assert (painting.summary["adopted"], painting.summary["superseded"]) == (2, 1)
    painting.assert_tidy()


def test_only_items_with_changed_arguments_are_sent(paint: Callable[..., Any]) -> None:
    items = [{"prompt": prompt, "seed": 1} for prompt in PROMPTS]
    painting = paint(prompt=items)
    painting.die("before", "message SetXCom images")
    painting.arguments["prompt"] = [items[0], {**items[1], "seed": 2}, items[2]]
    painting.finish()
    assert painting.last["state"] == "success"
    assert painting.bought() == Counter([*PROMPTS, "two"])
    assert [image["seed"] for image in painting.images] == [1, 2, 1, 1]
    assert [image["prompt"] for image in painting.images] == [*PROMPTS, "two"]
    painting.assert_tidy()

    other = paint(prompt=PROMPTS, dag="other")
    other.die("before", "message SetXCom images")
    other.arguments["aspect_ratio"] = "16:9"
    other.finish()
    assert (other.summary["adopted"], other.summary["superseded"]) == (0, 3)
    assert [image["width"] > image["height"] for image in other.images] == [True] * 3 + [False] * 3


def test_arguments_that_are_not_sent_to_the_api_may_change_freely(paint: Callable[..., Any]) -> None:
    painting = paint(prompt=[{"prompt": prompt} for prompt in PROMPTS])
    painting.die("before", "message SetXCom images")
    painting.arguments |= {"concurrency": 3, "contact_sheet": True, "max_usd": 5, "on_failure": "accept"}
    painting.finish()

    painting.assert_whole(PROMPTS)


def test_reordered_prompts_are_not_sent_again(paint: Callable[..., Any]) -> None:
    painting = paint(prompt=PROMPTS)
    painting.die("before", "message SetXCom images")
    painting.arguments["prompt"] = ["three", "one", "two"]
    painting.finish()

    painting.assert_whole(["three", "one", "two"])


def test_two_equal_prompts_are_two_images(paint: Callable[..., Any]) -> None:
    painting = paint(prompt=["same", "same"])
    painting.die("after", "record response", 1)
    painting.finish()

    painting.assert_whole(["same", "same"])
    assert len({image["inference_id"] for image in painting.images}) == 2


def test_images_deleted_between_two_attempts_are_downloaded_but_not_requested_again(paint: Callable[..., Any]) -> None:
    painting = paint(prompt=PROMPTS)
    painting.die("before", "message SetXCom images")
    painting.pictures()[0].unlink()
    painting.pictures()[0].write_bytes(b"overwritten")
    painting.finish()

    painting.assert_whole(PROMPTS)


def test_two_runs_of_a_dag_share_nothing(paint: Callable[..., Any]) -> None:
    first = paint(prompt=PROMPTS)
    second = paint(prompt=PROMPTS, dag="other")
    first.die("before", "message SetXCom images")
    second.finish()
    first.finish()

    assert first.bought() == Counter(PROMPTS * 2)
    assert len(first.pictures()) == len(first.manifest()) == 6


def test_a_timeout_keeps_the_response_in_flight(paint: Callable[..., Any], sandbox: Sandbox) -> None:
    sandbox.add_fault(Fault("slow_after_billing", prompt="two", seconds=3))
    painting = paint(prompt=PROMPTS, execution_timeout=2, read_timeout=20)
    painting.finish()
    assert painting.last["state"] == "up_for_retry"
    assert painting.last["error"]["type"] == "AirflowTaskTimeout"
    assert painting.bought() == Counter(["one", "two"])

    painting.finish()
    painting.assert_whole(PROMPTS)


def test_a_hanging_request_does_not_delay_a_timeout(paint: Callable[..., Any], sandbox: Sandbox) -> None:
    sandbox.add_fault(Fault("hang", prompt="two", billed=False))
    painting = paint(prompt=PROMPTS, execution_timeout=1)
    started = time.monotonic()
    painting.finish()
    assert painting.last["error"]["type"] == "AirflowTaskTimeout"
    assert time.monotonic() - started < 15

    painting.arguments.pop("execution_timeout")
    painting.finish()
    painting.assert_whole(PROMPTS)


def test_a_terminated_task_keeps_the_response_in_flight_and_sends_nothing_new(
    paint: Callable[..., Any], sandbox: Sandbox
) -> None:
    sandbox.add_fault(Fault("slow_after_billing", prompt="two", seconds=1))
    painting = paint(prompt=PROMPTS)
    fork = painting.start()
    painting.wait_until(lambda: painting.bought()["two"])
    os.kill(fork.pid, signal.SIGTERM)
    painting.finish(fork)
    assert painting.last["state"] == "up_for_retry"
    assert painting.last["error"]["type"] == "StoppedError"
    assert painting.bought() == Counter(["one", "two"])

    painting.finish()
    painting.assert_whole(PROMPTS)


def test_a_task_killed_right_after_sigterm_loses_only_the_response_in_flight(
    paint: Callable[..., Any], sandbox: Sandbox
) -> None:
    sandbox.add_fault(Fault("hang", prompt="two", billed=True))
    painting = paint(prompt=PROMPTS)
    fork = painting.start()
    painting.wait_until(lambda: painting.bought()["two"])
    os.kill(fork.pid, signal.SIGTERM)
    fork.kill()
    painting.finish()

    painting.assert_lost(lost="two", others=["one", "three"])


def test_a_task_killed_while_deleting_its_journal_leaves_nothing_misleading(paint: Callable[..., Any]) -> None:
    prompts = ["one", "two"]
    for deletions in itertools.count(1):
        painting = paint(prompt=prompts, segment_bytes=500, dag=f"forgetting_{deletions}")
        if not painting.dies("after", "deletion", deletions):
            break
        assert painting.look()["state"] == "success"
        painting.clear()
        painting.finish()
        assert painting.last["state"] == "success", (deletions, painting.last["error"])
        assert painting.summary["usd_lost"] == 0
        assert [image["prompt"] for image in painting.images] == prompts
        assert "imagen/journal/0" not in painting.last["journal"]  # segments may stay, but nothing reads them
    assert deletions > 3


@KEPT_BY
def test_existing_images_are_published_between_a_sigterm_and_a_sigkill(
    paint: Callable[..., Any], sandbox: Sandbox, old_airflow: bool
) -> None:
    sandbox.add_fault(Fault("hang", prompt="two", billed=True))
    painting = paint(prompt=PROMPTS, concurrency=3, read_timeout=60, old_airflow=old_airflow)
    fork = painting.start()
    painting.wait_until(lambda: len(painting.pictures()) == 2 and painting.bought()["two"])
    os.kill(fork.pid, signal.SIGTERM)
    time.sleep(3)
    fork.kill()

    painting.last = painting.look()
    (charge,) = [charge for charge in sandbox.ledger() if charge.prompt == "two"]
    assert [image["prompt"] for image in painting.images] == ["one", "three"]
    assert len(painting.manifest()) == 2
    assert painting.summary["usd_in_doubt"] == pytest.approx(float(charge.usd), rel=0.3)
    assert painting.summary["in_doubt"] == [charge.client_request_id]
    (line,) = painting.failure_lines()
    assert (line["outcome"], line["prompt"], line["client_request_id"]) == (
        "in_doubt",
        "two",
        charge.client_request_id,
    )


def test_a_response_within_the_grace_period_is_kept_after_a_timeout(
    paint: Callable[..., Any], sandbox: Sandbox
) -> None:
    sandbox.add_fault(Fault("slow_after_billing", seconds=8, times=None))
    prompts = [f"{number}" for number in range(8)]
    painting = paint(prompt=prompts, concurrency=8, execution_timeout=3, read_timeout=60)
    painting.finish()

    assert painting.last["error"]["type"] == "AirflowTaskTimeout"
    assert painting.bought() == Counter(prompts)
    assert [image["prompt"] for image in painting.images] == prompts
    assert painting.summary["in_doubt"] == []
    painting.assert_tidy()


def test_the_grace_period_can_be_set(paint: Callable[..., Any], sandbox: Sandbox) -> None:
    sandbox.add_fault(Fault("hang", prompt="two", billed=False))
    painting = paint(prompt=PROMPTS, concurrency=3, execution_timeout=3, read_timeout=60, grace_seconds=1)
    started = time.monotonic()
    painting.finish()

    assert painting.last["error"]["type"] == "AirflowTaskTimeout"
    assert time.monotonic() - started < 30  # half of the request's own timeout
    assert [image["prompt"] for image in painting.images] == ["one", "three"]
    assert len(painting.summary["in_doubt"]) == 1


def test_images_that_a_killed_task_had_generated_earlier_are_published(
    paint: Callable[..., Any], sandbox: Sandbox
) -> None:
    sandbox.add_fault(Fault("hang", prompt="three", billed=False))
    painting = paint(prompt=PROMPTS, publish_interval_seconds=0.5)
    painting.die_when(lambda: (painting.folder / "metadata.jsonl").exists() and len(painting.manifest()) == 2)

    painting.last = painting.look()
    assert [line["prompt"] for line in painting.manifest()] == ["one", "two"]
