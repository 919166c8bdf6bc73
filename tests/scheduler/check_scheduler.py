"""
Kill processes of a real Airflow, and check the bill, the XComs and the files.

Run by ``set-up.sh``. Order matters in one place: the task that has to wait for a minute is started first and
checked last.
"""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from airflow_provider_imagen.sandbox import SandboxControl

HOME = Path(os.environ["IMAGEN_SCHEDULER_HOME"])


def charges(sandbox: SandboxControl, letter: str) -> Counter[str]:
    """Count the charges of one DAG by prompt."""
    return Counter(charge.prompt for charge in sandbox.ledger() if charge.prompt.startswith(letter))


def usd(sandbox: SandboxControl, letter: str) -> float:
    """Return what was billed for one DAG, in USD."""
    return float(sum(charge.usd for charge in sandbox.ledger() if charge.prompt.startswith(letter)))


def was_requested(sandbox: SandboxControl, prompt: str) -> bool:
    return prompt in [request.json["prompt"] for request in sandbox.seen("/v1/images/generations")]


def assert_whole(folder: Path, images: Iterable[dict[str, Any]]) -> None:
    """Assert that the files are exactly the images listed in XCom, and complete."""
    paths = {Path(image["path"]): image for image in images}
    assert set(folder.rglob("*.png")) == set(paths)
    for path, image in paths.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == image["sha256"]
        with Image.open(path) as opened:
            opened.load()
    assert not list(folder.rglob("*.part"))


@pytest.fixture(scope="module", autouse=True)
def waiting(airflow: Any) -> Iterator[Any]:
    """Start the task that has to wait for a minute before all others."""
    return airflow.trigger("rate_limited")


def test_a_long_retry_after_is_waited_for_without_occupying_a_worker(waiting: Any, wait_for: Any) -> None:
    instance = waiting.wait("up_for_retry")

    wait_for(lambda: not psutil.pid_exists(instance["pid"]), "the end of the task's process")
    assert waiting.get()["state"] == "up_for_retry"
    assert instance["duration"] < 30
    with sqlite3.connect(HOME / "airflow.db") as database:
        delays = database.execute(
            "SELECT retry_delay_override FROM task_instance WHERE dag_id = 'rate_limited'"
        ).fetchall()
    assert delays == [(61.0,)]


def test_a_task_killed_with_a_request_in_flight_is_retried_and_pays_for_nothing_twice(
    airflow: Any, sandbox: SandboxControl, wait_for: Any
) -> None:
    task = airflow.trigger("task_killed")
    wait_for(lambda: was_requested(sandbox, "a4 held"), "the request that hangs")
    wait_for(lambda: len(list(task.folder.glob("*.png"))) == 3, "three pictures")
    task.process().kill()

    assert task.wait("success", "failed")["state"] == "success"
    prompts = ["a1 good", "a2 good", "a3 good", "a4 held", "a5 good"]
    assert charges(sandbox, "a") == Counter(prompts)
    images, summary = task.xcom("images"), task.xcom("summary")
    assert [image["prompt"] for image in images] == prompts
    assert len(task.xcom("return_value")) == 5
    assert summary["adopted"] == 3
    assert summary["usd_lost"] == 0
    assert summary["usd_spent"] == pytest.approx(usd(sandbox, "a"))
    assert_whole(task.folder, images)
    assert len(task.tries()) == 2


def test_a_task_killed_after_billing_reports_the_loss_and_does_not_pay_again(
    airflow: Any, sandbox: SandboxControl, wait_for: Any
) -> None:
    task = airflow.trigger("task_killed_after_billing")
    wait_for(lambda: charges(sandbox, "b")["b2 billed"], "the charge")
    task.process().kill()

    assert task.wait("success", "failed")["state"] == "failed"
    assert charges(sandbox, "b") == Counter(["b1 good", "b2 billed"])
    (charge,) = [charge for charge in sandbox.ledger() if charge.prompt == "b2 billed"]
    assert task.xcom("summary")["usd_lost"] == float(charge.usd)
    assert task.xcom("summary")["usd_spent"] == pytest.approx(usd(sandbox, "b"))
    (failures,) = (task.folder / ".imagen" / "failures").iterdir()
    assert charge.inference_id in failures.read_text()
    assert_whole(task.folder, task.xcom("images"))
    assert len(task.tries()) == 2  # two more attempts were left


def test_an_image_stored_by_an_orphaned_task_process_is_reused(
    airflow: Any, sandbox: SandboxControl, wait_for: Any
) -> None:
    """The executor's worker dies but its task process lives on: it stores what it paid for, and sends nothing more."""
    task = airflow.trigger("worker_killed")
    wait_for(lambda: charges(sandbox, "c")["c2 slow"], "the charge")
    orphan = task.process()
    orphan.parent().kill()
    wait_for(lambda: not orphan.is_running() or orphan.status() == "zombie", "the end of the orphan")
    assert charges(sandbox, "c") == Counter(["c1 good", "c2 slow"])

    assert task.wait("success", "failed")["state"] == "success"
    prompts = ["c1 good", "c2 slow", "c3 good"]
    assert charges(sandbox, "c") == Counter(prompts)
    images, summary = task.xcom("images"), task.xcom("summary")
    assert [image["prompt"] for image in images] == prompts
    assert (summary["adopted"], summary["usd_lost"]) == (2, 0)
    assert summary["usd_spent"] == pytest.approx(usd(sandbox, "c"))
    assert_whole(task.folder, images)


def test_one_killed_instance_of_a_mapped_task_is_retried_alone(
    airflow: Any, sandbox: SandboxControl, wait_for: Any
) -> None:
    run = airflow.trigger("mapped")
    first, second, third = run.of(0), run.of(1), run.of(2)
    wait_for(lambda: charges(sandbox, "g")["g1 stuck"], "the charge")
    first.wait("success")
    third.wait("success")
    assert second.get()["state"] == "running"  # its download hangs
    second.process().kill()

    assert second.wait("success", "failed")["state"] == "success"
    assert charges(sandbox, "g") == Counter(["g0 good", "g1 stuck", "g2 good"])
    assert [len(each.tries()) for each in (first, second, third)] == [1, 2, 1]
    assert [each.xcom("summary")["adopted"] for each in (first, second, third)] == [0, 1, 0]
    images = [image for each in (first, second, third) for image in each.xcom("images")]
    assert [image["prompt"] for image in images] == ["g0 good", "g1 stuck", "g2 good"]
    assert_whole(run.folder, images)
    assert len((run.folder / "metadata.jsonl").read_text().splitlines()) == 3
    message = run.folder.with_suffix(".txt")
    wait_for(message.is_file, "the notification about the run")
    assert message.read_text() == "mapped: 3 of 3 images made (1 reused), $0.126 spent"


def journal_rows(dag_id: str) -> int:
    with sqlite3.connect(HOME / "airflow.db") as database:
        (count,) = database.execute("SELECT count(*) FROM task_state_store WHERE dag_id = ?", [dag_id]).fetchone()
    return int(count)


def test_clearing_a_successful_task_generates_new_images(airflow: Any, sandbox: SandboxControl, wait_for: Any) -> None:
    task = airflow.trigger("cleared")
    task.wait("success")
    before = {image["inference_id"] for image in task.xcom("images")}
    wait_for(lambda: not journal_rows("cleared"), "the journal to be forgotten")  # shortly after the success
    task.clear()
    task.wait("success", tries=2)

    assert charges(sandbox, "d") == Counter(["d1 good", "d2 good"] * 2)
    assert before.isdisjoint(image["inference_id"] for image in task.xcom("images"))
    assert_whole(task.folder, task.xcom("images"))


def test_clearing_a_failed_task_reuses_its_images(airflow: Any, sandbox: SandboxControl) -> None:
    task = airflow.trigger("failed_and_cleared")
    task.wait("failed")
    assert charges(sandbox, "e") == Counter(["e1 good"])
    task.clear()
    task.wait("success", tries=2)

    assert charges(sandbox, "e") == Counter(["e1 good", "e2 refused"])
    assert task.xcom("summary")["adopted"] == 1
    assert_whole(task.folder, task.xcom("images"))


def test_generated_images_trigger_the_dag_that_waits_for_them(airflow: Any, wait_for: Any) -> None:
    """The example DAGs: a run emits the asset event, the event starts a second run, and that run reads the manifest."""
    task = airflow.trigger("imagen_asset_producer", {"output_path": str(HOME / "pictures" / "assets")})
    task.wait("success", "failed")
    (run,) = wait_for(lambda: airflow.runs("imagen_asset_consumer"), "the run the event starts")
    wait_for(lambda: airflow.runs("imagen_asset_consumer")[0]["state"] in ("success", "failed"), "its end")

    assert airflow.runs("imagen_asset_consumer")[0]["state"] == "success"
    assert run["run_type"] == "asset_triggered"
    path = f"/api/v2/dags/imagen_asset_consumer/dagRuns/{run['dag_run_id']}"
    (event,) = airflow.call("GET", f"{path}/upstreamAssetEvents")["asset_events"]
    assert (event["source_dag_id"], event["source_task_id"]) == ("imagen_asset_producer", "paint")
    assert event["extra"] == task.xcom("summary")
    (log,) = (HOME / "logs").glob("dag_id=imagen_asset_consumer/**/*.log")
    for image in task.xcom("images"):
        assert f"new picture: {Path(image['path']).name}" in log.read_text()


def test_a_pool_limits_several_tasks_together_and_a_missing_pool_is_reported(
    airflow: Any, processes: Any, wait_for: Any
) -> None:
    """The example DAG, first without its pool: nothing starts, and Airflow says why. With it: two of four at a time."""
    seasons = ("spring", "summer", "autumn", "winter")
    spring = airflow.trigger("imagen_pool", {"output_path": str(HOME / "pictures" / "pool")}, task_id="spring")
    tasks = [spring.beside(season) for season in seasons]
    wait_for(lambda: all(task.get()["state"] == "scheduled" for task in tasks), "tasks that wait for their pool")
    reasons = " ".join(reason["reason"] for reason in spring.waits_for())
    assert "non-existent pool 'imagen'" in reasons
    wait_for(lambda: "non-existent pool 'imagen'" in processes.output("scheduler"), "the scheduler's warning")

    airflow.call("POST", "/api/v2/pools", {"name": "imagen", "slots": 8})
    spans = []
    for task in tasks:
        instance = task.wait("success", "failed")
        assert instance["state"] == "success"
        spans.append((datetime.fromisoformat(instance["start_date"]), datetime.fromisoformat(instance["end_date"])))
    assert max(sum(began <= start < ended for began, ended in spans) for start, _ in spans) == 2


def test_the_task_continues_after_a_long_retry_after(sandbox: SandboxControl, waiting: Any) -> None:
    waiting.wait("success")

    first, second = waiting.tries()
    waited = datetime.fromisoformat(second["start_date"]) - datetime.fromisoformat(first["end_date"])
    assert waited.total_seconds() >= 61
    assert charges(sandbox, "f") == Counter(["f1 limited"])


def test_neither_the_key_nor_a_signed_url_is_written_anywhere(sandbox: SandboxControl) -> None:
    """Logs, manifests, and the whole database: XComs, task state store, rendered fields."""
    key = sandbox.api_key.encode()
    signed = re.compile(rb"(Signature|OSSAccessKeyId)=")
    assert all("Signature" in request.query for request in sandbox.seen("/generations/") if request.host == "cdn")
    files = [path for path in HOME.rglob("*") if path.is_file() and path.name != "sandbox.out"]  # it shows its own key
    logs = [path for path in files if path.suffix == ".log" and "task_id=paint" in str(path)]
    assert len(logs) >= 12
    assert any(b"Image 1 of" in path.read_bytes() for path in logs)  # proves that the search works
    assert [path for path in files if key in path.read_bytes()] == []
    assert [path for path in files if signed.search(path.read_bytes())] == []
