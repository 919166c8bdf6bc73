"""Damaged text in a response: the image beside it is kept, and everything that is published can be stored."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG, Asset

from airflow_provider_imagen.exceptions import InvalidArgumentsError
from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
from airflow_provider_imagen.sandbox import Fault

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from airflow_provider_imagen.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("imagen_connection")


@pytest.mark.parametrize("inline", [False, True], ids=["url", "base64"])
@pytest.mark.parametrize(
    ("damage", "rewritten"),
    [
        ("null", "before \ufffd after"),
        ("surrogate", "before \ufffd after"),
        ("control", "before \x01 after"),
        ("encoding", "before \ufffd after"),
        ("escape", "before \\d after"),
        ("quote", None),
        ("behind", "before @ after"),
    ],
)
def test_an_image_with_damaged_text_is_paid_for_once_stored_and_counted(
    run_dag: Callable[..., Any], sandbox: Sandbox, tmp_path: Path, damage: str, rewritten: str | None, inline: bool
) -> None:
    sandbox.add_fault(Fault("damaged_text", damage=damage))
    with DAG("damaged", schedule=None) as dag:
        ImagenGenerateOperator(
            task_id="paint",
            prompt=["a harbour", "a lighthouse"],
            output_path=str(tmp_path),
            concurrency=1,
            convert_base64_to_url=not inline,
            enhance_prompt=False,
            outlets=[Asset("pictures")],
        )
    run = run_dag(dag)
    assert run.state == "success"
    assert [charge.prompt for charge in sandbox.ledger()] == ["a harbour", "a lighthouse"]

    task = run.get_task_instance("paint")
    images = task.xcom_pull(task_ids="paint", key="images")
    assert [image["enhanced_prompt"] for image in images] == [rewritten, None]
    summary = task.xcom_pull(task_ids="paint", key="summary")
    assert summary["usd_spent"] == float(sum(charge.usd for charge in sandbox.ledger()))
    lines = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    assert [line["enhanced_prompt"] for line in lines] == [rewritten, None]
    for published in (images, summary, lines):
        text = json.dumps(published, ensure_ascii=False)
        assert "\0" not in text
        assert "\\u0000" not in text
        text.encode()


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"prompt": [{"prompt": "a harbour", "name": "a\0b"}]}, "prompt[0].name"),
        ({"prompt": "a harbour", "model": "somebody/new\0model"}, "model"),
        ({"prompt": "a harbour", "model": "flux/dev", "parameters": {"image_size": "square\0"}}, "image_size"),
        ({"prompt": "a harbour", "model": "somebody/model", "parameters": {"style": "a \0 cat"}}, "style"),
    ],
)
def test_damaged_text_of_the_author_is_rejected_with_its_field_before_paying(
    run_dag: Callable[..., Any],
    recorded: Callable[..., Any],
    sandbox: Sandbox,
    tmp_path: Path,
    arguments: dict[str, Any],
    field: str,
) -> None:
    errors: list[BaseException] = []
    with DAG("damaged", schedule=None) as dag:
        recorded(task_id="paint", errors=errors, output_path=str(tmp_path), **arguments)
    run = run_dag(dag)
    assert run.state == "failed"
    assert sandbox.seen("/v1/images/generations") == []
    (error,) = errors
    assert isinstance(error, InvalidArgumentsError)
    assert [problem.field for problem in error.problems] == [field]
    assert "at index" in error.problems[0].allowed
