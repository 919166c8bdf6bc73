"""
Run two attempts of one task at the same time, and check the bill.

Run by ``set-up.sh``, once per version of Airflow. All scenarios run in parallel, each in its own thread; the checks
inspect a scenario once both of its attempts have ended.
"""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest
from PIL import Image
from running_airflow import wait_until

from .stage import SECONDS_PER_RESPONSE, concurrency, has_ended, sender

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psutil
    from running_airflow import Task

    from .stage import Stage

SECONDS_TO_EXIT = 30.0
"""How long an attempt that has lost its journal may take to end once the last of its requests was answered."""

SECONDS_ON_THE_WAY = 1.0
"""How long a request may take from the look at who owns the journal until the server records it."""

LOST = "another attempt"
"""Words of the error with which an attempt ends that has lost its journal."""


@dataclass(frozen=True)
class Overlap:
    """
    A task with two overlapping attempts, after both have ended.

    :param task: the task as Airflow shows it
    :param first: process id of the attempt that must give way
    :param first_ended_at: when that process ended, in seconds since the epoch
    :param first_resumed_at: when it was resumed, if it had been suspended, in seconds since the epoch
    """

    task: Task
    first: int
    first_ended_at: float
    first_resumed_at: float = 0.0


def kill_the_supervisor(stage: Stage, dag_id: str) -> Overlap:
    """Orphan the task's process, which Airflow then considers dead."""
    task, process = stage.start(dag_id)
    process.parent().kill()
    return end(task, process)


def suspend(stage: Stage, dag_id: str) -> Overlap:
    """Suspend the first attempt, like a sleeping laptop, and resume it while the second runs."""
    return suspend_until(stage, dag_id, "running")


def suspend_for_long(stage: Stage, dag_id: str) -> Overlap:
    """Suspend the first attempt, and resume it once the second has published its results and deleted the journal."""
    return suspend_until(stage, dag_id, "success", "failed")


def suspend_until(stage: Stage, dag_id: str, *states: str) -> Overlap:
    task, process = stage.start(dag_id)
    stopped = (process.parent(), process)
    for each in stopped:
        each.suspend()
    task.wait(*states, tries=2)
    resumed_at = time.time()
    for each in stopped:
        each.resume()
    return replace(end(task, process), first_resumed_at=resumed_at)


def clear(stage: Stage, dag_id: str) -> Overlap:
    """Clear the task while it runs."""
    task, process = stage.start(dag_id)
    task.clear_while_running()
    return end(task, process)


def run_by_hand(stage: Stage, dag_id: str) -> Overlap:
    """Start ``airflow tasks test`` for a run, and again once the first has sent something."""
    task = stage.airflow.trigger(dag_id)
    first, second = by_hand(dag_id)
    start_by_hand(stage, task, first)
    wait_until(lambda: stage.requests(dag_id), f"the first request of {dag_id}")
    start_by_hand(stage, task, second)
    return end_by_hand(stage, task)


def run_by_hand_together(stage: Stage, dag_id: str) -> Overlap:
    """Start ``airflow tasks test`` twice at once; Airflow itself usually refuses the one that comes second."""
    task = stage.airflow.trigger(dag_id)
    for name in by_hand(dag_id):
        start_by_hand(stage, task, name)
    return end_by_hand(stage, task)


SCENARIOS: dict[str, Callable[[Stage, str], Overlap]] = {
    "supervisor_killed_4": kill_the_supervisor,
    "supervisor_killed_32": kill_the_supervisor,
    "suspended_4": suspend,
    "suspended_32": suspend,
    "suspended_for_long_4": suspend_for_long,
    "suspended_for_long_32": suspend_for_long,
    "cleared_4": clear,
    "cleared_32": clear,
    "by_hand_4": run_by_hand,
    "by_hand_32": run_by_hand,
    "by_hand_together_4": run_by_hand_together,
}
"""By DAG; a DAG's name ends with its concurrency."""


def end(task: Task, first: psutil.Process) -> Overlap:
    """Wait until both attempts have ended."""
    wait_until(lambda: has_ended(first.pid), f"the end of the first attempt of {task.dag_id}")
    first_ended_at = time.time()
    task.wait("success", "failed", tries=2)
    return Overlap(task, first=first.pid, first_ended_at=first_ended_at)


def by_hand(dag_id: str) -> tuple[str, str]:
    """Return the names of the two processes that run a task by hand."""
    return f"{dag_id}-a", f"{dag_id}-b"


def start_by_hand(stage: Stage, task: Task, name: str) -> None:
    stage.processes.start(name, "airflow", "tasks", "test", task.dag_id, "paint", task.run_id)


def end_by_hand(stage: Stage, task: Task) -> Overlap:
    """Wait until both processes have ended."""
    names = by_hand(task.dag_id)
    ended_at: dict[str, float] = {}

    def have_ended() -> bool:
        ended_at.update({each: time.time() for each in set(names) - set(ended_at) if stage.processes.has_ended(each)})
        return len(ended_at) == len(names)

    wait_until(have_ended, f"the end of both attempts of {task.dag_id}")
    # Either of them may have had to give way. If neither says so, choose the one started first.
    first = min(names, key=lambda name: (LOST not in stage.processes.output(name), name))
    return Overlap(task, first=stage.processes.pid(first), first_ended_at=ended_at[first])


@pytest.fixture(scope="module")
def overlaps(stage: Stage) -> Iterator[dict[str, Future[Overlap]]]:
    """Start every scenario."""
    with ThreadPoolExecutor(len(SCENARIOS)) as pool:
        yield {dag_id: pool.submit(scenario, stage, dag_id) for dag_id, scenario in SCENARIOS.items()}


@pytest.fixture(params=SCENARIOS)
def overlap(request: pytest.FixtureRequest, overlaps: dict[str, Future[Overlap]]) -> Overlap:
    """Wait for the end of one scenario."""
    return overlaps[request.param].result()


@pytest.fixture(params=[dag_id for dag_id, scenario in SCENARIOS.items() if scenario is not run_by_hand_together])
def takeover(request: pytest.FixtureRequest, overlaps: dict[str, Future[Overlap]]) -> Overlap:
    """Wait for the end of one scenario in which both attempts are certain to send requests."""
    return overlaps[request.param].result()


def test_every_charge_is_reported_once_as_an_image_a_loss_or_in_doubt(stage: Stage, overlap: Overlap) -> None:
    bill = stage.bill(overlap.task)

    assert bill.charges
    assert bill.unreported == Counter()
    assert bill.misreported == Counter()


def test_money_spent_and_in_doubt_covers_the_bill(stage: Stage, overlap: Overlap) -> None:
    bill = stage.bill(overlap.task)
    reported, charged = bill.usd_reported, bill.usd

    assert reported >= charged


def test_only_requests_in_flight_at_the_takeover_are_paid_for_twice(stage: Stage, overlap: Overlap) -> None:
    duplicates = stage.bill(overlap.task).duplicates

    assert duplicates <= concurrency(overlap.task.dag_id)


def test_every_listed_file_is_a_complete_image(stage: Stage, overlap: Overlap) -> None:
    files = stage.bill(overlap.task).files

    assert files
    for path in files:
        with Image.open(path) as image:
            image.load()


def test_xcom_counts_the_images_that_the_manifest_lists(stage: Stage, overlap: Overlap) -> None:
    listed = stage.bill(overlap.task).images
    images = overlap.task.xcom("images")

    reported = images["count"] if isinstance(images, dict) else len({image["path"] for image in images})
    late = len(listed) - reported
    if overlap.first_resumed_at and overlap.task.dag_id.startswith("suspended_for_long"):
        # An attempt resumed after the other has ended stores the images it paid for, and leaves XCom unchanged.
        assert 0 <= late <= concurrency(overlap.task.dag_id)
    else:
        assert late == 0


def test_an_attempt_sends_nothing_once_another_has_taken_over(stage: Stage, takeover: Overlap) -> None:
    requests = stage.requests(takeover.task.dag_id)
    sent = [request.at for request in requests if sender(request) == takeover.first]
    sent_by_others = [request.at for request in requests if sender(request) != takeover.first]

    assert sent
    assert sent_by_others
    over_at = min(sent_by_others)
    assert [f"{at - over_at:.1f} s late" for at in sent if at - over_at > SECONDS_ON_THE_WAY] == []


def test_an_attempt_that_lost_its_journal_ends_soon_after_its_last_response(stage: Stage, takeover: Overlap) -> None:
    dag_id = takeover.task.dag_id
    sent = [request.at for request in stage.requests(dag_id, attempt=takeover.first)]

    last_response_at = max(sent) + SECONDS_PER_RESPONSE[concurrency(dag_id)]
    assert takeover.first_ended_at - max(last_response_at, takeover.first_resumed_at) <= SECONDS_TO_EXIT


@pytest.mark.parametrize("dag_id", [dag_id for dag_id, scenario in SCENARIOS.items() if scenario is run_by_hand])
def test_one_of_two_attempts_by_hand_reports_that_another_took_over(
    stage: Stage, overlaps: dict[str, Future[Overlap]], dag_id: str
) -> None:
    overlaps[dag_id].result()

    assert [LOST in stage.processes.output(name) for name in by_hand(dag_id)].count(True) == 1
