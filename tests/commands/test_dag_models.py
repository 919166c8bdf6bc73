from __future__ import annotations

import textwrap
import zipfile
from pathlib import Path

import pytest

from airflow_provider_imagen.commands.dag_models import find_models

HEADER = """
from airflow.sdk import DAG, Param, TaskGroup, task
from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
"""


def in_dag(text, *, arguments=""):
    return f'{HEADER}\nwith DAG("d"{arguments}):\n{textwrap.indent(textwrap.dedent(text).strip(), "    ")}\n'


@pytest.fixture
def read(tmp_path):
    def read(text, **options):
        (tmp_path / "dag.py").write_text(in_dag(text, **options))
        findings = find_models(tmp_path)
        assert findings.broken == []
        return findings

    return read


@pytest.mark.parametrize(
    ("text", "models"),
    [
        ('ImagenGenerateOperator(task_id="a", prompt="x", model="one")', {"one"}),
        ('ImagenGenerateOperator(task_id="a", model="one", fallback_models=["two", "three"])', {"one", "two", "three"}),
        ('ImagenGenerateOperator(task_id="a", prompt=[{"prompt": "x", "model": "one"}, "y"])', {"one"}),
        ('ImagenGenerateOperator(task_id="a", prompt={"prompt": "x", "model": "one"})', {"one"}),
        ('ImagenGenerateOperator.partial(task_id="a", model="one").expand(prompt=["x"])', {"one"}),
        ('ImagenGenerateOperator.partial(task_id="a").expand(prompt=["x", {"prompt": "y", "model": "one"}])', {"one"}),
        ('ImagenGenerateOperator.partial(task_id="a").expand(prompt=["x"], model=["one", "two"])', {"one", "two"}),
        ('ImagenGenerateOperator.partial(task_id="a").expand_kwargs([{"prompt": "x", "model": "one"}])', {"one"}),
        ('model = "o" + "ne"\nImagenGenerateOperator(task_id="a", model=f"{model}")', {"one"}),
        ('for model in ("one", "two"):\n    ImagenGenerateOperator(task_id=model, model=model)', {"one", "two"}),
        ('class Mine(ImagenGenerateOperator):\n    pass\nMine(task_id="a", model="one")', {"one"}),
        ('ImagenGenerateOperator(task_id="a", model=None)', set()),
        ('from airflow.sdk import BaseOperator\nBaseOperator(task_id="a")', set()),
    ],
)
def test_a_model_is_found_in_every_argument(read, text, models):
    findings = read(text)
    assert {use.model for use in findings.uses} == models
    assert findings.unread == []


@pytest.mark.parametrize("call", ["f('x')", "f.expand(x=['x', 'y'])", "f.partial().expand(x=['x'])"])
def test_models_of_the_decorator_are_found_but_its_prompts_are_unknown(read, call):
    findings = read(
        f"""
        @task.imagen(model="one", fallback_models=["two"])
        def f(x):
            return {{"prompt": x, "model": "three"}}
        {call}
        """
    )
    assert [use.model for use in findings.uses] == ["one", "two"]
    assert findings.unread == ["dag.py:d.f (prompt)"]


@pytest.mark.parametrize(
    "task",
    [
        'ImagenGenerateOperator(task_id="a", prompt="x")',
        'ImagenGenerateOperator.partial(task_id="a").expand(prompt=["x"])',
    ],
)
def test_default_args_count(read, task):
    found = read(task, arguments=', default_args={"model": "one"}')
    assert [use.model for use in found.uses] == ["one"]
    grouped = read(f'with TaskGroup("g", default_args={{"model": "two"}}):\n    {task}')
    assert [(use.model, use.place) for use in grouped.uses] == [("two", "dag.py:d.g.a")]


@pytest.mark.parametrize(
    ("params", "template", "models"),
    [
        ('{"m": "one"}', "{{params.m}}", ["one"]),
        ('{"m": Param("one", type="string")}', "{{ params['m'] }}", ["one"]),
        ('{"kind": "schnell"}', "flux/{{ params.kind }}", ["flux/schnell"]),
        ('{"m": ""}', "{{ params.m }}", []),  # the task uses the connection's model then
        ('{"m": Param(None, type=["null", "string"])}', " {{ params.m }} ", []),
    ],
)
def test_templates_are_rendered_with_the_defaults_of_params(read, params, template, models):
    for task in (
        f'ImagenGenerateOperator(task_id="a", prompt="x", model="{template}")',
        f'ImagenGenerateOperator(task_id="a", prompt=[{{"prompt": "x", "model": "{template}"}}])',
        f'ImagenGenerateOperator.partial(task_id="a", model="{template}").expand(prompt=["x"])',
    ):
        findings = read(task, arguments=f", params={params}")
        assert [use.model for use in findings.uses] == models
        assert findings.unread == []


@pytest.mark.parametrize(
    ("text", "argument"),
    [
        ('ImagenGenerateOperator(task_id="a", model="{{ params.model }}")', "model"),
        ('ImagenGenerateOperator(task_id="a", model="{{ dag_run.conf.model }}")', "model"),
        ('ImagenGenerateOperator(task_id="a", model="{{ var.value.model }}")', "model"),
        ('ImagenGenerateOperator(task_id="a", model="{{ params.needed }}")', "model"),
        ('ImagenGenerateOperator(task_id="a", model="{{ unclosed")', "model"),
        ('ImagenGenerateOperator(task_id="a", prompt=[{"model": "{{ ds }}"}, {"model": "{{ ds }}"}])', "prompt"),
        ('ImagenGenerateOperator(task_id="a", model=other.output)', "model"),
        ('ImagenGenerateOperator(task_id="a", fallback_models=other.output)', "fallback_models"),
        ('ImagenGenerateOperator(task_id="a", prompt=other.output)', "prompt"),
        ('ImagenGenerateOperator(task_id="a", prompt=["x", other.output])', "prompt"),
        ('ImagenGenerateOperator.partial(task_id="a").expand(prompt=other.output)', "prompt"),
        ('ImagenGenerateOperator.partial(task_id="a", prompt="x").expand(model=other.output)', "model"),
        ('ImagenGenerateOperator.partial(task_id="a").expand_kwargs(other.output)', "model"),
        ('ImagenGenerateOperator.partial(task_id="a").expand_kwargs([other.output])', "model"),
    ],
)
def test_values_known_only_at_run_time_are_listed(read, text, argument):
    findings = read(
        f'other = ImagenGenerateOperator(task_id="other", prompt="x")\n{text}',
        arguments=', params={"needed": Param(type="string")}',
    )
    assert findings.uses == []
    assert findings.unread == [f"dag.py:d.a ({argument})"]


def test_files_that_cannot_be_imported_are_listed_and_the_others_are_read(tmp_path):
    (tmp_path / "broken.py").write_text(HEADER + "def (:")
    (tmp_path / "exits.py").write_text(HEADER + "raise SystemExit(3)")
    (tmp_path / "missing.py").write_text(HEADER + "import no_such_module_anywhere")
    (tmp_path / "nul.py").write_bytes(HEADER.encode() + b"\0")
    (tmp_path / "same.py").write_text(in_dag('ImagenGenerateOperator(task_id="a", model="one")'))
    (tmp_path / "twice.py").write_text(in_dag('ImagenGenerateOperator(task_id="a", model="one")'))
    (tmp_path / "foreign.py").write_text("this is no python")  # nothing in it looks like a DAG
    findings = find_models(tmp_path)
    assert [line.partition(":")[0] for line in findings.broken[:4]] == ["broken.py", "exits.py", "missing.py", "nul.py"]
    assert findings.broken[2] == "missing.py: ModuleNotFoundError: No module named 'no_such_module_anywhere'"
    assert findings.broken[4].startswith(("same.py: AirflowDagDuplicatedIdE", "twice.py: AirflowDagDuplicatedIdE"))
    assert [use.model for use in findings.uses] == ["one"]


def test_what_airflow_ignores_is_not_read(tmp_path):
    (tmp_path / ".airflowignore").write_text("drafts\n")
    (tmp_path / "drafts").mkdir()
    trap = tmp_path / "trap"
    (tmp_path / "drafts" / "dag.py").write_text(HEADER + f'open({str(trap)!r}, "w")\n')
    assert find_models(tmp_path).broken == []
    assert not trap.exists()


def test_dag_files_can_share_a_module_of_their_folder(tmp_path):
    (tmp_path / "shared_by_dags.py").write_text('MODEL = "one"\n')
    (tmp_path / "dag.py").write_text(
        in_dag('ImagenGenerateOperator(task_id="a", model=MODEL)').replace(
            HEADER, f"{HEADER}from shared_by_dags import *"
        )
    )
    findings = find_models(tmp_path)
    assert (findings.broken, findings.uses[0].model) == ([], "one")


def test_one_file_sub_folders_archives_and_links_can_be_read(tmp_path, monkeypatch):
    text = in_dag('ImagenGenerateOperator(task_id="a", model="one")')
    path = tmp_path / "dags" / "team" / "dag.py"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    (tmp_path / "link").symlink_to(tmp_path / "dags")
    assert find_models(tmp_path / "dags").uses[0].place == "team/dag.py:d.a"
    assert find_models(tmp_path / "link").uses[0].place == "team/dag.py:d.a"
    assert find_models(path).uses[0].place == "dag.py:d.a"
    monkeypatch.chdir(tmp_path)
    assert find_models(Path("dags")).uses[0].place == "team/dag.py:d.a"
    packed = tmp_path / "packed"
    packed.mkdir()
    with zipfile.ZipFile(packed / "dags.zip", "w") as archive:
        archive.writestr("packed_dag.py", text)
    assert find_models(packed).uses[0].place == "dags.zip/packed_dag.py:d.a"


def test_the_examples_name_their_models():
    findings = find_models(Path(__file__).parents[2] / "example_dags")
    models = {use.model for use in findings.uses}
    assert {
        "flux/dev",
        "flux/schnell",
        "openai/gpt-image-2",
        "bytedance/seedream-4-5",
        "flux/kontext-pro/image-to-image",
    } <= models
    assert findings.broken == []
