"""
Throughput of the whole job compared with the floor: journal, checks, verification, provenance, storage, manifest.

Both run as a task of the same Airflow with the same prompts against the same server; the measurement covers the task's
own work (:mod:`benchmarks.bare` against ``execute`` of the operator), not Airflow's starting and ending of tasks.
"""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.running import Lab
    from benchmarks.tables import Row

TITLE = "One task against a bare pool of threads"
REMARK = (
    "1.6 MB PNGs of 1024x1024 pixels. CPU is that of the task's process per image, peak is its peak resident memory."
)


def measure(lab: Lab, *, quick: bool) -> list[Row]:
    """Return a row per latency and number of requests in flight."""
    if quick:
        return [_compare(lab, 0.0, 4, 8, repeats=1)]
    rows = [
        _compare(lab, latency, concurrency, _prompts(latency, concurrency), repeats=3)
        for latency in (0.0, 0.2, 2.0)
        for concurrency in (1, 16, 64)
    ]
    return [*rows, _compare(lab, 0.0, 16, 240, repeats=3, inline=True)]


def _prompts(latency: float, concurrency: int) -> int:
    """Return enough prompts for a steady state of a few seconds."""
    if latency == 0:
        return 80 if concurrency == 1 else 240
    if concurrency == 1:
        return 40 if latency < 1 else 8
    return 12 * concurrency if latency < 1 else 6 * concurrency


def _compare(lab: Lab, latency: float, concurrency: int, prompts: int, *, repeats: int, inline: bool = False) -> Row:
    found: dict[str, list[Row]] = {"floor": [], "ours": []}
    for _ in range(repeats):
        for dag_id, runs in found.items():
            run = lab.run(
                dag_id,
                behaviour={"latency_seconds": latency},
                prompts=prompts,
                concurrency=concurrency,
                inline=inline,
            )
            (task,) = run.tasks
            assert run.states == {"success": 2}, run.states
            assert run.counts["answered"] == prompts, run.counts
            assert run.counts["most_in_flight"] <= concurrency, run.counts
            runs.append(task)
    rate = {name: prompts / median([run["seconds"] for run in runs]) for name, runs in found.items()}
    cpu = {name: median([run["cpu_seconds"] for run in runs]) / prompts * 1000 for name, runs in found.items()}
    peak = {name: max(run["peak_mib"] for run in runs) for name, runs in found.items()}
    return {
        "latency s": latency,
        "in flight": concurrency,
        "responses": "base64" if inline else "URLs",
        "prompts": prompts,
        "floor images/s": rate["floor"],
        "ours images/s": rate["ours"],
        "ours/floor": rate["ours"] / rate["floor"],
        "floor CPU ms": cpu["floor"],
        "ours CPU ms": cpu["ours"],
        "CPU ratio": cpu["ours"] / cpu["floor"],
        "floor peak MiB": peak["floor"],
        "ours peak MiB": peak["ours"],
    }
