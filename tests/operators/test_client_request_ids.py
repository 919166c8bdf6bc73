"""The API's log names the DAG and the task of each request."""

from __future__ import annotations

from airflow.sdk import DAG, TaskGroup, task

from airflow_provider_imagen.hooks.imagen import ImagenHook
from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator


def test_requests_name_their_dag_and_task(run_dag, sandbox, imagen_connection, tmp_path):
    with DAG("postcards", schedule=None) as dag:
        with TaskGroup("evening"):
            ImagenGenerateOperator(task_id="paint", prompt="A bench", output_path=str(tmp_path))

        @task
        def sketch():
            ImagenHook().generate_images("A lamp")

        sketch()

    assert run_dag(dag).state == "success"
    ids = sorted(charge.client_request_id.rpartition(":")[0] for charge in sandbox.ledger())
    assert ids[1] == "imagen:postcards:sketch:hook"
    assert ids[0].startswith("imagen:postcards:evening.paint:")


def test_requests_outside_a_task_name_none(sandbox, imagen_connection):
    ImagenHook().generate_images("A lamp")
    (charge,) = sandbox.ledger()
    assert charge.client_request_id.startswith("imagen:::hook:")
