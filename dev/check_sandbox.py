"""
Compare the sandbox with the vendor's OpenAPI documents.

::

    python dev/check_sandbox.py FOLDER

Every document below the folder is tried on a sandbox of its own: each image model it describes gets the smallest
request its schema allows, each account and catalogue endpoint is asked with its documented parameters. The answers
have to fit the documented schemas, and look like the documented examples; what the sandbox says a model takes has to
be what the document says. Prints each difference, and exits with 1 if there are any.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import requests
from jsonschema import Draft202012Validator
from PIL import Image

from airflow_provider_imagen.sandbox import Sandbox

LINK = "https://pictures.example/cat.png"
FACTS = ("type", "enum", "default", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems")
WINDOW = {"period": "1h"}
"""What the endpoints about a span of time need."""

FORMS = {
    "a link": r"https?://\S+",
    "a date": r"\d{4}-\d{2}-\d{2}",
    "a moment": r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?Z",
}


def main(argv: list[str] | None = None) -> int:
    """Run the command; 1 when there is a difference, 2 when there is nothing to compare with."""
    parser = argparse.ArgumentParser(description="Compare the sandbox with the vendor's OpenAPI documents.")
    parser.add_argument("folder", type=Path, help="folder of OpenAPI documents (*.json)")
    folder = parser.parse_args(argv).folder
    operations = list(_operations(folder))
    if not operations:
        print(f"No OpenAPI document below {folder}.", file=sys.stderr)
        return 2
    differences: dict[str, None] = {}
    with Sandbox() as sandbox:
        check = _Check(sandbox)
        for path, method, operation in sorted(operations, key=lambda each: each[1], reverse=True):  # paid calls first
            tried = check.generate(path, operation) if method == "post" else check.ask(path, operation)
            differences |= dict.fromkeys(tried)
    for difference in differences:
        print(difference)
    print(f"{len(operations)} operations, {len(differences)} differences")
    return 1 if differences else 0


def _operations(folder: Path) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for file in sorted(folder.rglob("*.json")):
        document = json.loads(file.read_text(encoding="utf-8"))
        paths = document.get("paths") if isinstance(document, dict) else None
        for path, methods in (paths or {}).items():
            for method, operation in methods.items():
                if method in ("get", "post"):
                    yield path, method, operation


class _Check:
    """Asks one sandbox, and names what differs from a document."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._url = sandbox.url
        self._key = {"Authorization": f"Bearer {sandbox.api_key}"}

    def generate(self, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
        """Send the smallest request to each model that an operation describes."""
        for content in operation["requestBody"]["content"].values():
            schema = content["schema"]
            for model in schema["properties"]["model"].get("enum", []):
                where = f"POST {path} {model}"
                card = requests.get(f"{self._url}/model/{model}", timeout=30)
                if card.status_code == 404:
                    if not self._is_withdrawn(model):
                        yield f"{where}: neither served nor withdrawn"
                    continue
                yield from self._compare_fields(where, path, card.json()["data"], schema)
                body = {name: _sample(schema["properties"][name], name) for name in schema.get("required", [])}
                yield from _judge(where, self._post(path, {**body, "model": model}), operation)

    def ask(self, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
        """Ask an endpoint, bare and with each documented parameter."""
        parameters = operation.get("parameters", [])
        bare = WINDOW if "period" in {parameter["name"] for parameter in parameters} else {}
        yield from _judge(f"GET {path}", self._get(path, bare), operation, exact=True)
        for parameter in parameters:
            value = parameter.get("schema", {}).get("example", parameter.get("example"))
            if value is None or parameter["name"] in ("start", "end", "period", "cursor"):
                continue
            query = {**bare, parameter["name"]: value}
            yield from _judge(f"GET {path}?{parameter['name']}={value}", self._get(path, query), operation, exact=True)

    def _is_withdrawn(self, model: str) -> bool:
        rows = self._get("/v1/models/deprecations", {}).json()["data"]
        return any(model in (row["id"], *row["aliases"]) for row in rows if row["status"] == "withdrawn")

    def _compare_fields(
        self, where: str, path: str, card: Mapping[str, Any], schema: Mapping[str, Any]
    ) -> Iterator[str]:
        """Compare what the sandbox's own document says a model takes."""
        paths = requests.get(card["info"]["docsJson"], timeout=30).json()["paths"]
        path = f"/v1{path.removeprefix('/v1')}"  # some documents name the alias without /v1
        if path not in paths:
            yield f"{where}: the sandbox does not serve the model here"
            return
        (content,) = paths[path]["post"]["requestBody"]["content"].values()
        ours, theirs = content["schema"], schema
        if set(ours["required"]) != set(theirs.get("required", [])):
            yield f"{where}: requires {sorted(ours['required'])}, documented {sorted(theirs.get('required', []))}"
        for name in sorted({*ours["properties"], *theirs["properties"]} - {"model"}):
            mine, documented = (_facts(side["properties"].get(name)) for side in (ours, theirs))
            if mine != documented:
                yield f"{where}: {name} is {mine}, documented {documented}"

    def _post(self, path: str, body: dict[str, Any]) -> requests.Response:
        url = self._url + path
        if path.endswith("/edits"):
            files = {"image": ("image.png", _png(), "image/png")}
            form = {name: value for name, value in body.items() if name not in files}
            return requests.post(url, data=form, files=files, headers=self._key, timeout=60)
        return requests.post(url, json=body, headers=self._key, timeout=60)

    def _get(self, path: str, query: Mapping[str, Any]) -> requests.Response:
        return requests.get(self._url + path, params=dict(query), headers=self._key, timeout=30)


def _judge(
    where: str, answer: requests.Response, operation: Mapping[str, Any], *, exact: bool = False
) -> Iterator[str]:
    """
    Compare one answer with its documented schema and examples.

    :param exact: members that the schema does not name are differences, too; the schemas of images name only a few
    """
    documented = operation["responses"].get(str(answer.status_code))
    if documented is None:
        expected = ", ".join(operation["responses"])
        yield f"{where}: answers {answer.status_code}, documented {expected}: {answer.text[:200]}"
        return
    schema = documented["content"]["application/json"]["schema"]
    body = answer.json()
    for error in Draft202012Validator(_plain(schema)).iter_errors(body):
        yield f"{where}: {error.json_path}: {error.message[:200]}"
    yield from (f"{where}: {difference}" for difference in _unlike(schema, body, "$", exact=exact))


def _unlike(schema: Mapping[str, Any], value: Any, place: str, *, exact: bool) -> Iterator[str]:
    """Name members the schema does not have, and texts of another form than their example."""
    if isinstance(value, list):
        for index, part in enumerate(value):
            yield from _unlike(schema.get("items", {}), part, f"{place}[{index}]", exact=exact)
    elif isinstance(value, dict):
        known = schema.get("properties", {})
        for name, part in value.items():
            if name in known:
                yield from _unlike(known[name], part, f"{place}.{name}", exact=exact)
            elif exact and known:
                yield f"{place}.{name}: not documented"
    example = schema.get("example")
    if isinstance(value, str) and value and isinstance(example, str):
        for form, pattern in FORMS.items():
            if re.fullmatch(pattern, example) and not re.fullmatch(pattern, value):
                yield f"{place}: {value!r} is not {form} such as {example!r}"


def _plain(schema: Any) -> Any:
    """Turn OpenAPI's ``nullable`` into JSON Schema."""
    if isinstance(schema, list):
        return [_plain(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {name: _plain(part) for name, part in schema.items() if name not in ("nullable", "example")}
    return {"anyOf": [plain, {"type": "null"}]} if schema.get("nullable") else plain


def _facts(schema: Any) -> Any:
    """Keep what a field takes, without descriptions."""
    if not isinstance(schema, Mapping):
        return None
    facts: dict[str, Any] = {name: schema[name] for name in FACTS if name in schema}
    if schema.get("type") == "integer" and isinstance(schema.get("default"), str):
        facts["default"] = int(schema["default"])  # a slip of the document
    if "buffer" in schema.get("properties", {}):
        return facts  # how the vendor's server keeps an uploaded file
    if "anyOf" in schema:
        facts["anyOf"] = [_facts(choice) for choice in schema["anyOf"]]
    if "items" in schema:
        facts["items"] = _facts(schema["items"])
    if "properties" in schema:
        facts["properties"] = {name: _facts(part) for name, part in schema["properties"].items()}
    return facts


def _sample(schema: Mapping[str, Any], name: str) -> Any:
    """Make up the smallest value a field takes."""
    schema = next(iter(schema.get("anyOf", [schema])))
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type")
    if kind == "array":
        return [_sample(schema.get("items", {}), name)] * max(schema.get("minItems", 1), 1)
    if kind in ("integer", "number"):
        return schema.get("minimum", 1)
    if kind == "boolean":
        return False
    if kind == "object":
        return {part: _sample(schema["properties"][part], part) for part in schema.get("properties", {})}
    return LINK if "image" in name or schema.get("format") == "uri" else "a red fox"


def _png() -> bytes:
    Image.new("RGB", (64, 64), "red").save(data := BytesIO(), "PNG")
    return data.getvalue()


if __name__ == "__main__":
    sys.exit(main())
