"""
The manifest of a folder, ``metadata.jsonl``: lists all its images and opens as a Hugging Face ImageFolder.

Several tasks, mapped task instances and runs may share a folder, and an object store can neither append nor lock. So
each task instance owns one part, ``.imagen/parts/<identity>.jsonl``, that nobody else writes, and ``metadata.jsonl``
merges and sorts all parts. After writing it, a writer lists the parts again. If they have changed, it rewrites the
manifest, unless somebody else has written it since. The last writer has therefore seen every part, and no line is lost.
Files are replaced atomically, so readers always see complete ones.

``load_dataset`` guesses splits from file names, so an image called ``train`` or ``test`` would hide the others. Pass
``data_files="**"`` to turn that off. It reads the columns and their types from the first 10 MB of the manifest. Pass
``features`` if a column has no value there.

Items without an image go to ``.imagen/failures/<identity>.jsonl``, because an ImageFolder ignores hidden folders.

While a task instance runs, ``.imagen/progress/<identity>.jsonl`` lists the images that it has so far, because merging
all parts every few seconds would cost too much. It is deleted when the task instance has ended.
"""

from __future__ import annotations

import json
import logging
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from msgspec import DecodeError, Struct
from msgspec.json import decode
from msgspec.structs import asdict, replace

from airflow_provider_imagen.image_record import ManifestLine, read_record
from airflow_provider_imagen.run_report import FailureLine
from airflow_provider_imagen.storage.atomic_write import (
    file_sizes,
    is_intact,
    read_bytes,
    storage_error,
    write_bytes_atomically,
)
from airflow_provider_imagen.storage.local_files import IrregularFileError, list_folder, open_folder_at
from airflow_provider_imagen.storage.paths import (
    HIDDEN_FOLDER,
    MANIFEST_NAME,
    address_of,
    descend,
    filesystem_of,
    list_objects,
    local_path,
    stays_below,
)
from airflow_provider_imagen.storage.task_identity import TaskInstanceKey

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from airflow_provider_imagen.image_record import ImageRecord, StoredFile
    from airflow_provider_imagen.storage.paths import StoragePath

log = logging.getLogger(__name__)

_PARTS: Final = f"{HIDDEN_FOLDER}/parts"
_FAILURES: Final = f"{HIDDEN_FOLDER}/failures"
_PROGRESS: Final = f"{HIDDEN_FOLDER}/progress"
_CONTENT_TYPE: Final = "application/x-ndjson"
_LINE_ENDS: Final = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}
"""Line ends for ``str.splitlines`` but not for JSON; escaped, so that every reader sees one line per image."""
_READS_AT_ONCE: Final = 16
_MAX_LINE_BYTES: Final = 256 * 1024


class _PartLine(Struct, frozen=True):
    """A line of a part, parsed and as written."""

    parsed: ManifestLine
    raw: bytes


def manifest_line(
    record: ImageRecord,
    file: StoredFile,
    *,
    ti_key: TaskInstanceKey,
    created_at: datetime,
    request_fingerprint: str | None = None,
    response_index: int | None = None,
    reused_at: datetime | None = None,
) -> ManifestLine:
    """
    Return the manifest line of a stored image.

    :param ti_key: the task instance
    :param created_at: when the image was generated, with time zone
    :param request_fingerprint: hash of the request that generated it; ``None`` keeps it from being reused by other runs
    :param response_index: its index in the response, from 0
    :param reused_at: when it was reused, with time zone; ``None`` if the task instance generated it
    """
    return ManifestLine(
        **asdict(record),
        file_name=file.file_name,
        thumbnail=file.thumbnail,
        original=file.original,
        original_sha256=file.original_sha256,
        dag_id=ti_key.dag_id,
        run_id=ti_key.run_id,
        task_id=ti_key.task_id,
        map_index=ti_key.map_index,
        created_at=created_at.isoformat(timespec="seconds"),
        request_fingerprint=request_fingerprint,
        response_index=response_index,
        reused_at=None if reused_at is None else reused_at.isoformat(timespec="milliseconds"),
    )


def write_manifest(
    folder: StoragePath,
    *,
    ti_key: TaskInstanceKey,
    lines: Iterable[ManifestLine],
    failures: Sequence[FailureLine] | None = (),
    attempt: str = "",
) -> str:
    """
    Store the manifest lines of one task instance, update ``metadata.jsonl``, and return its location.

    Images that this task instance recorded before (it was cleared and ran again) stay listed while their files exist.

    :param folder: the output folder
    :param ti_key: the task instance
    :param lines: one per image of this attempt, reused ones included, from :func:`manifest_line`, in any order
    :param failures: the items without an image, which replace the stored ones; ``None`` keeps those
    :param attempt: owner name of an attempt that another one has replaced, else empty. Its lines go to a part of their
        own, its ``failures`` are ignored, and requests whose images it has are removed from the stored failures
    :raises StorageError: a file cannot be read or written
    """
    generated = _update_part(folder, _part_name(ti_key, attempt), lines, owner=ti_key.identity)
    if attempt:  # the attempt that replaced it may have reported its images as failures
        reported = read_failures(folder, ti_key)
        remaining = [line for line in reported if line.client_request_id not in generated]
        failures = remaining if len(remaining) < len(reported) else None
    else:
        _prune_parts(folder, ti_key)
    if failures is not None:
        _write_failures(folder, ti_key, failures)
    _merge_parts(folder, owner=ti_key.identity)
    return manifest_address(folder)


def write_progress(folder: StoragePath, *, ti_key: TaskInstanceKey, lines: Iterable[ManifestLine]) -> None:
    """
    Store the images that a running task instance has so far, in place of those stored before.

    :raises StorageError: the list cannot be written
    """
    data = b"".join(_encode(line.to_json()) + b"\n" for line in lines)
    path = descend(folder, _progress_name(ti_key))
    write_bytes_atomically(path, data, content_type=_CONTENT_TYPE, owner=ti_key.identity, within=folder, shared=True)


def delete_progress(folder: StoragePath, ti_key: TaskInstanceKey) -> None:
    """Delete that list, which nobody reads once the task instance has ended; a store may refuse, and keeps it."""
    path = descend(folder, _progress_name(ti_key))
    local, root = local_path(path), local_path(folder)
    with suppress(Exception):
        if local is not None and root is not None:
            with open_folder_at(local.parent, within=root) as parent:
                os.unlink(local.name, dir_fd=parent)
        else:
            filesystem, key = filesystem_of(path)
            filesystem.rm_file(key)


def manifest_address(folder: StoragePath) -> str:
    """Return the location of a folder's manifest, whether or not it exists yet."""
    return address_of(folder.joinpath(MANIFEST_NAME))


def part_address(folder: StoragePath, ti_key: TaskInstanceKey) -> str:
    """
    Return the location of a task instance's own list of images, whether or not it exists.

    Unlike the manifest, it also lists the images of other task instances that this one used in place.
    """
    return address_of(descend(folder, _part_name(ti_key)))


def progress_address(folder: StoragePath, ti_key: TaskInstanceKey) -> str:
    """Return the location of the images that a running task instance has so far, whether or not it exists."""
    return address_of(descend(folder, _progress_name(ti_key)))


def failures_address(folder: StoragePath, ti_key: TaskInstanceKey) -> str:
    """Return the location of a task instance's list of items without an image, whether or not it exists."""
    return address_of(descend(folder, _failures_name(ti_key)))


def read_manifest(folder: StoragePath, *, name: str = MANIFEST_NAME) -> list[dict[str, Any]]:
    """
    Return the lines of all images in a folder as JSON objects, in the manifest's order.

    Lines that somebody else wrote may have other keys than :class:`ManifestLine`, but always a ``file_name``.

    :param name: name of the manifest in the folder
    :raises StorageError: the manifest cannot be read
    """
    lines = _parse_lines(read_bytes(folder.joinpath(name), within=folder))
    return [line for line in lines if isinstance(file := line.get("file_name"), str) and stays_below(file)]


def read_failures(folder: StoragePath, ti_key: TaskInstanceKey) -> list[FailureLine]:
    """
    Return the items of a task instance that have no image.

    :raises StorageError: the list cannot be read
    """
    lines = _parse_lines(_read_own(folder, _failures_name(ti_key)))
    return [line for each in lines if (line := read_record(FailureLine, each)) is not None and "prompt_index" in each]


def iter_lines(folder: StoragePath) -> Iterator[ManifestLine]:
    """
    Yield every line of a folder's manifest, of its parts, and of the lists of running task instances.

    Most images are in several of these. The parts also list files that another task instance has replaced since. Others
    may have written to the folder, so recorded paths are not trusted: each is rebuilt from the file name.

    :raises StorageError: the manifest or a part cannot be read
    """
    lists = [f"{kind}/{name}" for kind in (_PARTS, _PROGRESS) for name in _list_parts(folder, kind)]
    for name in (MANIFEST_NAME, *lists):
        for raw in (_read_own(folder, name) or b"").split(b"\n"):
            line = _parse_part_line(raw) if 0 < len(raw) <= _MAX_LINE_BYTES else None
            if line is not None and _has_safe_names(line.parsed):
                yield replace(line.parsed, path=address_of(descend(folder, line.parsed.file_name)))


def iter_failures(folder: StoragePath) -> Iterator[FailureLine]:
    """
    Yield the items without an image of all task instances.

    :raises StorageError: a list cannot be read
    """
    for name in _list_parts(folder, _FAILURES):
        for raw in (_read_own(folder, f"{_FAILURES}/{name}") or b"").split(b"\n"):
            values = parse_line(raw) if 0 < len(raw) <= _MAX_LINE_BYTES else None
            line = read_record(FailureLine, values) if values is not None else None
            if line is not None:
                yield line


def has_part(folder: StoragePath, ti_key: TaskInstanceKey) -> bool:
    """
    Return whether a task instance has written its part, even an empty one.

    :raises StorageError: the part cannot be read
    """
    return _read_own(folder, _part_name(ti_key)) is not None


def recorded_names(folder: StoragePath, ti_key: TaskInstanceKey) -> dict[str, bool]:
    """
    Return the names of the files that a task instance has recorded as its own, each with whether it paid for the image.

    :raises StorageError: the part cannot be read
    """
    lines = (line.parsed for line in _read_part(folder, _part_name(ti_key)))
    return {line.file_name: line.reused_from is None for line in lines if not line.is_used_in_place}


def names_used_by_others(folder: StoragePath, ti_key: TaskInstanceKey) -> set[str]:
    """
    Return the names of the files that task instances other than this one use in place.

    :raises StorageError: a part cannot be read
    """
    names = [name for name in _list_parts(folder) if _identity_of(name) != ti_key.identity]
    parts = _read_parts(folder, names).values()
    return {line.parsed.file_name for lines in parts for line in lines if line.parsed.is_used_in_place}


def recorded_lines(folder: StoragePath, ti_key: TaskInstanceKey) -> list[ManifestLine]:
    """
    Return the lines that all attempts of a task instance have recorded.

    Others may have written to the folder, so recorded paths are not trusted: each is rebuilt from the file name.

    :raises StorageError: a part cannot be read
    """
    names = [name for name in _list_parts(folder) if _identity_of(name) == ti_key.identity]
    lines = [line.parsed for name in names for line in _read_part(folder, f"{_PARTS}/{name}")]
    return [replace(line, path=address_of(descend(folder, line.file_name))) for line in lines if _has_safe_names(line)]


def request_lines(folder: StoragePath, fingerprints: Container[str]) -> list[ManifestLine] | None:
    """
    Return the lines of images that certain requests generated, for all task instances, in the manifest's order.

    Others may have written to the folder, so recorded paths are not trusted: each is rebuilt from the file name.

    :param fingerprints: of the requests (:attr:`ManifestLine.request_fingerprint`)
    :return: ``None`` if there is no manifest
    :raises StorageError: the manifest cannot be read
    """
    data = _read_own(folder, MANIFEST_NAME)
    if data is None:
        return None
    lines = []
    for raw in data.split(b"\n"):
        line = _parse_part_line(raw) if len(raw) <= _MAX_LINE_BYTES else None
        if line is None or line.parsed.request_fingerprint not in fingerprints:
            continue
        if _has_safe_names(line.parsed):
            lines.append(replace(line.parsed, path=address_of(descend(folder, line.parsed.file_name))))
    return lines


def _has_safe_names(line: ManifestLine) -> bool:
    """Return whether all files that a line names are in the folder of the manifest."""
    return all(stays_below(name) for name in (line.file_name, line.thumbnail, line.original) if name is not None)


def ti_key_of(line: ManifestLine) -> TaskInstanceKey | None:
    """Return the task instance that a line names, or ``None`` if one of its ids is missing."""
    if line.dag_id is None or line.run_id is None or line.task_id is None or line.map_index is None:
        return None
    return TaskInstanceKey(dag_id=line.dag_id, run_id=line.run_id, task_id=line.task_id, map_index=line.map_index)


def parse_line(raw: bytes) -> dict[str, Any] | None:
    """Return the JSON object of one line; ``None`` if it is not one."""
    if not raw:
        return None
    try:
        line = decode(raw)  # several times as fast as json, which counts in large folders
    except (DecodeError, ValueError, RecursionError):  # msgspec is stricter than json
        try:
            line = json.loads(raw)
        except (ValueError, RecursionError):
            return None
    return line if isinstance(line, dict) else None


def _update_part(folder: StoragePath, part: str, lines: Iterable[ManifestLine], *, owner: str) -> set[str | None]:
    """
    Write lines to a part, keep its other lines whose files exist, and return the ids of the written requests.

    An image that this task instance reuses because it was cleared keeps its URL.
    """
    recorded = _read_part(folder, part)
    urls = {(line.parsed.file_name, line.parsed.sha256): line.parsed.url for line in recorded}
    new = []
    for line in lines:
        if line.url is None and line.reused_at is not None:
            line = replace(line, url=urls.get((line.file_name, line.sha256)))
        new.append(_PartLine(line, _encode(line.to_json())))
    names = {line.parsed.file_name for line in new}
    others = [line for line in recorded if line.parsed.file_name not in names]
    _write_part(folder, part, [*_with_existing_files(folder, others), *new], owner=owner)
    return {line.parsed.client_request_id for line in new}


def _prune_parts(folder: StoragePath, ti_key: TaskInstanceKey) -> None:
    """Remove lines whose files are gone from the parts of replaced attempts, which no longer write them."""
    for name in _list_parts(folder):
        if name.startswith(f"{ti_key.identity}-"):
            part = f"{_PARTS}/{name}"
            lines = _read_part(folder, part)
            kept = _with_existing_files(folder, lines)
            if len(kept) < len(lines):
                _write_part(folder, part, kept, owner=ti_key.identity)


def _with_existing_files(folder: StoragePath, lines: Sequence[_PartLine]) -> list[_PartLine]:
    """Return the lines whose files exist."""
    sizes = file_sizes(folder, [line.parsed.file_name for line in lines])
    return [line for line in lines if line.parsed.file_name in sizes]


def _identity_of(part: str) -> str:
    """Return the short hash of the task instance that a part belongs to, from the part's name."""
    return part.removesuffix(".jsonl").partition("-")[0]


def _part_name(ti_key: TaskInstanceKey, attempt: str = "") -> str:
    return f"{_PARTS}/{ti_key.identity}{f'-{attempt}' if attempt else ''}.jsonl"


def _failures_name(ti_key: TaskInstanceKey) -> str:
    return f"{_FAILURES}/{ti_key.identity}.jsonl"


def _progress_name(ti_key: TaskInstanceKey) -> str:
    return f"{_PROGRESS}/{ti_key.identity}.jsonl"


def _read_own(folder: StoragePath, name: str) -> bytes | None:
    """
    Return the content of a file that only this package writes; a link, pipe or device in its place counts as missing.

    Links are never followed; the next write replaces them.
    """
    try:
        return read_bytes(descend(folder, name), within=folder)
    except IrregularFileError as error:
        log.warning("%s", error)
        return None


def _write_failures(folder: StoragePath, ti_key: TaskInstanceKey, failures: Sequence[FailureLine]) -> None:
    name = _failures_name(ti_key)
    if failures or _read_own(folder, name):
        lines = sorted(failures, key=lambda line: line.prompt_index or 0)
        _write_lines(folder, name, (_encode(line.to_json()) for line in lines), owner=ti_key.identity)


def _merge_parts(folder: StoragePath, *, owner: str) -> None:
    """Write ``metadata.jsonl`` from all parts; repeat while parts change and nobody else has written it since."""
    target = folder.joinpath(MANIFEST_NAME)
    before_us = _read_own(folder, MANIFEST_NAME) or b""
    foreign: list[bytes] | None = None
    parts: dict[str, list[_PartLine]] = {}
    stamps: dict[str, str] = {}
    listed = _list_parts(folder)
    while True:
        parts |= _read_parts(folder, [name for name, stamp in listed.items() if stamps.get(name) != stamp])
        parts = {name: parts[name] for name in listed}
        stamps = listed
        if foreign is None:
            foreign = _foreign_lines(before_us, ours={line.raw for lines in parts.values() for line in lines})
        ours = _choose_lines(parts, folder=folder, own=owner)
        data = b"".join(raw + b"\n" for raw in [*foreign, *(line.raw for line in ours)])
        write_bytes_atomically(target, data, content_type=_CONTENT_TYPE, owner=owner, within=folder, shared=True)
        listed = _list_parts(folder)
        if listed == stamps or _read_own(folder, MANIFEST_NAME) != data:
            return  # whoever wrote it after us makes the same check


def _list_parts(folder: StoragePath, kind: str = _PARTS) -> dict[str, str]:
    """Return the lists of a kind by name, each with a stamp from its metadata that changes with the content."""
    place = descend(folder, kind)
    local = local_path(place)
    try:
        if local is not None:
            root = local_path(folder)
            return {
                name: f"{status.st_ino} {status.st_size} {status.st_mtime_ns}"
                for name, status in sorted(list_folder(local, within=root or local).items())
                if name.endswith(".jsonl") and stat.S_IFMT(status.st_mode) in (stat.S_IFREG, stat.S_IFDIR)
            }
        filesystem, key = filesystem_of(place)
        found = list_objects(filesystem, key)
    except FileNotFoundError:
        return {}
    except Exception as error:
        raise storage_error("read", place, error) from None
    named = {str(info["name"]).rpartition("/")[2]: info for info in found}
    return {name: str(sorted(info.items(), key=str)) for name, info in sorted(named.items()) if name.endswith(".jsonl")}


def _read_parts(folder: StoragePath, names: list[str]) -> dict[str, list[_PartLine]]:
    def read(name: str) -> list[_PartLine]:
        return _read_part(folder, f"{_PARTS}/{name}")

    if local_path(folder) is not None:
        return {name: read(name) for name in names}
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        return dict(zip(names, pool.map(read, names), strict=True))


def _read_part(folder: StoragePath, part: str) -> list[_PartLine]:
    """Return the valid lines of a part; those that are not ASCII are re-encoded, to escape the line ends in them."""
    lines = map(_parse_part_line, (_read_own(folder, part) or b"").split(b"\n"))
    return [line for line in lines if line is not None]


def _parse_part_line(raw: bytes) -> _PartLine | None:
    """Return a line, or ``None`` if it does not describe a file in the folder."""
    try:
        line = _PartLine(decode(raw, type=ManifestLine), raw.strip() if raw.isascii() else _encode(decode(raw)))
    except (DecodeError, ValueError, RecursionError):
        values = parse_line(raw)
        parsed = read_record(ManifestLine, values) if values is not None else None
        if values is None or parsed is None:
            return None
        line = _PartLine(parsed, _encode(values))
    return line if stays_below(line.parsed.file_name) else None


def _parse_lines(data: bytes | None) -> list[dict[str, Any]]:
    """Return the JSON objects in a file, one per line; other lines are skipped."""
    lines = map(parse_line, (data or b"").split(b"\n"))
    return [line for line in lines if line is not None]


def _foreign_lines(data: bytes, *, ours: Container[bytes]) -> list[bytes]:
    """
    Return the lines of a ``metadata.jsonl`` that somebody else wrote; they stay unchanged, ahead of ours.

    Lines that do not describe a file are dropped, so that stray content is not published with the images.

    :param ours: lines of the parts, which need not be parsed again
    """
    kept = []
    for raw in data.split(b"\n"):
        line = None if raw in ours else parse_line(raw)
        if line is None or not isinstance(line.get("file_name"), str) or {"dag_id", "sha256"} <= line.keys():
            continue
        kept.append(raw)
    return kept


def _choose_lines(parts: Mapping[str, list[_PartLine]], *, folder: StoragePath, own: str) -> list[_PartLine]:
    """
    Return one line per file, sorted; if several lines claim a file, the most trustworthy one.

    Others can write to the folder, so neither a date nor a digest is trusted on its own. These criteria narrow the
    choice in turn, each ignored if it would leave no line: the line is in the part of the task instance that it names;
    it matches the file's digest (checked only if the lines disagree), and of those, its task instance wrote the file
    and does not only use it, and belongs to the writing task instance; it is the newest.

    Its name and metadata are those of the task instance that generated or reused the image last.

    :param own: short hash of the task instance that writes the manifest
    """
    claims: dict[str, list[tuple[str, _PartLine]]] = {}
    for name, lines in parts.items():
        for line in lines:
            claims.setdefault(line.parsed.file_name, []).append((_identity_of(name), line))
    chosen = [
        claimed[0][1] if len(claimed) == 1 else _most_trustworthy(claimed, folder=folder, own=own)
        for claimed in claims.values()
    ]
    return sorted(chosen, key=_sort_key)


def _most_trustworthy(claims: list[tuple[str, _PartLine]], *, folder: StoragePath, own: str) -> _PartLine:
    claims = [claim for claim in claims if _names_own_part(claim[0], claim[1].parsed)] or claims
    digests = {line.parsed.sha256 for _, line in claims}
    intact = [claim for claim in claims if len(digests) == 1 or _matches_file(claim[1].parsed, folder)]
    written = [claim for claim in intact if not claim[1].parsed.is_used_in_place] or intact
    chosen = max(
        (line for _, line in [claim for claim in written if claim[0] == own] or written or claims),
        key=lambda line: str(line.parsed.created_at),
    )
    same = [line for _, line in claims if line.parsed.sha256 == chosen.parsed.sha256]
    latest = max(same, key=lambda line: line.parsed.reused_at or "").parsed
    if latest.reused_at is None:
        return chosen
    parsed = replace(chosen.parsed, name=latest.name, metadata=latest.metadata)
    return _PartLine(parsed, _encode({**decode(chosen.raw), "name": latest.name, "metadata": latest.metadata}))


def _names_own_part(identity: str, line: ManifestLine) -> bool:
    """Return whether a line names the task instance whose part it is in."""
    named = ti_key_of(line)
    return named is not None and named.identity == identity


def _matches_file(line: ManifestLine, folder: StoragePath) -> bool:
    """Return whether a line states the digest of the file that it describes."""
    if line.sha256 is None or line.bytes is None:
        return False
    return is_intact(descend(folder, line.file_name), size=line.bytes, sha256=line.sha256, within=folder)


def _sort_key(line: _PartLine) -> tuple[Any, ...]:
    """Sort key: task instance, then prompt, then image."""
    parsed = line.parsed
    ti_key = (str(parsed.dag_id), str(parsed.run_id), str(parsed.task_id), parsed.map_index or 0)
    return (*ti_key, parsed.prompt_index or 0, parsed.image_index or 0, parsed.file_name)


def _encode(line: Mapping[str, Any]) -> bytes:
    # UTF-8 cannot encode a lone surrogate, which a prompt may contain; it becomes a question mark.
    return json.dumps(line, ensure_ascii=False).translate(_LINE_ENDS).encode(errors="replace")


def _write_part(folder: StoragePath, part: str, lines: Iterable[_PartLine], *, owner: str) -> None:
    _write_lines(folder, part, (line.raw for line in sorted(lines, key=_sort_key)), owner=owner)


def _write_lines(folder: StoragePath, name: str, lines: Iterable[bytes], *, owner: str) -> None:
    data = b"".join(line + b"\n" for line in lines)
    write_bytes_atomically(descend(folder, name), data, content_type=_CONTENT_TYPE, owner=owner, within=folder)
