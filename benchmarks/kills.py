"""
The cost of kills and overlapping attempts: the same faults, drawn from one seed, applied to several methods.

A fault belongs to a prompt: it strikes a random time after the prompt's first request arrived, and hits the attempt
that is running then. Requests are the clock, so every method meets the same faults at the same moments, however fast it
starts.
The bill is the sandbox's ledger, not what a task reports.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
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
"""Twice the requests that one task has in flight, so that each fault hits an attempt past the previous fault."""

TITLE = "Kills and overlapping attempts"
REMARK = (
    f"One fault for {PROMPTS_PER_FAULT} prompts, each kind equally often: SIGKILL of the task process; SIGKILL of its "
    f"supervisor; SIGSTOP of both until the next attempt runs; SIGTERM, then SIGKILL after 4 s. It strikes within "
    f"{LATENCY_SECONDS + DOWNLOAD_SECONDS} s of the first request for its prompt, at the same time for each method; a "
    f"request takes {LATENCY_SECONDS} s, a download {DOWNLOAD_SECONDS} s. A fault after the end of its task has no "
    f"effect. Images: complete files; for HttpOperator, which does not download, URLs in XCom. Unreported: billed, but "
    f"covered neither by an image nor by what the task itself reports."
)
METHODS = {
    "HttpOperator, mapped": "killed_http",
    "TaskFlow + requests, mapped": "killed_taskflow",
    "ours, mapped": "killed_ours_mapped",
    "ours, one task": "killed_ours_one_task",
    "ours, one task, on_lost_answer='resend'": "killed_ours_resend",
}
_UNMAPPED = ("killed_ours_one_task", "killed_ours_resend")
_PAID_PATH = "/v1/images/generations"
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
    """Draw the faults; every call returns the same ones."""
    chance = random.Random(SEED)
    kinds = [kind for kind in KINDS for _ in range(count // len(KINDS))]
    chance.shuffle(kinds)
    latest = LATENCY_SECONDS + DOWNLOAD_SECONDS
    return [Fault(kind, number * PROMPTS_PER_FAULT, chance.uniform(0, latest)) for number, kind in enumerate(kinds)]


# --- what a fault does to the running attempt -------------------------------------------------------------------------


@dataclass(frozen=True)
class Attempt:
    """A running attempt: its task instance, the process of the task, and the executor's worker that supervises it."""

    task: Task
    number: int
    process: psutil.Process
    supervisor: psutil.Process

    def is_over(self) -> bool:
        """Return whether the process has ended, reaped or not."""
        try:
            return self.process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    def has_successor(self) -> bool:
        """Return whether the next attempt is running, or none will run."""
        with suppress(OSError):  # an API server that is too busy
            instance = self.task.get()
            if instance["state"] == "running":
                return bool(instance["try_number"] > self.number)
            return instance["state"] in ("success", "failed")
        return False


def _kill_task(attempt: Attempt) -> None:
    attempt.process.kill()


def _kill_supervisor(attempt: Attempt) -> None:
    attempt.supervisor.kill()


def _overlap(attempt: Attempt) -> None:
    stopped = (attempt.supervisor, attempt.process)
    try:
        for each in stopped:
            each.suspend()
        wait_until(attempt.has_successor, "the next attempt")
    finally:
        for each in stopped:
            with suppress(psutil.NoSuchProcess):
                each.resume()


def _terminate_and_kill(attempt: Attempt) -> None:
    attempt.process.terminate()
    try:
        attempt.process.wait(4)
    except psutil.TimeoutExpired:
        attempt.process.kill()


KINDS: dict[str, Callable[[Attempt], None]] = {
    "task killed": _kill_task,
    "supervisor killed": _kill_supervisor,
    "overlap": _overlap,
    "terminated": _terminate_and_kill,
}


def strike(lab: Lab, fault: Fault, task: Task, requested_at: float) -> bool:
    """
    Apply a fault when its time comes, wait for the struck attempt to end, and return whether there was one.

    :param requested_at: when the prompt's first request arrived, seconds since the epoch
    """
    try:
        process, number = task.process(), task.get()["try_number"]
        supervisor = process.parent()
        if supervisor is None or not lab.owns(process) or not lab.owns(supervisor):  # ended or orphaned
            return False
        attempt = Attempt(task, number, process, supervisor)
        time.sleep(max(0.0, requested_at + fault.after_seconds - time.time()))
        if attempt.is_over():
            return False
        KINDS[fault.kind](attempt)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return False
    wait_until(attempt.is_over, "the end of the attempt")
    return True


# --- the runs and their outcomes --------------------------------------------------------------------------------------


def measure(lab: Lab, *, quick: bool) -> list[Row]:
    """Return a row per method; all of them run at the same time."""
    faults = draw(4 if quick else 16)
    with sandbox.Sandbox(latency_seconds=LATENCY_SECONDS, picture_scale=0.125) as api:
        api.add_fault(sandbox.Fault("slow", on="download", seconds=DOWNLOAD_SECONDS, times=None))
        lab.restart_scheduler(**_IMPATIENT, **_connections(api))
        has_http = find_spec("airflow.providers.http") is not None
        methods = {method: dag_id for method, dag_id in METHODS.items() if has_http or dag_id != "killed_http"}
        wait_until(lambda: all(map(lab.knows, methods.values())), "the DAGs")
        prompts = len(faults) * PROMPTS_PER_FAULT
        tasks = {dag_id: _trigger(lab, dag_id, prompts) for dag_id in methods.values()}
        struck = _strike_until_over(lab, api, tasks, faults)
        return [
            {
                "method": method,
                "prompts": prompts,
                "faults struck": struck[dag_id],
                **_outcome(dag_id, tasks[dag_id], lab, api),
            }
            for method, dag_id in methods.items()
        ]


def _connections(api: sandbox.Sandbox) -> dict[str, str]:
    ours = {"conn_type": "imagen", "host": api.url, "password": api.api_key, "extra": {"read_timeout": 10}}
    http = {"conn_type": "http", "host": api.url, "extra": {"Authorization": f"Bearer {api.api_key}"}}
    return {"AIRFLOW_CONN_KILLED": json.dumps(ours), "AIRFLOW_CONN_KILLED_HTTP": json.dumps(http)}


def _prompt(dag_id: str, number: int) -> str:
    return f"{dag_id}, picture {number}"


def _folder(lab: Lab, dag_id: str) -> Path:
    return lab.home / "killed" / dag_id


def _trigger(lab: Lab, dag_id: str, prompts: int) -> list[Task]:
    """Start a run, and return its task instances: one for each prompt, or one for all."""
    _folder(lab, dag_id).mkdir(parents=True)
    task = lab.airflow.trigger(dag_id, {"prompts": [_prompt(dag_id, number) for number in range(prompts)]})
    return [task] if dag_id in _UNMAPPED else [task.of(number) for number in range(prompts)]


def _strike_until_over(
    lab: Lab, api: sandbox.Sandbox, tasks: dict[str, list[Task]], faults: list[Fault]
) -> dict[str, int]:
    """Watch requests arrive, apply faults when due until all runs are over, and count the attempts struck."""
    due = {_prompt(dag_id, fault.prompt): (dag_id, fault) for dag_id in tasks for fault in faults}
    strikes: dict[str, list[Future[bool]]] = {dag_id: [] for dag_id in tasks}
    noticed = 0

    def are_over() -> bool:
        nonlocal noticed
        requests = api.seen(_PAID_PATH)
        for request in requests[noticed:]:
            if (found := due.pop(request.json["prompt"], None)) is not None:
                dag_id, fault = found
                task = tasks[dag_id][0 if dag_id in _UNMAPPED else fault.prompt]
                strikes[dag_id].append(pool.submit(strike, lab, fault, task, request.at))
        noticed = len(requests)
        with suppress(OSError):  # an API server that is too busy
            return all(each[0].run_state() in ("success", "failed") for each in tasks.values())
        return False

    with ThreadPoolExecutor(max_workers=len(due)) as pool:
        wait_until(are_over, "the end of the runs", patience_seconds=1800)
        struck = {dag_id: sum(each.result() for each in strikes[dag_id]) for dag_id in tasks}
    wait_until(lambda: time.time() > api.seen(_PAID_PATH)[-1].at + 2 * LATENCY_SECONDS, "the last bill")
    return struck


def _outcome(dag_id: str, tasks: list[Task], lab: Lab, api: sandbox.Sandbox) -> Row:
    """Compare the bill with the existing images and with what the tasks report."""
    charges = [charge for charge in api.ledger() if charge.prompt.startswith(f"{dag_id},")]
    billed_usd = float(sum(charge.usd for charge in charges))
    summaries = [summary for task in tasks if (summary := _xcom(task, "summary"))]
    if dag_id == "killed_http":
        images = sum(_xcom(task, "return_value") is not None for task in tasks)
    else:
        images = sum(map(_is_whole, _folder(lab, dag_id).rglob("*.png")))
    reported_usd = sum(summary["usd_spent"] + summary.get("usd_in_doubt", 0) for summary in summaries)
    # What a task reports includes the cost of its images; a method that reports nothing still has its images.
    accounted_usd = max(reported_usd, images * float(charges[0].usd))
    states = Counter(task.get()["state"] for task in tasks)
    return {
        "billed": len(charges),
        "billed USD": billed_usd,
        "images": images,
        "paid twice": len(charges) - len({charge.prompt for charge in charges}),
        "reported lost USD": sum(summary["usd_lost"] for summary in summaries) if summaries else None,
        "unreported USD": max(0.0, round(billed_usd - accounted_usd, 6)),
        "result": ", ".join(f"{count} {state}" for state, count in sorted(states.items())),
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
