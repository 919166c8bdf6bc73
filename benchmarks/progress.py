"""
The cost of showing a task while it runs: the same task with and without publishing its progress.

Small images, so that little else takes time.
"""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.running import Lab
    from benchmarks.tables import Row

TITLE = "Progress for the gallery"
REMARK = (
    "Images of 64x64 pixels. Task CPU is that of the task's process, Airflow CPU that of all of Airflow's, both as a "
    "share of one processor during the task; the share of progress is the difference."
)


def measure(lab: Lab, *, quick: bool) -> list[Row]:
    """Return a row per size of the task."""
    cases = [(1.0, 4, 16)] if quick else [(2.0, 4, 60), (2.0, 64, 1000)]
    return [_compare(lab, *case, repeats=1 if quick else 3) for case in cases]


def _compare(lab: Lab, latency: float, concurrency: int, prompts: int, *, repeats: int) -> Row:
    found: dict[bool, list[Row]] = {True: [], False: []}
    for _ in range(repeats):
        for shows_progress, tasks in found.items():
            run = lab.run(
                "ours",
                behaviour={"latency_seconds": latency, "side_pixels": 64},
                prompts=prompts,
                concurrency=concurrency,
                progress=shows_progress,
            )
            (task,) = run.tasks
            assert run.states == {"success": 2}, run.states
            tasks.append({**task, "airflow_cpu_seconds": run.cpu_seconds})

    def share(name: str, *, with_progress: bool) -> float:
        return median([task[name] / task["seconds"] * 100 for task in found[with_progress]])

    return {
        "latency s": latency,
        "in flight": concurrency,
        "prompts": prompts,
        "seconds": median([task["seconds"] for task in found[True]]),
        "without s": median([task["seconds"] for task in found[False]]),
        "publications": median([task["progress_publications"] for task in found[True]]),
        "task CPU %": share("cpu_seconds", with_progress=True),
        "without %": share("cpu_seconds", with_progress=False),
        "Airflow CPU %": share("airflow_cpu_seconds", with_progress=True),
        "Airflow without %": share("airflow_cpu_seconds", with_progress=False),
    }
