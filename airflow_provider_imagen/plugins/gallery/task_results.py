"""
Parse a task's results: its summary, its images and its problems.

XComs and files are untrusted data. Whatever does not have the expected form is dropped here, so that no other module
has to check it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import asdict

from airflow_provider_imagen.image_record import ImageRecord, WholeNumber, read_record
from airflow_provider_imagen.plugins.gallery.airflow_api import TaskInstance  # noqa: TC001 - msgspec reads it
from airflow_provider_imagen.run_report import FailureLine, RunSummary
from airflow_provider_imagen.storage.inspect_image import SVG_MIME_TYPE

if TYPE_CHECKING:
    from msgspec import Struct

_NEVER_SHOWN: Final = ("in_doubt", "output_path", "contact_sheet")
"""Fields of a summary that no page shows; they may be large, and summaries are cached for long."""


@dataclass(frozen=True)
class TaskSummary:
    """
    The summary of a task instance.

    :param timestamp: time at which the summary was written
    """

    ti: TaskInstance
    summary: RunSummary
    timestamp: str


class GalleryImage(ImageRecord, frozen=True, kw_only=True):
    """The record of one image, and the task instance that it belongs to."""

    ti: TaskInstance
    prompt_index: WholeNumber
    image_index: WholeNumber
    prompt: str = ""

    @property
    def is_stored(self) -> bool:
        """Whether there is a stored file, with the size and digest to verify it."""
        return bool(self.path and self.sha256 and self.bytes)

    @property
    def is_vector(self) -> bool:
        """Whether it is an SVG, which is offered only as a download because it may hold scripts."""
        return self.mime_type == SVG_MIME_TYPE

    @property
    def alt_text(self) -> str:
        """The description for people who cannot see the image: the metadata value of this name, else the prompt."""
        return (self.metadata or {}).get("alt_text") or self.prompt


class Problem(FailureLine, frozen=True, kw_only=True):
    """One prompt that did not yield all its images, and the task instance that it belongs to."""

    ti: TaskInstance


def read_summary(ti: TaskInstance, value: Any, timestamp: str) -> TaskSummary | None:
    """
    Return a parsed XCom ``summary``; ``None`` if it is not one of ours.

    While a task is in progress, it counts what is still to come as not sent; that is left out.
    """
    if not isinstance(value, Mapping) or not {"requested", "made", "usd_spent"} <= value.keys():
        return None
    shown = {name: field for name, field in _read(RunSummary, value).items() if name not in _NEVER_SHOWN}
    if shown["in_progress"]:
        shown["not_sent"] = 0
    return TaskSummary(ti=ti, summary=RunSummary(**shown), timestamp=timestamp)


def total(summaries: Iterable[RunSummary]) -> RunSummary:
    """Return the counts and costs of several task instances together."""
    counts = (
        *("requested", "made", "filtered", "failed", "not_sent", "adopted", "reused", "beyond_limit"),
        *("usd_spent", "usd_saved", "usd_lost", "usd_in_doubt"),
    )
    found = list(summaries)
    return RunSummary(
        **{name: sum(getattr(each, name) for each in found) for name in counts},
        usd_is_estimate=any(each.usd_is_estimate for each in found),
    )


def read_images(ti: TaskInstance, records: Any) -> list[GalleryImage]:
    """Return the images of records from an XCom or a manifest, in prompt order."""
    if not isinstance(records, Iterable) or isinstance(records, (str, Mapping)):
        return []
    found = [_read_image(ti, record) for record in records if isinstance(record, Mapping)]
    return sorted(
        (image for image in found if image is not None),
        key=lambda image: (image.prompt_index, image.image_index),
    )


def belongs_to(ti: TaskInstance, line: Mapping[str, Any]) -> bool:
    """Return whether a manifest line belongs to a task instance."""
    ids = (line.get("dag_id"), line.get("run_id"), line.get("task_id"), line.get("map_index"))
    return ids == (ti.dag_id, ti.run_id, ti.task_id, ti.map_index)


def read_problems(ti: TaskInstance, lines: Iterable[Mapping[str, Any]]) -> list[Problem]:
    """Return the problems in the lines of a failures file."""
    return [Problem(ti=ti, **_read(FailureLine, line)) for line in lines]


def _read_image(ti: TaskInstance, record: Mapping[str, Any]) -> GalleryImage | None:
    values = _read(ImageRecord, record)
    if values["prompt_index"] is None or values["image_index"] is None:
        return None
    return GalleryImage(ti=ti, **(values | {"prompt": values["prompt"] or ""}))


def _read(kind: type[Struct], values: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return the fields of a record whose fields all have defaults.

    Unpaired surrogates, which no page can encode, become ``?``.
    """
    record = read_record(kind, values)
    fields = asdict(record) if record is not None else {}
    return {name: _to_encodable(value) for name, value in fields.items()}


def _to_encodable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, dict):
        return {_to_encodable(name): _to_encodable(part) for name, part in value.items()}
    return value


def manifest_of(value: Any) -> str | None:
    """Return the manifest path if an XCom ``images`` points to one, else ``None``."""
    path = value.get("manifest") if isinstance(value, Mapping) else None
    return path if isinstance(path, str) and path else None
