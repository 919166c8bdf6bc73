"""Path objects, and numbers that native rendering or a table made, where text is usual; templates of missing values."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path, PurePosixPath

import pytest
from airflow.sdk import DAG, ObjectStoragePath, task
from PIL import Image

from airflow_provider_imagen.exceptions import InvalidArgumentsError
from airflow_provider_imagen.hooks.imagen import ImagenHook
from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("imagen_connection")]

PICTURES_FIELD = {"model": "flux/kontext-pro/image-to-image", "prompt": "Make it night"}


@pytest.fixture
def paint(run_dag, recorded):
    """Run one operator; give the task instance and the error that ended it."""
    numbers = iter(range(100))

    def paint(*, native=False, params=None, **arguments):
        errors = []
        number = next(numbers)
        with DAG(f"paths_{number}", schedule=None, render_template_as_native_obj=native, params=params or {}) as dag:
            recorded(task_id="paint", errors=errors, retry_delay=timedelta(0), **{"prompt": "A cat", **arguments})
        return run_dag(dag).get_task_instance("paint"), (errors or [None])[0]

    return paint


def summary_of(instance):
    return instance.xcom_pull(task_ids="paint", key="summary")


@pytest.mark.parametrize(
    "make", [Path, PurePosixPath, lambda text: ObjectStoragePath(f"file://{text}")], ids=["Path", "Pure", "Object"]
)
def test_an_output_path_may_be_a_path_object(paint, tmp_path, make):
    folder = tmp_path / "pictures"
    instance, error = paint(output_path=make(str(folder)))
    assert (instance.state, error) == ("success", None)
    assert len(list(folder.glob("*.png"))) == 1
    assert summary_of(instance)["output_path"] == str(make(str(folder)))


def test_an_output_path_may_be_a_symlink_to_a_folder(paint, tmp_path):
    """Links inside the folder are never followed; the path to it is the author's choice."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "pictures").symlink_to("disk")
    instance, error = paint(output_path=str(tmp_path / "pictures"), contact_sheet=True, thumbnail_pixels=64)
    assert (instance.state, error) == ("success", None)
    assert len(list((tmp_path / "disk").glob("paint-*.png"))) == 1
    assert (tmp_path / "disk/metadata.jsonl").read_text().count("\n") == 1


def test_integers_from_a_table_may_be_floats_or_text(paint, tmp_path):
    instance, error = paint(output_path=str(tmp_path), concurrency=4.0, thumbnail_pixels="64")
    assert (instance.state, error) == ("success", None)
    _, error = paint(output_path=str(tmp_path), concurrency=4.5)
    assert isinstance(error, InvalidArgumentsError)
    assert [problem.field for problem in error.problems] == ["concurrency"]


def test_a_relative_path_object_is_relative_to_the_working_directory(paint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    instance, _ = paint(output_path=Path("out"))
    assert instance.state == "success"
    assert len(list((tmp_path / "out").glob("*.png"))) == 1


def test_an_output_path_may_come_from_a_task(run_dag, tmp_path):
    with DAG("path_from_task", schedule=None) as dag:

        @task
        def folder() -> ObjectStoragePath:
            return ObjectStoragePath(f"file://{tmp_path}/from-task")

        ImagenGenerateOperator(task_id="paint", prompt="A cat", output_path=folder())
    assert run_dag(dag).get_task_instance("paint").state == "success"
    assert len(list((tmp_path / "from-task").glob("*.png"))) == 1


def test_digits_that_native_rendering_turned_into_a_number_still_name_a_folder_and_a_file(paint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    instance, error = paint(
        native=True, params={"day": "20260101"}, output_path="{{ params.day }}", filename="{{ params.day }}"
    )
    assert (instance.state, error) == ("success", None)
    assert os.listdir(tmp_path) == ["20260101"]
    assert (tmp_path / "20260101" / "20260101.png").is_file()


@pytest.mark.parametrize("name", ["output_path", "filename"])
@pytest.mark.parametrize("wrong", [["a"], {"a": 1}, 1.5, True, b"pictures"])
def test_an_invalid_path_is_rejected_by_argument_name_before_paying(paint, sandbox, tmp_path, name, wrong):
    _, error = paint(**{"output_path": str(tmp_path / "pictures"), name: wrong})
    assert isinstance(error, InvalidArgumentsError)
    assert f"{name}={wrong!r}: " in str(error)
    assert sandbox.ledger() == []


@pytest.mark.parametrize(
    "given",
    [
        Path,
        lambda text: ObjectStoragePath(f"file://{text}"),
        lambda text: [Path(text)],
        lambda text: {"path": Path(text), "url": None},
    ],
    ids=["Path", "Object", "list", "record"],
)
def test_input_images_may_be_path_objects(paint, tmp_path, given):
    source = tmp_path / "red.png"
    Image.new("RGB", (64, 48), (220, 20, 20)).save(source)
    hook = ImagenHook()
    (generation,) = hook.generate_images(**PICTURES_FIELD, input_images=given(str(source)))
    assert len(generation.urls) == 1
    instance, error = paint(**PICTURES_FIELD, input_images=given(str(source)))
    assert (instance.state, error) == ("success", None)


def test_the_hook_stores_into_a_path_object(tmp_path):
    hook = ImagenHook()
    data = hook.download(hook.generate_images("A cat")[0].urls[0])
    assert hook.store(data, folder=tmp_path / "kept", name="cat")["file_name"] == "cat.png"
    assert hook.store(data, folder=ObjectStoragePath(f"file://{tmp_path}/kept"), name="dog")["file_name"] == "dog.png"
    assert sorted(path.name for path in (tmp_path / "kept").glob("*.png")) == ["cat.png", "dog.png"]


def test_numbers_name_items(paint, tmp_path):
    from decimal import Decimal

    prompts = [{"prompt": "a", "name": 1001}, {"prompt": "b", "name": 1002.0}, {"prompt": "c", "name": Decimal(1003)}]
    instance, error = paint(prompt=prompts, output_path=str(tmp_path), filename="{name}")
    assert (instance.state, error) == ("success", None)
    assert sorted(path.stem for path in tmp_path.glob("*.png")) == ["1001", "1002", "1003"]


@pytest.mark.parametrize("name", [1.5, True, ["a"], ""])
def test_an_invalid_name_is_rejected_with_its_position(paint, sandbox, name):
    _, error = paint(prompt=[{"prompt": "a"}, {"prompt": "b", "name": name}, {"prompt": "c"}])
    if name == "":  # an empty cell of a table is not given
        assert error is None
    else:
        assert isinstance(error, InvalidArgumentsError)
        assert "prompt[1].name=" in str(error)
        assert sandbox.ledger() == []


@pytest.mark.parametrize("value", [None, [], ["a harbour", "a lighthouse"], {"prompt": "a harbour"}])
def test_a_template_that_renders_no_prompt_is_not_paid_for(run_dag, recorded, sandbox, value):
    errors = []
    with DAG("no_prompt", schedule=None) as dag:

        @task
        def upstream():
            return value

        upstream() >> recorded(task_id="paint", errors=errors, prompt=["a cat", "{{ ti.xcom_pull('upstream') }}"])
    assert run_dag(dag).get_task_instance("paint").state == "failed"
    assert isinstance(errors[0], InvalidArgumentsError)
    assert "prompt[1]" in str(errors[0])
    assert sandbox.ledger() == []


def test_the_upstream_result_itself_is_a_list_of_prompts(run_dag, sandbox):
    with DAG("list_of_prompts", schedule=None) as dag:

        @task
        def upstream():
            return ["a harbour", "a lighthouse"]

        ImagenGenerateOperator(task_id="paint", prompt=upstream())
    assert run_dag(dag).get_task_instance("paint").state == "success"
    assert len(sandbox.ledger()) == 2
