"""The places a journal can live: Airflow's task state store, or a folder beside the pictures."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from airflow_provider_imagen.exceptions import JournalError
from airflow_provider_imagen.storage.paths import HIDDEN_FOLDER, descend, filesystem_of, local_path
from airflow_provider_imagen.storage.writing import read_bytes, write_bytes_atomically

if TYPE_CHECKING:
    from airflow_provider_imagen.storage.paths import StoragePath

_KEY_PREFIX = "imagen/journal"


class StateStore(Protocol):
    """Airflow's ``context["task_state_store"]`` (3.3 and later), as far as it is used."""

    def get(self, key: str, default: Any = None) -> Any:
        """Give the value of a key."""

    def set(self, key: str, value: Any, **retention: Any) -> None:
        """Write the value of a key, durable on return."""

    def delete(self, key: str) -> None:
        """Remove a key."""


class TaskStateJournalStore:
    """
    Segments as values of Airflow's task state store.

    It is bound to DAG, run, task and map index, survives retries, dead workers and clearing, and is deleted with the
    DAG run.

    :param store: the task's own store
    :param retention: keyword arguments for ``set`` that keep a value until it is deleted
    """

    description = "Airflow's task state store"

    def __init__(self, store: StateStore, retention: dict[str, Any]) -> None:
        self._store = store
        self._retention = retention

    def read(self, number: int) -> str | None:
        """
        Give the text of a segment.

        :raises JournalError: the entry was changed into something that is no text
        """
        value = self._store.get(f"{_KEY_PREFIX}/{number}")
        if value is None or isinstance(value, str):
            return value
        raise JournalError(f"Entry {_KEY_PREFIX}/{number} of {self.description} is no text; nothing was sent.")

    def write(self, number: int, text: str) -> None:
        """Write a segment whole."""
        self._store.set(f"{_KEY_PREFIX}/{number}", text, **self._retention)

    def delete(self, number: int) -> None:
        """Remove a segment."""
        self._store.delete(f"{_KEY_PREFIX}/{number}")


class FolderJournalStore:
    """
    Segments as files in a hidden folder beside the pictures, for Airflow 3.1 and 3.2.

    :param folder: where the pictures go
    :param identity: letters and digits that stand for DAG, run, task and map index
    """

    def __init__(self, folder: StoragePath, identity: str) -> None:
        self._identity = identity
        self._folder = descend(folder, f"{HIDDEN_FOLDER}/journal/{identity}")
        self.description = f"the folder {HIDDEN_FOLDER}/journal beside the pictures"

    def read(self, number: int) -> str | None:
        """Give the text of a segment."""
        data = read_bytes(self._path(number))
        return None if data is None else data.decode()

    def write(self, number: int, text: str) -> None:
        """Write a segment whole. What a write that fails leaves there stays: a missing segment would say nothing."""
        write_bytes_atomically(
            self._path(number), text.encode(), content_type="application/x-ndjson", owner=self._identity, shared=True
        )

    def delete(self, number: int) -> None:
        """Remove a segment, and with the last one the folder, on a disk; those above it belong to other tasks too."""
        path = self._path(number)
        local = local_path(path)
        if local is None:
            filesystem, key = filesystem_of(path)
            with suppress(FileNotFoundError):
                filesystem.rm_file(key)
            return
        local.unlink(missing_ok=True)
        with suppress(OSError):  # there are others, or there never was one
            local.parent.rmdir()

    def _path(self, number: int) -> StoragePath:
        return self._folder / f"{number:06}.jsonl"
