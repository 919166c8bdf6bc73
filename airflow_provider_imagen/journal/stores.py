"""The places a journal can live: Airflow's task state store, or a folder beside the images."""

from __future__ import annotations

import os
import re
import shutil
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from airflow_provider_imagen.exceptions import JournalError, StorageError
from airflow_provider_imagen.journal.log import HEADER, StoreUnavailableError
from airflow_provider_imagen.storage.atomic_write import read_bytes, redacted_address, write_bytes_atomically
from airflow_provider_imagen.storage.local_files import list_folder, open_folder_at
from airflow_provider_imagen.storage.paths import HIDDEN_FOLDER, descend, filesystem_of, list_objects, local_path

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airflow_provider_imagen.storage.paths import StoragePath

_KEY_PREFIX = "imagen/journal"
_IDENTITY = re.compile(r"[0-9a-z]+")

MAX_TEXT_BYTES = 16 * 2**20
"""Size of the largest file of a journal that is read: more than any segment has, however long its last record is."""


class StateStore(Protocol):
    """Airflow's ``context["task_state_store"]`` (3.3 and later), as far as it is used."""

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key."""

    def set(self, key: str, value: Any, **retention: Any) -> None:
        """Write the value of a key, durable on return."""

    def delete(self, key: str) -> None:
        """Remove a key."""


class TaskStateJournalStore:
    """
    Texts as values of Airflow's task state store.

    It belongs to DAG, run, task and map index, survives retries, dead workers and clearing, and is deleted with the DAG
    run.

    :param store: the task's own store; raises :class:`StoreUnavailableError` for what is worth trying again
    :param retention: keyword arguments for ``set`` that keep a value until it is deleted
    """

    description = "Airflow's task state store"

    def __init__(self, store: StateStore, retention: dict[str, Any]) -> None:
        self._store = store
        self._retention = retention

    def read(self, name: str) -> str | None:
        """
        Return a text.

        :raises JournalError: the entry was changed into something that is not text
        """
        value = self._store.get(_key(name))
        if value is None or isinstance(value, str):
            return value
        raise JournalError(f"Entry {_key(name)} of {self.description} is not text; nothing was sent.")

    def write(self, name: str, text: str) -> None:
        """Write a text."""
        self._store.set(_key(name), text, **self._retention)

    def delete(self, names: Iterable[str]) -> None:
        """Remove texts."""
        for name in names:
            self._store.delete(_key(name))


def _key(name: str) -> str:
    # The header is where format 1 had its first segment, so that each format finds, and rejects, the other's journal.
    return f"{_KEY_PREFIX}/{'0' if name == HEADER else name}"


def list_identities(folder: StoragePath) -> list[str]:
    """Return the identities of the task instances whose journals lie in a folder."""
    place = descend(folder, f"{HIDDEN_FOLDER}/journal")
    local, root = local_path(place), local_path(folder)
    try:
        if local is not None and root is not None:
            entries = list_folder(local, within=root)
            names = [name for name, status in entries.items() if stat.S_ISDIR(status.st_mode)]
        else:
            filesystem, key = filesystem_of(place)
            names = [str(each["name"]).rstrip("/").rpartition("/")[2] for each in list_objects(filesystem, key)]
    except FileNotFoundError:
        return []
    return sorted(filter(_IDENTITY.fullmatch, names))


class FolderJournalStore:
    """
    Texts as files in a hidden folder beside the images, for Airflow 3.1 and 3.2.

    :param folder: where the images go
    :param identity: letters and digits that stand for DAG, run, task and map index
    """

    def __init__(self, folder: StoragePath, identity: str) -> None:
        self.output_folder = folder
        self._identity = identity
        self._folder = descend(folder, f"{HIDDEN_FOLDER}/journal/{identity}")
        self.description = f"the folder {redacted_address(self._folder)}"

    def read(self, name: str) -> str | None:
        """
        Return a text.

        :raises StoreUnavailableError: it may be there and cannot be read at the moment
        """
        try:
            data = read_bytes(self._path(name), within=self.output_folder, max_bytes=MAX_TEXT_BYTES)
        except StorageError as error:
            raise StoreUnavailableError(str(error)) from error
        return None if data is None else data.decode()

    def write(self, name: str, text: str) -> None:
        """
        Write a text. What a failed write leaves there stays, because a missing text would mean that there was none.

        :raises StoreUnavailableError: it could not be written at the moment
        """
        try:
            write_bytes_atomically(
                self._path(name),
                text.encode(),
                content_type="application/x-ndjson",
                owner=self._identity,
                within=self.output_folder,
                shared=True,
            )
        except StorageError as error:
            raise StoreUnavailableError(str(error)) from error

    def delete(self, names: Iterable[str]) -> None:
        """Remove texts; on a disk also everything else that a journal left there, and its folder."""
        folder, root = local_path(self._folder), local_path(self.output_folder)
        if folder is not None and root is not None:
            with suppress(FileNotFoundError), open_folder_at(folder, within=root) as journal:
                os.unlink(self._path(HEADER).name, dir_fd=journal)  # first: without it, there is no journal
            with suppress(FileNotFoundError), open_folder_at(folder.parent, within=root) as journals:
                shutil.rmtree(folder.name, ignore_errors=True, dir_fd=journals)
            return
        for name in names:
            filesystem, key = filesystem_of(self._path(name))
            with suppress(FileNotFoundError):
                filesystem.rm_file(key)

    def _path(self, name: str) -> StoragePath:
        # As in _key: where format 1 had its first segment.
        return descend(self._folder, "000000.jsonl" if name == HEADER else f"{name}.jsonl")
