"""Pictures that go in, through a real Airflow and the sandbox."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
from airflow.sdk import DAG, task
from PIL import Image

from airflow_provider_imagen.exceptions import InvalidArgumentsError
from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
from airflow_provider_imagen.sandbox import Fault
from airflow_provider_imagen.storage.provenance import read_provenance

pytestmark = pytest.mark.usefixtures("imagen_connection")

EDITORS = [
    "flux/kontext-pro/image-to-image",
    "bytedance/seedream-v4-edit",
    "alibaba/qwen-image-edit",
    "openai/gpt-image-1",
]


@pytest.fixture
def red(tmp_path):
    path = tmp_path / "red.png"
    Image.new("RGB", (64, 48), (220, 20, 20)).save(path)
    return path


@pytest.fixture
def paint(run_dag, recorded, tmp_path):
    """Run one operator; give the task instance and the error that ended it."""
    numbers = iter(range(100))

    def paint(**arguments):
        errors = []
        with DAG(f"inputs_{tmp_path.name}_{next(numbers)}", schedule=None) as dag:
            recorded(
                task_id="paint",
                errors=errors,
                retry_delay=timedelta(0),
                **{"output_path": str(tmp_path / "out"), **arguments},
            )
        return run_dag(dag).get_task_instance("paint"), (errors or [None])[-1]

    return paint


def mean_color(path):
    with Image.open(path) as picture:
        return picture.convert("RGB").resize((1, 1)).getpixel((0, 0))


@pytest.mark.parametrize("model", EDITORS)
def test_the_input_image_reaches_the_model(paint, red, model):
    ti, _ = paint(prompt="night market", model=model, input_images=str(red))
    (image,) = ti.xcom_pull(task_ids="paint", key="images")
    color = mean_color(image["path"])
    assert color[0] == max(color)
    source_type = read_provenance(Path(image["path"]).read_bytes())["digital_source_type"]
    assert source_type.endswith("/compositeWithTrainedAlgorithmicMedia")


def test_each_item_may_have_its_own_input_images_and_templates_are_rendered(paint, red, sandbox):
    ti, _ = paint(
        prompt=[
            {"prompt": "a", "input_images": "{{ params.folder }}/red.png"},
            {"prompt": "b", "model": "flux/schnell", "input_images": None},
            "c",
        ],
        model="flux/kontext-pro/image-to-image",
        input_images="https://pictures.example/cat.png",
        params={"folder": str(red.parent)},
    )
    assert str(ti.state) == "success"
    sent = {request.json["prompt"]: request.json for request in sandbox.seen("/v1/images/generations")}
    assert sent["a"]["image_url"].startswith("data:image/png;base64,")
    assert "image_url" not in sent["b"]
    assert sent["c"]["image_url"] == "https://pictures.example/cat.png"


def test_records_pass_from_task_to_task_mapped_ones_included(run_dag, sandbox, tmp_path):
    with DAG("inputs_chain", schedule=None) as dag:
        made = ImagenGenerateOperator.partial(task_id="make", output_path=str(tmp_path)).expand(prompt=["one", "two"])

        @task
        def records(ti):
            return list(ti.xcom_pull(task_ids="make", key="images"))

        given = records()
        made >> given
        ImagenGenerateOperator(
            task_id="join",
            prompt="both in one",
            model="alibaba/qwen-image-3-edit",
            input_images=given,
            output_path=str(tmp_path),
        )
    run = run_dag(dag)
    assert str(run.state) == "success"
    (last,) = [r for r in sandbox.seen("/v1/images/generations") if r.json["prompt"] == "both in one"]
    assert [uri[:22] for uri in last.json["image_urls"]] == ["data:image/png;base64,"] * 2


def test_a_missing_input_image_costs_nothing(paint, red, sandbox):
    ti, error = paint(
        prompt=["a", {"prompt": "b", "input_images": [str(red), "/nowhere/cat.png"]}],
        model="flux/kontext-pro/image-to-image",
        input_images=str(red),
        retries=2,
    )
    assert str(ti.state) == "failed"
    assert ti.try_number == 1
    assert isinstance(error, InvalidArgumentsError)
    assert [problem.field for problem in error.problems] == ["prompt[1].input_images[1]"]
    assert sandbox.seen("/v1/images/generations") == []


@pytest.mark.parametrize(("changes", "bought"), [(False, 1), (True, 2)])
def test_a_retry_reuses_what_was_paid_for_unless_the_input_image_has_changed(paint, red, sandbox, changes, bought):
    def between_tries(context):
        if changes:
            Image.new("RGB", (64, 48), (20, 220, 20)).save(red)

    sandbox.add_fault(Fault("oversized", times=1))  # paid for, and not to be had at the first try
    ti, _ = paint(
        prompt="night",
        model="flux/kontext-pro/image-to-image",
        input_images=str(red),
        retries=1,
        on_retry_callback=between_tries,
    )
    assert (str(ti.state), ti.try_number) == ("success", 2)
    assert len(sandbox.ledger()) == bought


def test_the_image_does_not_reveal_the_inputs_location_and_the_manifest_only_as_the_argument(paint, red, tmp_path):
    ti, _ = paint(prompt="night", model="flux/kontext-pro/image-to-image", input_images=str(red))
    (image,) = ti.xcom_pull(task_ids="paint", key="images")
    manifest = (tmp_path / "out" / "metadata.jsonl").read_text()
    line = json.loads(manifest)
    arguments = json.loads(line.pop("arguments"))
    data = Path(image["path"]).read_bytes()
    assert arguments["input_images"] == str(red)
    assert str(red) not in json.dumps(line)
    assert "base64" not in manifest
    assert str(red).encode() not in data
    assert b"sha256:" in data


def test_the_edits_endpoint_is_used_with_a_mask(paint, red, sandbox, tmp_path):
    mask = tmp_path / "mask.png"
    Image.new("RGBA", (64, 48), (0, 0, 0, 0)).save(mask)
    ti, _ = paint(
        prompt="a hat", model="openai/gpt-image-1", input_images=str(red), num_images=2, parameters={"mask": str(mask)}
    )
    assert str(ti.state) == "success"
    (request,) = sandbox.seen("/v1/images/edits")
    assert request.headers["content-type"].startswith("multipart/form-data")
    (charge,) = sandbox.ledger()
    assert charge.images == 2


def test_a_fallback_model_gets_the_input_image_in_its_own_field(paint, red, sandbox):
    sandbox.add_fault(Fault("withdrawn", model="flux/kontext-pro/image-to-image", times=None))
    ti, _ = paint(
        prompt="night",
        model="flux/kontext-pro/image-to-image",
        fallback_models=["bytedance/seedream-v4-edit"],
        input_images=str(red),
    )
    assert str(ti.state) == "success"
    fields = [set(request.json) & {"image_url", "image_urls"} for request in sandbox.seen("/v1/images/generations")]
    assert fields == [{"image_url"}, {"image_urls"}]
    assert json.dumps(ti.xcom_pull(task_ids="paint", key="summary"))


def test_input_roots_restricts_tasks_to_its_folders(paint, red, sandbox, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    inside = tmp_path / "in" / "blue.png"
    Image.new("RGB", (64, 48), (20, 20, 220)).save(inside)
    monkeypatch.setenv("AIRFLOW__IMAGEN__INPUT_ROOTS", f"{tmp_path / 'elsewhere'}, {tmp_path / 'in'}")
    ti, error = paint(prompt="night", model="flux/kontext-pro/image-to-image", input_images=str(red), retries=1)
    assert (str(ti.state), ti.try_number) == ("failed", 1)
    assert [(problem.field, problem.allowed) for problem in error.problems] == [
        ("input_images", "only files in the folders of [imagen] input_roots are allowed")
    ]
    assert sandbox.seen("/v1/images/generations") == []
    ti, _ = paint(prompt="night", model="flux/kontext-pro/image-to-image", input_images=str(inside))
    assert str(ti.state) == "success"


def test_a_relative_input_root_is_an_error(paint, red, sandbox, monkeypatch):
    monkeypatch.setenv("AIRFLOW__IMAGEN__INPUT_ROOTS", "pictures")
    ti, error = paint(prompt="night", model="flux/kontext-pro/image-to-image", input_images=str(red))
    assert str(ti.state) == "failed"
    assert "[imagen] input_roots='pictures': an absolute path or a URI" in str(error)
    assert sandbox.seen("/v1/images/generations") == []
