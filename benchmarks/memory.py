"""How much memory a task needs, which should not grow with its prompts, and what ten thousand prompts leave behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.running import Lab
    from benchmarks.tables import Row

TITLE = "Memory, and ten thousand prompts"
REMARK = (
    "Peak is the peak resident memory of the task's process, growth what it adds to the process that Airflow starts. "
    "In the last row the key is refused halfway and the task cleared; resumed after: from the start of the next "
    "attempt to its first paid request, earlier images reused."
)


def measure(lab: Lab, *, quick: bool) -> list[Row]:
    """Return a row per number of prompts, and one for a task interrupted halfway."""
    cases = [(8, 1024, 4)] if quick else [(100, 1024, 16), (5000, 1024, 16), (100, 1024, 64), (10_000, 64, 64)]
    rows = [_run(lab, *case) for case in cases]
    return [*rows, _interrupt(lab, 40 if quick else 10_000)]


def _run(lab: Lab, prompts: int, side_pixels: int, concurrency: int) -> Row:
    run = lab.run("ours", behaviour={"side_pixels": side_pixels}, prompts=prompts, concurrency=concurrency)
    (task,) = run.tasks
    assert run.states == {"success": 2}, run.states
    assert run.counts["answered"] == prompts, run.counts
    return {
        "prompts": prompts,
        "pixels": side_pixels,
        "in flight": concurrency,
        "seconds": task["seconds"],
        "peak MiB": task["peak_mib"],
        "growth MiB": task["peak_mib"] - task["start_mib"],
        "XComs besides URLs KB": run.xcom_bytes / 1000,
    }


def _interrupt(lab: Lab, prompts: int) -> Row:
    half = prompts // 2
    behaviour = {"side_pixels": 64, "refuses_after": half}
    first = lab.run("ours", behaviour=behaviour, prompts=prompts, concurrency=64)
    assert first.states == {"success": 1, "failed": 1}, first.states
    assert first.counts["answered"] == half, first.counts
    second = lab.clear("ours", behaviour={"side_pixels": 64})
    assert second.states == {"success": 2}, second.states
    assert second.counts["answered"] == prompts - half, second.counts
    (task,) = second.tasks
    return {
        "prompts": prompts,
        "pixels": 64,
        "in flight": 64,
        "seconds": task["seconds"],
        "peak MiB": task["peak_mib"],
        "growth MiB": task["peak_mib"] - task["start_mib"],
        "XComs besides URLs KB": second.xcom_bytes / 1000,
        "resumed after s": second.counts["first_asked_at"] - task["started_at"],
    }
