"""The lineage reported to OpenLineage, and that nothing of it needs to be installed."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING, Any
from unittest.mock import create_autospec

import pytest
from airflow.sdk import DAG
from PIL import Image

from airflow_provider_imagen.operators.dataset_names import location_of, without_signature
from airflow_provider_imagen.operators.execution import TaskExecution
from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
from airflow_provider_imagen.operators.lineage import Lineage, to_openlineage
from airflow_provider_imagen.sandbox import Fault

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from airflow_provider_imagen.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("imagen_connection")


class _Observed(ImagenGenerateOperator):
    """The operator, which keeps the lineage of each attempt."""

    def __init__(self, *, observed: list[Lineage | None], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.observed = observed

    def execute(self, context: Any) -> list[str]:
        try:
            return super().execute(context)
        finally:
            self.observed.append(self.execution.lineage if self.execution else None)


@pytest.fixture
def lineage(run_dag: Callable[..., Any]) -> Callable[..., list[Lineage | None]]:
    def run(dag_id: str, **arguments: Any) -> list[Lineage | None]:
        observed: list[Lineage | None] = []
        with DAG(dag_id, schedule=None) as dag:
            _Observed(task_id="paint", observed=observed, **arguments)
        run_dag(dag)
        return observed

    return run


def test_the_api_is_the_input_and_the_folder_the_output(
    lineage: Callable[..., Any], sandbox: Sandbox, tmp_path: Path
) -> None:
    (found,) = lineage("lineage_stored", prompt=["a fox", "a heron"], output_path=f"{tmp_path}/{{{{ ti.task_id }}}}")

    assert found == Lineage(
        api=sandbox.url,
        models=("imagen-3.0-generate-002",),
        inputs=(),
        output=f"file://{tmp_path}/paint",
        images=2,
        bytes=sum(path.stat().st_size for path in (tmp_path / "paint").glob("*.png")),
    )


def test_stored_input_images_are_inputs_by_folder(lineage: Callable[..., Any], tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.new("RGB", (64, 48), (220, 20, 20)).save(tmp_path / f"{name}.png")
    (found,) = lineage(
        "lineage_inputs",
        prompt=[{"prompt": name, "input_images": str(tmp_path / f"{name}.png")} for name in ("a", "b")],
        model="flux/kontext-pro/image-to-image",
    )

    assert found.inputs == (str(tmp_path),)
    assert found.output is None  # nothing is stored


def test_the_folders_of_reused_images_are_inputs(lineage: Callable[..., Any], tmp_path: Path) -> None:
    first = {"prompt": "a fox", "output_path": f"{tmp_path}/first", "reuse": "unchanged"}
    lineage("lineage_generated", **first)
    for folder, inputs in (("first", ()), ("second", (f"{tmp_path}/first",))):
        arguments = {**first, "output_path": f"{tmp_path}/{folder}", "reuse_from": f"{tmp_path}/first"}
        (found,) = lineage("lineage_reused", **arguments)
        assert (found.inputs, found.images) == (inputs, 1)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("abfs://c@container/a/b?sig=xy/z&se=1", "a/b"),
        ("https://store.example/a/b.png?X-Amz-Signature=x", "a/b.png"),
        ("s3://c@bucket?sig=x", "/"),
        ("s3://bucket/what?/b", "what?/b"),
        ("file:///data/a?b=c", "/data/a?b=c"),
        ("/data/a?b=c", "/data/a?b=c"),
    ],
)
def test_a_name_holds_no_signature(address: str, name: str) -> None:
    assert location_of(address).name == name
    assert "sig" not in location_of(address).uri.lower()


def test_the_folder_of_an_input_is_found_although_its_signature_has_slashes() -> None:
    assert without_signature("https://store.example/a/b.png?sig=x/y/z").rpartition("/")[0] == "https://store.example/a"


def test_a_failed_task_reports_the_images_it_generated(
    lineage: Callable[..., Any], sandbox: Sandbox, tmp_path: Path
) -> None:
    sandbox.add_fault(Fault("upstream_4xx", prompt="bad", times=None))
    (found,) = lineage("lineage_failed", prompt=["good", "bad"], output_path=str(tmp_path))

    assert found.images == 1
    assert found.output == f"file://{tmp_path}"


def test_a_rejected_task_has_no_lineage(lineage: Callable[..., Any]) -> None:
    assert lineage("lineage_refused", prompt="a fox", aspect_ratio="5:1") == [None]
    operator = ImagenGenerateOperator(task_id="paint", prompt="a fox")
    assert operator.get_openlineage_facets_on_complete(None) is None


def test_lineage_becomes_what_the_installed_openlineage_understands_or_nothing() -> None:
    found = Lineage("https://api.aimlapi.com", ("flux/schnell",), ("s3://c@in/a",), "s3://c@out/b", 2, 4096)
    operator = ImagenGenerateOperator(task_id="paint", prompt="a fox")
    operator.execution = create_autospec(TaskExecution, instance=True, lineage=found)

    if importlib.util.find_spec("airflow.providers.openlineage") is None:
        assert operator.get_openlineage_facets_on_complete(None) is to_openlineage(found) is None
        assert not [name for name in sys.modules if name.startswith("openlineage")]
        return
    reported = operator.get_openlineage_facets_on_complete(None)
    assert [(each.namespace, each.name) for each in reported.inputs] == [
        ("https://api.aimlapi.com", "flux/schnell"),
        ("s3://in", "a"),
    ]
    (output,) = reported.outputs
    assert (output.namespace, output.name) == ("s3://out", "b")
    assert (output.outputFacets["outputStatistics"].rowCount, output.outputFacets["outputStatistics"].size) == (2, 4096)
