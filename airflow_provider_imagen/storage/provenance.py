"""
Embed an image's provenance in its file: that a model made it, which model, from which prompt, in which task.

Provenance goes into an XMP packet, where image tools look for it. The fact that a model made the image, the prompt and
the model have standard properties (IPTC Photo Metadata Standard 2025.1, ``Iptc4xmpExt``), and so do time and tool
(``xmp``); everything else uses this package's own :data:`NAMESPACE`. An existing packet is kept, except that our
properties replace those of the same name; a packet that cannot be parsed is replaced.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from msgspec import Struct, field
from msgspec.structs import replace

from airflow_provider_imagen.storage.file_metadata import FileMetadata, read_metadata, write_xmp
from airflow_provider_imagen.storage.jpeg import MAX_APP1_BYTES
from airflow_provider_imagen.storage.xmp import Properties, build_packet, read_packet

if TYPE_CHECKING:
    from collections.abc import Mapping

    from airflow_provider_imagen.storage.inspect_image import FileFormat, ImageInfo
    from airflow_provider_imagen.storage.task_identity import Origin

DIGITAL_SOURCE_TYPE: Final = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's term for an image made by a trained model (NewsCodes, ``digitalsourcetype``)."""

NAMESPACE: Final = "urn:airflow-provider-imagen:picture:1.0/"
"""Namespace for properties that no standard covers; its usual prefix is ``imagen``."""

CREATOR_TOOL: Final = "airflow-provider-imagen"

_IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_XMP = "http://ns.adobe.com/xap/1.0/"
_PREFIXES: Final = {_IPTC: "Iptc4xmpExt", _XMP: "xmp", NAMESPACE: "imagen"}
_NAMES: Final[dict[tuple[str, str], str]] = {
    (_IPTC, "DigitalSourceType"): "digital_source_type",
    (_IPTC, "AIPromptInformation"): "prompt",
    (_IPTC, "AISystemUsed"): "model",
    (_XMP, "CreateDate"): "created_at",
    (_XMP, "CreatorTool"): "creator_tool",
    (NAMESPACE, "EnhancedPrompt"): "enhanced_prompt",
    (NAMESPACE, "Seed"): "seed",
    (NAMESPACE, "Parameters"): "parameters",
    (NAMESPACE, "InferenceId"): "inference_id",
    (NAMESPACE, "DagId"): "dag_id",
    (NAMESPACE, "RunId"): "run_id",
    (NAMESPACE, "TaskId"): "task_id",
    (NAMESPACE, "MapIndex"): "map_index",
}
_ORIGIN: Final = ("dag_id", "run_id", "task_id")
_CHANGEABLE: Final = (
    "created_at",
    "model",
    "prompt",
    "enhanced_prompt",
    "seed",
    "parameters",
    "inference_id",
    "digital_source_type",
)
_MAX_PARAMETER_CHARACTERS: Final = 2_000
_MAX_PARAMETERS_CHARACTERS: Final = 20_000
_CAUTIOUS_BYTES: Final = 8_000


class Provenance(Struct, frozen=True, kw_only=True):
    """
    How an image was made.

    :param origin: the task instance
    :param created_at: when the image was made, with time zone; ``None`` if unknown
    :param model: model id, may be empty
    :param prompt: the prompt as sent, may be empty
    :param enhanced_prompt: the prompt as rewritten by the model, ``None`` if the model did not report it
    :param seed: the seed as sent, ``None`` if none was
    :param parameters: the other API fields as sent. Before they are written, URLs lose their query strings, which may
        hold signatures, and embedded images lose their data
    :param inference_id: the API's id of the paid work
    :param digital_source_type: IPTC's term for how the image was made; ``None`` omits it
    """

    origin: Origin
    created_at: datetime | str | None = None
    model: str = ""
    prompt: str = ""
    enhanced_prompt: str | None = None
    seed: int | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    inference_id: str | None = None
    digital_source_type: str | None = DIGITAL_SOURCE_TYPE

    def changed(self, changes: Mapping[str, Any]) -> Provenance:
        """
        Return a copy with an author's changes applied.

        :param changes: new values by field name, of this class or its origin; ``None`` omits the field. Any other name
            is treated as a parameter to add, replace or omit in the same way
        """
        own = {name: value for name, value in changes.items() if name in _CHANGEABLE}
        place: dict[str, Any] = {
            name: "" if value is None else str(value) for name, value in changes.items() if name in _ORIGIN
        }
        if "map_index" in changes:
            place["map_index"] = -1 if changes["map_index"] is None else changes["map_index"]
        parameters = own.pop("parameters", self.parameters) or {}
        known = {*_CHANGEABLE, *_ORIGIN, "map_index"}
        further = {name: value for name, value in changes.items() if name not in known}
        return replace(
            self,
            **own,
            origin=replace(self.origin, **place),
            parameters={name: value for name, value in {**parameters, **further}.items() if value is not None},
        )


class EmbedResult(Struct, frozen=True):
    """
    The result of :func:`embed_provenance`.

    :param data: the file
    :param skip_reason: why the file is unchanged, in one sentence; ``None`` if the provenance is in it
    """

    data: bytes
    skip_reason: str | None = None


def embed_provenance(data: bytes, info: ImageInfo, provenance: Provenance) -> EmbedResult:
    """
    Return a PNG, JPEG or WebP with its provenance embedded, without re-encoding: pixels stay bit for bit.

    A file signed with a C2PA manifest is left alone: changing one byte would invalidate the signature, which
    says more, and more credibly, than we can.

    :param data: the whole file
    :param info: the result of :func:`~airflow_provider_imagen.storage.inspect_image.inspect_image` for it
    """
    metadata = read_metadata(data, info.format)
    if metadata is None:
        return EmbedResult(data, f"No provenance was written into the file: {info.format} is not supported for that.")
    if metadata.is_signed:
        return EmbedResult(data, "No provenance was written into the file: it would break the file's C2PA signature.")
    if metadata.has_multiple_images:
        return EmbedResult(data, "No provenance was written into the file: it holds several pictures.")
    if metadata.has_huge_xmp:
        return EmbedResult(data, "No provenance was written into the file: its own metadata is too large to be read.")
    packet = _fitting_packet(provenance, metadata, info.format)
    if packet is None:
        return EmbedResult(data, "No provenance was written into the file: its own metadata leaves no room.")
    return EmbedResult(write_xmp(data, info, packet))


def provenance_packet(provenance: Provenance, *, existing: bytes | None = None) -> bytes:
    """
    Return the provenance as an XMP packet.

    :param existing: a packet to merge it into; one that cannot be parsed is replaced
    """
    return build_packet(_properties(provenance), _PREFIXES, existing=existing)


def read_provenance(data: bytes) -> dict[str, Any]:
    """
    Return the provenance in a PNG, JPEG, WebP or AVIF file, by field name.

    :returns: those fields of :class:`Provenance` and its origin that the file holds, ``created_at`` as ISO 8601 text,
        plus ``creator_tool``; empty if there are none
    """
    packet = _packet_of(data)
    found: dict[str, Any] = {
        _NAMES[key]: text for key, text in (read_packet(packet) if packet else {}).items() if key in _NAMES
    }
    for name in ("seed", "map_index"):
        if name in found:
            try:
                found[name] = int(found[name])
            except ValueError:
                del found[name]
    if "parameters" in found:
        try:
            found["parameters"] = json.loads(found["parameters"])
        except ValueError:
            del found["parameters"]
    return found


def _packet_of(data: bytes) -> bytes | None:
    formats: tuple[tuple[bytes, FileFormat], ...] = ((b"\x89PNG", "PNG"), (b"\xff\xd8", "JPEG"), (b"RIFF", "WEBP"))
    for start, file_format in formats:
        if data.startswith(start):
            metadata = read_metadata(data, file_format)
            return metadata.xmp if metadata else None
    from io import BytesIO

    from PIL import Image

    try:
        with Image.open(BytesIO(data), formats=("AVIF",)) as image:
            packet = image.info.get("xmp")
    except (OSError, SyntaxError, ValueError):
        return None
    return packet if isinstance(packet, bytes) else None


def _fitting_packet(provenance: Provenance, metadata: FileMetadata, file_format: FileFormat) -> bytes | None:
    """Return the packet, for a JPEG with our longest fields shortened to fit one segment; ``None`` if it cannot fit."""
    packet = provenance_packet(provenance, existing=metadata.xmp)
    if file_format != "JPEG" or len(packet) <= MAX_APP1_BYTES:
        return packet
    for limit in (_CAUTIOUS_BYTES, _CAUTIOUS_BYTES // 4, _CAUTIOUS_BYTES // 32):
        enhanced = provenance.enhanced_prompt
        shorter = replace(
            provenance,
            parameters={},
            prompt=_shorten(_text(provenance.prompt) or "", limit),
            enhanced_prompt=None if enhanced is None else _shorten(str(enhanced), limit),
        )
        packet = provenance_packet(shorter, existing=metadata.xmp)
        if len(packet) <= MAX_APP1_BYTES:
            return packet
    return None


def _properties(provenance: Provenance) -> Properties:
    origin = provenance.origin
    values: dict[str, str | None] = {
        "digital_source_type": provenance.digital_source_type,
        "prompt": _text(provenance.prompt),
        "model": _text(provenance.model),
        "created_at": _text(provenance.created_at),
        "creator_tool": CREATOR_TOOL,
        "enhanced_prompt": _text(provenance.enhanced_prompt),
        "seed": _text(provenance.seed),
        "parameters": _parameters_text(provenance.parameters),
        "inference_id": _text(provenance.inference_id),
        "dag_id": origin.dag_id,
        "run_id": origin.run_id,
        "task_id": origin.task_id,
        "map_index": None if origin.map_index < 0 else str(origin.map_index),
    }
    return {key: value for key, name in _NAMES.items() if (value := values[name])}


def _text(value: Any) -> str | None:
    """Return a value of any type, as an author may have supplied it, as text."""
    if value is None:
        return None
    return value.isoformat(timespec="seconds") if isinstance(value, datetime) else str(value)


def _parameters_text(parameters: Mapping[str, Any]) -> str | None:
    if not parameters:
        return None
    cleaned = {str(name): _clean(value) for name, value in parameters.items()}
    text = json.dumps(cleaned, ensure_ascii=False, sort_keys=True, default=str)
    if len(text) <= _MAX_PARAMETERS_CHARACTERS:
        return text
    return json.dumps(dict.fromkeys(cleaned, "…"), ensure_ascii=False, sort_keys=True)


def _clean(value: Any) -> Any:
    """Return a parameter without what must not be published with an image: URL signatures, embedded images."""
    if isinstance(value, dict):
        return {str(name): _clean(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(part) for part in value]
    if not isinstance(value, str):
        return value
    if value[:5].lower() == "data:":
        return f"{value[:40].partition(',')[0]},… ({len(value)} characters)"
    if value[:8].lower().startswith(("http://", "https://")):
        try:
            parts = urlsplit(value)
        except ValueError:
            return "…"
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
    return _shorten(value, _MAX_PARAMETER_CHARACTERS)


def _shorten(text: str, characters: int) -> str:
    return text if len(text) <= characters else f"{text[: characters - 1]}…"
