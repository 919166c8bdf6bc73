"""Every example runs against the sandbox and is ready to be shown."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from base64 import b64encode
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from airflow_provider_imagen._compat import get_dag_bag
from airflow_provider_imagen.catalogue.lookup import find_model
from airflow_provider_imagen.commands.dag_models import find_models
from airflow_provider_imagen.storage.provenance import read_provenance

pytestmark = pytest.mark.slow

try:
    from airflow.sdk.exceptions import ParamValidationError
except ImportError:  # Airflow 3.1
    from airflow.exceptions import ParamValidationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_imagen.sandbox import Sandbox

EXAMPLES = Path(__file__).parents[1] / "example_dags"
NEEDS_A_PERSON = {"imagen_approve", "imagen_pick_best", "imagen_review", "imagen_sample"}
"""These wait for a person; the browser test and two in ``plugins`` run them."""

NEEDS_ANOTHER_PROVIDER = {"imagen_quality_gate"}
"""Runs in tests/common_ai, where Airflow's common-ai provider is installed."""

NEEDS_AN_EVENT = {"imagen_asset_consumer"}
"""Runs when its asset changes; the scheduler test shows it."""


@pytest.fixture(scope="module")
def bag() -> Any:
    dag_bag, _ = get_dag_bag()
    return dag_bag(dag_folder=str(EXAMPLES))


def _runnable() -> list[str]:
    names = [path.stem for path in EXAMPLES.glob("imagen_*.py")]
    names = [name for name in names if name != "imagen_assets"] + ["imagen_asset_producer"]
    return sorted(set(names) - NEEDS_A_PERSON - NEEDS_ANOTHER_PROVIDER)


@pytest.mark.parametrize("dag_id", _runnable())
@pytest.mark.usefixtures("imagen_connection")
def test_an_example_runs(dag_id: str, bag: Any, run_dag: Callable[..., Any], sandbox: Sandbox, tmp_path: Path) -> None:
    for task in bag.dags[dag_id].tasks:
        task.retry_delay = timedelta(0)

    run = run_dag(bag.dags[dag_id], run_conf={"output_path": str(tmp_path)})

    assert str(run.state) == "success"
    assert sandbox.ledger()
    images = [path for path in tmp_path.rglob("*") if path.suffix in (".png", ".jpg", ".webp")]
    assert images
    for path in images:
        with Image.open(path) as image:
            image.load()


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.usefixtures("imagen_connection")
def test_tables_of_every_format_give_the_same_images(
    suffix: str, bag: Any, run_dag: Callable[..., Any], sandbox: Sandbox, tmp_path: Path
) -> None:
    table = tmp_path / f"rows{suffix}"
    _write_table(
        table,
        [
            {"name": "fox", "prompt": "Ein Fuchs, überrascht", "aspect_ratio": "3:4", "num_images": 2},
            {"name": "heron", "prompt": 'A "heron", wading', "aspect_ratio": None, "num_images": None},
        ],
    )
    run = run_dag(bag.dags["imagen_from_files"], run_conf={"table": str(table), "output_path": str(tmp_path)})

    assert str(run.state) == "success"
    names = sorted(path.name for path in (tmp_path / run.run_id).glob("*.png"))
    assert names == ["fox-0.png", "fox-1.png", "heron-0.png"]
    sent = {request.json["prompt"]: request.json for request in sandbox.seen("/v1/images/generations")}
    assert (sent["Ein Fuchs, überrascht"]["aspect_ratio"], sent["Ein Fuchs, überrascht"]["num_images"]) == ("3:4", 2)
    assert {"aspect_ratio", "num_images"} & set(sent['A "heron", wading']) == set()


def _write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), "utf-8")
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.mark.usefixtures("imagen_connection")
def test_the_form_and_the_task_accept_the_same_values(
    bag: Any, run_dag: Callable[..., Any], sandbox: Sandbox, tmp_path: Path
) -> None:
    """The task accepts every choice and limit of the form; the form rejects anything beyond."""
    form = bag.dags["imagen_trigger_form"]
    schema = {name: form.params.get_param(name).schema for name in form.params}
    for model, shape, count, seed in zip(
        schema["model"]["enum"],
        [["1:1", "3:4"], ["4:3", "9:16"], ["16:9", "1:1"]],
        [1, 4, 2],
        [0, 4294967295, None],
        strict=True,
    ):
        for aspect_ratio in shape:
            entered = {"model": model, "aspect_ratio": aspect_ratio, "num_images": count, "seed": seed}
            run = run_dag(form, run_conf={**entered, "prompt": "A fox,\nink", "output_path": str(tmp_path)})
            assert str(run.state) == "success", entered
    assert {request.json["prompt"] for request in sandbox.seen("/v1/images/generations")} == {"A fox,\nink"}
    assert set(schema["aspect_ratio"]["enum"]) == {"1:1", "3:4", "4:3", "9:16", "16:9"}
    for name, beyond in (("num_images", 5), ("seed", -1), ("aspect_ratio", "2:1"), ("prompt", ""), ("model", "other")):
        with pytest.raises(ParamValidationError):
            form.params.get_param(name).resolve(beyond)


def test_no_example_uses_a_model_with_an_announced_end() -> None:
    uses = find_models(EXAMPLES).uses
    assert len(uses) > 5
    for use in uses:
        model = find_model(use.model)
        assert model is not None, use
        assert (model.status, model.ends) == ("listed", None), use


def test_an_examples_docs_show_the_command_that_creates_its_pool(bag: Any) -> None:
    """A task whose pool does not exist waits forever."""
    for dag in bag.dags.values():
        for pool in {task.pool for task in dag.tasks} - {"default_pool"}:
            slots = re.search(rf"airflow pools set {pool} (\d+) ", dag.doc_md)
            assert slots, dag.dag_id
            assert all(task.pool_slots <= int(slots[1]) for task in dag.tasks if task.pool == pool)


@pytest.mark.slow
@pytest.mark.timeout(420)  # three Airflow commands: seconds each, much longer on a busy machine
def test_airflow_finds_no_errors_in_the_examples(tmp_path: Path) -> None:
    """Run a user's commands, with a fresh database and the folder of examples."""
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__CORE__DAGS_FOLDER": str(EXAMPLES),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{tmp_path / 'airflow.db'}",
    }

    def airflow(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "airflow", *arguments],
            env=environment, capture_output=True, text=True, timeout=400, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    airflow("db", "migrate")
    assert "No data found" in airflow("dags", "list-import-errors", "--local")
    out = airflow("dags", "list", "--local", "--output", "json")
    listed = json.loads(out[out.index("[{") :])  # after a warning that graphviz is missing
    assert {dag["dag_id"] for dag in listed} == {
        *_runnable(),
        *NEEDS_A_PERSON,
        *NEEDS_ANOTHER_PROVIDER,
        *NEEDS_AN_EVENT,
    }


def test_the_examples_load_without_errors_and_are_documented(bag: Any) -> None:
    assert bag.import_errors == {}
    assert set(bag.dags) == {*_runnable(), *NEEDS_A_PERSON, *NEEDS_ANOTHER_PROVIDER, *NEEDS_AN_EVENT}
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
def test_every_page_of_the_picture_book_refers_to_the_hero(
    bag: Any, run_dag: Callable[..., Any], sandbox: Sandbox, tmp_path: Path
) -> None:
    run = run_dag(bag.dags["imagen_picture_book"], run_conf={"output_path": str(tmp_path)})

    folder = tmp_path / run.run_id
    hero = f"data:image/png;base64,{b64encode((folder / 'hero.png').read_bytes()).decode()}"
    sent = [request.json for request in sandbox.seen("/v1/images/generations")]
    assert [request.get("image_urls") for request in sent] == [None, *[[hero]] * 4]
    assert not any("text" in request for request in sent)

    book = (folder / "book.html").read_text("utf-8")
    assert re.findall(r'src="(.+?)"', book) == [f"page-{number:02}.png" for number in range(1, 5)]
    texts = re.findall(r"<figcaption>(.+?)</figcaption>", book)
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    prompts = {line["file_name"]: line["prompt"] for line in lines}
    assert ("mitten" in texts[0], "under its bed" in prompts["page-01.png"]) == (True, True)
    assert ("tracks" in texts[2], "tracks in deep snow" in prompts["page-03.png"]) == (True, True)


@pytest.mark.usefixtures("imagen_connection")
def test_the_campaign_groups_its_images_and_writes_the_columns_into_the_files(
    bag: Any, run_dag: Callable[..., Any], tmp_path: Path
) -> None:
    run = run_dag(bag.dags["imagen_campaign"], run_conf={"output_path": str(tmp_path)})

    campaigns = run.get_task_instance("by_campaign").xcom_pull(task_ids="by_campaign")
    assert {name: [Path(path).stem for path in paths] for name, paths in campaigns.items()} == {
        "spring": ["teapot", "mug"],
        "autumn": ["poster", "lamp"],
    }
    embedded = read_provenance(Path(campaigns["autumn"][1]).read_bytes())["metadata"]
    assert embedded == {"sku": "L-052", "campaign": "autumn", "alt_text": None}


@pytest.mark.usefixtures("imagen_connection")
def test_a_campaign_may_have_more_rows_than_fit_into_xcom(
    bag: Any, run_dag: Callable[..., Any], tmp_path: Path
) -> None:
    table = tmp_path / "table.csv"
    rows = [
        f"mug-{number},A mug with the number {number},M-{number},{'spring' if number < 30 else 'autumn'},A mug"
        for number in range(80)
    ]
    table.write_text("\n".join(["name,prompt,sku,campaign,alt_text", *rows, ""]))
    conf = {"table": str(table), "output_path": str(tmp_path)}
    run = run_dag(bag.dags["imagen_campaign"], run_conf=conf)

    images = run.get_task_instance("paint").xcom_pull(task_ids="paint", key="images")
    assert images.keys() == {"manifest", "count"}
    campaigns = run.get_task_instance("by_campaign").xcom_pull(task_ids="by_campaign")
    assert {name: [Path(path).stem for path in paths] for name, paths in campaigns.items()} == {
        "spring": [f"mug-{number}" for number in range(30)],
        "autumn": [f"mug-{number}" for number in range(30, 80)],
    }


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
