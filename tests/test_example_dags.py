"""Every example runs against the sandbox, and is fit to be shown."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from airflow_provider_imagen._compat import get_dag_bag

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_imagen.sandbox import Sandbox

EXAMPLES = Path(__file__).parents[1] / "example_dags"
NEEDS_A_PERSON = {"imagen_approve", "imagen_pick_best"}
"""These wait for a person; the browser test runs them."""

NEEDS_AN_EVENT = {"imagen_asset_consumer"}
"""Runs when its asset changes; the scheduler test shows it."""


@pytest.fixture(scope="module")
def bag() -> Any:
    dag_bag, _ = get_dag_bag()
    return dag_bag(dag_folder=str(EXAMPLES))


def _runnable() -> list[str]:
    names = [path.stem for path in EXAMPLES.glob("imagen_*.py")]
    names = [name for name in names if name != "imagen_assets"] + ["imagen_asset_producer"]
    return sorted(set(names) - NEEDS_A_PERSON)


@pytest.mark.parametrize("dag_id", _runnable())
@pytest.mark.usefixtures("imagen_connection")
def test_an_example_runs(dag_id: str, bag: Any, run_dag: Callable[..., Any], sandbox: Sandbox, tmp_path: Path) -> None:
    for task in bag.dags[dag_id].tasks:
        task.retry_delay = timedelta(0)

    run = run_dag(bag.dags[dag_id], run_conf={"output_path": str(tmp_path)})

    assert str(run.state) == "success"
    assert sandbox.ledger()
    pictures = [path for path in tmp_path.rglob("*") if path.suffix in (".png", ".jpg", ".webp")]
    assert pictures
    for path in pictures:
        with Image.open(path) as picture:
            picture.load()


def test_the_examples_load_without_errors_and_are_documented(bag: Any) -> None:
    assert bag.import_errors == {}
    assert set(bag.dags) == {*_runnable(), *(NEEDS_A_PERSON & {p.stem for p in EXAMPLES.glob("*.py")}), *NEEDS_AN_EVENT}
    for dag in bag.dags.values():
        assert {"imagen", "example"} <= set(dag.tags), dag.dag_id
        assert dag.doc_md.strip().startswith("###"), dag.dag_id


@pytest.mark.usefixtures("imagen_connection")
def test_the_batch_names_its_files_after_the_rows(bag: Any, run_dag: Callable[..., Any], tmp_path: Path) -> None:
    run = run_dag(bag.dags["imagen_batch"], run_conf={"output_path": str(tmp_path)})

    folder = tmp_path / run.run_id
    assert sorted(path.name for path in folder.glob("*.png")) == ["C-230.png", "P-417.png", "T-100.png"]
    assert len((folder / "metadata.jsonl").read_text().splitlines()) == 3


@pytest.mark.usefixtures("imagen_connection")
def test_the_comparison_puts_every_model_on_the_sheet(bag: Any, run_dag: Callable[..., Any], tmp_path: Path) -> None:
    run = run_dag(bag.dags["imagen_many_models"], run_conf={"output_path": str(tmp_path)})

    ti = run.get_task_instance("compare")
    images = ti.xcom_pull(task_ids="compare", key="images")
    assert len({image["model"] for image in images}) == len(images) == 4
    with Image.open(ti.xcom_pull(task_ids="compare", key="summary")["contact_sheet"]) as sheet:
        sheet.load()
        assert sheet.width >= 512


@pytest.mark.usefixtures("imagen_connection")
def test_the_asset_event_names_the_manifest(bag: Any, run_dag: Callable[..., Any], tmp_path: Path) -> None:
    from airflow.models.asset import AssetEvent
    from airflow.utils.session import create_session
    from sqlalchemy import select

    run_dag(bag.dags["imagen_asset_producer"], run_conf={"output_path": str(tmp_path)})

    with create_session() as session:
        events = session.scalars(select(AssetEvent).where(AssetEvent.source_dag_id == "imagen_asset_producer")).all()
    lines = Path(events[-1].extra["manifest"]).read_text().splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == ["A harbour in the rain", "A harbour in the sun"]
