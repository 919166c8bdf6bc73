"""``@task.imagen``, run by a real Airflow against the sandbox."""

from __future__ import annotations

import inspect
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG, task

from airflow_provider_imagen.decorators.imagen import imagen_task
from airflow_provider_imagen.exceptions import InvalidArgumentsError
from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from airflow_provider_imagen.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("imagen_connection")


def test_airflow_knows_the_decorator() -> None:
    from airflow.providers_manager import ProvidersManager

    assert ProvidersManager().taskflow_decorators["imagen"] is imagen_task
    assert callable(task.imagen)


@pytest.mark.parametrize(
    ("returned", "prompts"),
    [
        ("a fox", ["a fox"]),
        (["one", "two"], ["one", "two"]),
        ([{"prompt": "a fox asleep", "num_images": 2}], ["a fox asleep"]),
        ({"prompt": "alone"}, ["alone"]),
    ],
)
def test_what_the_function_returns_is_the_prompt(
    run_dag: Callable[..., Any], sandbox: Sandbox, returned: Any, prompts: list[str]
) -> None:
    with DAG("decorated", schedule=None) as dag:

        @task.imagen(num_images=1, aspect_ratio="4:3")
        def paint() -> Any:
            return returned

        paint()
    run = run_dag(dag)

    assert str(run.state) == "success"
    assert sorted(charge.prompt for charge in sandbox.ledger()) == sorted(prompts)
    assert sandbox.seen("/v1/images/generations")[0].json["aspect_ratio"] == "4:3"


def test_a_function_annotated_with_a_mapping_still_returns_a_list_of_urls(run_dag: Callable[..., Any]) -> None:
    """Airflow takes such an annotation for several outputs; a list would then fail, after the pictures are paid for."""
    with DAG("decorated_annotated", schedule=None) as dag:

        @task.imagen
        def paint() -> dict[str, Any]:
            return {"prompt": "a fox"}

        @task
        def use(urls: list[str]) -> int:
            return len(urls)

        use(paint())
    run = run_dag(dag)

    assert str(run.state) == "success"
    assert run.get_task_instance("use").xcom_pull(task_ids="use") == 1


@pytest.mark.parametrize(
    "text",
    [
        "{{ 6 * 7 }}",
        "{{ conn.imagen_default.password }}",
        "Save 50 {# today",
        "100 {% of the time",
        "A story.prompt",
        "{{ params.entered }}",
    ],
)
@pytest.mark.parametrize("wrap", [str, lambda text: [text], lambda text: {"prompt": text}], ids=["text", "list", "map"])
def test_what_the_function_returns_is_data_not_a_template(
    run_dag: Callable[..., Any], sandbox: Sandbox, tmp_path: Path, text: str, wrap: Callable[[str], Any]
) -> None:
    """A headline, a row of a table or another task's output may hold anything."""
    with DAG("decorated_data", schedule=None, params={"entered": "{{ 6 * 7 }}"}) as dag:

        @task
        def headline() -> str:
            return text

        @task.imagen(output_path=str(tmp_path), parameters={"safety_setting": "block_{{ 'only' }}_high"})
        def paint(line: str) -> Any:
            return wrap(line)

        paint(headline())
    run = run_dag(dag)

    assert str(run.state) == "success"
    (request,) = sandbox.seen("/v1/images/generations")
    assert (request.json["prompt"], request.json["safety_setting"]) == (text, "block_only_high")
    assert sandbox.api_key not in (tmp_path / "metadata.jsonl").read_text()


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


def test_the_ui_shows_the_prompt_that_was_sent(run_dag: Callable[..., Any]) -> None:
    from airflow.models.renderedtifields import RenderedTaskInstanceFields

    with DAG("decorated_shown", schedule=None, params={"animal": "fox"}) as dag:

        @task.imagen(output_path=None, parameters={"safety_setting": "block_{{ 'only' }}_high"})
        def paint() -> list[str]:
            return ["a {{ params.animal }}", "two"]

        paint()
    ti = run_dag(dag).get_task_instance("paint")

    shown = RenderedTaskInstanceFields.get_templated_fields(ti)
    assert shown["prompt"] == ["a {{ params.animal }}", "two"]
    assert shown["parameters"] == {"safety_setting": "block_only_high"}


def test_it_takes_every_argument_of_the_operator() -> None:
    names = [
        name
        for name, parameter in inspect.signature(ImagenGenerateOperator.__init__).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name != "prompt"
    ]
    given = {name: f"value of {name}" for name in names}
    with DAG("decorated_arguments", schedule=None):

        @task.imagen(**given, retries=2, pool="imagen", map_index_template="{{ task.prompt }}")
        def paint() -> str:
            return "a fox"

        operator = paint().operator

    assert {name: getattr(operator, name) for name in names} == given
    assert (operator.retries, operator.pool) == (2, "imagen")
    assert set(ImagenGenerateOperator.template_fields) < set(operator.template_fields)
    assert operator.template_ext == ImagenGenerateOperator.template_ext


def test_it_maps(run_dag: Callable[..., Any], sandbox: Sandbox) -> None:
    with DAG("decorated_mapped", schedule=None) as dag:

        @task.imagen(map_index_template="{{ task.prompt }}")
        def paint(what: str, style: str) -> str:
            return f"A {what}, {style}"

        @task
        def use(urls: list[list[str]]) -> int:
            return len(list(urls))

        use(paint.partial(style="ink").expand(what=["cat", "dog"]))
    run = run_dag(dag)

    assert str(run.state) == "success"
    assert {charge.prompt for charge in sandbox.ledger()} == {"A cat, ink", "A dog, ink"}
    tasks = [ti for ti in run.get_task_instances() if ti.task_id == "paint"]
    assert {ti.map_index: ti._rendered_map_index for ti in tasks} == {0: "A cat, ink", 1: "A dog, ink"}
    assert run.get_task_instance("use").xcom_pull(task_ids="use") == 2


def test_it_maps_over_keyword_arguments_and_over_its_urls(run_dag: Callable[..., Any], sandbox: Sandbox) -> None:
    with DAG("decorated_expanded", schedule=None) as dag:

        @task.imagen(num_images=2)
        def paint(what: str, style: str) -> str:
            return f"A {what}, {style}"

        @task.imagen
        def both() -> list[str]:
            return ["A cat", "A dog"]

        @task
        def fetch(url: str) -> str:
            return url

        paint.expand_kwargs([{"what": "cat", "style": "ink"}, {"what": "dog", "style": "oil"}])
        fetch.expand(url=both())
    run = run_dag(dag)

    assert str(run.state) == "success"
    assert {charge.prompt for charge in sandbox.ledger()} == {"A cat, ink", "A dog, oil", "A cat", "A dog"}
    ti = run.get_task_instance("both")
    assert [ti.xcom_pull(task_ids="fetch", map_indexes=index) for index in (0, 1)] == ti.xcom_pull(task_ids="both")


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "prompt=None: {of} returned NoneType; a string, a mapping"),
        (7, "prompt=7: {of} returned int; a string, a mapping"),
        (b"bytes", "prompt=b'bytes': {of} returned bytes; a string, a mapping"),
        ({"a fox"}, "prompt={{'a fox'}}: {of} returned set; a string, a mapping"),
        ((each for each in "ab"), "{of} returned generator; a string, a mapping"),
        (["a fox", None], "prompt[1]=None: {of} returned NoneType here; a string or a mapping"),
        ([7.5, "a fox"], "prompt[0]=7.5: {of} returned float here; a string or a mapping"),
        ([["nested"]], "prompt[0]=['nested']: {of} returned list here; a string or a mapping"),
    ],
)
def test_anything_else_is_rejected_before_paying_and_not_retried(
    run_dag: Callable[..., Any], sandbox: Sandbox, returned: Any, message: str
) -> None:
    calls, errors = [], []
    with DAG("decorated_wrong", schedule=None) as dag:

        @task.imagen(retries=2, retry_delay=timedelta(0), on_failure_callback=lambda context: errors.append(context))
        def paint() -> Any:
            calls.append(1)
            return returned

        paint()
    run = run_dag(dag)

    assert str(run.state) == "failed"
    assert len(calls) == 1  # two retries were left and none was used
    assert sandbox.seen("/v1/images/generations") == []
    error = errors[0].get("exception")
    if error is not None:  # Airflow 3.1 does not pass it on
        assert message.format(of="the function 'paint' of @task.imagen") in str(error)
        assert isinstance(error if isinstance(error, InvalidArgumentsError) else error.args[0], InvalidArgumentsError)


def test_prompt_as_an_argument_is_rejected_when_the_dag_is_parsed() -> None:
    with DAG("decorated_prompt", schedule=None):

        @task.imagen(prompt="twice")
        def paint() -> str:
            return "once"

        with pytest.raises(TypeError, match="remove the argument prompt"):
            paint()
