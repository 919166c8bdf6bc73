"""
Parse a task's results: its summary, its images and its problems.

XComs and files are untrusted data. Whatever does not have the expected form is dropped here, so that no other module
has to check it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeAlias

from msgspec import DecodeError
from msgspec.json import decode
from msgspec.structs import asdict

from airflow_provider_imagen.image_record import ImageRecord, WholeNumber, read_record
from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator
from airflow_provider_imagen.plugins.gallery.airflow_api import TaskInstance  # noqa: TC001 - msgspec reads it
from airflow_provider_imagen.run_report import FailureLine, RunSummary, TaskFailure
from airflow_provider_imagen.storage.inspect_image import SVG_MIME_TYPE

if TYPE_CHECKING:
    from msgspec import Struct

    from airflow_provider_imagen.plugins.gallery.airflow_api import TaskStatus

    Entry: TypeAlias = "GalleryImage | Problem | TaskProblem"

_NEVER_SHOWN: Final = ("in_doubt", "output_path")
"""Fields of a summary that no page shows; they may be large, and summaries are cached for long."""

_SHOWN_ELSEWHERE: Final = ("model", "seed", "output_path", "imagen_conn_id")
"""Arguments that pages show in another place, or only in the code that makes an image again."""

_MAX_PATH_CHARACTERS: Final = 4096

_ARGUMENTS: Final = [name for name in ImagenGenerateOperator.argument_defaults() if name != "prompt"]
_MAX_LEVELS: Final = 20


class _ListedImage(ImageRecord, frozen=True, kw_only=True):
    """
    The record of one image, and what a manifest adds to it.

    :param file_name: name relative to the output folder, parts joined by ``/``; ``None`` if unknown
    :param created_at: when it was generated, in ISO 8601; ``None`` for a record that is in XCom only
    """

    file_name: str | None = None
    created_at: str | None = None


class GalleryImage(_ListedImage, frozen=True, kw_only=True):
    """One image, and the task instance that it belongs to."""

    card: ClassVar[str] = "image"
    ti: TaskInstance
    prompt_index: WholeNumber
    image_index: WholeNumber
    prompt: str = ""

    @property
    def outcome(self) -> str:
        """Whether it was reused from another run, or made."""
        return "made" if self.reused_from is None else "reused"

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

    @property
    def operator_arguments(self) -> dict[str, Any] | None:
        """
        The recorded arguments by name, in the operator's order; ``None`` for one that could not be recorded.

        :return: only arguments that the operator has; ``None`` if there are none or they cannot be read
        """
        try:
            arguments = decode(self.arguments or "", type=dict[str, Any])
        except (DecodeError, RecursionError):  # the former includes values of the wrong type
            return None
        if _is_deeper_than(_MAX_LEVELS, arguments):
            return None
        return {name: arguments[name] for name in _ARGUMENTS if name in arguments}

    @property
    def shown_arguments(self) -> dict[str, Any]:
        """The recorded arguments that pages list, those in ``parameters`` by their own names."""
        recorded = dict(self.operator_arguments or {})
        parameters = recorded.pop("parameters", None)
        recorded |= parameters if isinstance(parameters, dict) else {}
        return {name: value for name, value in recorded.items() if name not in _SHOWN_ELSEWHERE and value is not None}

    @property
    def places(self) -> int:
        """Number of places in the grid."""
        return 1


class Problem(FailureLine, frozen=True, kw_only=True):
    """One prompt that did not yield all its images, and the task instance that it belongs to."""

    card: ClassVar[str] = "problem"
    ti: TaskInstance

    @property
    def places(self) -> int:
        """Number of places in the grid: one for each missing image."""
        return max((self.requested or 0) - self.made, 1)


@dataclass(frozen=True)
class TaskProblem:
    """
    A task instance that has failed, for a reason that is not that of one of its prompts.

    :param failure: the reason; ``None`` if the task did not publish one, because it was killed or never ran
    """

    card: ClassVar[str] = "task"
    status: TaskStatus
    failure: TaskFailure | None

    @property
    def ti(self) -> TaskInstance:
        """The ids of the task instance."""
        return self.status.ti

    @property
    def prompt(self) -> str | None:
        """Its prompt, if it has just one."""
        return self.status.prompt

    @property
    def name(self) -> str | None:
        """The name of that prompt."""
        return self.status.name

    @property
    def model(self) -> str | None:
        """The model that was requested for it."""
        return self.status.model

    @property
    def usd(self) -> None:
        """It has no cost of its own; its prompts have."""

    @property
    def metadata(self) -> None:
        """It has no metadata to show."""

    @property
    def outcome(self) -> str:
        """It has failed."""
        return "failed"

    @property
    def places(self) -> int:
        """Number of places in the grid."""
        return 1


def read_summary(value: Any) -> RunSummary | None:
    """
    Return a parsed XCom ``summary``; ``None`` if it is not one of ours.

    While a task is in progress, it counts what is still to come as not sent; that is left out.
    """
    if not isinstance(value, Mapping) or not {"requested", "made", "usd_spent"} <= value.keys():
        return None
    shown = {name: field for name, field in _read(RunSummary, value).items() if name not in _NEVER_SHOWN}
    if shown["in_progress"]:
        shown["not_sent"] = 0
    if len(shown["contact_sheet"] or "") > _MAX_PATH_CHARACTERS:
        shown["contact_sheet"] = None
    return RunSummary(**shown)


def read_failure(value: Any) -> TaskFailure | None:
    """Return a parsed XCom ``failure``; ``None`` if it is not one of ours."""
    failure = TaskFailure(**_read(TaskFailure, value)) if isinstance(value, Mapping) else TaskFailure()
    return failure if failure.error else None


def read_moment(text: str | None) -> datetime | None:
    """Return a time in ISO 8601; ``None`` if it is not one, or has no time zone."""
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return moment if moment.tzinfo else None


def read_images(ti: TaskInstance, records: Any, *, manifest: str | None = None) -> list[GalleryImage]:
    """
    Return the images of records from an XCom or a manifest, in prompt order.

    :param manifest: path of the manifest in the output folder, to which file names are relative
    """
    if not isinstance(records, Iterable) or isinstance(records, (str, Mapping)):
        return []
    folder = (manifest or "").rpartition("/")[0]
    found = [_read_image(ti, record, folder) for record in records if isinstance(record, Mapping)]
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


def _read_image(ti: TaskInstance, record: Mapping[str, Any], folder: str) -> GalleryImage | None:
    values = _read(_ListedImage, record)
    if values["prompt_index"] is None or values["image_index"] is None:
        return None
    if values["file_name"] is None and values["path"]:
        path: str = values["path"]
        below = path.removeprefix(f"{folder}/")
        values["file_name"] = below if folder and below != path else PurePosixPath(path).name
    return GalleryImage(ti=ti, **(values | {"prompt": values["prompt"] or ""}))


def _is_deeper_than(levels: int, value: Any) -> bool:
    """Return whether a JSON value is nested more deeply than so many levels."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(levels == 0 or _is_deeper_than(levels - 1, part) for part in parts)


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
