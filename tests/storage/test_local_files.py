from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from airflow_provider_imagen.exceptions import StorageError
from airflow_provider_imagen.storage.atomic_write import check_writable, file_sizes, read_bytes
from airflow_provider_imagen.storage.local_files import IrregularFileError, list_folder, open_regular_file


@pytest.mark.slow
def test_a_listing_is_complete_while_others_write_and_rename(tmp_path):
    for number in range(20):
        (tmp_path / f"kept-{number}.png").write_bytes(b"x")
    is_over = threading.Event()

    def churn(name: str) -> None:
        while not is_over.is_set():
            (tmp_path / f".{name}").write_bytes(b"x")
            os.replace(tmp_path / f".{name}", tmp_path / name)
            (tmp_path / name).unlink()

    writers = [threading.Thread(target=churn, args=(f"moving-{number}",)) for number in range(2)]
    for writer in writers:
        writer.start()
    try:
        kept = {f"kept-{number}.png" for number in range(20)}
        for _ in range(300):
            assert kept <= list_folder(tmp_path, within=tmp_path).keys()
            assert file_sizes(tmp_path, kept).keys() == kept
            check_writable(tmp_path)
    finally:
        is_over.set()
        for writer in writers:
            writer.join()


@pytest.mark.parametrize("name", ["metadata.jsonl", ".imagen"])
def test_an_obstacle_to_the_manifest_is_detected_before_paying(tmp_path, name):
    if name == "metadata.jsonl":
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_text("a file")
    with pytest.raises(StorageError, match=r"metadata\.jsonl|a file, not a directory"):
        check_writable(tmp_path)


def test_a_file_in_place_of_the_parts_folder_is_detected_before_paying(tmp_path):
    (tmp_path / ".imagen").mkdir()
    (tmp_path / ".imagen/parts").write_text("a file")
    with pytest.raises(StorageError, match="parts in it is not a writable directory"):
        check_writable(tmp_path)


def test_a_path_that_leaves_the_output_folder_is_rejected(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "private").write_text("secret")
    with pytest.raises(IrregularFileError):
        read_bytes(tmp_path / "out/../private", within=tmp_path / "out")


def test_a_folder_in_place_of_a_file_is_reported_as_a_folder(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(IsADirectoryError):
        open_regular_file(tmp_path / "a.png")


def test_without_an_output_folder_symbolic_links_in_the_path_are_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real/a.png").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with open_regular_file(tmp_path / "link/a.png") as file:
        assert file.read() == b"x"


@pytest.mark.timeout(20)
def test_a_file_replaced_by_a_pipe_while_opening_is_not_read(tmp_path, monkeypatch):
    path, really_open = tmp_path / "a.png", os.open

    def swap_and_open(name, *arguments, **options):
        if name == path.name:
            path.unlink()
            os.mkfifo(path)
        return really_open(name, *arguments, **options)

    path.write_bytes(b"x")
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    monkeypatch.setattr(os, "open", swap_and_open)
    with pytest.raises(IrregularFileError):
        open_regular_file(path)
    assert len(list(descriptors.iterdir())) == before
