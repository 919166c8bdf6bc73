from __future__ import annotations

from datetime import timedelta
from typing import Any

import fsspec
import pytest
from airflow.sdk import ObjectStoragePath
from airflow.sdk.io import attach

from airflow_provider_imagen.exceptions import JournalError
from airflow_provider_imagen.journal import records as facts
from airflow_provider_imagen.journal.log import Journal, forget
from airflow_provider_imagen.journal.stores import FolderJournalStore, TaskStateJournalStore


class TaskState:
    """Airflow's task state store, as far as its signature and rules go."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.retentions: list[Any] = []

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    def set(self, key: str, value: Any, *, retention: timedelta | object | None = None) -> None:
        if value is None:
            raise ValueError("None is refused")
        self.values[key] = value
        self.retentions.append(retention)

    def delete(self, key: str) -> None:
        self.values.pop(key, None)


@pytest.fixture(autouse=True, scope="module")
def _memory_filesystem() -> None:
    attach(protocol="memory", fs=fsspec.filesystem("memory"))


@pytest.fixture(params=["disk", "disk through ObjectStoragePath", "memory://", "task state"])
def store(request, tmp_path):
    if request.param == "disk":
        return FolderJournalStore(tmp_path / "out", "ab12")
    if request.param == "disk through ObjectStoragePath":
        return FolderJournalStore(ObjectStoragePath(f"file://{tmp_path}/out"), "ab12")
    if request.param == "memory://":
        return FolderJournalStore(ObjectStoragePath(f"memory://{tmp_path.name}/out"), "ab12")
    return TaskStateJournalStore(TaskState(), {"retention": timedelta(days=9)})


def filled(store: Any, count: int = 900) -> None:
    journal = Journal(store)
    journal.open()
    for number in range(count):
        journal.append(facts.intent("é#1", client_request_id=f"request-{number}", model="\ud800", usd=None))
    journal.close()


def test_what_one_try_writes_the_next_one_reads(store):
    filled(store)
    assert store.read(1) is not None
    journal = Journal(store)
    journal.open()
    journal.close()
    assert list(journal.entries["é#1"].open_intents) == [f"request-{number}" for number in range(900)]


def test_a_segment_that_is_not_there_is_none_and_deleting_it_is_no_error(store):
    assert store.read(7) is None
    store.delete(7)
    store.delete(0)


def test_forgetting_leaves_nothing_to_read(store):
    filled(store)
    forget(store)
    forget(store)
    assert store.read(0) is None
    filled(store, 1)
    assert store.read(0) is not None


@pytest.mark.parametrize("url", ["file://{}/out", "memory://{}/out"])
def test_forgetting_one_tasks_journal_leaves_the_others_and_the_pictures_alone(tmp_path, url):
    folder = ObjectStoragePath(url.format(tmp_path))
    mine, other = FolderJournalStore(folder, "mine"), FolderJournalStore(folder, "other")
    filled(mine, 3)
    filled(other, 3)
    (folder / "picture.png").write_bytes(b"picture")
    forget(mine)
    assert mine.read(0) is None
    assert other.read(0) is not None
    assert (folder / "picture.png").read_bytes() == b"picture"


def test_no_temporary_file_and_no_empty_folder_of_the_task_is_left_on_a_disk(tmp_path):
    store = FolderJournalStore(tmp_path, "ab12")
    filled(store)
    assert sorted(path.name for path in (tmp_path / ".imagen/journal/ab12").iterdir()) == [
        f"{number:06}.jsonl" for number in range(len(list((tmp_path / ".imagen/journal/ab12").iterdir())))
    ]
    forget(store)
    assert not (tmp_path / ".imagen/journal/ab12").exists()


def test_a_folder_that_cannot_be_read_is_no_empty_journal(tmp_path):
    store = FolderJournalStore(tmp_path, "ab12")
    (tmp_path / ".imagen/journal/ab12/000000.jsonl").mkdir(parents=True)
    with pytest.raises(JournalError, match="cannot be read"):
        Journal(store).open()


def test_a_segment_of_broken_bytes_is_refused(tmp_path):
    store = FolderJournalStore(tmp_path, "ab12")
    path = tmp_path / ".imagen/journal/ab12/000000.jsonl"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(JournalError):
        Journal(store).open()


def test_an_entry_of_the_task_state_that_someone_changed_is_no_empty_journal():
    state = TaskState()
    state.values["imagen/journal/0"] = {"edited": "by hand"}
    with pytest.raises(JournalError, match="no text"):
        Journal(TaskStateJournalStore(state, {})).open()


def test_every_write_to_the_task_state_carries_the_retention():
    state = TaskState()
    filled(TaskStateJournalStore(state, {"retention": timedelta(days=9)}), 3)
    assert set(state.retentions) == {timedelta(days=9)}
    assert all(isinstance(value, str) for value in state.values.values())
