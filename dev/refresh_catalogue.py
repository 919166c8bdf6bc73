"""
Regenerate the package's ``models.json`` (in ``catalogue/``) from the API's OpenAPI documents.

::

    python dev/refresh_catalogue.py FOLDER       every OpenAPI document below a folder
    python dev/refresh_catalogue.py --live URL   a running API; no key is needed

The file is sorted, one field a line, so that a refresh reads as a diff. Only facts are copied: types, limits, choices
and defaults, no descriptions. What OpenAPI does not state (prices, replacements, announced ends, status, kinds, aliases
a document does not mention) is kept from the previous catalogue. A folder counts as complete, so models without a
document are dropped. The live list does not, because deprecated models leave it and still work: nothing is dropped.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_imagen.api.fields import IMAGE_FIELDS
from airflow_provider_imagen.catalogue import lookup
from airflow_provider_imagen.catalogue.lookup import CATALOGUE_FILE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"

_COPIED = (
    "type", "enum", "default", "format", "pattern", "minimum", "maximum", "multipleOf", "minLength", "maxLength",
    "minItems", "maxItems", "required",
)  # fmt: skip
_TIMEOUT_SECONDS = (10, 60)

Entry = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 when the catalogue was written."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[1])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("folder", nargs="?", type=Path, help="folder of OpenAPI documents")
    source.add_argument("--live", metavar="URL", help="base URL of the API, such as https://api.aimlapi.com")
    default = Path(lookup.__file__).with_name(CATALOGUE_FILE)
    parser.add_argument("--output", type=Path, default=default, help="catalogue to update (default: the package's own)")
    options = parser.parse_args(argv)
    previous = json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else {}
    if options.live:
        renewed = from_live(options.live, previous)
    else:
        documents = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(options.folder.rglob("*.json"))]
        renewed = from_documents(documents, previous)
    if not renewed:
        parser.error("no image model found; the catalogue stays as it is")
    options.output.write_text(to_text(renewed), encoding="utf-8")
    sys.stdout.write(summarise(previous, renewed) + "\n")
    return 0


def from_documents(documents: Iterable[Any], previous: Mapping[str, Entry]) -> dict[str, Entry]:
    """
    Return the catalogue that these OpenAPI documents describe.

    :param documents: each describes one model, under one or several ids; only generations and edits are read
    :param previous: entries by id, for what the documents do not state
    """
    found: dict[str, Entry] = {}
    uploads: dict[str, Entry] = {}
    for document in documents:
        for path, schema in _request_schemas(document):
            names = schema["properties"].get("model", {}).get("enum", [])
            for name in names:
                endpoint = {"endpoint": path, **_read_body(schema, edits=path == EDITS)}
                if path == EDITS:
                    uploads[name] = endpoint
                else:
                    found[name] = {**endpoint, "aliases": [other for other in names if other != name]}
    for name, entry in uploads.items():
        if name in found:
            found[name]["edits"] = entry
    return {name: _with_earlier(name, entry, previous.get(name, {})) for name, entry in found.items()}


def from_live(url: str, previous: Mapping[str, Entry]) -> dict[str, Entry]:
    """
    Return the catalogue that a running API describes in its model list, documents and deprecations.

    A model whose document cannot be read keeps its previous fields.

    :param url: base URL of the API, with or without ``/v1``
    :param previous: entries by id; those no longer listed stay, as ``unlisted``
    :raises requests.RequestException: the list of models could not be read
    """
    import requests

    root = url.rstrip("/").removesuffix("/v1")
    with requests.Session() as session:

        def get(address: str, **params: str) -> Any:
            answer = session.get(address, params=params, timeout=_TIMEOUT_SECONDS)
            answer.raise_for_status()
            return answer.json()

        listed: dict[str, list[str]] = {}
        documents = []
        for row in get(f"{root}/v1/models", type="openai/image-generations")["data"]:
            listed[row["id"]] = sorted(row.get("aliases") or [])
            try:
                documents.append(get(row["info"]["docsJson"]))
            except (KeyError, ValueError, requests.RequestException):
                continue  # a model may have no document
        retired = get(f"{root}/v1/models/deprecations")["data"]
    renewed = {**previous, **from_documents(documents, previous)}
    for name, entry in renewed.items():
        if name in listed:
            aliases = sorted({*entry.get("aliases", []), *listed[name]} - {name})
            renewed[name] = {**entry, "aliases": aliases, "status": "listed"}
        elif entry["status"] == "listed":
            renewed[name] = {**entry, "status": "unlisted"}
    for row in retired:
        for name in {row["id"], *(row.get("aliases") or [])} & renewed.keys():
            status = renewed[name]["status"] if row["status"] == "superseded" else row["status"]
            successor = row.get("replaced_by") or renewed[name].get("successor")
            renewed[name] = {**renewed[name], "status": status, "successor": successor}
            day = str(row.get("shutdown_at") or "")[:10]
            if day and day != renewed[name].get("ends", {}).get("date"):
                seen = datetime.now(UTC).strftime("%Y-%m")
                renewed[name]["ends"] = {"date": day, "source": "the API's list of deprecations", "seen": seen}
    return {name: _tidy(entry) for name, entry in renewed.items()}


def to_text(catalogue: Mapping[str, Entry]) -> str:
    """Return the catalogue as sorted JSON, with one line for each field of each model."""
    return _lay_out(catalogue, open_levels=(0, 1), always_open=("fields", "edits")) + "\n"


def summarise(previous: Mapping[str, Entry], renewed: Mapping[str, Entry]) -> str:
    """Return a few lines that name the models added, removed and changed."""
    groups = {
        "added": sorted(renewed.keys() - previous.keys()),
        "removed": sorted(previous.keys() - renewed.keys()),
        "changed": sorted(name for name in renewed.keys() & previous.keys() if renewed[name] != previous[name]),
    }
    lines = [f"{len(renewed)} models"]
    lines += [f"{label} {len(names)}: {', '.join(names)}" for label, names in groups.items() if names]
    return "\n".join(lines if len(lines) > 1 else [f"{lines[0]}, nothing changed"])


def _request_schemas(document: Any) -> Iterable[tuple[str, Mapping[str, Any]]]:
    paths = document.get("paths") if isinstance(document, dict) else None
    for path in (GENERATIONS, EDITS):
        operation = (paths or {}).get(path, {}).get("post", {})
        for content in operation.get("requestBody", {}).get("content", {}).values():
            schema = content.get("schema", {})
            if "properties" in schema:
                yield path, schema


def _read_body(schema: Mapping[str, Any], *, edits: bool) -> Entry:
    fields = {name: _read_field(found) for name, found in schema["properties"].items() if name != "model"}
    if edits:
        fields |= {name: _as_file(fields[name]) for name in IMAGE_FIELDS if name in fields}
    return {"required": sorted(name for name in schema.get("required", []) if name != "model"), "fields": fields}


def _read_field(found: Mapping[str, Any]) -> Entry:
    """Return what JSON Schema can check, and the limits that only the description states."""
    field: Entry = {key: found[key] for key in _COPIED if key in found}
    said = found.get("description", "")
    if "anyOf" in found:
        field["anyOf"] = [_read_field(choice) for choice in found["anyOf"]]
    if "items" in found:
        field["items"] = _read_field(found["items"])
    if "properties" in found:
        field["properties"] = {name: _read_field(part) for name, part in found["properties"].items()}
        if step := re.search(r"multiple of (\d+)", said):
            for side in ("width", "height"):
                if side in field["properties"]:
                    field["properties"][side]["multipleOf"] = int(step[1])
    if field.get("type") == "array" and "maxItems" not in field and (most := re.search(r"up to (\d+) images", said)):
        field["maxItems"] = int(most[1])
    if field.get("type") == "string" and (sides := re.search(r"between \[(\d+)x\1, (\d+)x\2\]", said)):
        field |= {"pattern": "^[0-9]+x[0-9]+$", "sides": [int(sides[1]), int(sides[2])]}
    if field.get("type") == "integer" and isinstance(field.get("default"), str):
        field["default"] = int(field["default"])
    return field


def _as_file(field: Entry) -> Entry:
    if "anyOf" in field:
        return {**field, "anyOf": [_as_file(choice) for choice in field["anyOf"]]}
    if field.get("type") == "array":
        return {**field, "items": {"type": "file"}}
    return {"type": "file"}


def _with_earlier(name: str, entry: Entry, earlier: Entry) -> Entry:
    """Add what OpenAPI does not state, from the previous entry."""
    kept: Entry = {key: earlier[key] for key in ("kind", "status", "successor", "price", "ends") if key in earlier}
    entry = {"kind": _guess_kind(name, entry), "status": "listed", **kept, **entry}
    entry["aliases"] = sorted({*entry["aliases"], *earlier.get("aliases", [])} - {name})
    if "edits" in entry and "price" in earlier.get("edits", {}):
        entry["edits"]["price"] = earlier["edits"]["price"]
    for field, schema in entry["fields"].items():
        _keep_steps(schema, earlier.get("fields", {}).get(field, {}))
    return _tidy(entry)


def _keep_steps(schema: Entry, earlier: Entry) -> None:
    """Keep ``multipleOf`` of width and height when a document stops stating it."""
    steps = [choice["properties"].get("width", {}).get("multipleOf") for choice in _objects(earlier)]
    for choice in _objects(schema):
        for side in ("width", "height"):
            if side in choice["properties"] and steps and steps[0]:
                choice["properties"][side].setdefault("multipleOf", steps[0])


def _objects(schema: Entry) -> list[Entry]:
    return [choice for choice in [schema, *schema.get("anyOf", [])] if "properties" in choice]


def _guess_kind(name: str, entry: Entry) -> str:
    if "prompt" not in entry["fields"]:
        return "upscale"
    if "image-to-image" in name or "i2i" in name:
        return "image_to_image"
    if "edit" in name or any(field in entry["required"] for field in IMAGE_FIELDS):
        return "edit"
    return "text_to_image"


def _tidy(entry: Entry) -> Entry:
    return {key: value for key, value in entry.items() if value is not None and value != []}


def _lay_out(value: Any, *, open_levels: tuple[int, ...], always_open: tuple[str, ...], level: int = 0) -> str:
    """Return JSON with one entry a line on the open levels and in the named parts, and on one line elsewhere."""
    if not isinstance(value, dict) or not value:
        return json.dumps(value, sort_keys=True, ensure_ascii=False)
    indent = "  " * (level + 1)
    lines = []
    for key, part in sorted(value.items()):
        is_open = level + 1 in open_levels or key in always_open
        options: dict[str, Any] = {"open_levels": open_levels, "always_open": always_open, "level": level + 1}
        text = _lay_out(part, **options) if is_open else json.dumps(part, sort_keys=True, ensure_ascii=False)
        lines.append(f"{indent}{json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n" + "  " * level + "}"


if __name__ == "__main__":
    sys.exit(main())
