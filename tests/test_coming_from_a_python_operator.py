"""The DAGs on the page "Coming from a hand-written PythonOperator", run against the sandbox with the page's faults."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image, UnidentifiedImageError

from airflow_provider_imagen._compat import get_dag_bag
from airflow_provider_imagen.sandbox.fault_syntax import parse_fault

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_imagen.sandbox import Sandbox

PAGE = (Path(__file__).parents[1] / "docs" / "guides" / "coming-from-a-python-operator.md").read_text("utf-8")
BEFORE, AFTER = re.findall(r"^<!-- file: \S+ -->\n```python\n(.+?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def table(mark: str) -> list[list[str]]:
    """Return the rows of the table after a mark, without its header."""
    lines = PAGE.split(f"<!-- {mark} -->\n", 1)[1].split("\n\n", 1)[0].splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]


class FolderInsteadOfS3:
    """The one method of a boto3 client that the page uses, for tests without boto3 and S3."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put_object(self, *, Bucket: str, Key: str, Body: bytes) -> None:  # noqa: N803 - as boto3 calls them
        target = self.folder / Bucket / Key
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(Body)


@pytest.fixture
def run_version(
    run_dag: Callable[..., Any],
    sandbox: Sandbox,
    imagen_connection: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[str, str], tuple[Any, list[str]]]:
    """Return a function that runs a version with a fault, and returns its XCom and its cells of the page's table."""
    connection = {"conn_type": "http", "host": sandbox.url, "password": sandbox.api_key}
    monkeypatch.setenv("AIRFLOW_CONN_AIMLAPI", json.dumps(connection))

    def run(code: str, fault: str) -> tuple[Any, list[str]]:
        work = tmp_path / str(len(list(tmp_path.iterdir())))
        work.mkdir()
        monkeypatch.setitem(sys.modules, "boto3", SimpleNamespace(client=lambda service: FolderInsteadOfS3(work)))
        (work / "dag.py").write_text(code.replace("s3://aws_default@media", str(work / "media")))
        dag_bag, _ = get_dag_bag()
        (dag,) = dag_bag(dag_folder=str(work / "dag.py")).dags.values()
        sandbox.reset()
        if fault:
            sandbox.add_fault(parse_fault(fault))

        dag_run = run_dag(dag)

        billed = sum(charge.images for charge in sandbox.ledger())
        stored = sum(map(is_image, (work / "media").rglob("*.png")))
        xcom = dag_run.get_task_instance("generate").xcom_pull(task_ids="generate")
        return xcom, [str(billed), str(stored), str(dag_run.state)]

    return run


def is_image(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            image.load()
    except UnidentifiedImageError:
        return False
    return True


@pytest.mark.parametrize(("event", "fault", "row"), [(row[0], row[1].strip("`"), row[2:]) for row in table("faults")])
def test_both_versions_cost_and_store_what_the_page_says(
    event: str, fault: str, row: list[str], run_version: Callable[..., Any]
) -> None:
    _, before = run_version(BEFORE, fault)
    _, after = run_version(AFTER, fault)

    assert before + after == row


def test_only_the_hand_written_version_puts_base64_into_xcom(run_version: Callable[..., Any]) -> None:
    before, numbers = run_version(BEFORE, "shape:shape=b64_json,times=null")
    after, same_numbers = run_version(AFTER, "shape:shape=b64_json,times=null")

    assert numbers == same_numbers == ["3", "3", "success"]
    assert [len(source) > 1000 for source in before] == [True] * 3
    assert [Path(path).name for path in after] == ["000.png", "001.png", "002.png"]


def test_the_hand_written_version_pays_for_a_misspelt_field(run_version: Callable[..., Any], sandbox: Sandbox) -> None:
    _, numbers = run_version(BEFORE.replace('"aspect_ratio"', '"aspect_ration"'), "")

    assert numbers == ["3", "3", "success"]
    assert all("aspect_ration" in request.json for request in sandbox.seen("/v1/images/generations"))


def test_line_by_line_quotes_the_hand_written_dag() -> None:
    for mine, _ in table("line by line"):
        for code in re.findall(r"`(.+?)`", mine):
            assert code in BEFORE, code
