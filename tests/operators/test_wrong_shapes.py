"""Images in another shape than the one that was asked for, as behind a gateway that drops fields."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG

from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
from airflow_provider_imagen.sandbox import Fault

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from airflow_provider_imagen.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("imagen_connection")


@pytest.fixture
def paint(run_dag: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Callable[..., Any]:
    """Return a function that runs one task, and returns its summary and the warnings about shapes."""

    def run(**arguments: Any) -> tuple[dict[str, Any], list[str]]:
        with DAG("shapes", schedule=None) as dag:
            ImagenGenerateOperator(
                **{"task_id": "paint", "prompt": "a harbour", "output_path": str(tmp_path), **arguments}
            )
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            finished = run_dag(dag)
        assert finished.state == "success"
        warnings = [text for record in caplog.records if ": requested " in (text := record.getMessage())]
        return finished.get_task_instance("paint").xcom_pull(task_ids="paint", key="summary"), warnings

    return run


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        ({"aspect_ratio": "16:9", "num_images": 3}, "16:9"),
        ({"model": "flux/dev", "parameters": {"image_size": {"width": 768, "height": 512}}, "num_images": 3}, "3:2"),
        ({"model": "flux/dev", "parameters": {"image_size": "portrait_16_9"}, "num_images": 3}, "9:16"),
        ({"model": "openai/gpt-image-2", "aspect_ratio": "2:3", "num_images": 3}, "2:3"),
    ],
)
def test_images_of_another_shape_cause_a_warning_and_are_counted(
    paint: Callable[..., Any], sandbox: Sandbox, arguments: dict[str, Any], asked: str
) -> None:
    sandbox.add_fault(Fault("square", times=None))
    summary, warnings = paint(**arguments)
    assert (summary["made"], summary["wrong_shape"]) == (3, 3)
    assert len(warnings) == 3
    for index in range(3):
        assert f"Prompt 0, image {index}: requested {asked}, received " in "".join(warnings)


def test_one_image_of_another_shape_among_others_is_counted_once(paint: Callable[..., Any], sandbox: Sandbox) -> None:
    sandbox.add_fault(Fault("square", prompt="lighthouse"))
    summary, warnings = paint(prompt=["a harbour", "a lighthouse", "a boat"], aspect_ratio="4:3")
    assert (summary["made"], summary["wrong_shape"], len(warnings)) == (3, 1, 1)
    assert warnings[0].startswith("Prompt 1, image 0: requested 4:3")


@pytest.mark.parametrize(
    "arguments",
    [{}, {"aspect_ratio": "16:9"}, {"aspect_ratio": "1:1"}, {"model": "flux/dev", "aspect_ratio": "4:3"}],
)
def test_images_of_the_requested_shape_cause_no_warning(paint: Callable[..., Any], arguments: dict[str, Any]) -> None:
    summary, warnings = paint(**arguments)
    assert (summary["made"], summary["wrong_shape"], warnings) == (1, 0, [])


def test_a_square_is_not_a_wrong_shape_if_the_model_chooses(paint: Callable[..., Any], sandbox: Sandbox) -> None:
    sandbox.add_fault(Fault("square"))
    summary, warnings = paint()
    assert (summary["wrong_shape"], warnings) == (0, [])
