"""Search, filter and sort what a grid shows."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING

from airflow_provider_imagen.plugins.gallery.task_results import GalleryImage, TaskProblem, read_moment

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from airflow_provider_imagen.plugins.gallery.airflow_api import TaskInstance, TaskStatus
    from airflow_provider_imagen.plugins.gallery.task_results import Entry
    from airflow_provider_imagen.plugins.gallery.view_state import ViewState


def has_label(status: TaskStatus, label: str) -> bool:
    """Return whether a label, if there is one, is that of a task instance or its task."""
    return label in ("", status.ti.task_id, status.title)


def find_entries(entries: Iterable[Entry], view: ViewState) -> list[Entry]:
    """
    Return the entries that match the words, the model and the status of a view.

    Each word must be part of the prompt, the name or a metadata value; case does not matter.
    """
    words = view.q.casefold().split()
    return [
        entry
        for entry in entries
        if (not view.model or entry.model == view.model)
        and (not view.status or _has_status(entry, view.status))
        and (not words or _has_words(entry, words))
    ]


def sort_entries(
    entries: Iterable[Entry], view: ViewState, *, statuses: Mapping[TaskInstance, TaskStatus]
) -> list[Entry]:
    """
    Return the entries in the order of a view; those that lack the value to sort by come last.

    :param entries: in prompt order
    :param statuses: the status of each task instance
    """
    key = view.sort.removeprefix("-")
    found = [(_sort_value(entry, key, statuses), entry) for entry in entries]
    known = [(value, entry) for value, entry in found if value is not None]
    known.sort(key=itemgetter(0), reverse=view.sort.startswith("-"))
    return [entry for _, entry in known] + [entry for value, entry in found if value is None]


def _has_status(entry: Entry, status: str) -> bool:
    return entry.outcome == status or (status == "missing" and not isinstance(entry, GalleryImage))


def _has_words(entry: Entry, words: list[str]) -> bool:
    texts = (entry.prompt, entry.name, *(entry.metadata or {}).values())
    text = "\n".join(text for text in texts if text).casefold()
    return all(word in text for word in words)


def _sort_value(entry: Entry, key: str, statuses: Mapping[TaskInstance, TaskStatus]) -> float | str | None:
    match key:
        case "name":
            return (entry.name or "").casefold() or None
        case "cost":
            return None if isinstance(entry, TaskProblem) else entry.usd
        case "size":
            return entry.bytes if isinstance(entry, GalleryImage) else None
        case "time":
            generated = read_moment(entry.created_at) if isinstance(entry, GalleryImage) else None
            moment = generated or read_moment(statuses[entry.ti].started)
            return None if moment is None else moment.timestamp()
    return None
