"""The alternatives a user has, through the same scheduler: mapped ``HttpOperator``, and TaskFlow with requests."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from benchmarks.running import SLOTS

if TYPE_CHECKING:
    from benchmarks.running import Lab
    from benchmarks.tables import Row

TITLE = "Through the scheduler, compared with the alternatives"
REMARK = (
    f"LocalExecutor, {SLOTS} slots, one per task; from the trigger to the end of the run, with the CPU of all of "
    f"Airflow. TaskFlow posts, downloads and writes the file, unchecked; HttpOperator only posts."
)
METHODS = {
    "ours, one task with 64 in flight": "ours_one_task",
    "ours, mapped": "ours_mapped",
    "TaskFlow + requests, mapped": "taskflow_mapped",
    "HttpOperator, mapped": "http_mapped",
    "HttpOperator deferrable, mapped": "http_deferrable_mapped",
    "empty tasks, mapped": "empty_mapped",
}
_AT_SCALE = ("ours_one_task", "ours_mapped", "taskflow_mapped", "http_mapped")
"""Methods also measured with 200 prompts, which takes minutes."""


def measure(lab: Lab, *, quick: bool) -> list[Row]:
    """Return a row per method, latency and number of prompts."""
    cases = [(0.0, 4, 1)] if quick else [(0.0, 20, 3), (0.2, 20, 3), (2.0, 20, 3), (0.2, 200, 1), (2.0, 200, 1)]
    return [
        _run(lab, method, dag_id, latency, prompts, repeats)
        for latency, prompts, repeats in cases
        for method, dag_id in METHODS.items()
        if lab.knows(f"{dag_id}_{prompts}") and (prompts < 100 or dag_id in _AT_SCALE)
    ]


def _run(lab: Lab, method: str, dag_id: str, latency: float, prompts: int, repeats: int) -> Row:
    runs = [lab.run(f"{dag_id}_{prompts}", behaviour={"latency_seconds": latency}) for _ in range(repeats)]
    for run in runs:  # Airflow itself can fail a deferrable task after it was billed
        assert run.counts["answered"] in (0, prompts) or "deferrable" in dag_id, run.counts
    seconds = median([run.seconds for run in runs])
    return {
        "method": method,
        "latency s": latency,
        "prompts": prompts,
        "seconds": seconds,
        "images/s": prompts / seconds,
        "CPU s per image": median([run.cpu_seconds for run in runs]) / prompts,
        "failed": sum(run.states.get("failed", 0) for run in runs),
    }
