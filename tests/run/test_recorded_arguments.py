"""What the records of images say about the arguments that requested them."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest
from msgspec import convert

from airflow_provider_imagen.image_record import MAX_ARGUMENTS_CHARACTERS, ImageRecord
from airflow_provider_imagen.run.recorded_arguments import record_arguments


def recorded(requested, **task_arguments):
    text = record_arguments(
        requested, task_arguments=task_arguments, operator_names=("model", "num_images", "input_images")
    )
    return None if text is None else json.loads(text)


def test_fields_of_the_api_go_where_the_operator_takes_them():
    requested = {"prompt": "a fox", "model": "m", "num_images": 2, "negative_prompt": "rain", "seed": None}
    assert recorded(requested, output_path="/pictures") == {
        "model": "m",
        "num_images": 2,
        "parameters": {"negative_prompt": "rain"},
        "output_path": "/pictures",
    }


def test_numbers_and_paths_become_json():
    requested = {"guidance": Decimal("2.5"), "steps": Decimal(20), "flag": True, "loras": [{"path": "x", "scale": 0.5}]}
    assert recorded(requested, filename=Path("/a/{name}")) == {
        "parameters": {"guidance": 2.5, "steps": 20, "flag": True, "loras": [{"path": "x", "scale": 0.5}]},
        "filename": "/a/{name}",
    }


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("https://cdn.test/a.png", "https://cdn.test/a.png"),
        (Path("/pictures/a.png"), "/pictures/a.png"),
        ("s3://conn@bucket/a.png", "s3://conn@bucket/a.png"),
        ("s3://conn@bucket/manual__2026-11-29T00:00:00+00:00/a@2.png",) * 2,
        ({"path": "/pictures/a.png", "url": "https://cdn.test/a.png?sig=x"}, "/pictures/a.png"),
        ([{"url": "https://cdn.test/a.png"}, Path("/b.png")], ["https://cdn.test/a.png", "/b.png"]),
    ],
)
def test_input_images_are_recorded_as_references(given, shown):
    assert recorded({"input_images": given}) == {"input_images": shown}


@pytest.mark.parametrize(
    "secret",
    [
        *("data:image/png;base64,aGFsbG8=", "DATA:,x", "https://cdn.test/a.png?X-Amz-Signature=hush"),
        *("https://user:hush@cdn.test/a.png", "HTTP://hush@cdn.test/", "https://cdn.test/a.png#token=hush"),
        *("ftp://user:hush@host/a.png", "s3://id:hush@bucket/a.png", "s3://bucket/a.png?X-Amz-Signature=hush"),
        *(" https://cdn.test/a.png?sig=hush", "\tdata:,x", "like https://a.test/b or https://a.test/c?sig=hush"),
    ],
)
def test_images_and_secrets_in_urls_are_never_recorded(secret):
    requested = {"input_images": [secret, "/a.png"], "image_url": secret, "style": {"reference": secret}, "text": "ok"}
    assert recorded(requested, filename=secret) == {
        "input_images": None,
        "parameters": {"image_url": None, "style": None, "text": "ok"},
        "filename": None,
    }


@pytest.mark.parametrize("value", [b"bytes", object(), {1, 2}, float("nan"), float("inf"), Decimal("NaN")])
def test_what_json_cannot_hold_is_not_recorded(value):
    assert recorded({"odd": value, "text": "ok"}) == {"parameters": {"odd": None, "text": "ok"}}


def test_bare_base64_of_an_image_is_not_recorded():
    assert recorded({"image": "iVBORw0KGgo" + "A" * 100}) == {"parameters": {"image": None}}


def test_long_arguments_are_not_recorded():
    longest = MAX_ARGUMENTS_CHARACTERS - len('{"parameters": {"text": ""}}')
    assert recorded({"text": "x" * longest}) == {"parameters": {"text": "x" * longest}}
    assert recorded({"text": "x" * (longest + 1)}) is None


def test_a_record_from_before_arguments_were_recorded_is_valid():
    assert convert({"prompt": "a fox"}, ImageRecord).arguments is None
