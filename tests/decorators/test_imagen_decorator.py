"""``@task.imagen``, run by a real Airflow against the sandbox."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG, task

from airflow_provider_imagen.decorators.imagen import imagen_task

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_imagen.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("imagen_connection")


def test_airflow_knows_the_decorator() -> None:
    from airflow.providers_manager import ProvidersManager

    assert ProvidersManager().taskflow_decorators["imagen"] is imagen_task
    assert callable(task.imagen)


@pytest.mark.parametrize(
    ("returned", "prompts"),
    [
        ("a {{ params.animal }}", ["a fox"]),
        (["one", "two {{ params.animal }}"], ["one", "two fox"]),
        ([{"prompt": "{{ params.animal }} asleep", "num_images": 2}], ["fox asleep"]),
        ({"prompt": "alone"}, ["alone"]),
    ],
)
def test_what_the_function_returns_is_the_prompt(
    run_dag: Callable[..., Any], sandbox: Sandbox, returned: Any, prompts: list[str]
) -> None:
    with DAG("decorated", schedule=None, params={"animal": "fox"}) as dag:

        @task.imagen(num_images=1, aspect_ratio="4:3")
        def paint() -> Any:
            return returned

        paint()
    run = run_dag(dag)

    assert str(run.state) == "success"
    assert sorted(charge.prompt for charge in sandbox.ledger()) == sorted(prompts)
    assert sandbox.seen("/v1/images/generations")[0].json["aspect_ratio"] == "4:3"


def test_the_function_gets_arguments_and_context(run_dag: Callable[..., Any], sandbox: Sandbox) -> None:
    with DAG("decorated_context", schedule=None) as dag:

        @task
        def animal() -> str:
            return "heron"

        @task.imagen
        def paint(what: str, dag_run: Any) -> str:
            return f"A {what} in {dag_run.dag_id}"

        paint(animal())
    run_dag(dag)

    assert [charge.prompt for charge in sandbox.ledger()] == ["A heron in decorated_context"]


def test_it_maps(run_dag: Callable[..., Any], sandbox: Sandbox) -> None:
    with DAG("decorated_mapped", schedule=None) as dag:

        @task.imagen(num_images=1)
        def paint(what: str) -> str:
            return f"A {what}"

        @task
        def use(urls: list[list[str]]) -> int:
            return len(list(urls))

        use(paint.expand(what=["cat", "dog"]))
    run = run_dag(dag)

    assert str(run.state) == "success"
    assert {charge.prompt for charge in sandbox.ledger()} == {"A cat", "A dog"}


@pytest.mark.parametrize("returned", [None, 7, b"bytes", {"a", "set"}])
def test_anything_else_is_refused_before_paying(sandbox: Sandbox, returned: Any) -> None:
    with DAG("decorated_wrong", schedule=None):

        @task.imagen
        def paint() -> Any:
            return returned

        operator = paint().operator

    with pytest.raises(TypeError, match=f"'paint' of @task.imagen returned {type(returned).__name__}"):
        operator.execute({})
    assert sandbox.seen() == []


def test_prompt_as_an_argument_is_refused_when_the_dag_is_parsed() -> None:
    with DAG("decorated_prompt", schedule=None):

        @task.imagen(prompt="twice")
        def paint() -> str:
            return "once"

        with pytest.raises(TypeError, match="leave the argument prompt out"):
            paint()
