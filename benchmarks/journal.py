"""
The cost of the journal: the same task with its journal in Airflow's task state store, and in memory only.

Small images, so that only waiting for the API and the journal takes time.
"""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.running import Lab
    from benchmarks.tables import Row

TITLE = "The journal"
REMARK = (
    "64 in flight, images of 64x64 pixels. A journal in memory protects nothing; it shows what the durable one costs."
)


def measure(lab: Lab, *, quick: bool) -> list[Row]:
    """Return a row per latency."""
    cases = [(0.0, 32)] if quick else [(0.2, 1280), (2.0, 640), (4.0, 384)]
    return [_compare(lab, *case, repeats=1 if quick else 3) for case in cases]


def _compare(lab: Lab, latency: float, prompts: int, *, repeats: int) -> Row:
    tasks: dict[str, list[Row]] = {"state store": [], "memory": []}
    for _ in range(repeats):
        for place, found in tasks.items():
            run = lab.run(
                "ours",
                behaviour={"latency_seconds": latency, "side_pixels": 64},
                prompts=prompts,
                concurrency=64,
                journal=place,
            )
            (task,) = run.tasks
            assert run.states == {"success": 2}, run.states
            assert run.counts["answered"] == prompts, run.counts
            found.append(task)
    durable, none = (median([task["seconds"] for task in found]) for found in tasks.values())
    return {
        "database": lab.database.partition(":")[0].partition("+")[0],
        "latency s": latency,
        "prompts": prompts,
        "seconds": durable,
        "without s": none,
        "journal %": (durable - none) / durable * 100,
        "writes": median([task["journal_writes"] for task in tasks["state store"]]),
        "images/s": prompts / durable,
    }
