"""Stores for a journal: Airflow's task state store, or a folder beside the images."""

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
"""Largest journal file that is read: above any real segment, even one that is a single very long record."""


class StateStore(Protocol):
    """The methods used of Airflow's ``context["task_state_store"]`` (3.3 and later)."""

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key, or the default."""

    def set(self, key: str, value: Any, **retention: Any) -> None:
        """Store the value of a key, durable on return."""

    def delete(self, key: str) -> None:
        """Delete a key."""


class TaskStateJournalStore:
    """
    A journal store in Airflow's task state store.

    It is scoped to DAG, run, task and map index, survives retries, worker crashes and clearing, and is deleted with the
    DAG run.

    :param store: the task's own store; raises :class:`StoreUnavailableError` for failures worth retrying
    :param retention: keyword arguments for ``set`` that keep a value until it is deleted
    """

    description = "Airflow's task state store"

    def __init__(self, store: StateStore, retention: dict[str, Any]) -> None:
        self._store = store
        self._retention = retention

    def read(self, name: str) -> str | None:
        """
        Return a text, or ``None`` if it does not exist.

        :raises JournalError: the entry was replaced with something that is not text
        """
        value = self._store.get(_key(name))
        if value is None or isinstance(value, str):
            return value
        raise JournalError(f"Entry {_key(name)} of {self.description} is not text; nothing was sent.")

    def write(self, name: str, text: str) -> None:
        """Write a text, replacing any existing one."""
        self._store.set(_key(name), text, **self._retention)

    def delete(self, names: Iterable[str]) -> None:
        """Delete texts in the order given."""
        for name in names:
            self._store.delete(_key(name))


def _key(name: str) -> str:
    # Format 1 kept its first segment under the header's key, so each format finds, and rejects, the other's journals.
    return f"{_KEY_PREFIX}/{'0' if name == HEADER else name}"


def list_identities(folder: StoragePath) -> list[str]:
    """Return the short hashes of the task instances that have a journal in a folder, sorted."""
    journals = descend(folder, f"{HIDDEN_FOLDER}/journal")
    local, root = local_path(journals), local_path(folder)
    try:
        if local is not None and root is not None:
            entries = list_folder(local, within=root)
            names = [name for name, status in entries.items() if stat.S_ISDIR(status.st_mode)]
        else:
            filesystem, key = filesystem_of(journals)
            names = [str(each["name"]).rstrip("/").rpartition("/")[2] for each in list_objects(filesystem, key)]
    except FileNotFoundError:
        return []
    return sorted(filter(_IDENTITY.fullmatch, names))


class FolderJournalStore:
    """
    A journal store of files in a hidden folder beside the images, for Airflow 3.1 and 3.2.

    :param folder: the output folder
    :param identity: short hash of the task-instance key (DAG, run, task and map index)
    """

    def __init__(self, folder: StoragePath, identity: str) -> None:
        self.output_folder = folder
        self._identity = identity
        self._folder = descend(folder, f"{HIDDEN_FOLDER}/journal/{identity}")
        self.description = f"the folder {redacted_address(self._folder)}"

    def read(self, name: str) -> str | None:
        """
        Return a text, or ``None`` if it does not exist.

        :raises StoreUnavailableError: the text may exist, but cannot be read now
        """
        try:
            data = read_bytes(self._path(name), within=self.output_folder, max_bytes=MAX_TEXT_BYTES)
        except StorageError as error:
            raise StoreUnavailableError(str(error)) from error
        return None if data is None else data.decode()

    def write(self, name: str, text: str) -> None:
        """
        Write a text, replacing any existing one.

        Whatever a failed write leaves behind is kept; if it were removed, readers would assume it was never written.

        :raises StoreUnavailableError: the text cannot be written now
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
        """Delete texts in the order given; on a disk, delete the journal's whole folder."""
        folder, root = local_path(self._folder), local_path(self.output_folder)
        if folder is not None and root is not None:
            # The header goes first: without it, a journal does not exist.
            with suppress(FileNotFoundError), open_folder_at(folder, within=root) as journal:
                os.unlink(self._path(HEADER).name, dir_fd=journal)
            with suppress(FileNotFoundError), open_folder_at(folder.parent, within=root) as journals:
                shutil.rmtree(folder.name, ignore_errors=True, dir_fd=journals)
            return
        for name in names:
            filesystem, key = filesystem_of(self._path(name))
            with suppress(FileNotFoundError):
                filesystem.rm_file(key)

    def _path(self, name: str) -> StoragePath:
        # As in _key: this is where format 1 kept its first segment.
        return descend(self._folder, "000000.jsonl" if name == HEADER else f"{name}.jsonl")
