from __future__ import annotations

import json
from contextlib import suppress
from datetime import timedelta
from typing import Any

import fsspec
import pytest
from airflow.sdk import ObjectStoragePath
from airflow.sdk.io import attach

from airflow_provider_imagen.exceptions import JournalError, StorageError
from airflow_provider_imagen.journal import log
from airflow_provider_imagen.journal.log import HEADER, Journal, StoreUnavailableError, read_journal
from airflow_provider_imagen.journal.records import Rejected, Target, new_intent
from airflow_provider_imagen.journal.stores import FolderJournalStore, TaskStateJournalStore, list_identities

pytestmark = pytest.mark.timeout(60)

FORMAT_1 = '{"k":"a#1","t":"intent","id":"r1","model":"m","at":1.0,"usd":"0.04"}\n'
SEGMENT = "1-0123456789ab/0"


class TaskState:
    """A fake of Airflow's task state store with the same signatures and rules."""

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


def opened(store: Any) -> Journal:
    journal = Journal(store, try_number=1)
    journal.open()
    return journal


def filled(store: Any, count: int = 400, *, resolved: bool = False) -> Journal:
    target = Target(prompt_index=0, image_index=0, images=1, prompt_images=1, prompt="\ud800")
    journal = opened(store)
    for number in range(count):
        name = f"request-{number}"
        journal.append(new_intent("é#1", client_request_id=name, model="m", usd=None, target=target))
        if resolved:
            journal.append(Rejected(key="é#1", client_request_id=name))
    journal.close()
    return journal


def files_below(path: Any) -> list[str]:
    return sorted(str(each.relative_to(path)) for each in path.rglob("*") if each.is_file())


# --- both stores ------------------------------------------------------------------------------------------------------


def test_the_next_attempt_reads_what_the_previous_one_wrote(store):
    first = filled(store)
    assert store.read(f"{first.owner}/1") is not None
    second = opened(store)
    second.close()
    assert list(second.state.requests["é#1"].open_intents) == [f"request-{number}" for number in range(400)]


def test_a_text_is_read_back_unchanged_and_replaced_as_a_whole(store):
    for text in ("first and longer\n", "second\n", "\u2028\r\n{}"):
        for name in (HEADER, SEGMENT):
            store.write(name, text)
            assert store.read(name) == text


def test_a_missing_text_is_none_and_deleting_it_is_not_an_error(store):
    assert store.read(HEADER) is None
    assert store.read(SEGMENT) is None
    store.delete([HEADER, SEGMENT])
    store.delete([])


def test_deleting_leaves_nothing_to_read(store):
    store.write(HEADER, "{}")
    store.write(SEGMENT, "{}")
    store.delete([HEADER, SEGMENT])
    assert store.read(HEADER) is None
    assert store.read(SEGMENT) is None
    store.write(HEADER, "new")
    assert store.read(HEADER) == "new"


def test_a_finished_journal_is_deleted_and_the_next_attempt_starts_a_new_one(store):
    filled(store, 3, resolved=True)
    journal = filled(store, resolved=True)
    journal.finish()
    assert store.read(HEADER) is None
    assert store.read(f"{journal.owner}/0") is None
    assert store.read(f"{journal.owner}/1") is None
    filled(store, 1)
    assert len(read_journal(store).all_unresolved()) == 1


@pytest.mark.parametrize("text", [FORMAT_1, f'{{"full_segments":1}}\n{FORMAT_1}', '{"forgotten":3}\n'])
def test_a_journal_of_format_1_is_rejected_and_left_unchanged(tmp_path, text):
    """Format 1 kept its first segment where the header is now."""
    state = TaskState()
    state.values["imagen/journal/0"] = text
    file = tmp_path / ".imagen/journal/ab12/000000.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    for store in (TaskStateJournalStore(state, {}), FolderJournalStore(tmp_path, "ab12")):
        with pytest.raises(JournalError, match=r"has format 1, but this .* supports only format 2; nothing was sent"):
            Journal(store).open()
    assert state.values == {"imagen/journal/0": text}
    assert file.read_text() == text
    assert files_below(tmp_path) == [".imagen/journal/ab12/000000.jsonl"]


def test_an_owner_name_that_is_a_path_is_rejected(store):
    store.write(HEADER, json.dumps({"version": 2, "owner": "../../x", "owners": ["../../x"]}))
    with pytest.raises(JournalError, match="damaged"):
        Journal(store).open()
    with pytest.raises(JournalError, match="damaged"):
        read_journal(store)


def test_a_store_describes_its_location(tmp_path):
    assert TaskStateJournalStore(TaskState(), {}).description == "Airflow's task state store"
    assert FolderJournalStore(tmp_path, "ab12").description == f"the folder {tmp_path}/.imagen/journal/ab12"
    remote = FolderJournalStore(ObjectStoragePath("memory://bucket/out"), "ab12")
    assert remote.description.startswith("the folder memory://")
    assert remote.description.endswith("bucket/out/.imagen/journal/ab12")


def test_a_store_does_not_reveal_a_password_in_its_address():
    """The location appears in logs and messages."""
    store = FolderJournalStore(ObjectStoragePath("memory://user:hush-hush@host/out"), "ab12")
    assert "hush-hush" not in store.description


# --- the folder -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["file://{}/out", "memory://{}/out"])
def test_finishing_one_tasks_journal_leaves_the_others_and_the_images_alone(tmp_path, url):
    folder = ObjectStoragePath(url.format(tmp_path))
    mine, other = FolderJournalStore(folder, "mine"), FolderJournalStore(folder, "other")
    journal = filled(mine, 3, resolved=True)
    filled(other, 3)
    (folder / "picture.png").write_bytes(b"picture")
    journal.finish()
    assert mine.read(HEADER) is None
    assert len(read_journal(other).all_unresolved()) == 3
    assert (folder / "picture.png").read_bytes() == b"picture"


def test_no_object_of_a_finished_journal_is_left_in_an_object_store(tmp_path):
    store = FolderJournalStore(ObjectStoragePath(f"memory://{tmp_path.name}/finished"), "ab12")
    filled(store, resolved=True)
    journal = filled(store, 3, resolved=True)
    filesystem = fsspec.filesystem("memory")
    assert len(filesystem.find(f"/{tmp_path.name}/finished")) > 3
    journal.finish()
    assert filesystem.find(f"/{tmp_path.name}/finished") == []


def test_a_folder_holds_a_header_and_the_segments_of_each_owner_and_no_temporary_file(tmp_path):
    journals = [filled(FolderJournalStore(tmp_path, "ab12"), count) for count in (400, 1)]
    owners = [journal.owner for journal in journals]
    files = files_below(tmp_path / ".imagen/journal/ab12")
    full = len(files) - 3
    assert full > 0
    expected = ["000000.jsonl", *(f"{owner}/0.jsonl" for owner in owners)]
    expected += [f"{owners[0]}/{number}.jsonl" for number in range(1, full + 1)]
    assert files == sorted(expected)


def test_deleting_removes_the_whole_folder_on_a_disk(tmp_path):
    """Including what a killed attempt left there and what a previous one wrote after losing the journal."""
    store = FolderJournalStore(tmp_path, "ab12")
    journal = filled(store, 3, resolved=True)
    store.write("1-0123456789ab/7", "late\n")
    (tmp_path / ".imagen/journal/ab12/.imagen-ab12-x.part").write_text("half")
    journal.finish()
    assert not (tmp_path / ".imagen/journal/ab12").exists()
    assert (tmp_path / ".imagen/journal").exists()


def test_an_unreadable_file_is_not_an_empty_journal(tmp_path):
    store = FolderJournalStore(tmp_path, "ab12")
    (tmp_path / ".imagen/journal/ab12/000000.jsonl").mkdir(parents=True)
    with pytest.raises(StoreUnavailableError, match="a directory with this name already exists"):
        store.read(HEADER)
    with pytest.raises(JournalError, match="cannot be used"):
        Journal(store).open()


def test_an_unwritable_file_is_worth_a_retry(tmp_path):
    (tmp_path / ".imagen").write_text("a file where a folder must be")
    store = FolderJournalStore(tmp_path, "ab12")
    with pytest.raises(StoreUnavailableError, match="Cannot write"):
        store.write(HEADER, "{}")
    with pytest.raises(JournalError):
        Journal(store).open()


@pytest.mark.parametrize("method", ["cat_file", "pipe_file"])
def test_an_unavailable_object_store_is_worth_a_retry_and_reveals_no_secret(tmp_path, monkeypatch, method):
    store = FolderJournalStore(ObjectStoragePath(f"memory://{tmp_path.name}/away"), "ab12")

    def away(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no route to https://store/bucket?sig=hush-hush")

    monkeypatch.setattr(fsspec.filesystem("memory"), method, away)
    with pytest.raises(StoreUnavailableError, match="the connection to the store failed") as caught:
        store.read(SEGMENT) if method == "cat_file" else store.write(SEGMENT, "{}")
    assert "hush-hush" not in str(caught.value)


@pytest.mark.parametrize("name", ["000000.jsonl", "1-0123456789ab/0.jsonl"])
def test_a_file_with_invalid_utf8_is_rejected(tmp_path, name):
    store = FolderJournalStore(tmp_path, "ab12")
    store.write(HEADER, json.dumps({"version": 2, "owner": "1-0123456789ab", "owners": ["1-0123456789ab"]}))
    store.write(SEGMENT, "{}")
    (tmp_path / ".imagen/journal/ab12" / name).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(JournalError):
        Journal(store).open()


@pytest.mark.parametrize("url", ["file://{}/out", "memory://{}/out"])
def test_journals_of_a_folder_are_listed_by_their_task_instances(tmp_path, url):
    folder = ObjectStoragePath(url.format(tmp_path))
    assert list_identities(folder) == []
    for identity in ("cd34", "ab12"):
        filled(FolderJournalStore(folder, identity), 1)
    (folder / "picture.png").write_bytes(b"picture")
    assert list_identities(folder) == ["ab12", "cd34"]


# --- folders that others can write to ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "ab12", "ab12/000000.jsonl"])
def test_a_symlink_in_the_journal_is_neither_followed_nor_deleted_through(tmp_path, name):
    elsewhere = tmp_path / "elsewhere"
    filled(FolderJournalStore(elsewhere, "ab12"), 3)
    before = files_below(elsewhere)
    folder = tmp_path / "out"
    planted = folder / ".imagen/journal" / name
    planted.parent.mkdir(parents=True)
    planted.symlink_to(elsewhere / ".imagen/journal" / name)
    store = FolderJournalStore(folder, "ab12")
    with pytest.raises(StoreUnavailableError, match="symbolic link"):
        store.read(HEADER)
    with pytest.raises(JournalError):
        Journal(store).open()
    with suppress(StorageError):
        store.delete([HEADER])
    assert files_below(elsewhere) == before


def test_only_journals_of_this_package_are_listed(tmp_path):
    journals = tmp_path / ".imagen/journal"
    (journals / "ab12").mkdir(parents=True)
    (journals / "..odd").mkdir()
    (journals / "cd34").symlink_to(tmp_path)
    (journals / "ef56").touch()
    assert list_identities(tmp_path) == ["ab12"]
    (tmp_path / "linked" / ".imagen").mkdir(parents=True)
    (tmp_path / "linked/.imagen/journal").symlink_to(journals)
    with pytest.raises(StorageError, match="symbolic link"):
        list_identities(tmp_path / "linked")


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("000000.jsonl", json.dumps({"version": "9" * 10_000, "owner": "1-0123456789ab", "owners": []})),
        ("000000.jsonl", json.dumps({"version": 2, "owner": "0-000000000000", "owners": ["0-000000000000"] * 1_001})),
        ("1-0123456789ab/0.jsonl", '{"full_segments":1000000000}\n{}\n'),
        ("1-0123456789ab/0.jsonl", '{"full_segments":10000}\n{}\n'),
        ("1-0123456789ab/0.jsonl", '{"full_segments":true}\n{}\n'),
        ("1-0123456789ab/0.jsonl", f'{{"full_segments":{"9" * 5_000}}}\n{{}}\n'),
        ("1-0123456789ab/0.jsonl", f'{{"full_segments":{"[" * 100_000}\n'),
    ],
)
def test_invalid_numbers_are_rejected_at_once(tmp_path, name, text):
    store = FolderJournalStore(tmp_path, "ab12")
    store.write(HEADER, json.dumps({"version": 2, "owner": "1-0123456789ab", "owners": ["1-0123456789ab"]}))
    store.write(SEGMENT, "{}")
    (tmp_path / ".imagen/journal/ab12" / name).write_text(text)
    with pytest.raises(JournalError) as caught:
        Journal(store).open()
    assert len(str(caught.value)) < 1000


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["000000.jsonl", "1-0123456789ab/0.jsonl"])
def test_a_huge_file_is_not_read(tmp_path, name):
    store = FolderJournalStore(tmp_path, "ab12")
    store.write(HEADER, json.dumps({"version": 2, "owner": "1-0123456789ab", "owners": ["1-0123456789ab"]}))
    store.write(SEGMENT, "{}")
    with (tmp_path / ".imagen/journal/ab12" / name).open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(JournalError, match="cannot be used"):
        Journal(store).open()


def test_a_journal_larger_than_any_task_writes_is_rejected(tmp_path, monkeypatch):
    store = FolderJournalStore(tmp_path, "ab12")
    filled(store, 400)
    monkeypatch.setattr(log, "MAX_JOURNAL_CHARACTERS", 60_000)
    with pytest.raises(JournalError, match=r"more than 60000 characters\) is damaged"):
        Journal(store).open()


# --- the task state store ---------------------------------------------------------------------------------------------


def test_the_task_state_holds_a_header_and_the_segments_of_each_owner():
    state = TaskState()
    journal = filled(TaskStateJournalStore(state, {}), 3)
    assert state.values.keys() == {"imagen/journal/0", f"imagen/journal/{journal.owner}/0"}
    assert json.loads(state.values["imagen/journal/0"])["owner"] == journal.owner


def test_a_finished_journal_leaves_only_other_entries_in_the_task_state():
    state = TaskState()
    state.set("somebody else's", 1)
    store = TaskStateJournalStore(state, {})
    filled(store, 3, resolved=True)
    filled(store, resolved=True).finish()
    assert state.values == {"somebody else's": 1}


@pytest.mark.parametrize("name", ["0", "1-0123456789ab/0"])
@pytest.mark.parametrize("value", [{"edited": "by hand"}, 7, ["lines"], False])
def test_a_replaced_entry_of_the_task_state_is_not_an_empty_journal(name, value):
    state = TaskState()
    state.values["imagen/journal/0"] = '{"version":2,"owner":"1-0123456789ab","owners":["1-0123456789ab"]}'
    state.values[f"imagen/journal/{name}"] = value
    with pytest.raises(
        JournalError, match=f"Entry imagen/journal/{name} of Airflow's task state store is not text; nothing was sent"
    ):
        Journal(TaskStateJournalStore(state, {})).open()


def test_every_write_to_the_task_state_carries_the_retention():
    state = TaskState()
    filled(TaskStateJournalStore(state, {"retention": timedelta(days=9)}))
    assert len(state.retentions) > 2
    assert set(state.retentions) == {timedelta(days=9)}
    assert all(isinstance(value, str) for value in state.values.values())


def test_errors_worth_a_retry_pass_through():
    class Away(TaskState):
        def get(self, key: str, default: Any = None) -> Any:
            raise StoreUnavailableError("away")

        def set(self, key: str, value: Any, **retention: Any) -> None:
            raise StoreUnavailableError("away")

    store = TaskStateJournalStore(Away(), {})
    with pytest.raises(StoreUnavailableError):
        store.read(HEADER)
    with pytest.raises(StoreUnavailableError):
        store.write(HEADER, "{}")


def test_a_partial_write_is_kept_and_detected_as_damage(tmp_path, monkeypatch):
    """If it were removed, the journal would look as if nothing had been paid for."""
    store = FolderJournalStore(ObjectStoragePath(f"memory://{tmp_path.name}/out"), "ab12")
    store.write(HEADER, '{"version":2}')
    filesystem = fsspec.filesystem("memory")
    pipe_file = type(filesystem).pipe_file

    def write_half(self: Any, path: str, value: bytes, **options: Any) -> None:
        pipe_file(self, path, value[:5], **options)
        raise ConnectionError("reset")

    monkeypatch.setattr(type(filesystem), "pipe_file", write_half)
    with pytest.raises(StoreUnavailableError):
        store.write(HEADER, '{"version":2}')
    assert store.read(HEADER) == '{"ver'


def test_interrupted_deletion_leaves_no_journal_on_a_disk(tmp_path, monkeypatch):
    store = FolderJournalStore(tmp_path / "out", "ab12")
    filled(store).close()
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    store.delete([HEADER])
    assert store.read(HEADER) is None
    assert not read_journal(store).requests


def test_a_disk_that_cannot_delete_a_folder_is_not_an_error(tmp_path, monkeypatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("no")

    store = FolderJournalStore(tmp_path / "out", "ab12")
    filled(store).close()
    monkeypatch.setattr("os.rmdir", refuse)
    store.delete([HEADER])
    assert store.read(HEADER) is None
