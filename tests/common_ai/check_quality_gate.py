"""
The example ``imagen_quality_gate`` with Airflow's real common-ai provider.

``set-up.sh`` runs this in an environment that has the provider.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from doc_snippets import run_shown_commands

from airflow_provider_imagen._compat import get_dag_bag

from .vision_model import Question, VisionModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_imagen.sandbox import Sandbox

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "example_dags" / "imagen_quality_gate.py"
PAGE = ROOT / "docs" / "examples" / "quality-gate.md"
VISION_KEY = "key of the vision model"

pytestmark = pytest.mark.usefixtures("imagen_connection")


@pytest.fixture
def run_gate(
    run_dag: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[Question], str | None]], tuple[Any, list[Question]]]:
    """Return a function that runs the example with a vision model, and returns the run and what the model was shown."""

    def run(judge: Callable[[Question], str | None]) -> tuple[Any, list[Question]]:
        dag_bag, _ = get_dag_bag()
        bag = dag_bag(dag_folder=str(EXAMPLE))
        assert bag.import_errors == {}
        with VisionModel(judge) as model:
            connection = {
                "conn_type": "pydanticai",
                "host": model.url,
                "password": VISION_KEY,
                "extra": {"model": "openai-chat:any-vision-model"},
            }
            monkeypatch.setenv("AIRFLOW_CONN_PYDANTICAI_DEFAULT", json.dumps(connection))
            dag_run = run_dag(bag.dags["imagen_quality_gate"], run_conf={"output_path": str(tmp_path)})
        assert model.keys == {f"Bearer {VISION_KEY}"}
        return dag_run, model.questions

    return run


def _xcom(dag_run: Any, task_id: str, key: str = "return_value") -> Any:
    return dag_run.get_task_instance(task_id).xcom_pull(task_ids=task_id, key=key)


def _states(dag_run: Any) -> dict[str, str]:
    return {instance.task_id: str(instance.state) for instance in dag_run.get_task_instances()}


def test_only_rejected_images_are_generated_again(run_gate: Callable[..., Any], sandbox: Sandbox) -> None:
    seen_hats = []

    def judge(question: Question) -> str | None:
        if "hats" in question.text:
            seen_hats.append(question.image)
        return "The hats float." if question.image in seen_hats[:1] else None

    dag_run, questions = run_gate(judge)

    assert str(dag_run.state) == "success"
    painted, repainted = _xcom(dag_run, "paint", "images"), _xcom(dag_run, "repaint", "images")
    assert [(image["prompt"], image["seed"]) for image in repainted] == [("A shop window full of hats", 2)]
    assert len(sandbox.ledger()) == len(painted) + len(repainted) == 4
    violinist, hats, hands = painted
    assert _xcom(dag_run, "publish") == [image["path"] for image in (violinist, hands, *repainted)]
    assert hats["path"] != repainted[0]["path"]
    assert Path(hats["path"]).is_file()
    assert [(question.text, question.media_type, question.image) for question in questions] == [
        (f"Prompt: {image['prompt']}", image["mime_type"], Path(image["path"]).read_bytes())
        for image in painted + repainted
    ]


def test_nothing_is_generated_again_if_everything_passes(run_gate: Callable[..., Any], sandbox: Sandbox) -> None:
    dag_run, questions = run_gate(lambda question: None)

    assert str(dag_run.state) == "success"
    assert _states(dag_run)["repaint"] == _states(dag_run)["judge_again"] == "skipped"
    assert len(questions) == len(sandbox.ledger()) == len(_xcom(dag_run, "publish")) == 3


def test_an_image_that_fails_twice_is_left_out(
    run_gate: Callable[..., Any], sandbox: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    dag_run, _ = run_gate(lambda question: "Six fingers." if "hands" in question.text else None)

    assert str(dag_run.state) == "success"
    left_out = _xcom(dag_run, "repaint", "images")[0]["path"]
    assert f"Left out: {left_out} Six fingers." in capsys.readouterr().out
    assert left_out not in _xcom(dag_run, "publish")
    assert (len(_xcom(dag_run, "publish")), len(sandbox.ledger())) == (2, 4)


@pytest.mark.timeout(400)  # five commands, three of which start Airflow
def test_the_commands_on_the_examples_page_run_both_rounds(tmp_path: Path) -> None:
    output = run_shown_commands("run", PAGE, home=tmp_path, python=Path(sys.executable), timeout_seconds=380)
    names = [path.name.split("-")[0] for path in tmp_path.glob("imagen-pictures/*/*.png")]
    assert sorted(names) == ["paint"] * 3 + ["repaint"] * 3
    assert output.count("Left out: ") == 3
