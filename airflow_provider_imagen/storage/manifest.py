"""
Keep the list of all pictures of a folder: ``metadata.jsonl``, which opens as a Hugging Face ImageFolder.

Several tasks, mapped task instances and runs may share a folder, and an object store can neither append nor lock. So
each task instance owns one part, ``.imagen/parts/<identity>.jsonl``, that nobody else writes. ``metadata.jsonl`` is all
parts put together, sorted. Whoever has written it looks at the parts again and, when they have changed meanwhile,
writes it again, unless somebody else has written it since: the last writer has therefore seen every part that was
there, and no line is lost. Each file is replaced as a whole, so a reader always sees a complete one.

``load_dataset`` guesses splits from file names: a picture called ``train`` or ``test`` would hide the others. With
``data_files="**"`` it does not guess.

Items without a picture go to ``.imagen/failures/<identity>.jsonl``: hidden folders are no part of an ImageFolder.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

from msgspec import DecodeError, Struct
from msgspec.json import decode

from airflow_provider_imagen.storage.paths import (
    HIDDEN_FOLDER,
    address_of,
    descend,
    filesystem_of,
    list_objects,
    local_path,
)
from airflow_provider_imagen.storage.writing import file_sizes, read_bytes, storage_error, write_bytes_atomically

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping, Sequence
    from datetime import datetime

    from airflow_provider_imagen.storage.origin import Origin
    from airflow_provider_imagen.storage.paths import StoragePath
    from airflow_provider_imagen.storage.saving import StoredPicture

MANIFEST_NAME: Final = "metadata.jsonl"
RECORD_KEYS: Final = (
    "prompt_index",
    "image_index",
    "url",
    "path",
    "width",
    "height",
    "mime_type",
    "bytes",
    "sha256",
    "model",
    "seed",
    "prompt",
    "enhanced_prompt",
    "usd",
    "inference_id",
    "client_request_id",
)
"""Keys of an image record, in the order they are written."""

_PARTS: Final = f"{HIDDEN_FOLDER}/parts"
_FAILURES: Final = f"{HIDDEN_FOLDER}/failures"
_CONTENT_TYPE: Final = "application/x-ndjson"
_LINE_ENDS: Final = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}
"""Ends of a line to ``str.splitlines`` but not to JSON: escaped, so that one picture stays one line to every reader."""
_READS_AT_ONCE: Final = 16

Line = dict[str, Any]


class _PartLine(Struct):
    """What of a part's line decides where it stands in the manifest, and the line as it was read."""

    file_name: str
    created_at: str | None = None
    dag_id: str | None = None
    run_id: str | None = None
    task_id: str | None = None
    map_index: int | None = None
    prompt_index: int | None = None
    image_index: int | None = None
    raw: bytes = b""


def manifest_line(
    record: Mapping[str, Any], *, file_name: str, thumbnail: str | None, origin: Origin, created_at: datetime
) -> Line:
    """
    Make the manifest's line of one stored picture.

    :param record: the image record; keys beyond :data:`RECORD_KEYS` are left out
    :param file_name: name relative to the folder (:attr:`StoredPicture.file_name`)
    :param thumbnail: its preview, relative to the folder (:attr:`StoredPicture.thumbnail`)
    :param origin: the task instance
    :param created_at: when the picture was made, with its time zone
    """
    return {
        "file_name": file_name,
        **{key: record.get(key) for key in RECORD_KEYS},
        "thumbnail": thumbnail,
        "dag_id": origin.dag_id,
        "run_id": origin.run_id,
        "task_id": origin.task_id,
        "map_index": origin.map_index,
        "created_at": created_at.isoformat(timespec="seconds"),
    }


def stored_fields(stored: StoredPicture) -> dict[str, Any]:
    """Name what a stored picture contributes to its image record: path, size, digest, media type."""
    return {
        "path": stored.path,
        "width": stored.width,
        "height": stored.height,
        "mime_type": stored.mime_type,
        "bytes": stored.bytes,
        "sha256": stored.sha256,
    }


def write_manifest(
    folder: StoragePath,
    *,
    origin: Origin,
    lines: Sequence[Line],
    failures: Sequence[Mapping[str, Any]] | None = (),
    attempt: str = "",
) -> str:
    """
    Record the pictures of one task instance, and bring ``metadata.jsonl`` up to date.

    Pictures this task instance recorded before (it was cleared and ran again) stay recorded while their files exist.

    :param folder: the output folder
    :param origin: the task instance
    :param lines: one per picture, from :func:`manifest_line`, in any order; all pictures of this try, adopted ones too
    :param failures: one JSON object per item that has no picture, with ``prompt_index``; replaces the earlier ones;
        ``None`` leaves these
    :param attempt: names an attempt that another one has replaced: its lines go to a part of their own, and its
        failures nowhere; what it has made is taken off the failures of the other
    :returns: where ``metadata.jsonl`` is
    :raises StorageError: when it could not be written
    """
    part = _part_path(folder, origin, attempt)
    names = {line["file_name"] for line in lines}
    others = [line for line in _parse(read_bytes(part)) if line["file_name"] not in names]
    there = file_sizes(folder, [line["file_name"] for line in others])
    earlier = [line for line in others if line["file_name"] in there]
    _write_lines(part, sorted([*earlier, *lines], key=_place), owner=origin.identity)
    if not attempt:
        _prune_parts(folder, origin)
    if attempt:  # what the other attempt has reported lost, and is here after all
        made = {line["client_request_id"] for line in lines}
        reported = read_failures(folder, origin)
        failures = [line for line in reported if line.get("client_request_id") not in made]
        failures = failures if len(failures) < len(reported) else None
    if failures is not None:
        _write_failures(folder, origin, failures)
    _put_together(folder, owner=origin.identity)
    return manifest_address(folder)


def _prune_parts(folder: StoragePath, origin: Origin) -> None:
    """Take files that are gone off the parts of attempts that others have replaced: nobody else writes those."""
    for name in _list_parts(folder):
        if name.startswith(f"{origin.identity}-"):
            part = descend(folder, _PARTS) / name
            lines = _parse(read_bytes(part))
            there = file_sizes(folder, [line["file_name"] for line in lines])
            if len(there) < len(lines):
                _write_lines(part, [line for line in lines if line["file_name"] in there], owner=origin.identity)


def manifest_address(folder: StoragePath) -> str:
    """Say where the manifest of a folder is or will be."""
    return address_of(folder / MANIFEST_NAME)


def failures_address(folder: StoragePath, origin: Origin) -> str:
    """Say where the items of a task instance that have no picture are listed, if there are any."""
    return address_of(_failures_path(folder, origin))


def read_manifest(folder: StoragePath) -> list[Line]:
    """
    Read the lines of all pictures in a folder, in the manifest's order.

    :raises StorageError: when the folder cannot be read
    """
    return _parse(read_bytes(folder / MANIFEST_NAME))


def read_failures(folder: StoragePath, origin: Origin) -> list[Line]:
    """
    Read the items of a task instance that have no picture.

    :raises StorageError: when the folder cannot be read
    """
    return _parse(read_bytes(_failures_path(folder, origin)), key="prompt_index")


def has_part(folder: StoragePath, origin: Origin) -> bool:
    """
    Return whether a task instance has listed its pictures, even if there were none.

    :raises StorageError: when the folder cannot be read
    """
    return read_bytes(_part_path(folder, origin)) is not None


def recorded_names(folder: StoragePath, origin: Origin) -> set[str]:
    """
    Tell which files of a folder a task instance has recorded as its own.

    :raises StorageError: when the folder cannot be read
    """
    return {str(line["file_name"]) for line in _parse(read_bytes(_part_path(folder, origin)))}


def recorded_lines(folder: StoragePath, origin: Origin) -> list[Line]:
    """
    Read what a task instance has recorded of its own pictures, in all its attempts.

    :raises StorageError: when the folder cannot be read
    """
    names = [name for name in _list_parts(folder) if name.startswith((f"{origin.identity}.", f"{origin.identity}-"))]
    place = descend(folder, _PARTS)
    return [line for name in names for line in _parse(read_bytes(place / name))]


def _part_path(folder: StoragePath, origin: Origin, attempt: str = "") -> StoragePath:
    return descend(folder, f"{_PARTS}/{origin.identity}{f'-{attempt}' if attempt else ''}.jsonl")


def _failures_path(folder: StoragePath, origin: Origin) -> StoragePath:
    return descend(folder, f"{_FAILURES}/{origin.identity}.jsonl")


def _write_failures(folder: StoragePath, origin: Origin, failures: Sequence[Mapping[str, Any]]) -> None:
    path = _failures_path(folder, origin)
    if failures or read_bytes(path):
        _write_lines(path, sorted(failures, key=lambda line: line.get("prompt_index") or 0), owner=origin.identity)


def _put_together(folder: StoragePath, *, owner: str) -> None:
    """Write ``metadata.jsonl`` from all parts, until no part changed meanwhile or somebody wrote it after us."""
    target = folder / MANIFEST_NAME
    found = read_bytes(target) or b""
    foreign: list[bytes] | None = None
    known: dict[str, tuple[str, list[_PartLine]]] = {}
    stamps = _list_parts(folder)
    while True:
        changed = [name for name, stamp in stamps.items() if name not in known or known[name][0] != stamp]
        fresh = _read_parts(folder, changed)
        known = {name: (stamp, fresh[name] if name in fresh else known[name][1]) for name, stamp in stamps.items()}
        ours = [line for _, lines in known.values() for line in lines]
        if foreign is None:
            foreign = _foreign_lines(found, ours={line.raw for line in ours})
        data = b"".join(raw + b"\n" for raw in [*foreign, *(line.raw for line in _latest(ours))])
        write_bytes_atomically(target, data, content_type=_CONTENT_TYPE, owner=owner, shared=True)
        before, stamps = stamps, _list_parts(folder)
        if stamps == before or read_bytes(target) != data:
            return  # whoever wrote it after us has this same look ahead of them


def _list_parts(folder: StoragePath) -> dict[str, str]:
    """List the parts by name, each with what the store says of it: any change of its content changes that."""
    place = descend(folder, _PARTS)
    local = local_path(place)
    try:
        if local is not None:
            with os.scandir(local) as entries:
                stats = {entry.name: entry.stat() for entry in entries if entry.name.endswith(".jsonl")}
            return {name: f"{s.st_ino} {s.st_size} {s.st_mtime_ns}" for name, s in sorted(stats.items())}
        filesystem, key = filesystem_of(place)
        found = list_objects(filesystem, key)
    except FileNotFoundError:
        return {}
    except Exception as error:
        raise storage_error("read", place, error) from None
    named = {str(info["name"]).rpartition("/")[2]: info for info in found}
    return {name: str(sorted(info.items(), key=str)) for name, info in sorted(named.items()) if name.endswith(".jsonl")}


def _read_parts(folder: StoragePath, names: list[str]) -> dict[str, list[_PartLine]]:
    place = descend(folder, _PARTS)
    if (local := local_path(place)) is not None:
        return {name: _part_lines(read_bytes(local / name)) for name in names}
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        return dict(zip(names, pool.map(lambda name: _part_lines(read_bytes(place / name)), names), strict=True))


def _part_lines(data: bytes | None) -> list[_PartLine]:
    """Read what puts the lines of a part in order; those in ASCII stay as they are, the others are written anew."""
    lines = []
    for raw in (data or b"").split(b"\n"):
        try:
            part_line = decode(raw, type=_PartLine)
            part_line.raw = raw.strip() if raw.isascii() else _dump(decode(raw))
        except (DecodeError, ValueError, RecursionError):
            line = parse_line(raw)
            if line is None or "file_name" not in line:
                continue
            fields: Line = {name: line[name] for name in _PartLine.__struct_fields__ if name in line}
            part_line = _PartLine(**fields)
            part_line.raw = _dump(line)
        lines.append(part_line)
    return lines


def _parse(data: bytes | None, *, key: str = "file_name") -> list[Line]:
    """Read lines; those without the key are not ours to take part in anything."""
    lines = []
    for raw in (data or b"").split(b"\n"):
        line = parse_line(raw)
        if line is not None and key in line:
            lines.append(line)
    return lines


def parse_line(raw: bytes) -> Line | None:
    """Read one line of a list; ``None`` when it is no JSON object."""
    if not raw:
        return None
    try:
        line = decode(raw)  # several times as fast, and there is a line for every picture of the folder
    except (DecodeError, ValueError, RecursionError):  # it is stricter than the standard library
        try:
            line = json.loads(raw)
        except (ValueError, RecursionError):
            return None
    return line if isinstance(line, dict) else None


def _foreign_lines(data: bytes, *, ours: Container[bytes]) -> list[bytes]:
    """
    Find the lines of a ``metadata.jsonl`` that somebody else wrote; they stay, as they are, in front of ours.

    :param ours: lines of the parts, which need no second look
    """
    kept = []
    for raw in data.split(b"\n"):
        if raw in ours or not raw.strip():
            continue
        line = parse_line(raw)
        if line is None or not {"dag_id", "sha256", "file_name"} <= line.keys():
            kept.append(raw)
    return kept


def _place(line: Mapping[str, Any]) -> tuple[int, int, str]:
    return (line.get("prompt_index") or 0, line.get("image_index") or 0, str(line.get("file_name")))


def _latest(lines: Iterable[_PartLine]) -> list[_PartLine]:
    """Keep one line per file: of several that claim it, the one that wrote it last."""
    by_name = {line.file_name: line for line in sorted(lines, key=lambda line: str(line.created_at))}
    return sorted(by_name.values(), key=_order)


def _order(line: _PartLine) -> tuple[Any, ...]:
    origin = (str(line.dag_id), str(line.run_id), str(line.task_id), line.map_index or 0)
    return (*origin, line.prompt_index or 0, line.image_index or 0, str(line.file_name))


def _dump(line: Mapping[str, Any]) -> bytes:
    # Half a character (an unpaired surrogate in a prompt) has no place in UTF-8 and becomes a question mark.
    return json.dumps(line, ensure_ascii=False).translate(_LINE_ENDS).encode(errors="replace")


def _write_lines(path: StoragePath, lines: Iterable[Mapping[str, Any]], *, owner: str) -> None:
    data = b"".join(_dump(line) + b"\n" for line in lines)
    write_bytes_atomically(path, data, content_type=_CONTENT_TYPE, owner=owner)
