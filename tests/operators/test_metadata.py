"""Columns of a table travel with its images, through a real Airflow against the sandbox."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG, task

from airflow_provider_imagen.exceptions import InvalidArgumentsError
from airflow_provider_imagen.hooks.imagen import ImagenHook
from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
from airflow_provider_imagen.sandbox import Fault
from airflow_provider_imagen.storage.provenance import read_provenance

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_imagen.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("imagen_connection")

MARCH = datetime(2026, 3, 1, tzinfo=UTC)
ROWS = [
    {"name": "T-100", "prompt": "A teapot", "campaign": "Frühling", "price": 12.0, "since": MARCH},
    {"name": "C-230", "prompt": "A mug", "campaign": "", "price": None, "page": "3"},
]
COLUMNS = ["campaign", "price", "since", "page"]
RECORDED = [
    {"campaign": "Frühling", "price": "12", "since": "2026-03-01T00:00:00+00:00", "page": None},
    {"campaign": None, "price": None, "since": None, "page": "3"},
]


@pytest.fixture
def paint(run_dag: Callable[..., Any]) -> Callable[..., Any]:
    numbers = iter(range(100))

    def paint(**arguments: Any) -> Any:
        with DAG(f"columns_{next(numbers)}", schedule=None) as dag:
            ImagenGenerateOperator(task_id="paint", retry_delay=timedelta(0), **arguments)
        return run_dag(dag)

    return paint


def xcom(run: Any, task_id: str, key: str = "return_value") -> Any:
    return run.get_task_instance(task_id).xcom_pull(task_ids=task_id, key=key)


def manifest(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text("utf-8").splitlines()]


def test_rows_of_another_task_pass_unchanged(run_dag: Callable[..., Any], sandbox: Sandbox, tmp_path: Path) -> None:
    with DAG("rows", schedule=None) as dag:

        @task
        def rows() -> list[dict[str, Any]]:
            return ROWS

        paint = ImagenGenerateOperator(
            task_id="paint",
            prompt=rows(),
            metadata_columns=COLUMNS,
            output_path=str(tmp_path),
            filename="{name}.{extension}",
        )

        @task
        def campaigns(images: list[dict[str, Any]]) -> list[str | None]:
            return [image["metadata"]["campaign"] for image in images]

        campaigns(paint.output["images"])
    run = run_dag(dag)

    assert run.state == "success"
    assert xcom(run, "campaigns") == ["Frühling", None]
    for records in (xcom(run, "paint", "images"), sorted(manifest(tmp_path), key=lambda line: line["prompt_index"])):
        assert [record["metadata"] for record in records] == RECORDED
        assert [record["name"] for record in records] == ["T-100", "C-230"]
    assert all(request.json.keys().isdisjoint(COLUMNS) for request in sandbox.seen("/v1/images/generations"))
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["C-230.png", "T-100.png"]


def test_what_a_decorated_function_returns_may_have_columns(run_dag: Callable[..., Any]) -> None:
    with DAG("decorated_rows", schedule=None) as dag:

        @task.imagen(metadata_columns=COLUMNS)
        def paint() -> list[dict[str, Any]]:
            return ROWS

        paint()
    run = run_dag(dag)

    assert [image["metadata"] for image in xcom(run, "paint", "images")] == RECORDED


def test_metadata_is_rendered_like_the_prompt_it_is_in(paint: Callable[..., Any]) -> None:
    run = paint(prompt=[{"prompt": "A teapot", "metadata": {"run": "{{ run_id }}"}}])

    assert xcom(run, "paint", "images")[0]["metadata"] == {"run": run.run_id}


def test_mapped_tasks_with_different_columns_share_a_manifest(run_dag: Callable[..., Any], tmp_path: Path) -> None:
    with DAG("mapped_rows", schedule=None) as dag:
        ImagenGenerateOperator.partial(task_id="paint", output_path=str(tmp_path)).expand_kwargs(
            [
                {"prompt": {"prompt": "A teapot", "sku": "T-100"}, "metadata_columns": ["sku"]},
                {"prompt": {"prompt": "A mug", "metadata": {"page": 3}}},
                {"prompt": "A poster"},
            ]
        )
    assert run_dag(dag).state == "success"

    assert [line["metadata"] for line in manifest(tmp_path)] == [{"sku": "T-100"}, {"page": "3"}, None]


def test_a_changed_label_buys_nothing_again(run_dag: Callable[..., Any], sandbox: Sandbox, tmp_path: Path) -> None:
    """The first attempt fails once it has its images; before the second, somebody corrects the table."""
    labels = iter(["sping", "spring"])

    class FromATable(ImagenGenerateOperator):
        def execute(self, context: Any) -> list[str]:
            label = next(labels)
            self.prompt = [{"prompt": text, "campaign": label} for text in ("A teapot", "A mug")]
            urls = super().execute(context)
            if label == "sping":
                raise RuntimeError("The worker is shut down.")
            return urls

    with DAG("labels", schedule=None) as dag:
        FromATable(
            task_id="paint",
            metadata_columns=["campaign"],
            output_path=str(tmp_path),
            retries=1,
            retry_delay=timedelta(0),
        )
    run = run_dag(dag)

    assert xcom(run, "paint", "summary")["adopted"] == 2
    assert sorted(charge.prompt for charge in sandbox.ledger()) == ["A mug", "A teapot"]
    assert [image["metadata"] for image in xcom(run, "paint", "images")] == [{"campaign": "spring"}] * 2
    assert [line["metadata"] for line in manifest(tmp_path)] == [{"campaign": "spring"}] * 2


def test_failures_name_the_row(paint: Callable[..., Any], sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.add_fault(Fault("upstream_4xx", times=None))
    paint(prompt=ROWS, metadata_columns=COLUMNS, output_path=str(tmp_path))

    (file,) = (tmp_path / ".imagen" / "failures").iterdir()
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert [line["metadata"] for line in lines] == RECORDED


def test_metadata_is_written_into_the_file_only_on_request(paint: Callable[..., Any], tmp_path: Path) -> None:
    for provenance, embedded in ((True, None), ({"metadata": True}, RECORDED[0]), ({"metadata": False}, None)):
        run = paint(prompt=ROWS[0], metadata_columns=COLUMNS, output_path=str(tmp_path), provenance=provenance)
        (image,) = xcom(run, "paint", "images")
        found = read_provenance(Path(image["path"]).read_bytes())
        assert found["prompt"] == "A teapot"
        assert found.get("metadata") == embedded


def test_a_column_that_is_not_declared_costs_nothing(
    run_dag: Callable[..., Any], recorded: Callable[..., Any], sandbox: Sandbox
) -> None:
    errors: list[BaseException] = []
    with DAG("undeclared", schedule=None) as dag:
        recorded(task_id="paint", errors=errors, prompt=ROWS, metadata_columns=["campaign", "since", "page"])
    run_dag(dag)

    (error,) = errors
    assert isinstance(error, InvalidArgumentsError)
    assert str(error).startswith("prompt[0].price=12.0: `price` is not a field of imagen-3.0-generate-002")
    assert "metadata_columns" in str(error)
    assert sandbox.ledger() == []


@pytest.mark.parametrize("columns", ["sku", None, 7, [["sku"]], [{}], ["prompt"]], ids=repr)
def test_columns_that_are_not_names_cost_nothing(
    run_dag: Callable[..., Any], recorded: Callable[..., Any], sandbox: Sandbox, columns: Any
) -> None:
    errors: list[BaseException] = []
    with DAG("not_names", schedule=None) as dag:
        recorded(task_id="paint", errors=errors, prompt=[{"prompt": "A teapot"}], metadata_columns=columns)
    run_dag(dag)

    (error,) = errors
    assert isinstance(error, InvalidArgumentsError)
    assert str(error).startswith("metadata_columns=")
    assert sandbox.ledger() == []


def test_records_with_large_metadata_are_left_to_the_manifest(paint: Callable[..., Any], tmp_path: Path) -> None:
    prompt = [{"prompt": f"Page {number}", "text": "x" * 9_000} for number in range(8)]
    run = paint(prompt=prompt, metadata_columns=["text"], output_path=str(tmp_path))

    assert xcom(run, "paint", "images") == {"manifest": str(tmp_path / "metadata.jsonl"), "count": 8}
    assert [line["metadata"]["text"] for line in manifest(tmp_path)] == ["x" * 9_000] * 8


def test_a_quote_accepts_the_same_rows() -> None:
    assert ImagenHook().quote(ROWS, metadata_columns=COLUMNS).images == 2
