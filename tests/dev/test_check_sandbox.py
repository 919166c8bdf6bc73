"""``dev/check_sandbox.py``: silent if the sandbox matches the documents, else it names each difference."""

from __future__ import annotations

import copy
import json

import check_sandbox
import pytest

MODEL = "reve/edit-image"
NULLABLE_TEXT = {"type": "string", "nullable": True}
IMAGES = {
    "type": "object",
    "properties": {
        "data": {
            "type": "array",
            "nullable": True,
            "items": {
                "type": "object",
                "properties": {
                    "url": {**NULLABLE_TEXT, "example": "https://cdn.example/generations/1749730923700.png"},
                    "b64_json": {**NULLABLE_TEXT, "example": None},
                },
            },
        },
        "meta": {
            "type": "object",
            "nullable": True,
            "properties": {"usage": {"type": "object", "required": ["credits_used"]}},
        },
    },
}
FIELDS = {
    "model": {"type": "string", "enum": [MODEL]},
    "prompt": {"type": "string", "maxLength": 2560},
    "image_url": {"type": "string", "format": "uri"},
    "convert_base64_to_url": {"type": "boolean", "default": True},
}
BALANCE = {
    "type": "object",
    "properties": {"current_balance": {"type": "number"}, "currency": {"type": "string", "example": "USD"}},
    "required": ["current_balance", "currency"],
}


def generation(fields=FIELDS, answer=IMAGES, status="200"):
    schema = {"type": "object", "properties": fields, "required": ["model", "prompt", "image_url"]}
    return {
        "/v1/images/generations": {
            "post": {
                "requestBody": {"content": {"application/json": {"schema": schema}}},
                "responses": {status: {"content": {"application/json": {"schema": answer}}}},
            }
        }
    }


def get(path, answer, parameters=()):
    responses = {"200": {"content": {"application/json": {"schema": answer}}}}
    return {path: {"get": {"parameters": list(parameters), "responses": responses}}}


@pytest.fixture
def check(tmp_path, capsys):
    def run(*documents):
        for number, paths in enumerate(documents):
            folder = tmp_path / f"folder-{number}"
            folder.mkdir()
            (folder / "document.json").write_text(json.dumps({"openapi": "3.0.0", "paths": paths}))
        (tmp_path / "index.json").write_text('{"no": "document"}')
        return check_sandbox.main([str(tmp_path)]), capsys.readouterr().out

    return run


def test_matching_documents_report_no_differences(check):
    status, output = check(generation(), get("/v2/billing", BALANCE))
    assert output == "2 operations, 0 differences\n"
    assert status == 0


def changed(document, *path, to):
    document = copy.deepcopy(document)
    *parents, last = path
    part = document
    for step in parents:
        part = part[step]
    part[last] = to
    return document


ANSWER = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data", "created"]}


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        (generation(changed(FIELDS, "prompt", "maxLength", to=100)), "prompt is"),
        (generation({**FIELDS, "seed": {"type": "integer"}}), "seed is None, documented {'type': 'integer'}"),
        (generation({name: FIELDS[name] for name in ("model", "prompt", "image_url")}), "convert_base64_to_url is"),
        (generation(changed(FIELDS, "model", "enum", to=["no/such-model"])), "neither served nor withdrawn"),
        (generation(answer=ANSWER), "$.data: "),
        (generation(answer=ANSWER), "'created' is a required property"),
        (generation(status="201"), "answers 200, documented 201"),
        (get("/v2/billing", {**BALANCE, "properties": {"currency": {"type": "string"}}}), "$.current_balance: not doc"),
        (get("/v2/billing", changed(BALANCE, "properties", "currency", "example", to="2026-08-21")), "not a date"),
        (get("/v2/nothing", BALANCE), "answers 404, documented 200"),
    ],
)
def test_each_difference_is_named_and_fails(check, paths, said):
    status, out = check(paths)
    assert status == 1
    assert said in out


def test_retired_models_need_not_be_served(check):
    status, output = check(generation(changed(FIELDS, "model", "enum", to=["dall-e-3"])))
    assert (status, output) == (0, "1 operations, 0 differences\n")


def test_parameters_are_sent_with_their_documented_examples(check):
    listing = {"type": "object", "properties": {"data": {"type": "array"}}, "required": ["data"]}
    parameter = {"name": "limit", "in": "query", "schema": {"type": "integer", "example": 0}}
    status, output = check(get("/v2/billing/transactions", listing, [parameter]))
    assert status == 1
    assert "GET /v2/billing/transactions?limit=0: answers 400" in output


def test_a_folder_without_documents_fails(check):
    assert check()[0] == 2
