"""
The points at which a task process kills itself, wrapped around the package's functions in the fork that is to die.

A kill is ``{"when": "before" | "after", "what": …, "nth": …}``: before or after the nth event of a kind, counted in
this process. ``SIGKILL`` leaves no time for anything: no ``finally``, no ``atexit``, no flush.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

LINGER_SECONDS = 0.1
"""Pause before a death, for whatever would go on too early, without waiting for what did not happen."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def die() -> None:
    """End this process as the kernel's out-of-memory killer does."""
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


def install(kill: dict[str, Any] | None) -> None:
    """Arm a kill in this process; do nothing for ``None``."""
    if kill is not None:
        what, _, detail = kill["what"].partition(" ")
        INSTALLERS[what](_Trigger(kill["when"], kill.get("nth", 1)), detail)


class _Trigger:
    """Counts events of one kind, from any thread, and kills the process at the right one."""

    def __init__(self, when: str, nth: int) -> None:
        self._when = when
        self._nth = nth
        self._seen = 0
        self._lock = threading.Lock()

    def around(self, event: Callable[[], Any], count: int = 1) -> Any:
        """Run events; if the nth is among them, die before or after them."""
        with self._lock:
            is_due = self._seen < self._nth <= self._seen + count
            self._seen += count
        if is_due and self._when == "before":
            time.sleep(LINGER_SECONDS)
            die()
        result = event()
        if is_due and self._when == "after":
            die()
        return result


def _wrap(owner: Any, name: str, trigger: _Trigger, events: Callable[..., int] = lambda *_, **__: 1) -> None:
    """Wrap a function in a trigger; ``events`` returns how many events a call counts as."""
    original = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return trigger.around(lambda: original(*args, **kwargs), events(*args, **kwargs))

    setattr(owner, name, wrapped)


def _on_record(trigger: _Trigger, kind: str) -> None:
    """The write that makes a journal record durable, whichever others it includes."""
    from airflow_provider_imagen.journal import stores

    for store in (stores.TaskStateJournalStore, stores.FolderJournalStore):
        known: dict[str, int] = {}

        def new_records(self: Any, name: str, text: str, known: dict[str, int] = known) -> int:
            before, known[name] = known.get(name, 0), text.count(f'"t":"{kind}"')
            return known[name] - before

        _wrap(store, "write", trigger, new_records)


def _on_segment(trigger: _Trigger, number: str) -> None:
    """The first write of a journal segment."""
    from airflow_provider_imagen.journal import stores

    for store in (stores.TaskStateJournalStore, stores.FolderJournalStore):
        _wrap(store, "write", trigger, lambda _self, name, _text: name.endswith(f"/{number}"))


def _on_deletion(trigger: _Trigger, _: str) -> None:
    """The deletion of a part of the journal, which begins once the task has succeeded."""
    from airflow_provider_imagen.journal import stores

    for store in (stores.TaskStateJournalStore, stores.FolderJournalStore):
        original = store.delete

        def delete(self: Any, names: Any, original: Any = original) -> None:
            for name in names:
                trigger.around(lambda name=name: original(self, [name]))

        store.delete = delete


def _on_post(trigger: _Trigger, _: str) -> None:
    """A paid request: its response has been read but not recorded."""
    from airflow_provider_imagen.api.client import ApiClient

    _wrap(ApiClient, "generate", trigger)


def _on_download(trigger: _Trigger, _: str) -> None:
    """The download of an image: its bytes are in memory and not on disk yet."""
    from airflow_provider_imagen.download.downloader import Downloader

    _wrap(Downloader, "fetch", trigger)


def _on_half(trigger: _Trigger, _: str) -> None:
    """The temporary file of an image, half of it written."""
    from airflow_provider_imagen.storage import atomic_write

    original = atomic_write._write_synced

    def write_half(name: str, data: bytes, folder: int) -> None:
        if data.startswith(PNG_SIGNATURE):
            trigger.around(lambda: original(name, data[: len(data) // 2], folder))
            os.unlink(name, dir_fd=folder)
        original(name, data, folder)

    atomic_write._write_synced = write_half


def _on_rename(trigger: _Trigger, suffix: str) -> None:
    """The rename or hard link that gives a file its final name."""

    def is_wanted(_: str, name: str, **__: Any) -> bool:
        return name.endswith(suffix)

    _wrap(os, "replace", trigger, is_wanted)
    _wrap(os, "link", trigger, is_wanted)


def _on_message(trigger: _Trigger, name: str) -> None:
    """A message from the task to Airflow, by its type and, for an XCom, its key."""
    from airflow.sdk.execution_time.supervisor import InProcessSupervisorComms

    wanted, _, key = name.partition(" ")

    def is_wanted(_: Any, msg: Any) -> bool:
        return type(msg).__name__ == wanted and (not key or msg.key == key)

    _wrap(InProcessSupervisorComms, "send", trigger, is_wanted)


INSTALLERS: dict[str, Callable[[_Trigger, str], None]] = {
    "record": _on_record,
    "segment": _on_segment,
    "deletion": _on_deletion,
    "post": _on_post,
    "download": _on_download,
    "half": _on_half,
    "rename": _on_rename,
    "message": _on_message,
}
