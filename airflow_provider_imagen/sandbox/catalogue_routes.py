"""The catalogue endpoints: models, deprecations, one OpenAPI document per model. None needs a key."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from starlette.routing import Route

from airflow_provider_imagen.sandbox.envelopes import error_body, timestamp
from airflow_provider_imagen.sandbox.models import SandboxModel, all_models, find_model
from airflow_provider_imagen.sandbox.responses import Json

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from airflow_provider_imagen.sandbox.state import State

_TYPE = "openai/image-generations"
_SHUT_DOWN = "2026-06-30T00:00:00.000Z"


def catalogue_routes() -> list[Route]:
    """List the routes that need no key."""
    return [
        *(Route(path, _models) for path in ("/v1/models", "/models", "/api/v1/models")),
        Route("/v1/models/deprecations", _deprecations),
        Route("/docs-json", _document),
    ]


def _values(request: Request, name: str) -> set[str]:
    """Read a filter: comma-separated and repeated values are both accepted."""
    return {part for value in request.query_params.getlist(name) for part in value.split(",") if part}


async def _models(request: Request) -> Response:
    state: State = request.app.state.sandbox
    ids, types, include = (_values(request, name) for name in ("id", "type", "include"))
    withdrawn = state.withdrawn()
    priced = bool(include & {"pricing", "all"}) or request.query_params.get("details") in ("1", "true")
    data = [
        _entry(model, state.api_url, priced=priced)
        for model in all_models().values()
        if model.id not in withdrawn and (not ids or ids & {model.id, *model.aliases}) and (not types or _TYPE in types)
    ]
    answer = Json({"object": "list", "data": data})
    answer.headers["etag"] = f'W/"{sha256(answer.body).hexdigest()[:16]}"'
    return answer


def _entry(model: SandboxModel, api_url: str, *, priced: bool) -> dict[str, Any]:
    name = model.id.rsplit("/", 1)[-1].replace("-", " ").title()
    entry: dict[str, Any] = {
        "id": model.id,
        "aliases": list(model.aliases),
        "type": _TYPE,
        "info": {
            "name": name,
            "developer": model.developer,
            "docsJson": f"{api_url}/docs-json?model={quote(model.id, safe='')}&endpoint={quote(_TYPE, safe='')}",
        },
        "tags": ["playground:image"],
    }
    return {**entry, "pricing": _pricing(model)} if priced else entry


def _pricing(model: SandboxModel) -> dict[str, Any]:
    """Write a price in the documented form (docs, complete-model-list page, 2026-08-19)."""
    if model.usd_by is None:
        unit = {"name": "image", "measure": "output", "price": float(model.usd), "per": 1}
        return {"kind": "fixed", "currency": "USD", "units": [unit]}
    name, by_value = model.usd_by
    variants = [
        {"when": {name: value}, "price": float(usd), "unit": "image", "per": 1} for value, usd in by_value.items()
    ]
    return {"kind": "variants", "currency": "USD", "dimensions": [name], "variants": variants}


async def _deprecations(request: Request) -> Response:
    state: State = request.app.state.sandbox
    data = []
    for model_id, replaced_by in sorted(state.withdrawn().items()):
        model = find_model(model_id)
        data.append(
            {
                "id": model_id,
                "aliases": list(model.aliases) if model else [],
                "status": "withdrawn",
                "deprecated_at": None,
                "shutdown_at": _SHUT_DOWN,
                "replaced_by": replaced_by,
                "reason": "The model's maker ended it.",
            }
        )
    return Json({"object": "list", "generated_at": timestamp(state.clock()), "data": data})


async def _document(request: Request) -> Response:
    state: State = request.app.state.sandbox
    name = request.query_params.get("model")
    model = find_model(name)
    if model is None or model.id in state.withdrawn():
        return Json(error_body(404, f"Model {name} not found", path="/docs-json", now=state.clock()), 404)
    paths = {"/v1/images/generations": _operation(model)}
    if model.edits is not None:
        paths["/v1/images/edits"] = _operation(model.edits)
    return Json(
        {
            "openapi": "3.0.0",
            "info": {"title": "Image API sandbox", "version": "1.0.0"},
            "servers": [{"url": state.api_url}],
            "paths": paths,
        }
    )


def _operation(model: SandboxModel) -> dict[str, Any]:
    fields = {
        name: {key: value for key, value in schema.items() if key != "sides_multiple_of"}
        for name, schema in model.fields.items()
    }
    schema = {
        "type": "object",
        "properties": {"model": {"type": "string", "enum": [model.id]}, **fields},
        "required": ["model", *model.required],
        "title": model.id,
    }
    return {
        "post": {
            "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
            "responses": {"200": {"description": "The pictures."}},
        }
    }
