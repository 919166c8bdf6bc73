"""``reuse``: images that other runs have paid for with the same request are used again, and nothing else is."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
import zlib
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import fsspec
import pytest
from airflow.sdk import DAG, ObjectStoragePath
from airflow.sdk.io import attach
from PIL import Image

from airflow_provider_imagen.exceptions import FilteredError
from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
from airflow_provider_imagen.review import review_body
from airflow_provider_imagen.sandbox import Fault
from airflow_provider_imagen.storage.c2pa import has_content_credentials
from airflow_provider_imagen.storage.provenance import read_provenance

if TYPE_CHECKING:
    from airflow_provider_imagen.sandbox import Sandbox

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("imagen_connection")]

PRICE = 0.042


class Runs:
    """Runs of one task, each a run of the same DAG, into folders of the test."""

    def __init__(self, run_dag: Any, recorded: Any, sandbox: Sandbox, folder: Path) -> None:
        self._run_dag = run_dag
        self._recorded = recorded
        self.sandbox = sandbox
        self.folder = folder
        self.errors: list[BaseException] = []

    def __call__(self, prompt: Any, **arguments: Any) -> list[dict[str, Any]]:
        """Run the task, which must succeed, and return its records."""
        assert self.start(prompt, **arguments) == "success"
        images: list[dict[str, Any]] = self.xcom("images")
        return images

    def start(self, prompt: Any, **arguments: Any) -> str:
        """Run the task and return its state."""
        self.errors = []
        with DAG("reuse", schedule=None) as dag:
            self._recorded(
                task_id="paint",
                errors=self.errors,
                **{"prompt": prompt, "output_path": str(self.folder), "reuse": "unchanged", **arguments},
            )
        self.run = self._run_dag(dag)
        return str(self.run.state)

    def again(self, prompt: Any, run_id: str, **arguments: Any) -> dict[str, Any]:
        """Run the task instance of a run once more, as after a clear, and return its XComs."""
        xcoms: dict[str, Any] = {}

        def push(key: str, value: Any) -> None:
            xcoms[key] = value

        ti = SimpleNamespace(dag_id="reuse", run_id=run_id, task_id="paint", map_index=-1, xcom_push=push)
        operator = ImagenGenerateOperator(
            task_id="paint",
            **{"prompt": prompt, "output_path": str(self.folder), "reuse": "unchanged", **arguments},
        )
        operator.execute({"ti": ti})  # type: ignore[typeddict-item]
        shutil.rmtree(self.folder / ".imagen" / "journal", ignore_errors=True)  # as the listener does after a success
        return xcoms

    def xcom(self, key: str = "return_value") -> Any:
        return xcom(self.run, key)

    @property
    def summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = self.xcom("summary")
        return summary

    @property
    def paid(self) -> list[str]:
        """Prompts of all paid requests so far."""
        return [charge.prompt for charge in self.sandbox.ledger()]

    def manifest(self, folder: Path | None = None) -> list[dict[str, Any]]:
        return [json.loads(line) for line in ((folder or self.folder) / "metadata.jsonl").read_text().splitlines()]


@pytest.fixture
def paint(run_dag: Any, recorded: Any, sandbox: Sandbox, tmp_path: Path) -> Runs:
    return Runs(run_dag, recorded, sandbox, tmp_path / "pictures")


def xcom(run: Any, key: str, task_id: str = "paint") -> Any:
    return run.get_task_instance(task_id).xcom_pull(task_ids=task_id, key=key)


def counts(summary: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(summary[name] for name in ("made", "reused", "usd_spent", "usd_saved"))


# Backfills

BENCH = "A {{ ['white', 'red', 'blue', 'green'][[9, 17, 25] | select('le', logical_date.day) | list | length] }} bench"
"""A prompt that changes on three days of the month."""


@pytest.mark.parametrize("layout", ["a folder for each day", "one folder"])
def test_a_month_pays_only_for_what_changed(run_dag: Any, sandbox: Sandbox, tmp_path: Path, layout: str) -> None:
    has_daily_folders = layout == "a folder for each day"
    with DAG("month", schedule=None) as dag:
        ImagenGenerateOperator(
            task_id="paint",
            prompt=[{"name": "fox", "prompt": "A fox"}, {"name": "bench", "prompt": BENCH}],
            output_path=f"{tmp_path}/{{{{ ds }}}}" if has_daily_folders else str(tmp_path),
            reuse="unchanged",
            reuse_from=f"{tmp_path}/{{{{ macros.ds_add(ds, -1) }}}}" if has_daily_folders else None,
            filename="{name}.{extension}",
        )

    for day in range(1, 31):
        run = run_dag(dag, logical_date=datetime(2026, 6, day, tzinfo=UTC))
        assert str(run.state) == "success"
        summary, images = xcom(run, "summary"), xcom(run, "images")
        paid = 2 if day == 1 else 1 if day in (9, 17, 25) else 0
        assert counts(summary) == (2, 2 - paid, pytest.approx(paid * PRICE), pytest.approx((2 - paid) * PRICE))
        assert sum(image["usd"] for image in images) == pytest.approx(summary["usd_spent"])
        assert images[0]["prompt"] == "A fox"
        assert all(Path(image["path"]).is_file() for image in images)

    charged = [charge.prompt for charge in sandbox.ledger()]
    assert sorted(charged[:2]) == ["A fox", "A white bench"]
    assert charged[2:] == ["A red bench", "A blue bench", "A green bench"]
    folders = sorted(tmp_path.glob("2026-*")) or [tmp_path]
    lines = [json.loads(line) for each in folders for line in (each / "metadata.jsonl").read_text().splitlines()]
    assert sum(line["usd"] for line in lines) == pytest.approx(5 * PRICE)
    assert len(lines) == len(list(tmp_path.rglob("*.png"))) == (60 if has_daily_folders else 5)


# What counts as the same request


def test_any_change_pays_again_even_under_the_same_name(paint: Runs) -> None:
    base = {"prompt": "A fox", "name": "fox"}
    paint([base], filename="{name}.{extension}")
    for changed in (
        {**base, "prompt": "A fox."},
        {**base, "seed": 7},
        {**base, "aspect_ratio": "16:9"},
        {**base, "model": "flux/dev"},
        {**base, "num_images": 2},
        {**base, "person_generation": "dont_allow"},
    ):
        before = len(paint.paid)
        images = paint([changed], filename="{name}.{extension}")
        assert len(paint.paid) == before + 1, changed
        assert paint.summary["reused"] == 0
        assert all(image["reused_from"] is None for image in images)
    paid = len(paint.paid)
    paint([{"prompt": "A fox", "name": "another name"}], filename="{name}.{extension}")
    assert len(paint.paid) == paid
    assert paint.summary["reused"] == 1


def test_a_changed_input_image_pays_again_and_a_moved_one_does_not(paint: Runs, tmp_path: Path) -> None:
    source = tmp_path / "source.png"
    Image.new("RGB", (64, 64), "red").save(source)
    edit = {"model": "flux/kontext-pro/image-to-image"}
    paint("Make it night", input_images=str(source), **edit)
    moved = source.rename(tmp_path / "moved.png")
    paint("Make it night", input_images=str(moved), **edit)
    assert (len(paint.paid), paint.summary["reused"]) == (1, 1)

    Image.new("RGB", (64, 64), "blue").save(moved)
    paint("Make it night", input_images=str(moved), **edit)

    assert (len(paint.paid), paint.summary["reused"]) == (2, 0)


def test_without_reuse_every_run_pays(paint: Runs) -> None:
    for _ in range(2):
        paint("A fox", reuse=None)
    assert paint.paid == ["A fox", "A fox"]


def test_lines_of_older_manifests_are_not_reused(paint: Runs) -> None:
    paint("A fox")
    for listed in (paint.folder / "metadata.jsonl", *(paint.folder / ".imagen" / "parts").glob("*.jsonl")):
        lines = [json.loads(line) for line in listed.read_text().splitlines()]
        for line in lines:
            del line["request_fingerprint"]
        listed.write_text("".join(json.dumps(line) + "\n" for line in lines))

    paint("A fox")

    assert paint.paid == ["A fox", "A fox"]


def test_equal_prompts_get_different_images_as_far_as_there_are_any(paint: Runs) -> None:
    first = paint(["A fox", "A fox"])
    second = paint(["A fox", "A fox", "A fox"])

    assert len(paint.paid) == 3
    assert [image["client_request_id"] for image in second[:2]] == [image["client_request_id"] for image in first]
    assert len({image["client_request_id"] for image in second}) == 3
    assert counts(paint.summary) == (3, 2, pytest.approx(PRICE), pytest.approx(2 * PRICE))


def test_of_requests_for_one_image_each_only_the_missing_one_is_sent_again(paint: Runs) -> None:
    first = paint("A fox", model="luma/uni-1", num_images=4)
    Path(first[2]["path"]).unlink()

    second = paint("A fox", model="luma/uni-1", num_images=4)

    assert (len(paint.paid), paint.summary["reused"]) == (5, 3)
    assert len({image["client_request_id"] for image in second}) == 4


def test_images_that_came_inside_the_response_are_reused(paint: Runs) -> None:
    for _ in range(2):
        paint("A fox", convert_base64_to_url=False)
    assert (len(paint.paid), paint.summary["reused"]) == (1, 1)


def test_the_images_of_a_fallback_model_are_reused_if_the_model_is_still_withdrawn(paint: Runs) -> None:
    models = {"model": "flux/schnell", "fallback_models": ["flux/dev"]}
    paint.sandbox.add_fault(Fault("withdrawn", model="flux/schnell", times=None))
    paint("A fox", **models)
    (image,) = paint("A fox", **models)
    assert (len(paint.paid), image["model"], paint.summary["reused"]) == (1, "flux/dev", 1)


def test_a_request_that_was_partly_filtered_is_sent_again(paint: Runs) -> None:
    paint.sandbox.add_fault(Fault("fewer", count=2))
    assert paint.start("A fox", num_images=4) == "failed"
    assert isinstance(paint.errors[0], FilteredError)

    assert len(paint("A fox", num_images=4)) == 4

    assert (len(paint.paid), paint.summary["reused"]) == (2, 0)


def test_an_input_image_behind_a_url_is_never_reused(paint: Runs, caplog: Any, capfd: Any) -> None:
    edit = {"model": "flux/kontext-pro/image-to-image", "input_images": "https://example.com/latest.png"}
    for _ in range(2):
        paint("Make it night", **edit)
    assert (len(paint.paid), paint.summary["reused"]) == (2, 0)
    assert "an input image given by URL are not reused" in capfd.readouterr().out + caplog.text


def test_an_input_image_that_another_task_stored_is_compared_by_content(paint: Runs, tmp_path: Path) -> None:
    """Its record has a URL, too."""
    (source,) = paint("A fox", output_path=str(tmp_path / "source"), reuse=None)
    assert source["url"].startswith("http")
    for _ in range(2):
        paint("Make it night", model="flux/kontext-pro/image-to-image", input_images=[source])
    assert (len(paint.paid), paint.summary["reused"]) == (2, 1)


# What a file must be


def damage(path: Path, how: str, tmp_path: Path) -> None:
    data = path.read_bytes()
    path.unlink()
    match how:
        case "truncated":
            path.write_bytes(data[:-1])
        case "changed":
            path.write_bytes(data[:-20] + bytes(20))
        case "link":
            (tmp_path / "elsewhere.png").write_bytes(data)
            path.symlink_to(tmp_path / "elsewhere.png")
        case "pipe":
            os.mkfifo(path)


@pytest.mark.parametrize("how", ["missing", "truncated", "changed", "link", "pipe"])
@pytest.mark.parametrize("is_same_folder", [True, False])
def test_a_damaged_file_pays_again(paint: Runs, tmp_path: Path, how: str, is_same_folder: bool) -> None:
    images = paint(["A fox", "A heron"])
    damage(Path(images[0]["path"]), how, tmp_path)

    target = paint.folder if is_same_folder else tmp_path / "other"
    second = paint(["A fox", "A heron"], output_path=str(target), reuse_from=[str(paint.folder)])

    assert sorted(paint.paid) == ["A fox", "A fox", "A heron"]
    assert counts(paint.summary) == (2, 1, pytest.approx(PRICE), pytest.approx(PRICE))
    for image in second:
        with Image.open(image["path"]) as opened:
            opened.load()


@pytest.mark.parametrize("filename", [None, "{name}-{image}.{extension}"])
def test_a_request_with_a_missing_image_is_paid_again_as_a_whole(paint: Runs, filename: str | None) -> None:
    first = paint("A fox", num_images=4, filename=filename)
    Path(first[3]["path"]).unlink()

    second = paint("A fox", num_images=4, filename=filename)

    assert (len(paint.paid), paint.summary["reused"]) == (2, 0)
    assert {image["client_request_id"] for image in second}.isdisjoint(image["client_request_id"] for image in first)
    assert len({image["path"] for image in second}) == 4
    third = paint("A fox", num_images=4, filename=filename)
    assert (len(paint.paid), paint.summary["reused"]) == (2, 4)
    assert [image["sha256"] for image in third] == [image["sha256"] for image in second]


def test_a_copy_elsewhere_replaces_a_damaged_original(paint: Runs, tmp_path: Path) -> None:
    (first,) = paint("A fox")
    paint("A fox", output_path=str(tmp_path / "copy"), reuse_from=str(paint.folder))
    Path(first["path"]).unlink()

    (third,) = paint("A fox", reuse_from=str(tmp_path / "copy"))

    assert len(paint.paid) == 1
    assert (third["sha256"], third["usd"], third["usd_saved"]) == (first["sha256"], 0, pytest.approx(PRICE))


@pytest.mark.parametrize(
    "forged",
    [
        {"file_name": "../secret.png"},
        {"file_name": "/etc/passwd"},
        {"bytes": 2**62},
        {"bytes": -1},
        {"response_index": 2**60},
        {"created_at": "0001-01-01T00:00:00+14:00"},
        {"created_at": 5},
        {"client_request_id": None},
        {"thumbnail": "../../thumbnail.webp"},
        {"original": "../secret.png"},
        {"usd": 1e300},
        {"prompt": "x" * 300_000},
    ],
)
def test_forged_lines_are_ignored(paint: Runs, tmp_path: Path, forged: dict[str, Any]) -> None:
    (first,) = paint("A fox")
    shutil.copy(first["path"], tmp_path / "secret.png")
    (line,) = paint.manifest()
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    shutil.copy(first["path"], hostile / line["file_name"])
    (hostile / "metadata.jsonl").write_text("[]\nnull\n{\n" + json.dumps(line | forged) + "\n")

    (second,) = paint("A fox", output_path=str(tmp_path / "new"), reuse_from=str(hostile))

    if "usd" in forged:  # the file is the image that the line describes; only its price is unknown
        assert (len(paint.paid), second["usd_saved"]) == (1, None)
    else:
        assert (len(paint.paid), second["reused_from"]) == (2, None)


def test_a_file_that_is_no_image_is_not_reused(paint: Runs, tmp_path: Path) -> None:
    paint("A fox")
    (line,) = paint.manifest()
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    data = b"root:x:0:0:root:/root:/bin/bash\n"
    (hostile / line["file_name"]).write_bytes(data)
    forged = line | {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (hostile / "metadata.jsonl").write_text(json.dumps(forged) + "\n")

    paint("A fox", output_path=str(tmp_path / "new"), reuse_from=str(hostile))

    assert len(paint.paid) == 2


# Where the image ends up


def test_a_copy_is_identical_and_says_where_it_comes_from(paint: Runs, tmp_path: Path) -> None:
    (first,) = paint("A fox", seed=3)
    target = tmp_path / "copy"

    (second,) = paint(
        "A fox", seed=3, output_path=str(target), reuse_from=str(paint.folder), thumbnail_pixels=64, contact_sheet=True
    )

    (line,) = paint.manifest(target)
    assert Path(second["path"]).read_bytes() == Path(first["path"]).read_bytes()
    assert Path(second["path"]).parent == target
    assert (line["reused_from"], line["usd"], line["usd_saved"]) == (first["path"], 0, first["usd"])
    assert line["run_id"] == paint.run.run_id
    for key in ("inference_id", "client_request_id", "sha256", "prompt", "seed", "model", "width"):
        assert line[key] == second[key] == first[key], key
    assert (target / line["thumbnail"]).is_file()
    assert Path(paint.summary["contact_sheet"]).is_file()
    assert paint.xcom() == [second["path"]]


def test_a_copy_gets_the_marks_of_a_new_image_and_names_the_task_that_generated_it(paint: Runs, tmp_path: Path) -> None:
    (first,) = paint([{"prompt": "A fox", "alt_text": "A fox, asleep"}], provenance=False)
    generated = paint.run.run_id
    folder = paint.folder
    for number, item in enumerate(({"sku": "S1", "alt_text": "A fox"}, {"sku": "S2"}, {"sku": "S2"})):
        target = tmp_path / f"{number}"
        (image,) = paint(
            [{"prompt": "A fox", **item}],
            metadata_columns=["sku"],
            provenance={"metadata": True, "shop": 12},
            output_path=str(target),
            reuse_from=str(folder),
        )
        data = Path(image["path"]).read_bytes()
        found = read_provenance(data)
        assert (found["dag_id"], found["run_id"], found["task_id"]) == ("reuse", generated, "paint")
        assert (found["prompt"], found["model"]) == ("A fox", first["model"])
        assert found["inference_id"] == first["inference_id"]
        assert (found.get("alt_text"), found["metadata"]["sku"]) == (item.get("alt_text"), item["sku"])
        assert found["parameters"]["shop"] == 12
        assert found["created_at"] == paint.manifest(target)[0]["created_at"]
        assert hashlib.sha256(data).hexdigest() == image["sha256"] == paint.manifest(target)[0]["sha256"]
        with Image.open(image["path"]) as copy, Image.open(first["path"]) as original:
            assert copy.tobytes() == original.tobytes()
        folder = target
    (plain,) = paint("A fox", output_path=str(tmp_path / "plain"), reuse_from=str(folder), provenance=False)
    assert Path(plain["path"]).read_bytes() == data


def test_a_signed_image_stays_as_it_is_and_its_conversion_is_made_from_it_and_marked(
    paint: Runs, tmp_path: Path
) -> None:
    paint("A fox")
    (line,) = paint.manifest()
    delivered = sign(paint.folder / line["file_name"])
    relist(paint.folder, sha256=hashlib.sha256(delivered).hexdigest(), bytes=len(delivered))

    def copy(name: str, source: Path, **arguments: Any) -> tuple[dict[str, Any], bytes]:
        (image,) = paint("A fox", output_path=str(tmp_path / name), reuse_from=str(source), **arguments)
        return paint.manifest(tmp_path / name)[0], Path(image["path"]).read_bytes()

    same, data = copy("same", paint.folder)
    assert (data, same["original"]) == (delivered, None)

    webp, data = copy("webp", paint.folder, image_format="webp")
    assert (read_provenance(data)["prompt"], has_content_credentials(data)) == ("A fox", False)
    assert (tmp_path / "webp" / webp["original"]).read_bytes() == delivered

    for name, image_format in (("delivered", None), ("png", "png")):
        line, data = copy(name, tmp_path / "webp", image_format=image_format)
        assert (data, line["original"]) == (delivered, None)
    again, data = copy("again", tmp_path / "webp", image_format="webp")
    assert (tmp_path / "again" / again["original"]).read_bytes() == delivered
    assert len(paint.paid) == 1


def test_an_original_that_is_gone_is_not_listed_again(paint: Runs, caplog: Any, capfd: Any) -> None:
    (first,) = paint([{"name": "fox", "prompt": "A fox"}], filename="{name}.{extension}")
    relist(paint.folder, original=".imagen/originals/gone.png")

    for image_format in ("png", None):
        (image,) = paint([{"name": "fox", "prompt": "A fox"}], filename="{name}.{extension}", image_format=image_format)
        assert (image["path"], len(paint.paid)) == (first["path"], 1)
        parts = [path.read_text() for path in (paint.folder / ".imagen" / "parts").glob("*.jsonl")]
        own = [json.loads(part) for part in parts if paint.run.run_id in part]
        assert [line["original"] for line in own] == [None]
    assert "gone.png: the file as delivered, with C2PA content credentials, is lost" in (
        capfd.readouterr().out + caplog.text
    )


def sign(path: Path) -> bytes:
    """Insert something shaped like C2PA content credentials into a PNG, and return the file."""
    data = path.read_bytes()
    content = b"\0\0\0\x17jumb\0\0\0\x0fjumdc2pa\0"
    block = len(content).to_bytes(4, "big") + b"caBX" + content + zlib.crc32(b"caBX" + content).to_bytes(4, "big")
    path.write_bytes(data[:33] + block + data[33:])
    return path.read_bytes()


def relist(folder: Path, **values: Any) -> None:
    """Change values in all lines of a folder."""
    for listed in (folder / "metadata.jsonl", *(folder / ".imagen" / "parts").glob("*.jsonl")):
        lines = [json.loads(line) | values for line in listed.read_text().splitlines()]
        listed.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_path_of_a_manifest_stands_for_its_folder(paint: Runs, tmp_path: Path) -> None:
    paint("A fox")
    paint("A fox", output_path=str(tmp_path / "copy"), reuse_from=str(paint.folder / "metadata.jsonl"))
    assert (len(paint.paid), paint.summary["reused"]) == (1, 1)


def test_a_copy_is_converted_if_another_format_is_wanted(paint: Runs, tmp_path: Path) -> None:
    paint("A fox")
    for _ in range(2):
        (second,) = paint(
            "A fox", output_path=str(tmp_path / "webp"), reuse_from=str(paint.folder), image_format="webp"
        )
        with Image.open(second["path"]) as image:
            assert image.format == "WEBP"
        assert (second["mime_type"], second["path"][-5:]) == ("image/webp", ".webp")
    assert len(paint.paid) == 1


def test_a_file_with_the_same_name_stays_as_it_is(paint: Runs) -> None:
    (first,) = paint([{"prompt": "A fox", "name": "fox"}], filename="{name}.{extension}", thumbnail_pixels=64)
    before = Path(first["path"]).stat()
    lines = paint.manifest()

    (second,) = paint([{"prompt": "A fox", "name": "fox"}], filename="{name}.{extension}", thumbnail_pixels=64)

    after = Path(second["path"]).stat()
    assert (second["path"], after.st_mtime_ns, after.st_ino) == (first["path"], before.st_mtime_ns, before.st_ino)
    assert (second["usd"], second["usd_saved"]) == (0, pytest.approx(PRICE))
    assert paint.manifest() == lines


def test_a_task_never_replaces_a_file_that_it_only_used(paint: Runs, tmp_path: Path) -> None:
    """A later prompt of the same name gets a name of its own, whose image is then used in place."""
    item = {"prompt": "A fox", "name": "fox"}
    for prompt in ("A fox", "A fox", "A red fox", "A red fox", "A red fox"):
        (image,) = paint([item | {"prompt": prompt}], filename="{name}.{extension}")
    assert paint.paid == ["A fox", "A red fox"]
    assert len(list(paint.folder.glob("*.png"))) == 2
    assert {line["file_name"]: line["prompt"] for line in paint.manifest()} == {
        "fox.png": "A fox",
        Path(image["path"]).name: "A red fox",
    }


def test_the_images_of_a_large_task_are_found_although_they_were_used_in_place(paint: Runs) -> None:
    prompts = [{"prompt": f"A fox, number {number}", "name": f"fox{number}"} for number in range(90)]
    paint(prompts, filename="{name}.{extension}")
    images: Any = paint(prompts, filename="{name}.{extension}")

    assert (len(paint.paid), paint.summary["reused"]) == (90, 90)
    assert images["count"] == 90
    ids = {"dag_id": "reuse", "run_id": paint.run.run_id}
    body = review_body(images, task_id="paint", **ids)
    assert body.count("![Image") == 60
    assert "90 images, $0.00 (90 reused, once $3.78)." in body.replace("\\", "")
    from airflow_provider_imagen.plugins.gallery.airflow_api import TaskInstance
    from airflow_provider_imagen.plugins.gallery.files import read_manifest_images

    shown = read_manifest_images(TaskInstance(**ids, task_id="paint", map_index=-1), images["manifest"])
    assert [image.prompt_index for image in shown] == list(range(90))
    assert sum(line["usd"] for line in paint.manifest()) == pytest.approx(90 * PRICE)


# Retries and clearing


def test_a_retry_reuses_the_same_images_and_counts_them_once(paint: Runs, tmp_path: Path) -> None:
    first = paint(["A fox", "A fox", "A heron"])
    paint.sandbox.add_fault(Fault("status", prompt="stork", status=503, retry_after=0, times=6))

    second = paint(
        ["A fox", "A fox", "A heron", "A stork", "A fox"],
        output_path=str(tmp_path / "second"),
        reuse_from=str(paint.folder),
        retries=1,
        concurrency=1,
    )

    assert sorted(paint.paid) == ["A fox", "A fox", "A fox", "A heron", "A stork"]
    assert [image["sha256"] for image in second[:3]] == [image["sha256"] for image in first]
    assert len({image["client_request_id"] for image in second}) == 5
    assert [image["reused_from"] for image in second] == [*(image["path"] for image in first), None, None]
    assert counts(paint.summary) == (5, 3, pytest.approx(2 * PRICE), pytest.approx(3 * PRICE))
    assert paint.summary["adopted"] in (0, 1)  # the last fox, if it was sent before the first attempt failed
    assert sum(line["usd"] for line in paint.manifest(tmp_path / "second")) == pytest.approx(2 * PRICE)


@pytest.mark.parametrize("retries", [0, 1])
def test_a_task_never_succeeds_without_an_image_that_disappeared(paint: Runs, tmp_path: Path, retries: int) -> None:
    """Another process deletes the copy while the task generates another image."""
    paint("A fox")
    target = tmp_path / "second"

    def delete_copy() -> None:
        until = time.monotonic() + 20
        while time.monotonic() < until and not (copies := list(target.glob("*.png"))):
            time.sleep(0.01)
        copies[0].unlink()

    paint.sandbox.add_fault(Fault("slow", prompt="heron", seconds=1))
    other = threading.Thread(target=delete_copy)
    other.start()
    state = paint.start(["A fox", "A heron"], output_path=str(target), reuse_from=str(paint.folder), retries=retries)
    other.join()

    assert sorted(paint.paid) == ["A fox", "A heron"]
    assert "has disappeared" in str(paint.errors[0])
    assert state == ("success" if retries else "failed")
    assert len(list(target.glob("*.png"))) == 1 + retries


def bytes_by_name(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


@pytest.mark.parametrize("filename", [None, "{name}.{extension}"])
def test_a_cleared_task_keeps_its_own_image_although_another_run_has_one_for_the_same_request(
    paint: Runs, filename: str | None
) -> None:
    fox: dict[str, Any] = {"prompt": [{"name": "fox", "prompt": "A fox"}], "filename": filename}
    paint(**fox, reuse=None)
    (second,) = paint(**fox, reuse=None)
    files, lines = bytes_by_name(paint.folder), paint.manifest()

    (again,) = paint.again(**fox, run_id=paint.run.run_id)["images"]

    assert len(paint.paid) == 2
    assert (again["path"], again["sha256"], again["reused_from"]) == (second["path"], second["sha256"], None)
    assert bytes_by_name(paint.folder) == files
    assert [line | {"reused_at": None} for line in paint.manifest()] == lines


def test_what_a_cleared_task_paid_for_stays_its_own_cost(paint: Runs, capfd: Any, caplog: Any) -> None:
    paint(["A fox", "A heron"])
    with caplog.at_level("INFO"):
        xcoms = paint.again(["A fox", "A stork"], run_id=paint.run.run_id)

    assert [(image["usd"], image["usd_saved"]) for image in xcoms["images"]] == [(pytest.approx(PRICE), None)] * 2
    summary = xcoms["summary"]
    assert {name: summary[name] for name in ("adopted", "reused", "usd_saved", "usd_lost")} == {
        "adopted": 1, "reused": 0, "usd_saved": 0, "usd_lost": 0
    }  # fmt: skip
    assert summary["usd_spent"] == pytest.approx(2 * PRICE)
    assert "2 of 2 images made (1 reused), $0.084 spent" in capfd.readouterr().out + caplog.text
    with pytest.raises(Exception, match=r"max_usd=\$0\.10: \$0\.084 has been spent"):
        paint.again(["A fox", "A stork", "A hare"], run_id=paint.run.run_id, max_usd=0.1)
    assert len(paint.paid) == 3


def test_an_own_image_that_is_gone_is_paid_again_and_counted_as_lost(paint: Runs) -> None:
    (first,) = paint("A fox")
    Path(first["path"]).unlink()
    summary = paint.again("A fox", run_id=paint.run.run_id)["summary"]
    assert (summary["usd_spent"], summary["usd_lost"]) == (pytest.approx(2 * PRICE), pytest.approx(PRICE))


def test_mapped_task_instances_with_equal_prompts_keep_different_images(run_dag: Any, tmp_path: Path) -> None:
    seen = []
    for reuse in (None, "unchanged", "unchanged"):
        with DAG("mapped", schedule=None) as dag:
            ImagenGenerateOperator.partial(task_id="paint", output_path=str(tmp_path), reuse=reuse).expand(
                prompt=["A fox"] * 3
            )
        run = run_dag(dag)
        images = [
            run.get_task_instance("paint", map_index=number).xcom_pull(
                task_ids="paint", map_indexes=number, key="images"
            )[0]
            for number in range(3)
        ]
        seen.append([image["client_request_id"] for image in images])
    assert len(set(seen[0])) == 3
    assert seen[1] == seen[2] == seen[0]


def test_a_copy_never_replaces_a_file_that_was_paid_for(paint: Runs, tmp_path: Path) -> None:
    """A cleared task asks for another prompt under the same name, which another folder has."""
    named = {"filename": "{name}.{extension}"}
    paint([{"name": "hero", "prompt": "A heron"}], **named, output_path=str(tmp_path / "other"))
    (fox,) = paint([{"name": "hero", "prompt": "A fox"}], **named)
    heron = paint.again(
        [{"name": "hero", "prompt": "A heron"}],
        run_id=paint.run.run_id,
        **named,
        reuse_from=str(tmp_path / "other"),
    )["images"][0]

    assert heron["path"] != fox["path"]
    assert hashlib.sha256(Path(fox["path"]).read_bytes()).hexdigest() == fox["sha256"]
    assert {line["prompt"] for line in paint.manifest()} == {"A fox", "A heron"}


def test_a_file_that_other_runs_use_is_not_replaced_by_its_owner(paint: Runs) -> None:
    named = {"filename": "{name}.{extension}"}
    paint([{"name": "hero", "prompt": "A fox"}], **named)
    owner = paint.run.run_id
    used = paint([{"name": "hero", "prompt": "A fox"}], **named)
    for prompt in ("A red fox", "A blue fox"):
        paint.again([{"name": "hero", "prompt": prompt}], run_id=owner, **named)
        used += paint([{"name": "hero", "prompt": prompt}], **named)

    assert len(paint.paid) == 3
    for image in used:
        assert hashlib.sha256(Path(image["path"]).read_bytes()).hexdigest() == image["sha256"], image["path"]
    assert len({image["path"] for image in used}) == 3
    assert sorted(line["prompt"] for line in paint.manifest()) == ["A blue fox", "A fox", "A red fox"]


def test_the_manifest_has_the_metadata_of_the_latest_use_and_the_money_of_the_purchase(paint: Runs) -> None:
    shared = {"filename": "{name}.{extension}", "metadata_columns": ["sku"]}
    owner = paint([{"name": "fox", "prompt": "A fox", "sku": "old"}], **shared)[0]
    run_id = paint.run.run_id
    for day in (1, 2):
        paint([{"name": "fox", "prompt": "A fox", "sku": f"S{day}", "alt_text": f"Day {day}"}], **shared)
    paint([{"name": "heron", "prompt": "A heron", "sku": "H"}], **shared)

    (line,) = [line for line in paint.manifest() if line["name"] == "fox"]
    assert line["metadata"] == {"sku": "S2", "alt_text": "Day 2"}
    assert (line["run_id"], line["usd"], line["reused_from"]) == (run_id, owner["usd"], None)
    paint.again([{"name": "fox", "prompt": "A fox", "sku": "new"}], run_id=run_id, **shared)
    assert paint.manifest()[0]["metadata"] == {"sku": "new"}


# Money


def test_reused_images_need_no_room_under_the_cap(paint: Runs) -> None:
    paint(["A fox", "A heron"])
    paint(["A fox", "A heron", "A stork"], max_usd=0.06)
    assert counts(paint.summary) == (3, 2, pytest.approx(PRICE), pytest.approx(2 * PRICE))


def test_images_of_a_fallback_model_need_no_room_under_the_cap(paint: Runs) -> None:
    models = {"model": "flux/schnell", "fallback_models": ["flux/dev"]}
    paint.sandbox.add_fault(Fault("withdrawn", model="flux/schnell", times=None))
    prompts = [f"A fox, number {number}" for number in range(5)]
    paint(prompts, **models)
    paint(prompts, **models, max_usd=0.004)  # enough for one request to flux/schnell, which costs nothing
    assert (len(paint.paid), paint.summary["reused"], paint.summary["usd_spent"]) == (5, 5, 0)


def test_the_log_says_what_was_reused_and_saved(paint: Runs, capfd: Any, caplog: Any) -> None:
    paint("A fox")
    with caplog.at_level("INFO"):
        paint(["A fox", "A heron"], reuse_from=str(paint.folder / "none"))

    log = capfd.readouterr().out + caplog.text  # of Airflow's own loggers and of the standard library's
    assert "2 of 2 images made (1 reused from other runs, $0.042 saved), $0.042 spent, stored in" in log
    assert ": A fox (prompt 0, image 0, 128x128, reused from another run, $0.042 saved) → " in log
    assert f"There is nothing to reuse in {paint.folder / 'none'}: it has no manifest." in log


def test_reuse_works_in_an_object_store(paint: Runs, tmp_path: Path) -> None:
    attach(protocol="memory", fs=fsspec.filesystem("memory"))
    folders = [f"memory://{tmp_path.name}/{day}" for day in range(3)]
    first = paint(["A fox", "A heron"], output_path=folders[0])
    paint(["A fox", "A heron"], output_path=folders[1], reuse_from=folders[0])
    third = paint(["A fox", "A heron", "A stork"], output_path=folders[2], reuse_from=[folders[0], folders[1]])

    assert sorted(paint.paid) == ["A fox", "A heron", "A stork"]
    assert [image["sha256"] for image in third[:2]] == [image["sha256"] for image in first]
    assert [image["reused_from"] for image in third[:2]] == [image["path"] for image in first]
    assert ObjectStoragePath(third[0]["path"]).read_bytes() == ObjectStoragePath(first[0]["path"]).read_bytes()


# Arguments


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"reuse": "always"}, "reuse='always': one of None, 'unchanged' is allowed"),
        ({"output_path": None}, "reuse='unchanged': needs output_path, the folder to store images in"),
        ({"reuse": None, "reuse_from": "/data"}, "reuse_from='/data': needs reuse='unchanged'"),
        ({"reuse_from": ["/data", 1.5]}, "reuse_from=1.5: a path, as a string or a path object, or a list of these is"),
        ({"reuse_from": "gopher://x/y"}, "reuse_from='gopher://x/y': a local path, s3://, gs://, abfs://"),
        ({"limit": 0}, "limit=0: a whole number from 1 to 1000000 is allowed"),
        ({"limit": "many"}, "limit='many': a whole number from 1 to 1000000 is allowed"),
        ({"limit": True}, "limit=True: a whole number from 1 to 1000000 is allowed"),
        ({"limit": 1.5}, "limit=1.5: a whole number from 1 to 1000000 is allowed"),
    ],
)
def test_a_wrong_argument_is_rejected_before_paying(paint: Runs, arguments: dict[str, Any], problem: str) -> None:
    assert paint.start("A fox", **arguments) == "failed"
    assert problem in str(paint.errors[0])
    assert paint.paid == []


def test_blank_folders_and_limits_count_as_unset(paint: Runs) -> None:
    paint("A fox", reuse_from=["{{ '' }}", "{{ none }}"], limit="{{ '' }}")
    assert paint.summary["made"] == 1


# A part of the list


def test_a_limit_requests_the_first_prompts_under_the_names_they_have_without_it(paint: Runs, capfd: Any) -> None:
    prompts = [{"name": "fox", "prompt": f"A fox, number {number}", "num_images": 2} for number in range(12)]
    sample = paint(prompts, limit="{{ 3 }}", filename="{index}-{name}.{extension}", output_path=f"{paint.folder}/3")

    assert len(sample) == 6
    assert len(paint.paid) == 3
    assert {name: paint.summary[name] for name in ("requested", "made", "beyond_limit", "not_sent")} == {
        "requested": 6, "made": 6, "beyond_limit": 18, "not_sent": 0
    }  # fmt: skip
    log = capfd.readouterr().out
    assert "limit=3: only the first 3 of 12 prompts." in log
    assert "Totals: 6 of 6 images made, 18 left out by limit, $0.252 spent" in log

    everything = paint(
        prompts, filename="{index}-{name}.{extension}", output_path=f"{paint.folder}/12", reuse_from=f"{paint.folder}/3"
    )

    assert len(paint.paid) == 12
    assert counts(paint.summary) == (24, 6, pytest.approx(18 * PRICE), pytest.approx(6 * PRICE))
    assert [Path(image["path"]).name for image in everything[:6]] == [Path(image["path"]).name for image in sample]
    assert [image["sha256"] for image in everything[:6]] == [image["sha256"] for image in sample]


def test_prompts_beyond_the_limit_are_validated(paint: Runs) -> None:
    assert paint.start(["A fox", {"prompt": "A heron", "aspect_ratio": "2:1"}], limit=1) == "failed"
    assert "prompt[1].aspect_ratio='2:1'" in str(paint.errors[0])
    assert paint.paid == []


def test_a_limit_above_the_number_of_prompts_changes_nothing(paint: Runs) -> None:
    paint(["A fox", "A heron"], limit=5)
    assert (paint.summary["requested"], paint.summary["beyond_limit"]) == (2, 0)
