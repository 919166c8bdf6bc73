"""What the operator does with pictures at rest: names, story, stores that are not there, links that are dead."""

from __future__ import annotations

import json
import logging
import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import DAG, task

from airflow_provider_imagen.exceptions import ItemsFailedError, JournalError, LinkExpiredError, StorageError
from airflow_provider_imagen.hooks.imagen import ImagenHook
from airflow_provider_imagen.journal.stores import FolderJournalStore, TaskStateJournalStore
from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
from airflow_provider_imagen.sandbox import Fault
from airflow_provider_imagen.storage.provenance import DIGITAL_SOURCE_TYPE, read_provenance

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from airflow_provider_imagen.sandbox import Sandbox

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("imagen_connection")]

RACCOON = "A raccoon eating ice-cream"


class Storing:
    """Run one operator in a DAG of its own, writing into one folder."""

    def __init__(self, run_dag: Callable[..., Any], recorded: Callable[..., Any], folder: Path) -> None:
        self._run_dag = run_dag
        self._recorded = recorded
        self._number = 0
        self.folder = folder
        self.errors: list[BaseException] = []

    def __call__(self, **arguments: Any) -> str:
        self._number += 1
        self.errors = []
        with DAG(f"storing_{id(self)}_{self._number}", schedule=None) as dag:
            self._recorded(
                task_id="paint",
                errors=self.errors,
                retry_delay=timedelta(0),
                **{"prompt": RACCOON, "output_path": str(self.folder), **arguments},
            )
        self.run = self._run_dag(dag)
        return str(self.run.state)

    @property
    def images(self) -> list[dict[str, Any]]:
        return self.run.get_task_instance("paint").xcom_pull(task_ids="paint", key="images")

    def manifest(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "metadata.jsonl").read_text().splitlines()]

    def story(self) -> dict[str, Any]:
        (path,) = self.folder.glob("*.png")
        return read_provenance(path.read_bytes())


@pytest.fixture
def paint(run_dag: Callable[..., Any], recorded: Callable[..., Any], tmp_path: Path) -> Storing:
    return Storing(run_dag, recorded, tmp_path / "pictures")


# What made a picture


def test_an_image_embeds_how_it_was_generated(paint: Storing) -> None:
    assert paint(seed=7, aspect_ratio="16:9") == "success"

    (image,) = paint.images
    story = paint.story()
    assert story["digital_source_type"] == DIGITAL_SOURCE_TYPE
    assert (story["prompt"], story["model"], story["seed"]) == (RACCOON, image["model"], 7)
    assert story["inference_id"] == image["inference_id"]
    assert story["parameters"]["aspect_ratio"] == "16:9"
    assert (story["task_id"], story["run_id"]) == ("paint", paint.run.run_id)


def test_a_provenance_mapping_changes_adds_and_removes_fields_of_the_file_only(paint: Storing) -> None:
    changes = {"prompt": None, "dag_id": None, "run_id": None, "model": "house style", "aspect_ratio": None, "shop": 12}
    assert paint(seed=7, aspect_ratio="16:9", provenance=changes) == "success"

    story = paint.story()
    assert {"prompt", "dag_id", "run_id"} & set(story) == set()
    assert story["model"] == "house style"
    assert story["parameters"] == {"shop": 12}
    assert (story["seed"], story["task_id"]) == (7, "paint")
    (image,), (line,) = paint.images, paint.manifest()
    assert image["prompt"] == line["prompt"] == RACCOON
    assert image["model"] == line["model"] == "imagen-3.0-generate-002"
    assert line["run_id"] == paint.run.run_id
    assert "shop" not in line


def test_an_author_describes_an_image_and_names_its_writer(paint: Storing) -> None:
    provenance = {"prompt_writer": "Ada", "model_version": "002", "digital_source_type": "compositeSynthetic"}
    item = {"prompt": RACCOON, "alt_text": "A raccoon"}
    assert paint(prompt=[item], seed=7, provenance=provenance) == "success"

    story = paint.story()
    assert (story["prompt"], story["alt_text"]) == (RACCOON, "A raccoon")
    assert (story["prompt_writer"], story["model_version"]) == ("Ada", "002")
    assert story["digital_source_type"].endswith("/compositeSynthetic")


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({"digital_source_type": "photo"}, "digitalCapture"),
        ({"parameters": "x"}, "a mapping of API fields or None is allowed"),
        ({"map_index": "x"}, "a whole number or None is allowed"),
    ],
)
def test_provenance_that_cannot_be_embedded_is_rejected_before_paying(
    changes: dict[str, Any], allowed: str, paint: Storing, sandbox: Sandbox
) -> None:
    assert paint(provenance=changes) == "failed"
    assert allowed in str(paint.errors[-1])
    assert sandbox.ledger() == []


def test_without_provenance_the_file_is_what_the_api_delivered(paint: Storing, sandbox: Sandbox) -> None:
    assert paint(provenance=False) == "success"

    (image,) = paint.images
    assert paint.story() == {}
    (path,) = paint.folder.glob("*.png")
    hook = ImagenHook()
    assert path.read_bytes() == hook.download(image["url"])
    hook.close()


# Names that two want


def test_a_later_run_never_replaces_the_images_of_an_earlier_one_and_warns_once(
    paint: Storing, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    wishes = {"prompt": [{"prompt": RACCOON, "name": name} for name in "ab"], "filename": "{name}.{extension}"}
    assert paint(**wishes, seed=1) == "success"
    first = {path.name: path.read_bytes() for path in paint.folder.glob("*.png")}
    with caplog.at_level(logging.WARNING, "airflow_provider_imagen.run.image_sink"):
        assert paint(**wishes, seed=2) == "success"

    assert first.keys() == {"a.png", "b.png"}
    for name, data in first.items():
        assert (paint.folder / name).read_bytes() == data
    assert len(list(paint.folder.glob("*.png"))) == len(paint.manifest()) == len(sandbox.ledger()) == 4
    assert len([message for message in caplog.messages if "is not replaced" in message]) == 1


def test_mapped_tasks_with_the_same_file_name_all_keep_their_images(
    run_dag: Callable[..., Any], tmp_path: Path, sandbox: Sandbox
) -> None:
    with DAG("same_names", schedule=None) as dag:
        ImagenGenerateOperator.partial(
            task_id="paint", output_path=str(tmp_path), filename="picture.{extension}", thumbnail_pixels=32
        ).expand(prompt=["one", "two", "three"])
    assert str(run_dag(dag).state) == "success"

    lines = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    assert {line["prompt"] for line in lines} == {"one", "two", "three"}
    for line in lines:
        assert read_provenance((tmp_path / line["file_name"]).read_bytes())["prompt"] == line["prompt"]
        assert (tmp_path / line["thumbnail"]).is_file()
    assert len(list(tmp_path.glob("*.png"))) == len(sandbox.ledger()) == 3


def test_a_file_written_by_a_person_is_not_replaced(paint: Storing) -> None:
    paint.folder.mkdir()
    (paint.folder / "logo.png").write_bytes(b"mine")
    assert paint(filename="logo.{extension}") == "success"

    assert (paint.folder / "logo.png").read_bytes() == b"mine"
    assert len(paint.manifest()) == 1


def test_a_cleared_task_replaces_its_own_images(run_dag: Callable[..., Any], tmp_path: Path, sandbox: Sandbox) -> None:
    with DAG("cleared", schedule=None) as dag:
        ImagenGenerateOperator(task_id="paint", prompt=RACCOON, output_path=str(tmp_path), filename="logo.{extension}")
    run = run_dag(dag)
    first = (tmp_path / "logo.png").read_bytes()
    ti = run.get_task_instance("paint")
    context = {"ti": _Instance(ti.dag_id, ti.run_id)}
    ImagenGenerateOperator(
        task_id="paint", prompt="Something else", output_path=str(tmp_path), filename="logo.{extension}"
    ).execute(context)

    assert [path.name for path in tmp_path.glob("*.png")] == ["logo.png"]
    assert (tmp_path / "logo.png").read_bytes() != first
    assert len(sandbox.ledger()) == 2


class _Instance:
    """The same task instance, a second time."""

    task_id = "paint"
    map_index = -1

    def __init__(self, dag_id: str, run_id: str) -> None:
        self.dag_id = dag_id
        self.run_id = run_id


# What is not there


@pytest.mark.parametrize(
    ("url", "extra"),
    [
        ("s3://shop@bucket/x", "s3"),
        ("gs://shop@bucket/x", "gcs"),
        ("abfs://shop@container/x", "azure"),
    ],
)
def test_a_store_whose_extra_is_missing_is_reported_with_the_install_command(
    paint: Storing, sandbox: Sandbox, url: str, extra: str
) -> None:
    assert paint(output_path=url) == "failed"

    (error,) = paint.errors
    assert isinstance(error, StorageError)
    assert f"pip install 'airflow-provider-imagen[{extra}]'" in str(error)
    assert sandbox.seen("/v1/images/generations") == []


def test_an_expired_url_is_reported_with_its_host_and_age(paint: Storing, sandbox: Sandbox) -> None:
    sandbox.add_fault(Fault("expired", times=None))
    assert paint() == "failed"

    (error,) = paint.errors
    assert isinstance(error, LinkExpiredError)
    assert str(error.host) in str(error)
    assert "The API returned the URL" in str(error)
    assert "seconds ago" in str(error)
    assert "?" not in str(error)


def test_a_failure_is_reported_even_if_the_manifest_cannot_be_written(
    paint: Storing, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_provider_imagen.operators import publish

    def refuse(*_: Any, **__: Any) -> str:
        raise StorageError("The store is away.")

    monkeypatch.setattr(publish, "write_manifest", refuse)
    sandbox.add_fault(Fault("upstream_4xx", prompt="bad", times=None))
    assert paint(prompt=["good", "bad"]) == "failed"
    assert isinstance(paint.errors[-1], ItemsFailedError)
    assert len(paint.images) == 1

    assert paint(prompt="good") == "failed"
    assert isinstance(paint.errors[-1], StorageError)


# The hook alone


def test_a_task_stores_an_image_from_elsewhere_with_its_provenance(
    run_dag: Callable[..., Any], tmp_path: Path, sandbox: Sandbox
) -> None:
    with DAG("by_hook", schedule=None) as dag:

        @task
        def keep() -> Any:
            hook = ImagenHook()
            (generation,) = hook.generate_images(RACCOON)
            return hook.store(
                generation.urls[0],
                folder=str(tmp_path),
                name="sub/raccoon",
                provenance={"model": "another", "prompt": RACCOON, "campaign": "spring"},
                image_format="webp",
                thumbnail_pixels=32,
            )

        keep()
    run = run_dag(dag)

    record = run.get_task_instance("keep").xcom_pull(task_ids="keep")
    data = (tmp_path / "sub" / "raccoon.webp").read_bytes()
    assert record["path"] == str(tmp_path / "sub" / "raccoon.webp")
    assert (record["file_name"], record["bytes"], record["mime_type"]) == (
        "sub/raccoon.webp",
        len(data),
        "image/webp",
    )
    assert (record["model"], record["prompt"], record["dag_id"]) == ("another", RACCOON, "by_hook")
    assert record["url"].startswith(sandbox.cdn_url)
    assert (tmp_path / record["thumbnail"]).is_file()
    story = read_provenance(data)
    assert (story["model"], story["task_id"], story["parameters"]) == ("another", "keep", {"campaign": "spring"})
    assert story["digital_source_type"] == DIGITAL_SOURCE_TYPE


@pytest.mark.parametrize("num_images", [1, 2])
def test_an_image_whose_response_was_not_journaled_is_reused_from_the_manifest(
    paint: Storing, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, num_images: int
) -> None:
    """Airflow's database is away from the answer on until the next try: paid, stored, and nowhere in the journal."""
    refused: list[str] = []
    for store in (TaskStateJournalStore, FolderJournalStore):

        def write(self: Any, name: str, text: str, original: Any = store.write) -> None:
            if '"t":"response"' in text and not refused:
                refused.append(name)
                raise ConnectionError("the database is away")
            original(self, name, text)

        monkeypatch.setattr(store, "write", write)
    sandbox.add_fault(Fault("signed_links", times=None))

    assert paint(retries=1, num_images=num_images) == "success"

    assert refused
    assert [type(error) for error in paint.errors] == [JournalError]
    (charge,) = sandbox.ledger()
    summary = paint.run.get_task_instance("paint").xcom_pull(task_ids="paint", key="summary")
    assert (summary["made"], summary["adopted"], summary["usd_lost"]) == (num_images, num_images, 0)
    assert summary["usd_spent"] == pytest.approx(float(charge.usd))
    assert summary["usd_is_estimate"]
    assert paint.images == [{name: line[name] for name in paint.images[0]} for line in paint.manifest()]
    assert len(list(paint.folder.glob("*.png"))) == num_images


def test_an_attempt_that_fails_after_its_images_are_stored_leaves_nothing_to_buy_or_to_download(
    paint: Storing, sandbox: Sandbox
) -> None:
    failed: list[object] = []

    def fail_once(context: Any, result: Any = None) -> None:
        if not failed:
            failed.append(context)
            raise OSError("the worker lost its disk")

    assert paint(retries=1, prompt=[RACCOON, "A fox"], post_execute=fail_once) == "success"

    assert failed
    assert len(sandbox.ledger()) == 2
    downloads = [request.path for request in sandbox.seen() if request.host == "cdn"]
    assert len(downloads) == len(set(downloads)) == 2
    summary = paint.run.get_task_instance("paint").xcom_pull(task_ids="paint", key="summary")
    assert (summary["made"], summary["adopted"], summary["usd_lost"]) == (2, 2, 0)
    assert len(list(paint.folder.glob("*.png"))) == len(paint.manifest()) == 2


def test_a_rejected_attempt_keeps_the_images_that_only_the_manifest_lists(
    paint: Storing, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first attempt cannot journal where its image is, and the second has an invalid argument."""
    refused: list[str] = []
    for store in (TaskStateJournalStore, FolderJournalStore):

        def write(self: Any, name: str, text: str, original: Any = store.write) -> None:
            if '"t":"write_committed"' in text:
                refused.append(name)
                raise ConnectionError("the database is away")
            original(self, name, text)

        monkeypatch.setattr(store, "write", write)

    def fail(context: Any, result: Any = None) -> None:
        raise OSError("the worker lost its disk")

    ratio = "{{ '1:1' if ti.try_number == 1 else '7:3' }}"
    assert paint(retries=1, aspect_ratio=ratio, post_execute=fail) == "failed"

    assert refused
    assert len(sandbox.ledger()) == 1
    (line,) = paint.manifest()
    assert [image["path"] for image in paint.images] == [str(paint.folder / line["file_name"])]


# Folders that others can write to


def test_a_planted_symlink_publishes_nothing(paint: Storing, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text('{"file_name": "a.png", "text": "hush-hush"}\nhush-hush\n')
    paint.folder.mkdir()
    (paint.folder / "metadata.jsonl").symlink_to(secret)
    assert paint(contact_sheet=True, thumbnail_pixels=64) == "success"
    assert [line["prompt"] for line in paint.manifest()] == [RACCOON]
    assert not (paint.folder / "metadata.jsonl").is_symlink()
    assert secret.read_text().count("hush-hush") == 2


@pytest.mark.parametrize("name", [".imagen", ".imagen/parts", ".imagen/thumbnails", ".imagen/contact-sheets", "sub"])
def test_a_symlinked_subfolder_is_rejected_before_paying(
    paint: Storing, sandbox: Sandbox, tmp_path: Path, name: str
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (paint.folder / name).parent.mkdir(parents=True)
    (paint.folder / name).symlink_to(elsewhere)
    assert paint(contact_sheet=True, thumbnail_pixels=64, filename="sub/{name}") == "failed"
    assert isinstance(paint.errors[-1], StorageError)
    assert "symbolic link" in str(paint.errors[-1])
    assert sandbox.ledger() == []
    assert list(elsewhere.iterdir()) == []


@pytest.mark.timeout(60)
def test_a_pipe_in_place_of_the_manifest_blocks_nothing(paint: Storing) -> None:
    paint.folder.mkdir()
    os.mkfifo(paint.folder / "metadata.jsonl")
    assert paint() == "success"
    assert len(paint.manifest()) == 1
