"""``airflow-imagen whois``: find out which DAG, run, task and prompt an image comes from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from airflow_provider_imagen.commands.airflow_environment import as_airflow_command
from airflow_provider_imagen.commands.terminal import Terminal, print_error, print_json, printable
from airflow_provider_imagen.money import format_usd

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from airflow_provider_imagen.image_record import ManifestLine
    from airflow_provider_imagen.storage.image_origin import ImageOrigin, ManifestIndex
    from airflow_provider_imagen.storage.paths import StoragePath

_MAX_IMAGE_BYTES: Final = 2**28
_FOLDERS_SEARCHED: Final = 6  # an original is four levels below its manifest, and more if its name has subfolders
_SHOWN_CHARACTERS: Final = 500
_IDENTIFIED_BY: Final = {
    "digest": "its SHA-256, which the manifest lists",
    "metadata": "the metadata in the file",
    "original": "its SHA-256: it is this image as delivered, before its conversion",
    "preview": "only its name, that of this image's preview, which proves nothing",
    "name": "only its name, which proves nothing",
}


class _Answer(Struct, frozen=True):
    """
    The answer to one argument of the command; an inference id may have several.

    :param file: the argument, or the address of the file with that inference id
    :param folder: address of the folder whose manifest was searched, ``None`` if there is none
    :param origin: what is known about the file; ``None`` if it was not read
    :param problem: why it was not read
    """

    file: str
    folder: str | None = None
    origin: ImageOrigin | None = None
    problem: str | None = None

    @property
    def is_identified(self) -> bool:
        return self.origin is not None and self.origin.is_identified


def add_whois(commands: Any) -> None:
    """Add the command to a parser."""
    whois = commands.add_parser(
        "whois",
        help="find out which DAG, run, task and prompt an image comes from",
        description="Find out which DAG, run, task and prompt an image comes from, what it cost, and whether its marks "
        "are intact: by its SHA-256 in a manifest, by the metadata in the file, or by the API's inference id. Works "
        "offline. The exit status is 0 if every image was identified, 1 if one was not, and 2 if something could not "
        "be read.",
    )
    whois.add_argument("files", nargs="+", metavar="FILE", help="image (ObjectStoragePath), or an inference id")
    whois.add_argument(
        "--folder",
        metavar="FOLDER",
        help="output folder whose manifest lists the images (ObjectStoragePath; default: the nearest folder above each "
        "image that has a manifest, and the current folder for inference ids)",
    )
    whois.add_argument("--json", action="store_true", help="write JSON")
    whois.set_defaults(run=run_whois)


def run_whois(arguments: argparse.Namespace) -> int:
    """Run the command; return 0 if every image was identified, 1 if one was not, 2 if something cannot be read."""
    from airflow_provider_imagen.exceptions import InvalidArgumentsError, StorageError

    answers: list[_Answer] = []
    errors = 0
    with as_airflow_command():
        try:
            finder = _Finder(arguments.folder)
        except (StorageError, InvalidArgumentsError) as error:
            print_error(f"Error: {printable(str(error), _SHOWN_CHARACTERS)}")
            return 2
        for name in arguments.files:
            try:
                answers += finder.answers_to(name)
            except (StorageError, InvalidArgumentsError) as error:
                answers.append(_Answer(name, problem=str(error)))
                errors += 1
    if arguments.json:
        print_json([_to_json(answer) for answer in answers])
    else:
        terminal = Terminal()
        for answer in answers:
            _show(terminal, answer)
    return 2 if errors else 0 if all(answer.is_identified for answer in answers) else 1


class _Finder:
    """
    Finds out about files, and reads each manifest once.

    :param folder: address of the folder whose manifest lists the images; ``None`` to look for one above each image
    :raises StorageError: the folder has no manifest, or it cannot be read
    """

    def __init__(self, folder: str | None) -> None:
        from airflow_provider_imagen.exceptions import StorageError
        from airflow_provider_imagen.storage.atomic_write import redacted_address

        self._indexes: dict[str, ManifestIndex | None] = {}
        self._folder = None if folder is None else _open(folder)
        if self._folder is not None and self._index_of(self._folder) is None:
            raise StorageError(f"{redacted_address(self._folder)} has no manifest (metadata.jsonl) that lists images.")

    def answers_to(self, name: str) -> Iterator[_Answer]:
        """
        Yield what is known about a file, or about each image of an inference id.

        :raises StorageError: the file or a manifest cannot be read
        """
        from airflow_provider_imagen.storage.atomic_write import read_bytes
        from airflow_provider_imagen.storage.paths import address_of, descend, stays_below

        path = _open(name)
        data = read_bytes(path, max_bytes=_MAX_IMAGE_BYTES)
        if data is not None:
            yield self._answer(name, path, data)
            return
        folder = self._folder or _open(".")
        index = self._index_of(folder)
        listed = [line.file_name for line in index.images_of(name) if stays_below(line.file_name)] if index else []
        if not listed:
            yield _Answer(name, problem="there is no such file, and no manifest entry with this inference id")
        for file_name in listed:
            path = descend(folder, file_name)
            data = read_bytes(path, within=folder, max_bytes=_MAX_IMAGE_BYTES)
            if data is None:
                yield _Answer(address_of(path), problem="the manifest lists this file, but it is missing")
            else:
                yield self._answer(address_of(path), path, data)

    def _answer(self, name: str, path: StoragePath, data: bytes) -> _Answer:
        from airflow_provider_imagen.storage.image_origin import find_origin
        from airflow_provider_imagen.storage.paths import address_of

        folder, file_name = self._locate(path)
        index = None if folder is None else self._index_of(folder)
        origin = find_origin(data, name=file_name, index=index)
        return _Answer(name, None if folder is None else address_of(folder), origin)

    def _locate(self, path: StoragePath) -> tuple[StoragePath | None, str | None]:
        """Return the folder whose manifest may list a file, and the file's name relative to it if it is below it."""
        from airflow_provider_imagen.storage.paths import address_of

        folder, file_name = path.parent, path.name
        for _ in range(_FOLDERS_SEARCHED):
            if self._folder is not None:
                if address_of(folder) == address_of(self._folder):
                    return folder, file_name
            elif self._index_of(folder) is not None:
                return folder, file_name
            folder, file_name = folder.parent, f"{folder.name}/{file_name}"
        return self._folder, None

    def _index_of(self, folder: StoragePath) -> ManifestIndex | None:
        """Return the images of a folder's manifest; ``None`` if it lists none."""
        from airflow_provider_imagen.storage.image_origin import ManifestIndex
        from airflow_provider_imagen.storage.manifest import read_manifest
        from airflow_provider_imagen.storage.paths import address_of

        address = address_of(folder)
        if address not in self._indexes:
            lines = read_manifest(folder)
            self._indexes[address] = ManifestIndex(lines) if lines else None
        return self._indexes[address]


def _open(address: str) -> StoragePath:
    """Return the path of a file or folder; a link given by the user is followed."""
    if "://" not in address:
        return Path(os.path.realpath(os.path.expanduser(address)))
    from airflow_provider_imagen.hooks.folders import open_folder

    return open_folder(address, field="path")


def _to_json(answer: _Answer) -> dict[str, Any]:
    from msgspec import to_builtins

    values: dict[str, Any] = {"file": answer.file, "is_identified": answer.is_identified, "problem": answer.problem}
    values["folder"] = answer.folder
    if answer.origin is None:
        return values
    facts, purchase = to_builtins(answer.origin), answer.origin.purchase
    record, metadata = facts.pop("record"), facts.pop("metadata")
    paid_by = {name: getattr(purchase, name) for name in ("dag_id", "run_id", "task_id", "map_index")}
    return {**values, **facts, "has_metadata": metadata is not None, "paid_by": paid_by, **record}


def _show(terminal: Terminal, answer: _Answer) -> None:
    """Print one answer: a line with the file, and below it what is known."""
    terminal.heading(printable(answer.file, _SHOWN_CHARACTERS))
    if answer.origin is None:
        terminal.line(f"  {printable(answer.problem or '', _SHOWN_CHARACTERS)}")
        return
    record, purchase = answer.origin.record, answer.origin.purchase
    is_reused = record.reused_from is not None
    unknown = "unknown" if is_reused else None
    rows = {
        "DAG": purchase.dag_id or unknown,
        "Run": purchase.run_id or unknown,
        "Task": purchase.task_id or unknown,
        "Map index": None if purchase.map_index is None or purchase.map_index < 0 else str(purchase.map_index),
        "Prompt": record.prompt,
        "Model": record.model,
        "Seed": None if record.seed is None else str(record.seed),
        "Cost": None if record.purchase_usd is None else format_usd(record.purchase_usd),
        "Used by": _task_sentence(record) if is_reused else None,
        "Reused from": record.reused_from,
        "Created": record.created_at,
        "Inference id": record.inference_id,
        "Folder": answer.folder if answer.origin.is_listed else None,
        "Listed as": record.file_name,
        "Identified by": _IDENTIFIED_BY[answer.origin.evidence] if answer.origin.evidence else "nothing: it is unknown",
        "Bytes": _bytes_sentence(answer),
        "Metadata": _metadata_sentence(answer.origin),
        "C2PA": "content credentials present, signature not checked"
        if answer.origin.has_content_credentials
        else "none",
        "Source type": (answer.origin.digital_source_type or "").rpartition("/")[2],
    }
    for name, value in rows.items():
        if value:
            terminal.line(f"  {name:<14}{printable(value, _SHOWN_CHARACTERS)}")


def _bytes_sentence(answer: _Answer) -> str:
    if answer.folder is None:
        return "not compared: no manifest was found; --folder names one"
    if answer.origin is None or not answer.origin.is_listed:
        return "not compared: the manifest lists no such file"
    if answer.origin.is_unchanged is None:
        return "not compared: the manifest lists no SHA-256 for this file"
    return "unchanged since they were stored" if answer.origin.is_unchanged else "changed since they were stored"


def _task_sentence(record: ManifestLine) -> str:
    mapped = f"[{record.map_index}]" if record.map_index is not None and record.map_index >= 0 else ""
    return f"DAG {record.dag_id}, run {record.run_id}, task {record.task_id}{mapped}"


def _metadata_sentence(origin: ImageOrigin) -> str:
    if origin.metadata is None:
        return "none of this provider"
    if origin.contradictions:
        return f"present, but differs from the manifest: {', '.join(origin.contradictions)}"
    return "present, agrees with the manifest" if origin.is_listed else "present"
