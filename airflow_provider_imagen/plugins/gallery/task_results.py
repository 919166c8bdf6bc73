"""
Parse a task's results: its summary, its pictures and its problems.

XComs and files are untrusted data. Whatever does not have the expected form is dropped here, so that no other module
has to check it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Literal

from msgspec.structs import asdict

from airflow_provider_imagen.image_record import ImageRecord, WholeNumber, read_record
from airflow_provider_imagen.plugins.gallery.airflow_api import TaskInstance  # noqa: TC001 - msgspec reads it
from airflow_provider_imagen.storage.inspect_image import SVG_MIME_TYPE

Outcome = Literal["filtered", "failed", "in_doubt"]

_TOO_MUCH: Final = 2**63


@dataclass(frozen=True)
class Summary:
    """
    The results and costs of one or more task instances.

    :param requested: pictures requested
    :param made: pictures made
    :param filtered: pictures that the model withheld
    :param failed: pictures that failed
    :param not_sent: pictures not requested, because the task ended first
    :param adopted: pictures reused from earlier attempts
    :param usd_spent: total charged, including lost charges
    :param usd_lost: charged without a picture
    :param usd_in_doubt: further amount that may have been charged for in-doubt requests
    :param usd_is_estimate: whether part of the cost is a list price, because a response did not state it
    """

    requested: int = 0
    made: int = 0
    filtered: int = 0
    failed: int = 0
    not_sent: int = 0
    adopted: int = 0
    usd_spent: float = 0.0
    usd_lost: float = 0.0
    usd_in_doubt: float = 0.0
    usd_is_estimate: bool = False

    @property
    def problems(self) -> int:
        """Number of requested pictures that are missing."""
        return self.filtered + self.failed + self.not_sent

    def __add__(self, other: Summary) -> Summary:
        return Summary(**{part.name: getattr(self, part.name) + getattr(other, part.name) for part in fields(self)})


@dataclass(frozen=True)
class TaskSummary:
    """
    The summary of a task instance.

    :param ti: the task instance
    :param manifest: path of its ``metadata.jsonl``; ``None`` if it stored nothing
    :param timestamp: time at which the summary was written
    """

    ti: TaskInstance
    summary: Summary
    manifest: str | None
    timestamp: str


class Picture(ImageRecord, frozen=True, kw_only=True):
    """The record of one picture, and the task instance that it belongs to."""

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


@dataclass(frozen=True)
class Problem:
    """
    One prompt that did not yield all its pictures.

    :param error: name of the error class
    :param why: error message
    """

    ti: TaskInstance
    prompt_index: int
    prompt: str
    name: str | None
    model: str | None
    requested: int
    made: int
    outcome: Outcome
    error: str
    why: str
    usd: float | None = None
    inference_id: str | None = None


def read_summary(ti: TaskInstance, value: Any, timestamp: str) -> TaskSummary | None:
    """Return a parsed XCom ``summary``; ``None`` if it is not one of ours."""
    if not isinstance(value, Mapping) or not {"requested", "made", "usd_spent"} <= value.keys():
        return None
    numbers = {
        name: _count(value.get(name)) for name in ("requested", "made", "filtered", "failed", "not_sent", "adopted")
    }
    summary = Summary(
        **numbers,
        usd_spent=_number(value.get("usd_spent")) or 0.0,
        usd_lost=_number(value.get("usd_lost")) or 0.0,
        usd_in_doubt=_number(value.get("usd_in_doubt")) or 0.0,
        usd_is_estimate=value.get("usd_is_estimate") is True,
    )
    return TaskSummary(ti=ti, summary=summary, manifest=_text(value.get("manifest")), timestamp=timestamp)


def manifest_of(value: Any) -> str | None:
    """Return the manifest path if an XCom ``images`` points to one, else ``None``."""
    return _text(value.get("manifest")) if isinstance(value, Mapping) else None


def read_pictures(ti: TaskInstance, records: Any) -> list[Picture]:
    """Return the pictures of records from an XCom or a manifest, in prompt order."""
    if not isinstance(records, Iterable) or isinstance(records, (str, Mapping)):
        return []
    found = [_read_picture(ti, record) for record in records if isinstance(record, Mapping)]
    return sorted(
        (picture for picture in found if picture is not None),
        key=lambda picture: (picture.prompt_index, picture.image_index),
    )


def belongs_to(ti: TaskInstance, line: Mapping[str, Any]) -> bool:
    """Return whether a manifest line belongs to a task instance."""
    ids = (line.get("dag_id"), line.get("run_id"), line.get("task_id"), line.get("map_index"))
    return ids == (ti.dag_id, ti.run_id, ti.task_id, ti.map_index)


def read_problems(ti: TaskInstance, lines: Iterable[Mapping[str, Any]]) -> list[Problem]:
    """Return the problems in the lines of a failures file."""
    return [
        Problem(
            ti=ti,
            prompt_index=_count(line.get("prompt_index")),
            prompt=_text(line.get("prompt")) or "",
            name=_text(line.get("name")),
            model=_text(line.get("model")),
            requested=_count(line.get("requested")),
            made=_count(line.get("made")),
            outcome=_outcome(line.get("outcome")),
            error=_text(line.get("error")) or "",
            why=_text(line.get("message")) or "",
            usd=_number(line.get("usd")),
            inference_id=_text(line.get("inference_id")),
        )
        for line in lines
    ]


def _outcome(value: Any) -> Outcome:
    return value if value in ("filtered", "in_doubt") else "failed"


def _read_picture(ti: TaskInstance, record: Mapping[str, Any]) -> Picture | None:
    read = read_record(ImageRecord, record)
    if read is None or read.prompt_index is None or read.image_index is None:
        return None
    values: dict[str, Any] = {
        name: _text(value) if isinstance(value, str) else value for name, value in asdict(read).items()
    }
    return Picture(ti=ti, **(values | {"prompt": values["prompt"] or ""}))


def _text(value: Any) -> str | None:
    """Return a non-empty string, else ``None``; unpaired surrogates, which no page can encode, become ``?``."""
    return value.encode(errors="replace").decode() if isinstance(value, str) and value else None


def _whole(value: Any) -> int | None:
    """Return an integer, else ``None``; also for one of 64 bits or more, which may overflow a ``float``."""
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < _TOO_MUCH else None


def _number(value: Any) -> float | None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _count(value: Any) -> int:
    return max(_whole(value) or 0, 0)
