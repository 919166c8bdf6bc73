from __future__ import annotations

import json
import pickle
from decimal import Decimal
from fractions import Fraction
from itertools import permutations

import pytest

from airflow_provider_imagen.exceptions import (
    AuthenticationError,
    ChargedButLostError,
    EmptyResultError,
    FilteredError,
    ImagenError,
    InvalidRequestError,
)
from airflow_provider_imagen.image_record import ResponseImage, StoredFile
from airflow_provider_imagen.journal.log import read_journal
from airflow_provider_imagen.journal.records import Response, Target
from airflow_provider_imagen.journal.url_encryption import UrlEncryption
from airflow_provider_imagen.run.plan import PromptItem
from airflow_provider_imagen.run.previous_attempts import previous_result
from airflow_provider_imagen.run.results import Failure, FinishedImage, ReceivedResponse, failure_table

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
    "name",
    "metadata",
    "reused_from",
    "usd_saved",
    "arguments",
}


def test_a_record_has_the_documented_fields_and_is_plain_json(world):
    (image,) = world.run({"prompt": "a", "seed": 7}).records
    record = image.to_json()
    assert set(record) == RECORD_FIELDS
    assert json.loads(json.dumps(record)) == record
    assert (record["seed"], record["usd"], record["path"]) == (7, 0.04, "/out/000-0.png")


def test_a_stored_image_never_reveals_a_signature(world, steps):
    world.ports.script("a", steps.pictures(signed=True))
    result = world.run("a")
    assert result.urls == ["/out/000-0.png"]
    assert "?" not in result.records[0].url


def test_the_urls_are_the_apis_own_unless_the_image_came_inline(world, steps):
    world.ports.script("b", steps.pictures(inline=True))
    result = world.run(["a", "b"])
    assert result.urls[0].startswith("https://cdn.test/")
    assert result.urls[1] == "/out/001-0.png"


def test_an_image_that_was_not_stored_keeps_its_full_url_and_has_no_file_fields(world, steps):
    world.ports.stores = False
    world.ports.script("a", steps.pictures(signed=True))
    (record,) = world.run("a").records
    assert record.url.endswith("?sig=hush-hush")
    assert {name for name, value in record.to_json().items() if value is None} == {
        *("path", "width", "height", "mime_type", "bytes", "sha256", "seed", "enhanced_prompt", "name", "metadata"),
        *("reused_from", "usd_saved", "arguments"),
    }


def test_a_response_with_all_images_filtered_is_distinguished_from_an_empty_one(world, steps):
    world.ports.script("marked", steps.pictures(withheld=(0, 1)))
    world.ports.script("empty", steps.pictures(0))
    result = world.run([{"prompt": name, "num_images": 2} for name in ("marked", "empty")])
    assert [type(failure.error) for failure in result.failures] == [FilteredError, EmptyResultError]
    assert "2 of them marked as filtered" in str(result.failures[0].error)
    assert "withheld 2 of 2 images" in str(result.failures[0].error)


def test_the_table_is_short_and_says_how_many_rows_it_omits(world, steps):
    names = [f"{number:02} " + "very  long\n" * 20 for number in range(25)]
    for name in names:
        world.ports.script(name, steps.fails(lambda: InvalidRequestError("no", status=400)))
    lines = failure_table(world.run(names).failures, limit=20).splitlines()
    assert lines[0] == f"[0] 00 {'very long ' * 5}very l…: 0 of 1 made; InvalidRequestError: no"
    assert (len(lines), lines[-1]) == (21, "… and 5 more")


def test_images_of_previous_attempts_are_listed_from_the_journal_alone(world, steps):
    """For a rejected attempt: in prompt order, without missing files, URLs decrypted."""
    world.ports.script("refused", steps.fails(lambda: InvalidRequestError("no", status=400)))
    world.ports.script("marked", steps.pictures(withheld=(0,)))
    world.ports.script("signed", steps.pictures(signed=True))
    world.ports.script("inline", steps.pictures(2, inline=True))
    world.ports.script("lost", steps.loses(billed=True))
    names = ["refused", "lost", "signed", "marked", {"prompt": "inline", "num_images": 2}, "plain"]
    ran = world.run(names, concurrency=4)
    state = read_journal(world.store)
    gone = {"004-0.png", "005-0.png"}
    result = previous_result(
        state, plan=None, encryption=UrlEncryption(world.api_key), is_there=lambda file: file.file_name not in gone
    )
    found = [(record.prompt, record.image_index, record.path) for record in result.records]
    assert found == [("signed", 0, "/out/002-0.png"), ("inline", 1, "/out/004-1.png"), ("plain", 0, None)]
    assert result.records[0] == ran.records[0]
    assert result.urls[2].startswith("https://cdn.test/")
    assert (result.reused, result.plan.images, result.failures, result.abort_reason) == (3, 0, [], None)
    assert (result.usd_spent, result.usd_lost) == (ran.usd_spent, ran.usd_lost)
    assert [type(request.error) for request in result.lost] == [ChargedButLostError]
    assert result.summary().seconds == 0


@pytest.mark.parametrize("usd", [Decimal("0.04"), None])
def test_a_request_in_doubt_is_reported_with_its_possible_cost(world, steps, usd):
    world.ports.script("b", steps.loses())
    world.ports.log_error = AuthenticationError("no")
    result = world.run(world.plan(["a", {"prompt": "b", "name": "bee"}], price=usd))
    (request,) = result.in_doubt
    line = request.to_line()
    assert (line.outcome, line.prompt_index, line.name, line.prompt) == ("in_doubt", 1, "bee", "b")
    assert (line.usd, line.requested, line.made) == (None if usd is None else 0.04, 1, 0)
    assert (line.model, line.client_request_id) == ("imagen-3.0-generate-002", request.client_request_id)


def test_the_summary_adds_up(world, steps):
    world.ports.script("filtered", steps.pictures(1))
    world.ports.script("refused", steps.fails(lambda: InvalidRequestError("no", status=400)))
    world.ports.script("lost", steps.loses(billed=True))
    result = world.run(world.plan(["fine", "filtered", "refused", "lost"], num_images=2))
    summary = result.summary()
    assert summary.requested == 8 == summary.made + summary.filtered + summary.failed
    assert (summary.made, summary.filtered, summary.failed) == (3, 1, 4)
    assert (summary.usd_spent, summary.usd_lost) == (0.24, 0.08)
    json.dumps(summary.to_json())


def test_a_failure_is_reported_by_prompt_and_can_be_serialized(world, steps):
    world.ports.script("refused", steps.fails(lambda: InvalidRequestError("no", status=400)))
    result = world.run(["fine", "refused"])
    assert failure_table(result.failures).startswith("[1] refused: 0 of 1 made; InvalidRequestError: no")
    (line,) = result.failure_lines()
    assert (line.prompt_index, line.outcome, line.status) == (1, "failed", 400)
    json.dumps(line.to_json())
    assert str(pickle.loads(pickle.dumps(result.failures[0].error))) == "no"


def test_a_lost_charge_takes_precedence_over_an_error_and_an_error_over_a_filtered_image():
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
    lines = list(failure_of(free, *lost).to_lines())
    assert [line.client_request_id for line in lines] == ["first", "second"]
    assert [line.inference_id for line in lines] == ["i-first", "i-second"]
    assert {(line.prompt_index, line.requested, line.made) for line in lines} == {(3, 4, 1)}


def failure_of(*errors: ImagenError) -> Failure:
    return Failure(PromptItem(3, None, "a fox", {}, 4), list(errors), made=1)


@pytest.mark.parametrize(
    ("requested", "size", "is_wrong"),
    [
        ("16/9", (1600, 900), False),
        ("4/3", (1280, 896), False),
        ("3/4", (896, 1280), False),
        ("1/1", (1100, 1000), False),
        ("1/1", (1110, 1000), True),
        ("1/1", (1000, 1110), True),
        (None, (1, 9), False),
        ("16/9", None, False),
        ("16/9", (0, 0), False),
        ("16/9", (0, 9), False),
        ("16/9", (9, 0), False),
    ],
)
def test_a_shape_is_wrong_if_it_is_known_and_a_tenth_off(requested, size, is_wrong):
    """An SVG may state no size, or only one side."""
    stored = StoredFile("/a.svg", "a.svg", "0" * 64, 10, "image/svg+xml", *size) if size else None
    response = Response(key="k", client_request_id="c", images=(ResponseImage(),), model="m", at=1.0)
    target = Target(prompt_index=0, image_index=0, images=1, prompt_images=1, prompt="a fox")
    item = PromptItem(0, None, "a fox", {}, 1)
    aspect_ratio = Fraction(requested) if requested else None
    received = ReceivedResponse("k", 0, item, target, response, aspect_ratio=aspect_ratio)
    assert FinishedImage(received, 0, None, stored).has_wrong_shape is is_wrong
