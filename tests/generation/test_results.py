from __future__ import annotations

import json
import pickle
from decimal import Decimal
from itertools import permutations

import pytest

from airflow_provider_imagen.exceptions import ChargedButLostError, FilteredError, ImagenError, InvalidRequestError
from airflow_provider_imagen.generation.plan import Item
from airflow_provider_imagen.generation.results import Failure

pytestmark = pytest.mark.timeout(20)

RECORD_FIELDS = {
    "prompt_index",
    "image_index",
    "url",
    "path",
    "width",
    "height",
    "mime_type",
    "bytes",
    "sha256",
    "model",
    "seed",
    "prompt",
    "enhanced_prompt",
    "usd",
    "inference_id",
    "client_request_id",
}


def test_a_record_has_the_documented_fields_and_is_plain_json(world):
    (record,) = world.run({"prompt": "a", "seed": 7}).records
    assert set(record) == RECORD_FIELDS
    assert json.loads(json.dumps(record)) == record
    assert (record["seed"], record["usd"], record["path"]) == (7, 0.04, "/out/000-0.png")


def test_a_stored_picture_never_hands_a_signature_on(world, steps):
    world.tools.script("a", steps.pictures(signed=True))
    result = world.run("a")
    assert result.urls == ["/out/000-0.png"]
    assert "?" not in result.records[0]["url"]


def test_the_urls_are_the_apis_own_unless_the_picture_came_without_one(world, steps):
    world.tools.script("b", steps.pictures(inline=True))
    result = world.run(["a", "b"])
    assert result.urls[0].startswith("https://cdn.test/")
    assert result.urls[1] == "/out/001-0.png"


def test_the_summary_adds_up(world, steps):
    world.tools.script("filtered", steps.pictures(1))
    world.tools.script("refused", steps.fails(lambda: InvalidRequestError("no", status=400)))
    world.tools.script("lost", steps.loses(billed=True))
    result = world.run(world.plan(["fine", "filtered", "refused", "lost"], num_images=2))
    summary = result.summary()
    assert summary["requested"] == 8 == summary["made"] + summary["filtered"] + summary["failed"]
    assert (summary["made"], summary["filtered"], summary["failed"]) == (3, 1, 4)
    assert (summary["usd_spent"], summary["usd_lost"]) == (0.24, 0.08)
    json.dumps(summary)


def test_what_did_not_work_is_told_by_prompt_and_survives_the_way_to_another_process(world, steps):
    world.tools.script("refused", steps.fails(lambda: InvalidRequestError("no", status=400)))
    result = world.run(["fine", "refused"])
    assert result.table().startswith("[1] refused: 0 of 1 made; InvalidRequestError: no")
    (line,) = result.failure_lines()
    assert (line["prompt_index"], line["outcome"], line["status"]) == (1, "failed", 400)
    json.dumps(line)
    assert str(pickle.loads(pickle.dumps(result.failures[0].error))) == "no"


def test_a_lost_charge_says_more_than_what_broke_and_that_more_than_what_was_withheld():
    filtered, broke = FilteredError("f", requested=1, made=0), InvalidRequestError("b")
    lost = ChargedButLostError("l", usd=float(Decimal("0.04")))
    for errors in permutations([filtered, broke, lost]):
        assert failure_of(*errors).error is lost
        assert failure_of(*(error for error in errors if error is not lost)).error is broke


def test_an_item_reports_every_charge_it_failed_with_once():
    lost = [
        ChargedButLostError(name, usd=0.04, client_request_id=name, inference_id=f"i-{name}")
        for name in ("first", "second", "second")
    ]
    free = InvalidRequestError("nothing was billed", client_request_id="third")
    lines = list(failure_of(free, *lost).to_json())
    assert [line["client_request_id"] for line in lines] == ["first", "second"]
    assert [line["inference_id"] for line in lines] == ["i-first", "i-second"]
    assert {(line["prompt_index"], line["requested"], line["made"]) for line in lines} == {(3, 4, 1)}


def failure_of(*errors: ImagenError) -> Failure:
    return Failure(Item(3, None, "a fox", {}, 4), list(errors), made=1)
