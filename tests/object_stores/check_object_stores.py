"""
Images in object stores: complete, with type and metadata, never partial, and never paid for twice.

``set-up.sh`` installs what this needs and runs it.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from object_store_servers import BUCKET, Azure, Gcs, Refusal
from PIL import Image

from airflow_provider_imagen.exceptions import StorageError
from airflow_provider_imagen.hooks.imagen import ImagenHook
from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
from airflow_provider_imagen.operators.journal_location import finish_journal
from airflow_provider_imagen.sandbox import Fault
from airflow_provider_imagen.storage.atomic_write import write_bytes_atomically
from airflow_provider_imagen.storage.provenance import read_provenance

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_imagen.sandbox import Sandbox

    from .conftest import Painting, Place

RACCOON = "A raccoon eating ice-cream"
SHADES = ["one raccoon", "two raccoons", "three raccoons"]


class WithoutStateStore(ImagenGenerateOperator):
    """The operator as Airflow 3.1 and 3.2 run it: without a task state store."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.on_success_callback = [lambda context: finish_journal(without_state_store(context))]

    def execute(self, context: Any) -> Any:
        return super().execute(without_state_store(context))


def without_state_store(context: Any) -> Any:
    return {name: value for name, value in context.items() if name != "task_state_store"}


def test_images_are_stored_complete_and_typed_with_manifest_previews_and_sheet(
    place: Place, paint: Painting, sandbox: Sandbox
) -> None:
    state = paint(prompt=SHADES, output_path=place.url, thumbnail_pixels=64, contact_sheet=True)

    assert state == "success"
    names = place.pictures()
    assert len(names) == 3
    for line in place.manifest():
        data, content_type = place.read(line["file_name"])
        assert content_type == line["mime_type"] == "image/png"
        assert (len(data), hashlib.sha256(data).hexdigest()) == (line["bytes"], line["sha256"])
        with Image.open(BytesIO(data)) as image_file:
            image_file.load()
            assert image_file.size == (line["width"], line["height"])
        assert read_provenance(data)["prompt"] == line["prompt"]
        preview, preview_type = place.read(line["thumbnail"])
        assert preview_type == "image/webp"
        with Image.open(BytesIO(preview)) as image_file:
            assert max(image_file.size) == 64
    assert [image["prompt"] for image in paint.images] == [line["prompt"] for line in place.manifest()] == SHADES
    assert [image["path"] for image in paint.images] == [
        f"{place.url}/{line['file_name']}" for line in place.manifest()
    ]
    sheet = paint.summary["contact_sheet"].removeprefix(f"{place.url}/")
    assert place.read(sheet)[1] == "image/webp"
    hidden = {key for key in place.list() if key.startswith(".imagen/")}
    assert len(hidden) == 3 + 1 + 1 + 1  # previews, the sheet, a part of the manifest, the note about the folder
    assert set(place.list()) == {*names, *hidden, "metadata.jsonl"}
    assert len(sandbox.ledger()) == 3


def test_base64_responses_are_stored_and_passed_on_by_path(place: Place, paint: Painting) -> None:
    assert paint(prompt=RACCOON, convert_base64_to_url=False, output_path=place.url) == "success"

    (image,) = paint.images
    assert image["url"] is None
    assert paint.pull("return_value") == [image["path"]]
    assert hashlib.sha256(place.read(place.pictures()[0])[0]).hexdigest() == image["sha256"]


@pytest.mark.parametrize("operator", [ImagenGenerateOperator, WithoutStateStore])
def test_a_retry_reuses_stored_images(place: Place, paint: Painting, sandbox: Sandbox, operator: Any) -> None:
    sandbox.add_fault(Fault("status", status=503, retry_after=0, prompt="two", times=6))  # for the whole first attempt
    journals: list[list[str]] = []

    def look() -> None:
        journals.append([key for key in place.list() if "journal" in key])

    assert paint(operator=operator, prompt=SHADES, output_path=place.url, retries=1, on_retry=look) == "success"
    assert sorted(charge.prompt for charge in sandbox.ledger()) == sorted(SHADES)
    assert paint.summary["adopted"] == 2
    assert len([request for request in sandbox.seen() if request.host == "cdn"]) == 3
    assert len(place.manifest()) == len(place.pictures()) == 3
    assert bool(journals[0]) == (operator is WithoutStateStore)
    assert [key for key in place.list() if "journal" in key] == []  # deleted after success


def test_an_image_deleted_between_attempts_is_downloaded_again_without_paying(
    place: Place, paint: Painting, sandbox: Sandbox
) -> None:
    from airflow.sdk import ObjectStoragePath

    sandbox.add_fault(Fault("status", status=503, retry_after=0, prompt="two", times=6))

    def remove() -> None:
        ObjectStoragePath(f"{place.url}/{place.pictures()[0]}").unlink()

    assert paint(prompt=SHADES, output_path=place.url, retries=1, on_retry=remove) == "success"
    assert len(sandbox.ledger()) == len(place.pictures()) == 3
    assert len([request for request in sandbox.seen() if request.host == "cdn"]) == 4


def test_a_missing_bucket_is_reported_before_paying(place: Place, paint: Painting, sandbox: Sandbox) -> None:
    state = paint(prompt=RACCOON, output_path=place.at(place.connect(), "no-such-bucket/out"))

    assert state == "failed"
    assert isinstance(paint.errors[-1], StorageError)
    assert "the bucket or container does not exist" in str(paint.errors[-1])
    assert sandbox.seen("/v1/images/generations") == []


def test_a_wrong_secret_is_reported_before_paying_and_not_shown(
    place: Place, paint: Painting, sandbox: Sandbox
) -> None:
    if not place.store.checks_secrets:  # then the gate responds as the real store would
        place.store.gate.refuses = "everything"
    state = paint(prompt=RACCOON, output_path=place.at(place.connect(good=False), f"{BUCKET}/{place.folder}"))

    assert state == "failed"
    assert isinstance(paint.errors[-1], StorageError)
    assert "no permission" in str(paint.errors[-1])
    assert "wrong" not in str(paint.errors[-1]).replace("_wrong@", "")
    assert sandbox.seen("/v1/images/generations") == []
    place.store.gate.refuses = "nothing"
    assert place.list() == []


def test_a_read_only_connection_is_reported_before_paying(place: Place, paint: Painting, sandbox: Sandbox) -> None:
    place.store.gate.refuses = "writes"

    assert paint(prompt=RACCOON, output_path=place.url) == "failed"
    assert isinstance(paint.errors[-1], StorageError)
    assert "no permission" in str(paint.errors[-1])
    assert sandbox.seen("/v1/images/generations") == []


def test_losing_a_permission_after_paying_costs_nothing_more(place: Place, paint: Painting, sandbox: Sandbox) -> None:
    place.store.gate.refuses = "pictures"
    before: list[list[str]] = []

    def give_back() -> None:
        place.store.gate.refuses = "nothing"
        before.append(place.pictures())

    assert paint(prompt=RACCOON, output_path=place.url, retries=1, on_retry=give_back) == "success"
    assert isinstance(paint.errors[0], StorageError)
    assert "no permission" in str(paint.errors[0])
    assert before == [[]]
    assert len(sandbox.ledger()) == len(place.pictures()) == 1
    assert paint.summary["adopted"] == 1


@pytest.mark.timeout(300)  # the stores' own clients retry each call for up to a minute
def test_a_server_crash_during_an_upload_leaves_no_partial_image(
    place: Place, paint: Painting, sandbox: Sandbox
) -> None:
    gate = place.store.gate
    before: list[list[str]] = []
    gate.before_the_second_half = place.store.die

    def start_again() -> None:
        place.store.come_back()
        before.append(place.pictures())

    assert paint(prompt=RACCOON, output_path=place.url, retries=1, on_retry=start_again) == "success"
    assert gate.cuts
    assert isinstance(paint.errors[0], StorageError)
    assert before == [[]]
    assert len(sandbox.ledger()) == 1
    (line,) = place.manifest()
    assert hashlib.sha256(place.read(line["file_name"])[0]).hexdigest() == line["sha256"]


def test_a_second_run_does_not_replace_images_of_the_first(place: Place, paint: Painting, sandbox: Sandbox) -> None:
    arguments = {"prompt": {"prompt": RACCOON, "name": "raccoon"}, "filename": "{name}.{extension}"}
    assert paint(**arguments, seed=1, output_path=place.url) == "success"
    first = place.read("raccoon.png")
    assert paint(**arguments, seed=2, output_path=place.url) == "success"

    assert place.read("raccoon.png") == first
    assert len(place.pictures()) == len(place.manifest()) == len(sandbox.ledger()) == 2
    for line in place.manifest():
        assert hashlib.sha256(place.read(line["file_name"])[0]).hexdigest() == line["sha256"]


def test_one_of_many_concurrent_writers_claims_a_new_name(place: Place) -> None:
    from airflow.sdk import ObjectStoragePath

    path = ObjectStoragePath(f"{place.url}/wanted.png")
    with ThreadPoolExecutor(8) as pool:
        won = list(
            pool.map(
                lambda number: write_bytes_atomically(path, b"%d" % number, content_type="image/png", replace=False),
                range(8),
            )
        )

    assert won.count(True) == 1 if place.store.decides_creation else won.count(True) >= 1
    assert place.read("wanted.png")[0] in [b"%d" % number for number in range(8) if won[number]]
    assert write_bytes_atomically(path, b"late", content_type="image/png", replace=False) is False


def test_the_hook_stores_images_from_elsewhere(place: Place, imagen_connection: str) -> None:
    drawn = BytesIO()
    Image.radial_gradient("L").save(drawn, format="PNG")
    record = ImagenHook(imagen_connection).store(drawn.getvalue(), folder=place.url, name="moon", thumbnail_pixels=32)

    data, content_type = place.read("moon.png")
    assert (record["path"], content_type) == (f"{place.url}/moon.png", "image/png")
    assert hashlib.sha256(data).hexdigest() == record["sha256"]
    assert place.read(record["thumbnail"])[1] == "image/webp"


def test_the_batch_example_stores_and_its_next_task_reads_the_manifest(
    place: Place, run_dag: Callable[..., Any], sandbox: Sandbox, imagen_connection: str, capsys: Any
) -> None:
    from airflow.dag_processing.dagbag import DagBag

    example = Path(__file__).parents[2] / "example_dags" / "imagen_batch.py"
    dag = DagBag(dag_folder=str(example), bundle_name="dags-folder").dags["imagen_batch"]

    run = run_dag(dag, run_conf={"output_path": place.url})

    assert str(run.state) == "success"
    assert sorted(key.rpartition("/")[2] for key in place.pictures()) == ["C-230.png", "P-417.png", "T-100.png"]
    assert run.get_task_instance("publish").state == "success"
    manifest = run.get_task_instance("paint").xcom_pull(task_ids="paint", key="summary")["manifest"]
    lines = place.read(manifest.removeprefix(f"{place.url}/"))[0].splitlines()
    assert {json.loads(line)["file_name"] for line in lines} == {"C-230.png", "P-417.png", "T-100.png"}


def test_each_stores_rejection_is_reported_in_our_words(place: Place) -> None:
    """Expired credentials fail differently from missing permissions; both are reported as such."""
    from airflow.sdk import ObjectStoragePath

    gate = place.store.gate
    gate.refusal, gate.refuses = EXPIRED[place.store.name], "everything"
    try:
        with pytest.raises(StorageError) as caught:
            write_bytes_atomically(ObjectStoragePath(f"{place.url}/a.png"), b"a", content_type="image/png")
    finally:
        gate.refusal = place.store.refusal
    assert place.url in str(caught.value)
    assert "no permission" in str(caught.value) or "credentials" in str(caught.value)
    assert "SIGNATURE" not in str(caught.value)


EXPIRED = {
    **dict.fromkeys(
        ("s3", "s3-moto"),
        Refusal("400 Bad Request", b"<Error><Code>ExpiredToken</Code><Message>The token has expired</Message></Error>"),
    ),
    Gcs.name: Refusal(
        "401 Unauthorized", b'{"error": {"code": 401, "message": "Invalid Credentials"}}', "application/json"
    ),
    Azure.name: Refusal(
        "403 Forbidden",
        b"<?xml version='1.0'?><Error><Code>AuthenticationFailed</Code><Message>Signature not valid: "
        b"sig=SIGNATURE</Message></Error>",
    ),
}
