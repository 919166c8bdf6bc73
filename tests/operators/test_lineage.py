"""What OpenLineage is told, and that nothing of it is needed."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG
from PIL import Image

from airflow_provider_imagen.operators.dataset_names import place_of, unsigned
from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
from airflow_provider_imagen.operators.lineage import LineageFacts, to_openlineage
from airflow_provider_imagen.sandbox import Fault

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from airflow_provider_imagen.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("imagen_connection")


class _Told(ImagenGenerateOperator):
    """The operator, with what it would tell OpenLineage after each try kept."""

    def __init__(self, *, told: list[LineageFacts | None], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.told = told

    def execute(self, context: Any) -> list[str]:
        try:
            return super().execute(context)
        finally:
            self.told.append(self.lineage_facts)


@pytest.fixture
def lineage(run_dag: Callable[..., Any]) -> Callable[..., list[LineageFacts | None]]:
    def run(dag_id: str, **arguments: Any) -> list[LineageFacts | None]:
        told: list[LineageFacts | None] = []
        with DAG(dag_id, schedule=None) as dag:
            _Told(task_id="paint", told=told, **arguments)
        run_dag(dag)
        return told

    return run


def test_the_api_is_the_source_and_the_folder_the_output(
    lineage: Callable[..., Any], sandbox: Sandbox, tmp_path: Path
) -> None:
    (facts,) = lineage("lineage_stored", prompt=["a fox", "a heron"], output_path=f"{tmp_path}/{{{{ ti.task_id }}}}")

    assert facts == LineageFacts(
        api=sandbox.url,
        models=("imagen-3.0-generate-002",),
        inputs=(),
        output=f"file://{tmp_path}/paint",
        pictures=2,
        bytes=sum(path.stat().st_size for path in (tmp_path / "paint").glob("*.png")),
    )


def test_stored_input_pictures_are_sources_by_their_folder(lineage: Callable[..., Any], tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.new("RGB", (64, 48), (220, 20, 20)).save(tmp_path / f"{name}.png")
    (facts,) = lineage(
        "lineage_inputs",
        prompt=[{"prompt": name, "input_images": str(tmp_path / f"{name}.png")} for name in ("a", "b")],
        model="flux/kontext-pro/image-to-image",
    )

    assert facts.inputs == (str(tmp_path),)
    assert facts.output is None  # nothing is stored


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
    assert place_of(address).name == name
    assert "sig" not in place_of(address).uri.lower()


def test_the_folder_of_an_input_is_found_although_its_signature_has_slashes() -> None:
    assert unsigned("https://store.example/a/b.png?sig=x/y/z").rpartition("/")[0] == "https://store.example/a"


def test_a_task_that_fails_tells_what_it_has_made(
    lineage: Callable[..., Any], sandbox: Sandbox, tmp_path: Path
) -> None:
    sandbox.add_fault(Fault("upstream_4xx", prompt="bad", times=None))
    (facts,) = lineage("lineage_failed", prompt=["good", "bad"], output_path=str(tmp_path))

    assert facts.pictures == 1
    assert facts.output == f"file://{tmp_path}"


def test_a_task_that_was_refused_has_nothing_to_tell(lineage: Callable[..., Any]) -> None:
    assert lineage("lineage_refused", prompt="a fox", aspect_ratio="5:1") == [None]
    operator = ImagenGenerateOperator(task_id="paint", prompt="a fox")
    assert operator.get_openlineage_facets_on_complete(None) is None


def test_facts_become_what_the_installed_openlineage_understands_or_nothing() -> None:
    facts = LineageFacts("https://api.aimlapi.com", ("flux/schnell",), ("s3://c@in/a",), "s3://c@out/b", 2, 4096)
    operator = ImagenGenerateOperator(task_id="paint", prompt="a fox")
    operator.lineage_facts = facts

    if importlib.util.find_spec("airflow.providers.openlineage") is None:
        assert operator.get_openlineage_facets_on_complete(None) is to_openlineage(facts) is None
        assert not [name for name in sys.modules if name.startswith("openlineage")]
        return
    told = operator.get_openlineage_facets_on_complete(None)
    assert [(each.namespace, each.name) for each in told.inputs] == [
        ("https://api.aimlapi.com", "flux/schnell"),
        ("s3://in", "a"),
    ]
    (output,) = told.outputs
    assert (output.namespace, output.name) == ("s3://out", "b")
    assert (output.outputFacets["outputStatistics"].rowCount, output.outputFacets["outputStatistics"].size) == (2, 4096)
