from __future__ import annotations

import os
import threading

import pytest

from airflow_provider_imagen.exceptions import StorageError
from airflow_provider_imagen.storage.atomic_write import check_writable, file_sizes
from airflow_provider_imagen.storage.local_files import list_folder


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
def test_what_stands_in_the_way_of_a_manifest_is_found_before_paying(tmp_path, name):
    if name == "metadata.jsonl":
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_text("a file")
    with pytest.raises(StorageError, match=r"metadata\.jsonl|a file, not a directory"):
        check_writable(tmp_path)


def test_a_file_in_place_of_the_folder_of_parts_is_found_before_paying(tmp_path):
    (tmp_path / ".imagen").mkdir()
    (tmp_path / ".imagen/parts").write_text("a file")
    with pytest.raises(StorageError, match="parts in it is not a writable directory"):
        check_writable(tmp_path)
