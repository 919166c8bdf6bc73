"""
Run two attempts of one task at the same time, and look at the bill.

Run by ``set-up.sh``, once per version of Airflow. All scenarios play side by side, each in a thread of its own; the
checks look at them once both attempts have ended.
"""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil
import pytest
from PIL import Image
from running_airflow import wait_until

from .bill import Bill
from .conftest import SECONDS_PER_RESPONSE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from running_airflow import Airflow, Processes, Task

    from airflow_provider_imagen.sandbox import Sandbox, SeenRequest

SECONDS_TO_EXIT = 15.0
"""How long an attempt may take to end once the last of its requests was answered."""

SECONDS_ON_THE_WAY = 1.0
"""How long a request may take from the look at who owns the journal until the server records it."""

LOST = "another attempt"
"""Words of the error with which an attempt ends that has lost its journal."""


@dataclass(frozen=True)
class Overlap:
    """
    A task of which two attempts ran at the same time, after both have ended.

    :param task: as Airflow shows it
    :param first: process id of the attempt that has to give way
    :param first_ended_at: when that process was gone, in seconds since the epoch
    """

    task: Task
    first: int
    first_ended_at: float


class Stage:
    """What every scenario needs: an Airflow, its processes, and the server that keeps the bill."""

    def __init__(self, airflow: Airflow, processes: Processes, sandbox: Sandbox) -> None:
        self.airflow = airflow
        self.processes = processes
        self.sandbox = sandbox

    def requests(self, dag_id: str) -> list[SeenRequest]:
        """List the paid requests of a DAG, the first one first."""
        seen = self.sandbox.seen("/v1/images/generations")
        return [request for request in seen if request.json["prompt"].startswith(f"{dag_id} ")]

    def bill(self, task: Task) -> Bill:
        charges = [charge for charge in self.sandbox.ledger() if charge.prompt.startswith(f"{task.folder.name} ")]
        return Bill.read(charges, folder=task.folder, summary=task.xcom("summary"))

    def taken_over_at(self, overlap: Overlap) -> float:
        """Return when the server first heard of another attempt than the first, in seconds since the epoch."""
        others = [request.at for request in self.requests(overlap.task.folder.name) if sender(request) != overlap.first]
        assert others, "The first attempt sent everything, so nothing overlapped"
        return min(others)

    def start(self, dag_id: str) -> tuple[Task, psutil.Process]:
        """Start a task, and return its process once a first round of requests is answered and the next is in flight."""
        task = self.airflow.trigger(dag_id)
        wait_until(lambda: len(self.requests(dag_id)) > concurrency(dag_id), f"{dag_id} in the middle")
        return task, task.process()

    def end(self, task: Task, first: psutil.Process) -> Overlap:
        """Wait until both attempts have ended."""
        wait_until(lambda: has_ended(first), f"the end of the first attempt of {task.folder.name}")
        first_ended_at = time.time()
        task.wait("success", "failed", tries=2)
        return Overlap(task, first.pid, first_ended_at)


def kill_the_supervisor(stage: Stage, dag_id: str) -> Overlap:
    """Make the task's process an orphan, which Airflow takes for dead."""
    task, process = stage.start(dag_id)
    process.parent().kill()
    return stage.end(task, process)


def suspend(stage: Stage, dag_id: str) -> Overlap:
    """Stop the first attempt as a laptop that sleeps does, and let it go on beside the second."""
    task, process = stage.start(dag_id)
    stopped = (process.parent(), process)
    for each in stopped:
        each.suspend()
    task.wait("running", tries=2)
    for each in stopped:
        each.resume()
    return stage.end(task, process)


def clear(stage: Stage, dag_id: str) -> Overlap:
    """Clear the task while it runs."""
    task, process = stage.start(dag_id)
    task.clear_while_running()
    return stage.end(task, process)


def run_by_hand_twice(stage: Stage, dag_id: str) -> Overlap:
    """Start ``airflow tasks test`` twice for the same run."""
    task = stage.airflow.trigger(dag_id)
    names = by_hand(dag_id)
    for name in names:
        stage.processes.start(name, "airflow", "tasks", "test", dag_id, "paint", task.run_id)
    ended_at: dict[str, float] = {}

    def have_ended() -> bool:
        ended_at.update({each: time.time() for each in set(names) - set(ended_at) if stage.processes.has_ended(each)})
        return len(ended_at) == len(names)

    wait_until(have_ended, f"the end of both attempts of {dag_id}", patience_seconds=180)
    # Which of the two gives way is open, and until they agree on one it is the one that ended first.
    first = min(names, key=lambda name: (LOST not in stage.processes.output(name), ended_at[name]))
    return Overlap(task, stage.processes.pid(first), ended_at[first])


SCENARIOS: dict[str, Callable[[Stage, str], Overlap]] = {
    "supervisor_killed": kill_the_supervisor,
    "suspended": suspend,
    "cleared": clear,
    "by_hand_twice": run_by_hand_twice,
}
DAGS = {f"{name}_{size}": scenario for name, scenario in SCENARIOS.items() for size in SECONDS_PER_RESPONSE}
BY_HAND = [dag_id for dag_id, scenario in DAGS.items() if scenario is run_by_hand_twice]


def concurrency(dag_id: str) -> int:
    return int(dag_id.rpartition("_")[2])


def by_hand(dag_id: str) -> tuple[str, str]:
    """Name the two processes that run a task by hand."""
    return f"{dag_id}-a", f"{dag_id}-b"


def sender(request: SeenRequest) -> int:
    """Return the process id of the attempt that sent a request."""
    return int(request.headers["x-attempt"])


def has_ended(process: psutil.Process) -> bool:
    """Return whether a process has ended, also when nobody has asked for its exit code yet."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture(scope="module")
def stage(airflow: Airflow, processes: Processes, sandbox: Sandbox) -> Stage:
    return Stage(airflow, processes, sandbox)


@pytest.fixture(scope="module")
def overlaps(stage: Stage) -> Iterator[dict[str, Future[Overlap]]]:
    """Start every scenario."""
    with ThreadPoolExecutor(len(DAGS)) as pool:
        yield {dag_id: pool.submit(scenario, stage, dag_id) for dag_id, scenario in DAGS.items()}


@pytest.fixture(params=DAGS)
def overlap(request: pytest.FixtureRequest, overlaps: dict[str, Future[Overlap]]) -> Overlap:
    """Wait for the end of one scenario."""
    return overlaps[request.param].result()


def test_every_charge_is_reported_once_as_an_image_a_loss_or_in_doubt(stage: Stage, overlap: Overlap) -> None:
    bill = stage.bill(overlap.task)

    assert bill.charges
    assert bill.unreported == Counter()
    assert bill.misreported == Counter()


def test_what_is_spent_and_what_is_in_doubt_cover_the_bill(stage: Stage, overlap: Overlap) -> None:
    bill = stage.bill(overlap.task)

    assert bill.usd_reported >= bill.usd


def test_only_requests_in_flight_at_the_takeover_are_bought_twice(stage: Stage, overlap: Overlap) -> None:
    assert stage.bill(overlap.task).duplicates <= concurrency(overlap.task.folder.name)


def test_every_listed_file_is_a_whole_image(stage: Stage, overlap: Overlap) -> None:
    bill = stage.bill(overlap.task)

    assert bill.images
    for path in bill.files:
        with Image.open(path) as image:
            image.load()


def test_xcom_tells_of_the_images_that_the_manifest_lists(stage: Stage, overlap: Overlap) -> None:
    listed = stage.bill(overlap.task).images
    images = overlap.task.xcom("images")

    if isinstance(images, dict):  # too many for an XCom
        assert images["count"] == len(listed)
    else:
        assert {image["path"] for image in images} == {image["path"] for image in listed}


def test_an_attempt_sends_nothing_once_another_has_taken_over(stage: Stage, overlap: Overlap) -> None:
    over_at = stage.taken_over_at(overlap) + SECONDS_ON_THE_WAY

    sent = [request.at for request in stage.requests(overlap.task.folder.name) if sender(request) == overlap.first]
    assert [f"{at - over_at:.1f} s too late" for at in sent if at > over_at] == []


def test_an_attempt_ends_soon_after_its_last_response(stage: Stage, overlap: Overlap) -> None:
    dag_id = overlap.task.folder.name
    answered_at = [
        request.at + SECONDS_PER_RESPONSE[concurrency(dag_id)]
        for request in stage.requests(dag_id)
        if sender(request) == overlap.first
    ]

    assert overlap.first_ended_at - max(answered_at) <= SECONDS_TO_EXIT


@pytest.mark.parametrize("dag_id", BY_HAND)
def test_of_two_attempts_by_hand_one_says_that_another_took_over(
    stage: Stage, overlaps: dict[str, Future[Overlap]], dag_id: str
) -> None:
    overlaps[dag_id].result()

    assert sum(LOST in stage.processes.output(name) for name in by_hand(dag_id)) == 1
