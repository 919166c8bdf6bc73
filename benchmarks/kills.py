"""
What kills and overlapping attempts cost: the same faults, drawn from one seed, against several ways to do the job.

A fault belongs to a prompt. It strikes a set time after the prompt's first request has arrived, whoever sent it, and
hits the attempt that runs then. The bill is the sandbox's ledger, not what a task says about itself.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError

import psutil
from PIL import Image

from airflow_provider_imagen import sandbox
from benchmarks.running import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from pathlib import Path

    from running_airflow import Task

    from benchmarks.running import Lab
    from benchmarks.tables import Row

SEED = 20261128
LATENCY_SECONDS = 1.0
DOWNLOAD_SECONDS = 0.5
PROMPTS_PER_FAULT = 8
"""One task has 4 requests in flight; so each fault finds an attempt that has got over the fault before."""

TITLE = "Kills and overlapping attempts"
REMARK = (
    f"One fault to {PROMPTS_PER_FAULT} prompts, all kinds equally often: SIGKILL of the task; SIGKILL of its supervisor; "
    f"SIGSTOP of both until the next attempt runs; SIGTERM, and SIGKILL 4 s later. Each comes within "
    f"{LATENCY_SECONDS + DOWNLOAD_SECONDS} s after its prompt's first request; a request takes {LATENCY_SECONDS} s, a "
    f"download {DOWNLOAD_SECONDS} s. What comes after the task's end strikes nothing. Images: whole files, or URLs in "
    f"XCom for HttpOperator. Unreported: billed, and neither an image nor the task's own count stands for it."
)
WAYS = {
    "HttpOperator, mapped": "killed_http",
    "TaskFlow + requests, mapped": "killed_taskflow",
    "ours, mapped": "killed_ours_mapped",
    "ours, one task": "killed_ours_one_task",
}
_UNMAPPED = "killed_ours_one_task"
_IMPATIENT = {
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "10",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
    "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "2",
}


@dataclass(frozen=True)
class Fault:
    """
    One kill or overlap.

    :param kind: key of :data:`KINDS`
    :param prompt: number of the prompt whose first request starts the clock
    :param after_seconds: when it strikes
    """

    kind: str
    prompt: int
    after_seconds: float


def draw(count: int) -> list[Fault]:
    """Draw the faults, the same ones at each call."""
    chance = random.Random(SEED)
    kinds = [kind for kind in KINDS for _ in range(count // len(KINDS))]
    chance.shuffle(kinds)
    latest = LATENCY_SECONDS + DOWNLOAD_SECONDS
    return [Fault(kind, number * PROMPTS_PER_FAULT, chance.uniform(0, latest)) for number, kind in enumerate(kinds)]


# --- what a fault does to the attempt that runs -----------------------------------------------------------------------


def _kill_task(process: psutil.Process, _: Task) -> None:
    process.kill()


def _kill_supervisor(process: psutil.Process, _: Task) -> None:
    process.parent().kill()


def _overlap(process: psutil.Process, task: Task) -> None:
    stopped, attempt = (process.parent(), process), task.get()["try_number"]

    def has_successor() -> bool:
        with suppress(OSError):  # an API server that is too busy
            instance = task.get()
            return instance["state"] in ("success", "failed") or (
                instance["try_number"] > attempt and instance["state"] == "running"
            )
        return False

    try:
        for each in stopped:
            each.suspend()
        wait_until(has_successor, "the next attempt")
    finally:
        for each in stopped:
            each.resume()


def _terminate_and_kill(process: psutil.Process, _: Task) -> None:
    process.terminate()
    try:
        process.wait(4)
    except psutil.TimeoutExpired:
        process.kill()


KINDS: dict[str, Callable[[psutil.Process, Task], None]] = {
    "task killed": _kill_task,
    "supervisor killed": _kill_supervisor,
    "overlap": _overlap,
    "terminated": _terminate_and_kill,
}


def strike(fault: Fault, task: Task, asked_at: float) -> bool:
    """
    Carry a fault out when its time comes, and return whether the attempt still ran.

    :param asked_at: when the prompt's first request arrived, seconds since the epoch
    """
    try:
        process = task.process()
        time.sleep(max(0.0, asked_at + fault.after_seconds - time.time()))
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        KINDS[fault.kind](process, task)
    except psutil.NoSuchProcess:
        return False
    return True


# --- the runs, and what came of them ----------------------------------------------------------------------------------


def measure(lab: Lab, *, quick: bool) -> list[Row]:
    """Give a row per way; all of them run at the same time."""
    faults = draw(4 if quick else 16)
    with sandbox.Sandbox(latency_seconds=LATENCY_SECONDS, picture_scale=0.125) as api:
        api.add_fault(sandbox.Fault("slow", on="download", seconds=DOWNLOAD_SECONDS, times=None))
        lab.restart_scheduler(**_IMPATIENT, **_connections(api))
        ways = {way: dag_id for way, dag_id in WAYS.items() if lab.knows(dag_id)}
        struck = _run(lab, api, list(ways.values()), faults)
        return [_row(way, struck[dag_id], lab, api) for way, dag_id in ways.items()]


def _connections(api: sandbox.Sandbox) -> dict[str, str]:
    """Make the connections: a killed attempt's answer cannot come later than ``read_timeout`` after its request."""
    ours = {"conn_type": "imagen", "host": api.url, "password": api.api_key, "extra": {"read_timeout": 10}}
    http = {"conn_type": "http", "host": api.url, "extra": {"Authorization": f"Bearer {api.api_key}"}}
    return {"AIRFLOW_CONN_KILLED": json.dumps(ours), "AIRFLOW_CONN_KILLED_HTTP": json.dumps(http)}


@dataclass(frozen=True)
class _Outcome:
    """One way's run that is over: its task, its prompts, and how many faults struck."""

    task: Task
    prompts: list[str]
    struck: int


def _run(lab: Lab, api: sandbox.Sandbox, dag_ids: list[str], faults: list[Fault]) -> dict[str, _Outcome]:
    """Start all ways, strike when it is time, and wait for their ends."""
    numbers = range(len(faults) * PROMPTS_PER_FAULT)
    prompts = {dag_id: [f"{dag_id}, picture {number}" for number in numbers] for dag_id in dag_ids}
    for dag_id in dag_ids:
        _folder(lab, dag_id).mkdir(parents=True)
    tasks = {dag_id: lab.airflow.trigger(dag_id, {"prompts": prompts[dag_id]}) for dag_id in dag_ids}
    due = {prompts[dag_id][fault.prompt]: (dag_id, fault) for dag_id in dag_ids for fault in faults}
    strikes: dict[str, list[Future[bool]]] = {dag_id: [] for dag_id in dag_ids}
    noticed = 0

    def are_over() -> bool:
        nonlocal noticed
        requests = api.seen("/v1/images/generations")
        for request in requests[noticed:]:
            if (awaited := due.pop(request.json["prompt"], None)) is not None:
                dag_id, fault = awaited
                instance = _instances(dag_id, tasks[dag_id], fault.prompt + 1)[-1]
                strikes[dag_id].append(pool.submit(strike, fault, instance, request.at))
        noticed = len(requests)
        with suppress(OSError):  # an API server that is too busy
            return all(task.run_state() in ("success", "failed") for task in tasks.values())
        return False

    with ThreadPoolExecutor(max_workers=len(dag_ids) * len(faults)) as pool:
        wait_until(are_over, "the end of the runs", patience_seconds=1800)
        struck = {dag_id: sum(each.result() for each in strikes[dag_id]) for dag_id in dag_ids}
    return {dag_id: _Outcome(tasks[dag_id], prompts[dag_id], struck[dag_id]) for dag_id in dag_ids}


def _folder(lab: Lab, dag_id: str) -> Path:
    return lab.home / "killed" / dag_id


def _instances(dag_id: str, task: Task, count: int) -> list[Task]:
    """List the task instances of the first prompts: one for each, or one for all."""
    return [task] if dag_id == _UNMAPPED else [task.of(number) for number in range(count)]


def _row(way: str, outcome: _Outcome, lab: Lab, api: sandbox.Sandbox) -> Row:
    """Compare the bill with what is there and with what the tasks say."""
    dag_id = WAYS[way]
    charges = [charge for charge in api.ledger() if charge.prompt in set(outcome.prompts)]
    billed = Counter(charge.prompt for charge in charges)
    usd = float(sum(charge.usd for charge in charges))
    instances = _instances(dag_id, outcome.task, len(outcome.prompts))
    summaries = [summary for each in instances if (summary := _xcom(each, "summary"))]
    if dag_id == "killed_http":
        images = sum(_xcom(each, "return_value") is not None for each in instances)
    else:
        images = sum(map(_is_whole, _folder(lab, dag_id).rglob("*.png")))
    told_usd = sum(summary["usd_spent"] + summary.get("usd_in_doubt", 0) for summary in summaries)
    accounted_usd = max(told_usd, images * float(charges[0].usd))
    states = Counter(each.get()["state"] for each in instances)
    return {
        "way": way,
        "prompts": len(outcome.prompts),
        "faults": outcome.struck,
        "billed": len(charges),
        "billed USD": usd,
        "images": images,
        "bought twice": sum(billed.values()) - len(billed),
        "told lost USD": sum(summary["usd_lost"] for summary in summaries) if summaries else None,
        "unreported USD": max(0.0, round(usd - accounted_usd, 6)),
        "ended": ", ".join(f"{count} {state}" for state, count in sorted(states.items())),
    }


def _xcom(task: Task, key: str) -> Any:
    """Read an XCom; ``None`` where there is none."""
    try:
        return task.xcom(key)
    except HTTPError as error:
        if error.code != 404:
            raise
        return None


def _is_whole(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError):
        return False
    return True
