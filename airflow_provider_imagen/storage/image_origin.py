"""
Find out where an image file comes from, by a folder's manifest and by the metadata in the file.

Both are data from outside: whoever can write to the folder or the file can change them. Nothing in them is followed.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final, Literal

from msgspec import Struct
from msgspec.structs import replace

from airflow_provider_imagen.image_record import ManifestLine, read_record
from airflow_provider_imagen.storage.c2pa import has_content_credentials
from airflow_provider_imagen.storage.provenance import is_ours, read_provenance

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

Evidence = Literal["digest", "metadata", "preview", "original", "name"]

_COMPARED_IF_REUSED: Final = ("inference_id", "model")
_COMPARED: Final = (*_COMPARED_IF_REUSED, "dag_id", "run_id", "task_id")
"""Fields that are the same in the manifest and in the file, unless the author left them out or somebody changed one."""


class ImageOrigin(Struct, frozen=True, kw_only=True):
    """
    What is known about an image file.

    :param evidence: what identifies it: its SHA-256, which the manifest lists as an image's ``digest`` or as that of
        the ``original`` of a converted image; or the ``metadata`` in the file. Only its ``name``, or its name as that
        of a ``preview``, proves nothing. ``None`` if the manifest does not know its name either
    :param record: DAG, task, prompt, cost and so on, from the manifest, else from the file; unknown values are
        ``None``. ``file_name`` is the name in the manifest's folder, or empty
    :param is_listed: whether ``record`` comes from the manifest
    :param is_unchanged: whether the file is, byte for byte, one that the manifest lists; ``None`` without a SHA-256
        that it could be compared with
    :param metadata: what this package's XMP metadata in the file says; ``None`` if there is none
    :param contradictions: names of the fields whose values in the file and in the manifest differ
    :param has_content_credentials: whether the file contains a C2PA manifest; its signature is not verified
    :param digital_source_type: IPTC's term for the kind of source in the file's metadata, a URI
    """

    evidence: Evidence | None
    record: ManifestLine
    is_listed: bool
    is_unchanged: bool | None
    metadata: ManifestLine | None
    contradictions: tuple[str, ...]
    has_content_credentials: bool
    digital_source_type: str | None

    @property
    def is_identified(self) -> bool:
        """Whether it was identified by more than the name of the file."""
        return self.evidence in ("digest", "original", "metadata")

    @property
    def purchase(self) -> ManifestLine:
        """
        The DAG, run and task that paid for the image, as far as they are known.

        The manifest lists a reused image with the task that reused it, but the file's metadata names the one that paid.
        """
        if self.record.reused_from is None:
            return self.record
        return self.metadata or ManifestLine(file_name="")


class ManifestIndex:
    """
    The images of a manifest, by everything that can identify one.

    :param lines: from :func:`~airflow_provider_imagen.storage.manifest.read_manifest`
    """

    def __init__(self, lines: Iterable[Mapping[str, Any]]) -> None:
        self._by_digest: dict[str, list[ManifestLine]] = {}
        self._by_inference_id: dict[str, list[ManifestLine]] = {}
        self._by_name: dict[str, ManifestLine] = {}
        self._by_original_digest: dict[str, ManifestLine] = {}
        self._by_preview: dict[str, ManifestLine] = {}
        self._by_original: dict[str, ManifestLine] = {}
        for line in filter(None, (read_record(ManifestLine, values) for values in lines)):
            self._by_name[line.file_name] = line
            if line.thumbnail is not None:
                self._by_preview[line.thumbnail] = line
            if line.original is not None:
                self._by_original[line.original] = line
            if line.original_sha256 is not None:
                self._by_original_digest[line.original_sha256] = line
            if line.sha256 is not None:
                self._by_digest.setdefault(line.sha256, []).append(line)
            if line.inference_id is not None:
                self._by_inference_id.setdefault(line.inference_id, []).append(line)

    def images_of(self, inference_id: str) -> list[ManifestLine]:
        """Return the images with an inference id, in the manifest's order."""
        return self._by_inference_id.get(inference_id, [])

    def find(
        self, digest: str, *, metadata: ManifestLine | None, name: str | None
    ) -> tuple[ManifestLine, Evidence] | None:
        """
        Return the best match and what identifies it.

        :param digest: SHA-256 of the file, in hex
        :param metadata: what the file's metadata says
        :param name: the file's name relative to the manifest's folder; ``None`` if it is elsewhere
        """
        same_bytes = self._by_digest.get(digest, [])
        if same_bytes:
            return next((line for line in same_bytes if line.file_name == name), same_bytes[0]), "digest"
        if digest in self._by_original_digest:
            return self._by_original_digest[digest], "original"
        same_request = self.images_of(metadata.inference_id or "") if metadata is not None else []
        if metadata is not None and same_request:
            named = [line for line in same_request if line.file_name == name] or same_request
            return named[0] if len(named) == 1 else _shared(named[0], seed=metadata.seed), "metadata"
        if name in self._by_preview:
            return self._by_preview[name], "preview"
        for lines in (self._by_name, self._by_original):
            if name in lines:
                return lines[name], "name"
        return None


def find_origin(data: bytes, *, name: str | None = None, index: ManifestIndex | None = None) -> ImageOrigin:
    """
    Return what is known about an image file. Only headers and metadata are read; no pixel is decoded.

    :param data: the whole file; one that is not an image can still be found by its digest or name
    :param name: its name relative to the manifest's folder; ``None`` if it is elsewhere
    :param index: the manifest's images; ``None`` without a manifest
    """
    values = read_provenance(data)
    metadata = read_record(ManifestLine, {"file_name": "", **values}) if is_ours(values) else None
    digest = hashlib.sha256(data).hexdigest()
    found = index.find(digest, metadata=metadata, name=name) if index is not None else None
    record, evidence = found or (metadata, "metadata" if metadata is not None else None)
    return ImageOrigin(
        evidence=evidence,
        record=record or ManifestLine(file_name=""),
        is_listed=found is not None,
        is_unchanged=_is_unchanged(*found, name=name) if found is not None else None,
        metadata=metadata,
        contradictions=_contradictions(found[0], metadata) if found is not None and metadata is not None else (),
        has_content_credentials=has_content_credentials(data),
        digital_source_type=values.get("digital_source_type"),
    )


def _is_unchanged(listed: ManifestLine, evidence: Evidence, *, name: str | None) -> bool | None:
    if evidence in ("digest", "original"):
        return True
    is_original = name is not None and name == listed.original
    expected = listed.original_sha256 if is_original else listed.sha256
    return None if evidence == "preview" or expected is None else False


def _shared(line: ManifestLine, *, seed: int | None) -> ManifestLine:
    """Return what all images of one request share, and the seed."""
    unknown = dict.fromkeys(("image_index", "url", "path", "width", "height", "mime_type", "bytes", "sha256"))
    return replace(line, file_name="", thumbnail=None, original=None, original_sha256=None, seed=seed, **unknown)


def _contradictions(listed: ManifestLine, metadata: ManifestLine) -> tuple[str, ...]:
    compared = _COMPARED if listed.reused_from is None else _COMPARED_IF_REUSED
    pairs = {name: (getattr(listed, name), getattr(metadata, name)) for name in compared}
    return tuple(name for name, values in pairs.items() if None not in values and values[0] != values[1])
