"""The catalogue endpoints: models, deprecations, and an OpenAPI document per model. None needs a key."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from starlette.routing import Route

from airflow_provider_imagen.sandbox.envelopes import error_body, timestamp
from airflow_provider_imagen.sandbox.json_responses import AsciiJSONResponse, with_etag
from airflow_provider_imagen.sandbox.model_specs import SandboxModel, all_models, find_model

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from airflow_provider_imagen.sandbox.state import State

_TYPE = "openai/image-generations"
_SHUTDOWN_DATE = "2026-06-30"
"""Shutdown date of models that a fault withdraws."""

_LISTS = ("/v1/models", "/models", "/api/v1/models")
_STATUSES = ("deprecated", "superseded", "withdrawn")


def catalogue_routes() -> list[Route]:
    """Return the routes."""
    return [
        *(Route(path, _models) for path in _LISTS),
        *(Route(f"{path}/{name}", _deprecations) for path in _LISTS for name in ("deprecations", "deprecated")),
        Route("/model/{name:path}", _model),
        Route("/models/metrics", _metrics),
        Route("/docs-json", _document),
    ]


def _values(request: Request, name: str) -> set[str]:
    """Return the values of a filter, which may be comma-separated, repeated or both, in lower case."""
    return {part.lower() for value in request.query_params.getlist(name) for part in value.split(",") if part}


async def _models(request: Request) -> Response:
    state: State = request.app.state.sandbox
    withdrawn = state.withdrawn()
    data = [
        _entry(request, model)
        for model in all_models().values()
        if model.id not in withdrawn and _matches_filters(request, model)
    ]
    return with_etag(request, AsciiJSONResponse({"object": "list", "data": data}))


async def _model(request: Request) -> Response:
    """Return one model, as :func:`_models` lists it."""
    state: State = request.app.state.sandbox
    name = request.path_params["name"]
    by_name = {each.lower(): model for model in all_models().values() for each in model.names}
    model = by_name.get(name.lower())
    if model is None or model.id in state.withdrawn():
        return AsciiJSONResponse(
            error_body(404, f"Model {name} not found", path=request.url.path, now=state.clock()), 404
        )
    return with_etag(request, AsciiJSONResponse({"object": "model", "data": _entry(request, model)}))


async def _metrics(request: Request) -> Response:
    """Return metrics as if there had been no recent requests."""
    state: State = request.app.state.sandbox
    return AsciiJSONResponse({"window_seconds": 300, "generated_at": timestamp(state.clock()), "models": []})


def _matches_filters(request: Request, model: SandboxModel) -> bool:
    """Return whether a model matches at least one value of each filter."""
    inputs, outputs = _modalities(model).values()
    own_values = {
        "id": {name.lower() for name in model.names},
        "type": {_TYPE},
        "tags": {"playground:image"},
        "modalities": {*inputs, *outputs},
        "input_modalities": {*inputs},
        "output_modalities": {*outputs},
        "capabilities": {*_capabilities(model)},
    }
    return all(not (wanted := _values(request, name)) or wanted & own for name, own in own_values.items())


def _entry(request: Request, model: SandboxModel) -> dict[str, Any]:
    state: State = request.app.state.sandbox
    name = model.id.rsplit("/", 1)[-1]
    docs = f"https://docs.aimlapi.com/api-references/image-models/{model.developer.lower().replace(' ', '-')}/{name}"
    query = f"model={quote(model.id, safe='')}&endpoint={quote(_TYPE, safe='')}"
    entry: dict[str, Any] = {
        "id": model.id,
        "aliases": list(model.aliases),
        "type": _TYPE,
        "info": {
            "name": name.replace("-", " ").title(),
            "developer": model.developer,
            "url": "",
            "docsUrl": docs,
            "docsJson": f"{state.api_url}/docs-json?{query}",
        },
        "tags": ["playground:image"],
    }
    sections: dict[str, Any] = {
        "modalities": _modalities(model),
        "capabilities": _capabilities(model),
        "pricing": _pricing(model),
    }
    include = _values(request, "include")
    if "all" in include or request.query_params.get("details") in ("1", "true"):
        include = {*sections}
    return entry | {section: value for section, value in sections.items() if section in include}


def _modalities(model: SandboxModel) -> dict[str, list[str]]:
    takes = (("image", any(name.startswith("image_url") or name == "image" for name in model.fields)),)
    inputs = [name for name, fits in (*takes, ("text", "prompt" in model.fields)) if fits]
    return {"input": inputs, "output": ["image"]}


def _capabilities(model: SandboxModel) -> list[str]:
    return {"generate": ["text_to_image"], "edit": ["image_to_image"], "upscale": ["image_to_image"]}[model.kind]


def _pricing(model: SandboxModel) -> dict[str, Any]:
    """Return a price in the documented format (docs, complete-model-list page, 2026-08-19)."""
    if model.usd_by is None:
        unit = {"name": "image", "measure": "output", "price": float(model.usd), "per": 1}
        return {"kind": "fixed", "currency": "USD", "units": [unit]}
    name, by_value = model.usd_by
    variants = [
        {"when": {name: value}, "price": float(usd), "unit": "image", "per": 1} for value, usd in by_value.items()
    ]
    return {"kind": "variants", "currency": "USD", "dimensions": [name], "variants": variants}


async def _deprecations(request: Request) -> Response:
    """Return the retired models, newest first (docs, model-deprecations page, 2026-08)."""
    state: State = request.app.state.sandbox
    data = []
    for model_id, replaced_by in sorted(state.withdrawn().items()):
        model = find_model(model_id)
        date = model.shutdown_at if model and model.shutdown_at else _SHUTDOWN_DATE
        data.append(
            {
                "id": model_id,
                "aliases": list(model.aliases) if model else [],
                "status": "withdrawn",
                "deprecated_at": date,
                "shutdown_at": date,
                "replaced_by": replaced_by,
                "reason": "provider_delisted",
            }
        )
    data.sort(key=lambda entry: str(entry["shutdown_at"]), reverse=True)
    if statuses := _values(request, "status") & {*_STATUSES}:
        data = [entry for entry in data if entry["status"] in statuses]
    since = request.query_params.get("since", "")
    if re.fullmatch(r"\d{4}-\d{2}-\d{2}", since):
        data = [entry for entry in data if str(entry["shutdown_at"]) >= since]
    response = AsciiJSONResponse({"object": "list", "generated_at": timestamp(state.clock()), "data": data})
    response.headers["cache-control"] = "public, max-age=300"
    return with_etag(request, response, data=data)


async def _document(request: Request) -> Response:
    state: State = request.app.state.sandbox
    name = request.query_params.get("model")
    model = find_model(name)
    if model is None or model.id in state.withdrawn():
        return AsciiJSONResponse(error_body(404, f"Model {name} not found", path="/docs-json", now=state.clock()), 404)
    paths = {"/v1/images/generations": _operation(model)}
    if model.edits is not None:
        paths["/v1/images/edits"] = _operation(model.edits)
    return AsciiJSONResponse(
        {
            "openapi": "3.0.0",
            "info": {"title": "Image API sandbox", "version": "1.0.0"},
            "servers": [{"url": state.api_url}],
            "paths": paths,
        }
    )


def _operation(model: SandboxModel) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {"model": {"type": "string", "enum": [model.id]}, **model.fields},
        "required": ["model", *model.required],
        "title": model.id,
    }
    return {
        "post": {
            "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
            "responses": {"200": {"description": "The images."}},
        }
    }
