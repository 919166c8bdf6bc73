"""
An output folder opens as a Hugging Face dataset, with the real ``datasets`` package.

``set-up.sh`` runs this in a separate environment without Airflow.
"""

from __future__ import annotations

from datetime import UTC, datetime
from io import BytesIO

import pytest
from datasets import load_dataset
from msgspec.structs import replace
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from airflow_provider_imagen.image_record import ImageRecord
from airflow_provider_imagen.run_report import FailureLine
from airflow_provider_imagen.storage.manifest import manifest_line, write_manifest
from airflow_provider_imagen.storage.save_image import save_image
from airflow_provider_imagen.storage.task_identity import TaskInstanceKey

TI_KEY = TaskInstanceKey(dag_id="daily", task_id="draw", run_id="r1")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def fill(folder, stems, seeds=(1, None)):
    """Store images as two mapped task instances would, with previews, originals and failures."""
    credentials = PngInfo()
    credentials.add(b"caBX", b"\0\0\0\x08jumb")
    for map_index in range(2):
        ti_key = replace(TI_KEY, map_index=map_index)
        lines = []
        for number, stem in enumerate(stems):
            target = BytesIO()
            Image.new("RGB", (30 + number, 20), (map_index * 90, 9, 9)).save(
                target, format="PNG", pnginfo=credentials if map_index else None
            )
            stored = save_image(
                target.getvalue(), folder=folder, stem=f"{stem}-{map_index}", image_format="webp", thumbnail_pixels=8
            ).file
            record = ImageRecord.of(
                stored,
                prompt_index=number,
                image_index=0,
                prompt=f"fox {number}\u2028\n",
                seed=seeds[number % len(seeds)],
            )
            lines.append(manifest_line(record, stored, ti_key=ti_key, created_at=datetime(2026, 11, 21, tzinfo=UTC)))
        write_manifest(folder, ti_key=ti_key, lines=lines, failures=[FailureLine(prompt_index=9, error="ServerError")])


def test_a_folder_opens_as_an_imagefolder(tmp_path):
    fill(tmp_path / "out", ["a", "sub/b", "sub/c"])
    found = load_dataset("imagefolder", data_dir=str(tmp_path / "out"), split="train")
    assert len(found) == 6
    assert [row["image"].size for row in found] == [(30, 20), (31, 20), (32, 20)] * 2
    assert [row["prompt"] for row in found][:2] == ["fox 0\u2028\n", "fox 1\u2028\n"]
    assert [row["seed"] for row in found] == [1, None, 1] * 2
    assert [row["map_index"] for row in found] == [0, 0, 0, 1, 1, 1]
    assert [row["original"] is not None for row in found] == [False] * 3 + [True] * 3


def test_a_folder_is_recognized_without_naming_its_type(tmp_path):
    fill(tmp_path / "out", ["a"])
    found = load_dataset(str(tmp_path / "out"), split="train")
    assert [row["image"].size for row in found] == [(30, 20)] * 2


def test_images_named_like_splits_are_all_loaded_with_explicit_data_files(tmp_path):
    fill(tmp_path / "out", ["train-1", "test", "cat"])
    found = load_dataset("imagefolder", data_dir=str(tmp_path / "out"), data_files="**", split="train")
    assert len(found) == 6
