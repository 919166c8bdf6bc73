"""
Stop a task halfway, and check what it published.

Run by ``set-up.sh``.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from running_airflow import wait_until

from .stage import has_ended, sender, start_api_server

if TYPE_CHECKING:
    from running_airflow import Airflow, Processes, Task

    from .stage import Stage


@pytest.fixture(scope="module")
def timed_out(stage: Stage) -> Task:
    """Run a task into its time limit: one round of requests is done, and the next is in flight."""
    task, _ = stage.start("timed_out_8")
    task.wait("failed")
    return task


def test_a_task_that_timed_out_published_every_image_on_disk(stage: Stage, timed_out: Task) -> None:
    on_disk = set(timed_out.folder.glob("*.png"))

    assert on_disk
    assert set(stage.bill(timed_out).files) == on_disk
    assert {image["path"] for image in timed_out.xcom("images")} == {str(path) for path in on_disk}


def test_a_task_that_timed_out_reports_every_charge(stage: Stage, timed_out: Task) -> None:
    bill = stage.bill(timed_out)

    assert (bill.unreported, bill.misreported) == (Counter(), Counter())
    assert bill.usd_reported >= bill.usd


@pytest.mark.parametrize("seconds", [25, 60])
def test_while_the_api_server_is_down_every_charge_is_reported(
    stage: Stage, airflow: Airflow, processes: Processes, seconds: int
) -> None:
    task, _ = stage.start(f"api_away_{seconds}_s_4")
    processes.stop("api-server")
    time.sleep(seconds)
    start_api_server(processes)
    wait_until(airflow.is_up, "the api-server")
    task.wait("success", "failed", patience_seconds=180)  # the attempts that failed meanwhile delay the next one
    attempts = {sender(request) for request in stage.requests(task.dag_id)}
    wait_until(lambda: all(map(has_ended, attempts)), f"the end of every attempt of {task.dag_id}")

    bill = stage.bill(task)
    assert (bill.unreported, bill.misreported) == (Counter(), Counter())
    assert bill.usd_reported >= bill.usd
