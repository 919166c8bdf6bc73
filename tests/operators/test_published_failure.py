"""XCom ``failure``: why the latest attempt of a task failed."""

from __future__ import annotations

import pytest
from airflow.sdk import DAG, task

from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
from airflow_provider_imagen.operators.publish import push_failure
from airflow_provider_imagen.run_report import MAX_MESSAGE_CHARACTERS
from airflow_provider_imagen.sandbox import Fault


class Recorder:
    def __init__(self, error: Exception | None = None) -> None:
        self.pushed: dict = {}
        self.error = error

    def xcom_push(self, *, key: str, value: object) -> None:
        if self.error is not None:
            raise self.error
        self.pushed[key] = value


def failure_of(run) -> dict | None:
    return run.get_task_instance("paint").xcom_pull(task_ids="paint", key="failure")


def test_a_rejected_argument_is_published(run_dag, imagen_connection):
    with DAG("rejected_argument", schedule=None) as dag:
        ImagenGenerateOperator(task_id="paint", prompt="a fox", num_images=9)
    assert failure_of(run_dag(dag)) == {
        "error": "InvalidArgumentsError",
        "message": "num_images=9: a whole number from 1 to 4 is allowed",
    }


def test_a_prompt_of_the_wrong_type_from_a_function_is_published(run_dag, imagen_connection):
    with DAG("rejected_function", schedule=None) as dag:

        @task.imagen
        def paint():
            return 7

        paint()
    failure = failure_of(run_dag(dag))
    assert failure["error"] == "InvalidArgumentsError"
    assert "the function 'paint' of @task.imagen returned int" in failure["message"]


def test_an_error_of_the_api_is_published(run_dag, sandbox, imagen_connection):
    sandbox.add_fault(Fault("upstream_4xx", times=None))
    with DAG("rejected_request", schedule=None) as dag:
        ImagenGenerateOperator(task_id="paint", prompt="a fox")
    assert failure_of(run_dag(dag))["error"] == "InvalidRequestError"


@pytest.mark.parametrize("prompt", ["a fox", []], ids=["success", "skipped"])
def test_a_task_that_did_not_fail_publishes_no_failure(run_dag, imagen_connection, prompt):
    with DAG(f"no_failure_{len(prompt)}", schedule=None) as dag:
        ImagenGenerateOperator(task_id="paint", prompt=prompt)
    assert failure_of(run_dag(dag)) is None


def test_a_long_message_is_cut():
    ti = Recorder()
    push_failure({"ti": ti}, ValueError("x" * 100_000))
    assert ti.pushed["failure"] == {"error": "ValueError", "message": "x" * MAX_MESSAGE_CHARACTERS}


@pytest.mark.parametrize("context", [{}, {"ti": None}, {"ti": object()}, {"ti": Recorder(OSError("away"))}])
def test_a_failure_that_cannot_be_published_hides_no_error(context):
    push_failure(context, ValueError("the reason"))
