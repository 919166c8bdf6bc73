"""
The events that the real OpenLineage provider emits for runs of a DAG.

Run by ``set-up.sh``, in an environment that has the provider; it says in ``IMAGEN_EVENTS`` which file they go to.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_imagen.sandbox import Fault

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_imagen.sandbox import Sandbox

# Airflow reads its environment when it is first imported, which the tests do and this module does not.
EVENTS = Path(os.environ["IMAGEN_EVENTS"])
os.environ.update(
    AIRFLOW__OPENLINEAGE__TRANSPORT=json.dumps({"type": "file", "log_file_path": str(EVENTS), "append": True}),
    AIRFLOW__OPENLINEAGE__NAMESPACE="checks",
)

pytestmark = pytest.mark.usefixtures("imagen_connection")


@pytest.fixture
def run_and_read_event(run_dag: Callable[..., Any], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Give a function that runs an operator and returns the last event of its task."""

    def run(dag_id: str, **arguments: Any) -> dict[str, Any]:
        from airflow.sdk import DAG

        from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator

        with DAG(dag_id, schedule=None) as dag:
            ImagenGenerateOperator(task_id="paint", output_path=str(tmp_path / "pictures"), **arguments)
        run_dag(dag)
        events = [json.loads(line) for line in EVENTS.read_text().splitlines()]
        return [event for event in events if event["job"]["name"] == f"{dag_id}.paint"][-1]

    return run


def _places(datasets: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(dataset["namespace"], dataset["name"]) for dataset in datasets]


def test_the_model_at_the_api_is_read_and_the_folder_written(
    run_and_read_event: Callable[..., Any], sandbox: Sandbox, tmp_path: Path
) -> None:
    event = run_and_read_event("lineage_complete", prompt=["a fox", "a heron"])

    assert event["eventType"] == "COMPLETE"
    assert _places(event["inputs"]) == [(sandbox.url, "imagen-3.0-generate-002")]
    assert _places(event["outputs"]) == [("file", str(tmp_path / "pictures"))]
    statistics = event["outputs"][0]["outputFacets"]["outputStatistics"]
    pictures = list((tmp_path / "pictures").glob("*.png"))
    assert (statistics["rowCount"], statistics["size"]) == (2, sum(path.stat().st_size for path in pictures))


def test_a_task_that_fails_tells_of_what_it_has_made(
    run_and_read_event: Callable[..., Any], sandbox: Sandbox, tmp_path: Path
) -> None:
    sandbox.add_fault(Fault("upstream_4xx", prompt="bad", times=None))
    event = run_and_read_event("lineage_fail", prompt=["good", "bad"])

    assert event["eventType"] == "FAIL"
    assert _places(event["inputs"]) == [(sandbox.url, "imagen-3.0-generate-002")]
    assert _places(event["outputs"]) == [("file", str(tmp_path / "pictures"))]
    assert event["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"] == 1


def test_no_event_holds_the_key(run_and_read_event: Callable[..., Any], sandbox: Sandbox) -> None:
    run_and_read_event("lineage_key", prompt="a fox")

    assert sandbox.api_key not in EVENTS.read_text()
