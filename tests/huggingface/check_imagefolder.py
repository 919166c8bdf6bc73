"""
An output folder opens as a Hugging Face dataset, with the real ``datasets`` package.

``set-up.sh`` runs this in a separate environment without Airflow.
"""

from __future__ import annotations

import shutil
from datetime import UTC, date, datetime
from io import BytesIO

import numpy
import pandas
import pytest
from datasets import Features, Value, load_dataset
from datasets import Image as ImageFeature
from msgspec.structs import replace
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from airflow_provider_imagen.image_record import ImageRecord
from airflow_provider_imagen.run.item_metadata import take_metadata
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


def test_a_zip_of_images_and_their_manifest_opens_as_it_is(tmp_path):
    """The gallery's downloads are such files."""
    fill(tmp_path / "out", ["a", "sub/b"])
    shutil.rmtree(tmp_path / "out" / ".imagen")
    shutil.make_archive(str(tmp_path / "foxes"), "zip", tmp_path / "out")
    found = load_dataset("imagefolder", data_files=str(tmp_path / "foxes.zip"), split="train")
    assert [(row["image"].size, row["map_index"]) for row in found] == [
        ((30, 20), 0),
        ((31, 20), 0),
        ((30, 20), 1),
        ((31, 20), 1),
    ]


def test_images_named_like_splits_are_all_loaded_with_explicit_data_files(tmp_path):
    fill(tmp_path / "out", ["train-1", "test", "cat"])
    found = load_dataset("imagefolder", data_dir=str(tmp_path / "out"), data_files="**", split="train")
    assert len(found) == 6


def fill_with_metadata(folder, *tasks):
    """Store an image per row, as tasks of these names with these rows and metadata columns would."""
    for task_id, rows, columns in tasks:
        problems = []
        _, metadata = take_metadata([(row, "") for row in rows], columns=columns, models=(), problems=problems)
        assert problems == []
        ti_key = replace(TI_KEY, task_id=task_id)
        lines = []
        for number, values in enumerate(metadata):
            target = BytesIO()
            Image.new("RGB", (30, 20)).save(target, format="PNG")
            stored = save_image(target.getvalue(), folder=folder, stem=f"{task_id}-{number}").file
            record = ImageRecord.of(stored, prompt_index=number, image_index=0, prompt="a fox", metadata=values)
            lines.append(manifest_line(record, stored, ti_key=ti_key, created_at=datetime(2026, 11, 21, tzinfo=UTC)))
        write_manifest(folder, ti_key=ti_key, lines=lines)


def test_tasks_with_different_columns_and_with_none_give_one_dataset(tmp_path):
    fill_with_metadata(
        tmp_path / "out",
        ("a", [{}, {}], []),
        ("b", [{"sku": "T-100", "preis": 12.0}, {"sku": 7}, {"sku": date(2026, 3, 1)}], ["sku", "preis"]),
        ("c", [{"sku": None, "größe": "Übergröße\u2028🦊"}, {"metadata": {"page": True}}], ["sku", "größe"]),
    )
    found = load_dataset("imagefolder", data_dir=str(tmp_path / "out"), split="train")

    names = ["sku", "preis", "größe", "page"]
    assert [found.features["metadata"][name].dtype for name in names] == ["string"] * 4
    empty = dict.fromkeys(names)
    assert [row["metadata"] for row in found] == [
        None,
        None,
        empty | {"sku": "T-100", "preis": "12"},
        empty | {"sku": "7"},
        empty | {"sku": "2026-03-01"},
        empty | {"größe": "Übergröße\u2028🦊"},
        empty | {"page": "true"},
    ]
    found.to_parquet(str(tmp_path / "all.parquet"))


def test_rows_of_a_pandas_table_become_text(tmp_path):
    table = pandas.DataFrame(
        {
            "count": [1, None],  # makes the column one of floats
            "price": numpy.array([0.1, numpy.nan], dtype="float64"),
            "small": numpy.array([1.5, 2.0], dtype="float32"),
            "is_new": [True, pandas.NA],
            "since": pandas.to_datetime(["2026-03-01", None]),
            "label": ["fox", numpy.nan],
        }
    )
    scalars = {
        "whole": numpy.int64(7),
        "flag": numpy.bool_(True),
        "text": numpy.str_("fox"),
        "day": numpy.datetime64("2026-03-01"),
        "never": numpy.datetime64("NaT"),
        "zero_dimensional": numpy.array(3),
    }
    columns = [*table.columns, *scalars]
    fill_with_metadata(tmp_path / "out", ("a", [*table.to_dict("records"), scalars], columns))
    found = load_dataset("imagefolder", data_dir=str(tmp_path / "out"), split="train")

    assert found.features["metadata"]["since"].dtype == "timestamp[s]"  # the library's choice if all values are dates
    first, second, third = ({name: text for name, text in row["metadata"].items() if text} for row in found)
    assert first == {
        "count": "1", "price": "0.1", "small": "1.5", "is_new": "true", "since": datetime(2026, 3, 1), "label": "fox",
    }  # fmt: skip
    assert second == {"small": "2"}
    assert third == {"whole": "7", "flag": "true", "text": "fox", "day": datetime(2026, 3, 1), "zero_dimensional": "3"}


@pytest.mark.parametrize("name", ["image", "_type", "dtype", "a.b", "with space", "ünïcode", "🦊", "metadata", "file"])
def test_every_name_that_is_allowed_can_be_read(tmp_path, name):
    fill_with_metadata(tmp_path / "out", ("a", [{"metadata": {name: "x"}}], []))
    found = load_dataset("imagefolder", data_dir=str(tmp_path / "out"), split="train")
    assert found[0]["metadata"] == {name: "x"}


def test_the_columns_of_a_very_large_manifest_may_have_to_be_named(tmp_path):
    """Their types come from its first 10 MB."""
    rows = [{"text": "x" * 9_000} for _ in range(1_200)]
    fill_with_metadata(tmp_path / "out", ("a", rows, ["text"]), ("b", [{"page": 3}], ["page"]))
    features = Features({"image": ImageFeature(), "metadata": {"text": Value("string"), "page": Value("string")}})
    found = load_dataset("imagefolder", data_dir=str(tmp_path / "out"), split="train", features=features)
    assert found[1_200]["metadata"] == {"text": None, "page": "3"}
