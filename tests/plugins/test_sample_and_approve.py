"""The example ``imagen_sample``, with a person's answer given through Airflow's API."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_imagen._compat import get_dag_bag

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_imagen.sandbox import Sandbox

EXAMPLES = Path(__file__).parents[2] / "example_dags"
RUNS = "/api/v2/dags/imagen_sample/dagRuns"


class Person(threading.Thread):
    """Answers the first required action of the example, and keeps what it showed."""

    def __init__(self, client: Any, choice: str) -> None:
        super().__init__(daemon=True)
        self._client = client
        self._choice = choice
        self.body = ""

    def run(self) -> None:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            found = self._client.get(f"{RUNS}/~/hitlDetails")
            for request in found.json()["hitl_details"] if found.status_code == 200 else ():
                self.body = request["body"]
                ti = request["task_instance"]
                path = f"{RUNS}/{ti['dag_run_id']}/taskInstances/{ti['task_id']}/-1/hitlDetails"
                answer = {"chosen_options": [self._choice], "params_input": {}}
                assert self._client.patch(path, json=answer).status_code == 200
                return
            time.sleep(0.2)


@pytest.mark.usefixtures("imagen_connection")
@pytest.mark.parametrize("choice", ["Approve", "Reject"])
def test_a_sample_is_shown_with_a_quote_and_not_paid_for_again(
    run_dag: Callable[..., Any], visit: Any, sandbox: Sandbox, tmp_path: Path, choice: str
) -> None:
    dag_bag, _ = get_dag_bag()
    dag = dag_bag(dag_folder=str(EXAMPLES / "imagen_sample.py")).dags["imagen_sample"]
    person = Person(visit(role="admin"), choice)
    person.start()

    run = run_dag(dag, run_conf={"output_path": str(tmp_path)})

    person.join()
    assert str(run.state) == "success"
    assert person.body.count("![Image") == 12
    quote = "The other 188 images would cost at most about $7.896: the 12 so far cost $0.504, on average $0.042 each."
    assert quote in person.body.replace("\\", "")
    state = str(run.get_task_instance("everything").state)
    if choice == "Reject":
        assert (state, len(sandbox.ledger())) == ("skipped", 12)
        return
    assert (state, len(sandbox.ledger())) == ("success", 200)
    summary = run.get_task_instance("everything").xcom_pull(task_ids="everything", key="summary")
    assert {name: summary[name] for name in ("made", "reused", "usd_spent", "usd_saved")} == {
        "made": 200,
        "reused": 12,
        "usd_spent": pytest.approx(188 * 0.042),
        "usd_saved": pytest.approx(12 * 0.042),
    }
    assert len(list(tmp_path.glob("*.png"))) == 200
    ids = {"dag_id": "imagen_sample", "run_id": run.run_id, "task_id": "everything"}
    page = visit().get("/imagen/task", params=ids).text
    assert "<dt>Generated</dt><dd>200 of 200</dd>" in page
    assert "<dt>Reused from other runs</dt><dd>12</dd>" in page
    assert page.count("· reused") == 12
