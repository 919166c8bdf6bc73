from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from airflow_provider_imagen.commands.dag_models import find_models

HEADER = "from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator\n"


@pytest.fixture
def read(tmp_path):
    def read(text, name="dag.py"):
        (tmp_path / name).write_text(HEADER + textwrap.dedent(text))
        return find_models(tmp_path)

    return read


@pytest.mark.parametrize(
    ("text", "models"),
    [
        ('ImagenGenerateOperator(task_id="a", model="one")', {"one"}),
        ('ImagenGenerateOperator(task_id="a", model="one", fallback_models=["two", "three"])', {"one", "two", "three"}),
        ('ImagenGenerateOperator(task_id="a", prompt=[{"prompt": "x", "model": "one"}, "y"])', {"one"}),
        ('ImagenGenerateOperator.partial(task_id="a", model="one").expand(prompt=["x"])', {"one"}),
        ('ImagenGenerateOperator.partial(task_id="a").expand_kwargs([{"prompt": "x", "model": "one"}])', {"one"}),
        ('ImagenGenerateOperator.partial(task_id="a").expand(prompt=["x"], model=["one", "two"])', {"one", "two"}),
        ('MODEL: str = "one"\nImagenGenerateOperator(task_id="a", model=MODEL)', {"one"}),
        ('ImagenGenerateOperator(task_id="a", model="one" if fast else "two")', {"one", "two"}),
        (
            'MODELS = ["one", "two"]\nImagenGenerateOperator(task_id="a", prompt=[{"model": m} for m in MODELS])',
            {"one", "two"},
        ),
        (
            'for model in ("one", "two"):\n    ImagenGenerateOperator(task_id=model, model=model)',
            {"one", "two"},
        ),
        ('ROWS = [{"prompt": "x", "model": "one"}]\nImagenGenerateOperator(task_id="a", prompt=ROWS)', {"one"}),
        ('@task.imagen(model="one")\ndef f():\n    return "x"', {"one"}),
        ('@task.imagen\ndef f():\n    return [{"prompt": "x", "model": "one"}]', {"one"}),
        (
            'with DAG("d", params={"model": Param("one", type="string")}):\n'
            '    ImagenGenerateOperator(task_id="a", model="{{ params.model }}")',
            {"one"},
        ),
        ('with DAG("d", params={"m": "one"}):\n    ImagenGenerateOperator(task_id="a", model="{{params.m}}")', {"one"}),
        ('hook.generate_images("x", model="one")', {"one"}),
        (
            "from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator as Paint\n"
            'Paint(task_id="a", model="one")',
            {"one"},
        ),
        ('OtherOperator(task_id="a", model="not-ours", prompt=[{"model": "not-ours"}])', set()),
        ('config = {"model": "not-ours"}\nImagenGenerateOperator(task_id="a", model=None)', set()),
    ],
)
def test_a_model_is_found_where_it_is_written(read, text, models):
    findings = read(text)
    assert {use.model for use in findings.uses} == models
    assert findings.unread == findings.broken == []


@pytest.mark.parametrize(
    "text",
    [
        'ImagenGenerateOperator(task_id="a", model=choose())',
        'ImagenGenerateOperator(task_id="a", model="{{ params.model }}")',
        'ImagenGenerateOperator(task_id="a", model="{{ dag_run.conf.model }}")',
        'ImagenGenerateOperator(task_id="a", model=MODEL)',
        'ImagenGenerateOperator(task_id="a", model=f"flux/{kind}")',
        'MODEL = MODEL\nImagenGenerateOperator(task_id="a", model=MODEL)',
    ],
)
def test_what_only_the_running_dag_knows_is_told_as_unread(read, text):
    findings = read(text)
    assert findings.uses == []
    assert len(findings.unread) == 1
    assert findings.unread[0].startswith("dag.py:")


def test_no_file_is_run(tmp_path):
    trap = tmp_path / "trap"
    (tmp_path / "dag.py").write_text(HEADER + f'open({str(trap)!r}, "w")\nImagenGenerateOperator(model="one")\n')
    assert [(use.model, use.place) for use in find_models(tmp_path).uses] == [("one", "dag.py:3")]
    assert not trap.exists()


def test_broken_files_are_told_and_foreign_ones_left_alone(tmp_path):
    (tmp_path / "broken.py").write_text(HEADER + "def (:")
    (tmp_path / "foreign.py").write_text("this is no python")
    (tmp_path / "nul.py").write_bytes(HEADER.encode() + b"\0")
    hidden = tmp_path / ".venv"
    hidden.mkdir()
    (hidden / "dag.py").write_text(HEADER + 'ImagenGenerateOperator(model="hidden")')
    findings = find_models(tmp_path)
    assert [line.partition(":")[0] for line in findings.broken] == ["broken.py", "nul.py"]
    assert findings.uses == []


def test_one_file_and_sub_folders_can_be_read(tmp_path):
    (tmp_path / "team").mkdir()
    path = tmp_path / "team" / "dag.py"
    path.write_text(HEADER + 'ImagenGenerateOperator(model="one")')
    assert find_models(tmp_path).uses[0].place == "team/dag.py:2"
    assert find_models(path).uses[0].place == "dag.py:2"


def test_the_examples_name_their_models():
    findings = find_models(Path(__file__).parents[2] / "example_dags")
    models = {use.model for use in findings.uses}
    assert {
        "flux/dev",
        "flux/schnell",
        "openai/gpt-image-2",
        "flux/kontext-pro/image-to-image",
    } <= models
    assert findings.broken == []
