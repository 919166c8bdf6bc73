"""
Kill the task with SIGKILL at every step, retry it, and check the bill.

Each attempt is its own process that runs the operator through Airflow's task runner. The sandbox's ledger says what was
paid. Only one kind of crash loses anything, because the API returns a response only once: a crash after the request was
billed and before its response was recorded. That loss is reported, counted and never paid for a second time.
"""

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

HARMLESS = {
    "before the first intent": ("before", "record intent", 1),
    "with an intent and no request": ("after", "record intent", 2),
    "with an answer paid and noted": ("after", "record response", 2),
    "with a picture in memory": ("after", "download", 3),
    "with half a picture on the disk": ("after", "half", 3),
    "before a picture gets its name": ("before", "rename .png", 3),
    "before its preview gets its name": ("before", "rename .webp", 3),
    "before a picture is noted": ("before", "record write_committed", 3),
    "after the last picture is noted": ("after", "record write_committed", 3),
    "before the manifest gets its name": ("before", "rename metadata.jsonl", 1),
    "after the manifest got its name": ("after", "rename metadata.jsonl", 1),
    "before the first XCom": ("before", "message SetXCom images", 1),
    "between two XComs": ("after", "message SetXCom images", 1),
    "after the last XCom": ("after", "message SetXCom return_value", 1),
    "before success is reported": ("before", "message SucceedTask", 1),
}
"""
Moments at which a crash costs nothing at all.

One request is sent at a time, and pictures are fetched beside that: at the third of three no request is on its way.
"""

LOSING = {
    "with an answer that is not noted": ("after", "post", 2),
    "while an answer is being noted": ("before", "record response", 2),
}
"""Moments at which an answer is billed and nowhere but in the memory of the process."""

KEPT_BY = pytest.mark.parametrize(
    "old_airflow", [pytest.param(False, id="state store"), pytest.param(True, id="folder")]
)


def every(moments: dict[str, tuple[str, str, int]]) -> Any:
    """Parametrize a test with one case per moment."""
    return pytest.mark.parametrize("moment", [pytest.param(moment, id=name) for name, moment in moments.items()])


@every(HARMLESS)
def test_a_crash_costs_nothing(paint: Callable[..., Any], moment: tuple[str, str, int]) -> None:
    painting = paint(prompt=PROMPTS, thumbnail_pixels=32)
    painting.die(*moment)
    painting.finish()

    painting.assert_whole(PROMPTS)
    assert painting.last["try_number"] == 2


@every({name: moment for name, moment in HARMLESS.items() if moment[1].startswith(("record", "rename .png"))})
def test_a_crash_costs_nothing_with_the_journal_next_to_the_images(
    paint: Callable[..., Any], moment: tuple[str, str, int]
) -> None:
    painting = paint(prompt=PROMPTS, old_airflow=True, thumbnail_pixels=32)
    painting.die(*moment)
    painting.finish()

    painting.assert_whole(PROMPTS)


@KEPT_BY
@every(LOSING)
def test_a_billed_response_that_was_not_recorded_is_reported_and_not_paid_for_again(
    paint: Callable[..., Any], moment: tuple[str, str, int], old_airflow: bool
) -> None:
    painting = paint(prompt=PROMPTS, old_airflow=old_airflow)
    painting.die(*moment)
    painting.finish()
    painting.assert_lost(lost="two", others=["one", "three"])

    painting.clear()  # the loss is remembered, and still not paid for again
    painting.finish()
    painting.assert_lost(lost="two", others=["one", "three"])

    painting.arguments["on_failure"] = "accept"
    painting.clear()
    painting.finish()
    assert painting.last["state"] == "success"
    assert painting.summary["usd_lost"] == float(painting.charge("two").usd)
    assert painting.bought() == Counter(PROMPTS)
    painting.assert_tidy()
    painting.assert_forgotten()


def test_nothing_is_sent_before_its_intent_is_durable(paint: Callable[..., Any], sandbox: Sandbox) -> None:
    painting = paint(prompt=PROMPTS, concurrency=3)
    painting.die("before", "record intent", 1)

    assert sandbox.seen("/v1/images/generations") == []


def test_nothing_is_done_with_a_response_before_it_is_durable(paint: Callable[..., Any], sandbox: Sandbox) -> None:
    painting = paint(prompt=PROMPTS)
    painting.die("before", "record response", 1)

    assert painting.bought() == Counter(["one"])
    assert [request for request in sandbox.seen() if request.host == "cdn"] == []
    assert painting.pictures() == []


@every({"before": ("before", "rename .png", 3), "after": ("after", "rename .png", 3)})
def test_an_image_with_a_custom_name_survives_a_crash_at_its_rename(
    paint: Callable[..., Any], moment: tuple[str, str, int]
) -> None:
    """Another task may use the same name, so the file gets it by a hard link, which replaces nothing."""
    painting = paint(prompt=PROMPTS, filename="{index}.{extension}")
    painting.die(*moment)
    painting.finish()

    painting.assert_whole(PROMPTS)
    assert [path.name for path in painting.pictures()] == ["000.png", "001.png", "002.png"]


def test_a_lost_request_is_sent_again_with_resend(paint: Callable[..., Any], sandbox: Sandbox) -> None:
    painting = paint(prompt=PROMPTS)
    painting.die("after", "post", 2)
    painting.finish()
    painting.arguments["on_lost_answer"] = "resend"
    painting.clear()
    painting.finish()

    assert painting.last["state"] == "success"
    assert painting.bought() == Counter([*PROMPTS, "two"])
    assert len(painting.images) == 3
    assert painting.summary["usd_lost"] == pytest.approx(float(sandbox.ledger()[0].usd))
    painting.assert_tidy()


@pytest.mark.parametrize("logged", [True, False], ids=["a failed row in the log", "no row in the log"])
def test_an_unbilled_request_in_flight_is_sent_again(paint: Callable[..., Any], sandbox: Sandbox, logged: bool) -> None:
    sandbox.add_fault(Fault("hang", prompt="two", billed=False, logged=logged))
    painting = paint(prompt=PROMPTS)
    painting.die_when(lambda: painting.was_seen("two"))
    painting.finish()

    painting.assert_whole(PROMPTS)
    assert [request.json["prompt"] for request in sandbox.seen("/v1/images/generations")].count("two") == 2


def test_a_billed_request_in_flight_is_reported_lost_and_not_sent_again(
    paint: Callable[..., Any], sandbox: Sandbox
) -> None:
    sandbox.add_fault(Fault("hang", prompt="two", billed=True))
    painting = paint(prompt=PROMPTS)
    painting.die_when(lambda: painting.bought()["two"])
    painting.finish()

    painting.assert_lost(lost="two", others=["one", "three"])
    assert [request.json["prompt"] for request in sandbox.seen("/v1/images/generations")].count("two") == 1


def test_a_request_billed_only_after_the_crash_is_waited_for_and_not_sent_again(
    paint: Callable[..., Any], sandbox: Sandbox
) -> None:
    sandbox.add_fault(Fault("slow", prompt="two", seconds=1.5))
    painting = paint(prompt=PROMPTS, lost_answer_patience_seconds=10)
    painting.die_when(lambda: painting.was_seen("two"))
    assert not painting.bought()["two"]
    painting.finish()

    painting.assert_lost(lost="two", others=["one", "three"])


def test_a_late_row_of_the_log_is_waited_for(paint: Callable[..., Any], sandbox: Sandbox) -> None:
    sandbox.configure(log_lag_seconds=1)
    painting = paint(prompt=PROMPTS, lost_answer_patience_seconds=10)
    painting.die("after", "post", 2)
    painting.finish()

    painting.assert_lost(lost="two", others=["one", "three"])


def test_nothing_is_sent_again_while_the_log_is_unreadable(paint: Callable[..., Any], sandbox: Sandbox) -> None:
    painting = paint(prompt=PROMPTS)
    painting.die("after", "post", 2)
    sandbox.add_fault(Fault("status", status=500, path="/v2/logs", times=None))
    painting.finish()
    assert painting.last["state"] == "up_for_retry"
    assert painting.bought() == Counter(PROMPTS)

    sandbox.clear_faults()
    painting.finish()
    painting.assert_lost(lost="two", others=["one", "three"])


def test_each_of_three_requests_in_flight_is_resolved_separately(paint: Callable[..., Any], sandbox: Sandbox) -> None:
    sandbox.add_fault(Fault("hang", prompt="billed", billed=True))
    sandbox.add_fault(Fault("hang", prompt="failed", billed=False))
    sandbox.add_fault(Fault("hang", prompt="unknown", billed=False, logged=False))
    prompts = ["good", "billed", "failed", "unknown"]
    painting = paint(prompt=prompts, concurrency=3)
    painting.die_when(lambda: painting.bought()["billed"] and all(painting.was_seen(prompt) for prompt in prompts))
    painting.finish()

    painting.assert_lost(lost="billed", others=["good", "failed", "unknown"])


@every(
    {
        "with three intents": ("after", "record intent", 1),
        "with three answers noted": ("after", "record response", 1),
        "before three pictures are noted": ("before", "record write_committed", 1),
    }
)
def test_a_crash_with_three_requests_in_flight_pays_for_no_image_twice(
    paint: Callable[..., Any], moment: tuple[str, str, int]
) -> None:
    painting = paint(prompt=[f"{number}" for number in range(9)], concurrency=3)
    painting.die(*moment)
    painting.arguments["on_failure"] = "accept"  # other requests may be billed and their responses on the way
    painting.finish()

    assert painting.last["state"] == "success"
    assert painting.bought() == Counter(painting.arguments["prompt"])
    made, lost = len(painting.images), round(painting.summary["usd_lost"] / float(painting.charge("0").usd))
    assert made + lost == 9
    assert lost <= 3
    painting.assert_tidy()
    painting.assert_forgotten()


@KEPT_BY
def test_an_inline_image_that_only_the_killed_process_held_is_reported_lost(
    paint: Callable[..., Any], old_airflow: bool
) -> None:
    painting = paint(prompt=PROMPTS, convert_base64_to_url=False, old_airflow=old_airflow)
    painting.die("after", "record response", 1)
    painting.finish()

    painting.assert_lost(lost="one", others=["two", "three"])


@every({"half written": ("after", "half", 1), "before it gets its name": ("before", "rename .png", 1)})
def test_an_inline_image_not_completely_stored_is_reported_lost_and_its_leftovers_removed(
    paint: Callable[..., Any], moment: tuple[str, str, int]
) -> None:
    painting = paint(prompt=["one"], convert_base64_to_url=False)
    painting.die(*moment)
    assert list(painting.folder.rglob("*.part"))
    painting.finish()

    painting.assert_lost(lost="one", others=[])


@KEPT_BY
@every(
    {
        "it has its name": ("after", "rename .png", 1),
        "it is noted": ("after", "record write_committed", 1),
    }
)
def test_an_inline_image_is_safe_as_soon_as(
    paint: Callable[..., Any], moment: tuple[str, str, int], old_airflow: bool
) -> None:
    painting = paint(prompt=["one"], convert_base64_to_url=False, old_airflow=old_airflow)
    painting.die(*moment)
    painting.finish()

    painting.assert_whole(["one"])


@KEPT_BY
@every(
    {
        "before a new segment": ("before", "segment 1", 1),
        "after the first write of a segment": ("after", "segment 1", 1),
        "before a later segment": ("before", "segment 3", 1),
    }
)
def test_a_crash_while_the_journal_begins_a_new_segment_costs_nothing(
    paint: Callable[..., Any], moment: tuple[str, str, int], old_airflow: bool
) -> None:
    prompts = ["a", "b", "c", "d", "e"]
    painting = paint(prompt=prompts, segment_bytes=900, old_airflow=old_airflow)
    painting.die(*moment)
    painting.arguments["on_failure"] = "accept"  # the record being written may have been a response
    painting.finish()

    assert painting.bought() == Counter(prompts)
    assert len(painting.images) >= 4
    painting.assert_tidy()
    painting.assert_forgotten()


def test_a_crash_in_a_journal_of_realistic_size_loses_at_most_the_response_in_flight(
    paint: Callable[..., Any],
) -> None:
    prompts = [f"prompt {number}" for number in range(70)]
    painting = paint(prompt=prompts, concurrency=1)
    painting.die("after", "segment 1", 1)
    header, *segments = painting.look()["journal"]
    assert header == "imagen/journal/0"
    assert [segment.rpartition("/")[2] for segment in segments] == ["0", "1"]
    painting.arguments |= {"concurrency": 8, "on_failure": "accept"}  # the next request may be in flight at that moment
    painting.finish()

    painting.last["xcoms"]["images"] = painting.manifest()  # too many for XCom
    assert painting.bought() == Counter(prompts)
    lost = Counter(prompts) - Counter(image["prompt"] for image in painting.images)
    assert lost.total() <= 1
    assert painting.summary["usd_lost"] == pytest.approx(sum(float(painting.charge(prompt).usd) for prompt in lost))
    painting.assert_tidy()
    painting.assert_forgotten()


@KEPT_BY
def test_a_task_that_crashes_at_every_step_in_turn_pays_once(paint: Callable[..., Any], old_airflow: bool) -> None:
    painting = paint(prompt=PROMPTS, old_airflow=old_airflow)
    steps = [
        ("before", "record intent", 1),
        ("after", "record intent", 1),
        ("after", "record response", 1),
        ("after", "record response", 1),
        ("after", "record response", 1),
        ("after", "download", 1),
        ("after", "half", 1),
        ("before", "rename .png", 1),
        ("after", "rename .png", 1),
        ("after", "record write_committed", 1),
        ("before", "rename metadata.jsonl", 1),
        ("after", "message SetXCom summary", 1),
        ("before", "message SucceedTask", 1),
    ]
    for step in steps:
        painting.die(*step)
    painting.finish()

    painting.assert_whole(PROMPTS)
    assert painting.last["try_number"] == len(steps) + 1
    assert painting.summary["adopted"] == 3


def test_a_mapped_task_that_crashes_leaves_its_siblings_alone(paint: Callable[..., Any], sandbox: Sandbox) -> None:
    first = paint(prompt=PROMPTS, mapped=True)
    second, third = first.of(1), first.of(2)
    sandbox.add_fault(Fault("hang", on="download"))
    second.die_when(lambda: [request for request in sandbox.seen() if request.host == "cdn"])
    third.die("after", "record write_committed")
    first.finish()
    third.finish()
    second.finish()

    assert [each.last["state"] for each in (first, second, third)] == ["success"] * 3
    assert first.bought() == Counter(PROMPTS)
    assert [each.images[0]["prompt"] for each in (first, second, third)] == PROMPTS
    assert len(first.pictures()) == len(first.manifest()) == 3
    assert not list(first.folder.rglob("*.part"))
    assert [each.summary["adopted"] for each in (first, second, third)] == [0, 1, 1]
    for each in (first, second, third):
        each.assert_forgotten()
