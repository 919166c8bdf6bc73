"""Every model over the wire: the documented request returns images, and each limit is tested on both sides."""

from __future__ import annotations

import base64
import json
from collections import Counter
from decimal import Decimal
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from airflow_provider_imagen.api.client import ApiClient, ClientSettings
from airflow_provider_imagen.catalogue.lookup import all_models, find_model
from airflow_provider_imagen.catalogue.request_builder import build_requests
from airflow_provider_imagen.download.downloader import Downloader
from airflow_provider_imagen.exceptions import InvalidArgumentsError, ModelWithdrawnError
from airflow_provider_imagen.run.input_reader import InputReader
from airflow_provider_imagen.sandbox import Fault
from airflow_provider_imagen.sandbox.model_specs import find_model as find_sandbox_model
from airflow_provider_imagen.storage.inspect_image import inspect_image

RECORD_KEYS = {
    "prompt_index", "image_index", "url", "path", "width", "height", "mime_type", "bytes", "sha256", "model", "seed",
    "prompt", "enhanced_prompt", "usd", "inference_id", "client_request_id", "name", "metadata",
}  # fmt: skip


def _data_uri() -> str:
    target = BytesIO()
    Image.new("RGB", (64, 48), (200, 80, 20)).save(target, format="PNG")
    return "data:image/png;base64," + base64.b64encode(target.getvalue()).decode()


IMAGE = _data_uri()
RETIRED = {model.id for model in all_models() if find_sandbox_model(model.id).status == "withdrawn"}
ENDPOINTS = [
    pytest.param(model.id, endpoint, id=model.id + ("#edits" if endpoint is model.edits else ""))
    for model in all_models()
    for endpoint in (model.generations, model.edits)
    if endpoint and model.id not in RETIRED
]


@pytest.fixture
def client(sandbox):
    sandbox.configure(balance_usd=Decimal(100_000))
    client = ApiClient(ClientSettings(base_url=sandbox.url, api_key=sandbox.api_key))
    yield client
    client.close()


@pytest.fixture
def downloader():
    with Downloader(allow_private_hosts=True) as downloader:
        yield downloader


@pytest.fixture
def send(client, downloader):
    """Return a function that builds requests and sends each as a task does."""
    inputs = InputReader(open_path=Path, fetch=lambda url: downloader.fetch(url).data)

    def send(**arguments):
        generations = []
        for number, request in enumerate(build_requests(arguments, can_store=True)):
            body, files = inputs.wire(request)
            generations.append(client.generate(request.path, body, client_request_id=f"every.{number}", files=files))
        return generations

    return send


def minimal(model_id, endpoint):
    arguments = {"model": model_id}
    for name in ("prompt", *endpoint.required):
        if name in endpoint.input_fields:
            arguments["input_images"] = IMAGE
        elif name in endpoint.fields:
            schema = endpoint.fields[name]
            arguments[name] = schema["enum"][0] if "enum" in schema else "a cat"
    if endpoint.path.endswith("/edits"):
        arguments["input_images"] = IMAGE
    return arguments


def sides(schema, name=""):
    """Return (values at the limits, values one step outside) of a documented schema."""
    if "anyOf" in schema:
        pairs = [sides(choice, name) for choice in schema["anyOf"]]
        return [value for good, _ in pairs for value in good], [v for _, bad in pairs for v in bad if v != "no-such"]
    if "enum" in schema:
        return list(schema["enum"]), ["no-such"]
    kind = schema.get("type")
    if kind in ("integer", "number"):
        good = [schema[limit] for limit in ("minimum", "maximum") if limit in schema] or [schema.get("default", 1)]
        low = [schema["minimum"] - 1] if "minimum" in schema else []
        high = [schema["maximum"] + 1] if "maximum" in schema else []
        return good, low + high
    if kind == "boolean":
        return [True, False], ["perhaps"]
    if kind == "file" or schema.get("format") == "uri" or name == "image":
        return [IMAGE], ["cat.png"]
    if "sides" in schema:
        low, high = schema["sides"]
        return [f"{low}x{low}", f"{high}x{high}"], [f"{low - 1}x{low}", f"{low}x{high + 1}"]
    if kind == "string":
        most = schema.get("maxLength")
        return (["x" * most], ["x" * (most + 1)]) if most else (["anything"], [])
    if kind == "array":
        item = sides(schema["items"], name)[0][0] if schema["items"].get("type") != "object" else None
        if item is None:
            return [], []
        most = schema.get("maxItems")
        lists = [[item] * (schema.get("minItems") or 1)] + ([[item] * most] if most else [])
        return lists, [[item] * (most + 1)] if most else []
    if kind == "object":
        parts = {key: sides(part) for key, part in schema["properties"].items()}
        if not all(good for good, _ in parts.values()):
            return [], []
        step = schema["properties"].get("width", {}).get("multipleOf", 1)

        def snapped(value, up):
            return value if not isinstance(value, int) else (-(-value // step) * step if up else value // step * step)

        first = {key: snapped(good[0], True) for key, (good, _) in parts.items()}
        last = {key: snapped(good[-1], False) for key, (good, _) in parts.items()}
        return [first, last], [{**first, key: value} for key, (_, bad) in parts.items() for value in bad]
    return [], []


def companions(name, value):
    if name == "alpha_mode" and value in ("custom", "select"):
        return {"alpha_url": IMAGE}
    if name == "type" and value == "image_edit":
        return {"image_url": IMAGE}
    if name == "background" and value == "transparent":
        return {"output_format": "png"}
    return {}


@pytest.mark.parametrize(("model_id", "endpoint"), ENDPOINTS)
def test_every_limit_is_accepted_by_the_api_and_one_step_outside_rejected_by_us(model_id, endpoint, send, sandbox):
    edges = [(name, sides(schema, name)) for name, schema in endpoint.fields.items()]
    accepted = rejected = 0
    for name, (good, bad) in edges:
        if name == endpoint.count_field:
            good, bad = (
                [1, endpoint.max_images or 2],
                [0, (endpoint.max_images or 50) + 1 if endpoint.max_images != 1 else 51],
            )
        base = minimal(model_id, endpoint)
        if name in endpoint.input_fields:
            base.pop("input_images", None)
        for value in good:
            send(**{**base, name: value, **companions(name, value)})
            accepted += 1
        before = len(sandbox.ledger())
        for value in bad:
            with pytest.raises(InvalidArgumentsError) as caught:
                send(**{**base, name: value})
            assert name in str(caught.value)
            rejected += 1
        assert len(sandbox.ledger()) == before
    assert accepted >= len(endpoint.fields) - 1
    assert rejected or set(endpoint.fields) <= {"prompt", "convert_base64_to_url"}


@pytest.mark.slow
@pytest.mark.usefixtures("imagen_connection")
def test_one_task_writes_the_same_records_for_every_model(run_dag, sandbox, tmp_path):
    from airflow.sdk import DAG

    from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator

    sandbox.configure(balance_usd=Decimal(1000))
    items = []
    for parameter in ENDPOINTS:
        model_id, endpoint = parameter.values
        items.append({"prompt": None, **minimal(model_id, endpoint), "name": parameter.id})
    with DAG("every_model", schedule=None) as dag:
        ImagenGenerateOperator(
            task_id="paint", prompt=items, output_path=str(tmp_path), filename="{name}.{extension}", concurrency=8
        )
    run = run_dag(dag)

    assert str(run.state) == "success"
    lines = [line for line in (tmp_path / "metadata.jsonl").read_text().splitlines() if line]
    assert len(lines) == len(items)
    shapes = Counter()
    for line in map(json.loads, lines):
        assert line.keys() >= RECORD_KEYS
        facts = inspect_image(Path(line["path"]).read_bytes())
        assert (line["mime_type"], line["width"], line["height"]) == (facts.mime_type, facts.width, facts.height)
        assert Path(line["path"]).suffix == f".{facts.extension}"
        assert line["usd"] is not None
        shapes[find_sandbox_model(line["model"]).shape] += 1
    assert set(shapes) == {"A", "B", "C", "D"}
    assert sum(charge.images for charge in sandbox.ledger()) == len(items)


@pytest.mark.parametrize("model_id", sorted(RETIRED))
def test_a_retired_model_is_reported_and_costs_nothing(model_id, send, sandbox):
    with pytest.raises(ModelWithdrawnError):
        send(**minimal(model_id, find_model(model_id).generations))
    assert sandbox.ledger() == []


@pytest.mark.parametrize("model_id", ["flux/schnell", "bytedance/seedream-v4-text-to-image", "reve/create-image"])
@pytest.mark.parametrize("kind", ["nsfw", "content_violation"])
def test_a_flagged_image_counts_as_withheld(model_id, kind, send, sandbox):
    sandbox.add_fault(Fault(kind))
    (generation,) = send(model=model_id, prompt="a cat")

    assert [image.withheld for image in generation.pictures] == [True]
    assert generation.urls == []


@pytest.mark.parametrize(("asked", "made"), [("png", "image/png"), ("jpeg", "image/jpeg"), ("webp", "image/webp")])
def test_the_bytes_decide_an_images_type_whatever_the_server_claims(asked, made, send, sandbox, downloader):
    sandbox.add_fault(Fault("wrong_content_type"))
    (generation,) = send(model="alibaba/z-image-turbo", prompt="a cat", output_format=asked)

    assert inspect_image(downloader.fetch(generation.urls[0]).data).mime_type == made
