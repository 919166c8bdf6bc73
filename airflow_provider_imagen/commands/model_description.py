"""Descriptions of models: properties, fields and an example DAG. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from airflow_provider_imagen.catalogue.request_builder import ImageRequest
from airflow_provider_imagen.catalogue.validation import describe

if TYPE_CHECKING:
    from airflow_provider_imagen.catalogue.availability import ModelHealth
    from airflow_provider_imagen.catalogue.lookup import Endpoint, Model
    from airflow_provider_imagen.catalogue.pricing import PriceList

EXAMPLE_IMAGE = "https://example.com/image.png"

_OPERATOR_ARGUMENTS = (
    "prompt",
    "num_images",
    "aspect_ratio",
    "seed",
    "enhance_prompt",
    "person_generation",
    "safety_setting",
    "add_watermark",
    "convert_base64_to_url",
)

_EXAMPLE_PROMPTS = {
    "text_to_image": "A raccoon eating ice-cream",
    "edit": "Make it night, with lanterns",
    "image_to_image": "The same scene as a woodcut",
}


def describe_model(model: Model, *, prices: PriceList, health: ModelHealth | None) -> dict[str, Any]:
    """
    Return the properties of a model as JSON values.

    :param prices: live prices; without them, the last known price is used
    :param health: availability from the API; ``None`` falls back to the catalogue's status
    """
    endpoint = model.generations
    quote = prices.quote(ImageRequest(endpoint.path, {"model": model.id}, 1, returns_base64=False))
    known = model.price if quote.source == "last known" else None
    inputs = model.edits or endpoint
    return {
        "id": model.id,
        "aliases": list(model.aliases),
        "kind": model.kind,
        "status": health.state if health else model.status,
        "shutdown_at": health.shutdown_at if health else None,
        "successor": (health.successor if health else None) or model.successor,
        "usd_per_image": float(quote.usd) if quote.usd is not None else None,
        "usd_source": f"{known.source}, {known.seen}" if known else quote.source,
        "max_images_per_request": endpoint.max_images,
        "max_prompt_characters": endpoint.fields.get("prompt", {}).get("maxLength"),
        "max_input_images": inputs.max_inputs,
        "needs_input_images": endpoint.needs_input,
    }


def describe_fields(endpoint: Endpoint) -> list[dict[str, Any]]:
    """Return each field of an endpoint: allowed values, default, and the argument that sets it."""
    return [
        {
            "field": name,
            "required": name in endpoint.required,
            "allowed": describe(schema),
            "default": schema.get("default"),
            "argument": _argument_for(name, endpoint),
        }
        for name, schema in sorted(endpoint.fields.items(), key=lambda field: _rank(field[0], endpoint))
    ]


def example_arguments(model: Model) -> dict[str, Any]:
    """Return the fewest operator arguments that this model accepts, plus an aspect ratio if it offers one."""
    endpoint = model.generations
    arguments: dict[str, Any] = {"task_id": "paint"}
    if "prompt" in endpoint.fields:
        arguments["prompt"] = _EXAMPLE_PROMPTS.get(model.kind, _EXAMPLE_PROMPTS["text_to_image"])
    arguments["model"] = model.id
    if endpoint.needs_input:
        arguments["input_images"] = EXAMPLE_IMAGE
    required = {
        name: endpoint.fields[name]["enum"][0]
        for name in endpoint.required
        if name != "prompt" and name not in endpoint.input_fields
    }
    if "16:9" in endpoint.fields.get("aspect_ratio", {}).get("enum", ()):
        arguments["aspect_ratio"] = "16:9"
    if required:
        arguments["parameters"] = required
    arguments["output_path"] = "imagen-pictures/{{ run_id }}"
    return arguments


def dag_snippet(model: Model) -> str:
    """Return the source of a DAG that generates an image with this model."""
    # JSON strings, and mappings of strings, are valid Python.
    lines = "".join(
        f"        {name}={json.dumps(value, ensure_ascii=False)},\n" for name, value in example_arguments(model).items()
    )
    return (
        "from airflow.sdk import dag\n\n"
        "from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator\n\n\n"
        "@dag(schedule=None)\n"
        "def images():\n"
        f"    ImagenGenerateOperator(\n{lines}    )\n\n\n"
        "images()\n"
    )


def _argument_for(name: str, endpoint: Endpoint) -> str:
    if name == endpoint.count_field:
        return "num_images"
    if name in _OPERATOR_ARGUMENTS:
        return name
    if name in endpoint.input_fields:
        return "input_images"
    if name == endpoint.base64_field:
        return "convert_base64_to_url"
    if name == endpoint.size_field:
        return "aspect_ratio, or parameters"
    return "parameters"


def _rank(name: str, endpoint: Endpoint) -> tuple[bool, bool, str]:
    return (name != "prompt", name not in endpoint.required, name)
