"""Metadata of items: which keys are metadata, what values become, and what is rejected before anything is paid."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from uuid import UUID

import pendulum
import pytest

from airflow_provider_imagen.exceptions import InvalidArgumentsError
from airflow_provider_imagen.journal.log import read_journal
from airflow_provider_imagen.journal.url_encryption import UrlEncryption
from airflow_provider_imagen.run.plan import make_plan
from airflow_provider_imagen.run.previous_attempts import previous_result

IMAGEN = "imagen-3.0-generate-002"
FLUX = "flux/dev"


def plan(prompt, *columns, model=IMAGEN, **options):
    return make_plan(prompt=prompt, arguments={"model": model}, metadata_columns=columns, can_store=True, **options)


def metadata(prompt, *columns):
    return [item.metadata for item in plan(prompt, *columns).items]


def problems(prompt, *columns, **options):
    with pytest.raises(InvalidArgumentsError) as caught:
        plan(prompt, *columns, **options)
    return {problem.field: problem.allowed for problem in caught.value.problems}


def keys(planned):
    return [request.key for request in planned.requests]


def test_declared_keys_and_the_mapping_are_metadata_and_the_rest_is_sent():
    row = {"prompt": "a fox", "sku": "T-100", "aspect_ratio": "3:4", "metadata": {"campaign": "spring"}}
    planned = plan(row, "sku")

    assert planned.items[0].metadata == {"sku": "T-100", "campaign": "spring"}
    (request,) = planned.requests
    assert request.request.body.keys() == {"model", "prompt", "aspect_ratio", "convert_base64_to_url"}
    assert request.target.metadata == planned.items[0].metadata
    assert planned.items[0].arguments.keys().isdisjoint({"sku", "campaign", "metadata"})


def test_every_item_has_the_names_of_all_of_them():
    rows = [{"prompt": "a", "sku": 1}, "b", {"prompt": "c", "metadata": {"page": "3"}}]
    assert metadata(rows, "sku") == [
        {"sku": "1", "page": None},
        {"sku": None, "page": None},
        {"sku": None, "page": "3"},
    ]
    assert [list(each) for each in metadata(rows, "sku")] == [["sku", "page"]] * 3


@pytest.mark.parametrize(
    "prompt", ["a", ["a", {"prompt": "b"}], {"prompt": "a", "metadata": None}, {"prompt": "a", "metadata": {}}]
)
def test_items_without_metadata_have_none(prompt):
    assert set(metadata(prompt)) == {None}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("fox", "fox"),
        (" fox ", " fox "),
        ("None", "None"),
        ("{{ not rendered }}", "{{ not rendered }}"),
        ("überrascht 🦊\n", "überrascht 🦊\n"),
        ("", None),
        (" \n", None),
        (None, None),
        (True, "true"),
        (False, "false"),
        (12, "12"),
        (-(10**30), "-1" + "0" * 30),
        (12.0, "12"),
        (-0.0, "0"),
        (0.1, "0.1"),
        (1e300, "1e+300"),
        (math.nan, None),
        (math.inf, "inf"),
        (Decimal("12.50"), "12.50"),
        (Decimal("1E+2"), "100"),
        (Decimal("NaN"), None),
        (Decimal("sNaN"), None),
        (Decimal("1E+999999"), "1E+999999"),
        (date(2026, 11, 29), "2026-11-29"),
        (datetime(2026, 11, 29, 8, 30, tzinfo=UTC), "2026-11-29T08:30:00+00:00"),
        (pendulum.datetime(2026, 11, 29), "2026-11-29T00:00:00+00:00"),
        (time(8, 30), "08:30:00"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    ],
)  # fmt: skip
def test_values_are_stored_as_text(value, text):
    assert metadata([{"prompt": "a", "column": value}], "column") == [{"column": text}]
    assert metadata([{"prompt": "a", "metadata": {"column": value}}]) == [{"column": text}]


@pytest.mark.parametrize(
    "value",
    [["a"], {"a": 1}, ("a",), {"a"}, b"bytes", object(), 1j, timedelta(1), 10**5000, "a\0b", "\ud83e"],
    ids=lambda value: type(value).__name__,
)
def test_other_values_are_rejected(value):
    assert problems([{"prompt": "a", "column": value}], "column").keys() == {"prompt[0].column"}
    assert problems({"prompt": "a", "metadata": {"column": value}}).keys() == {"metadata.column"}


@pytest.mark.parametrize("given", ["text", 7, ["a"], True])
def test_metadata_that_is_not_a_mapping_is_rejected(given):
    assert "mapping" in problems({"prompt": "a", "metadata": given})["metadata"]


@pytest.mark.parametrize("name", ["", " ", None, 7, ("a",), "a" * 65, "a\0", "\ud83e", "file_name", "photo_file_name"])
def test_names_that_no_column_can_have_are_rejected(name):
    assert problems("a", name).keys() == {"metadata_columns"}
    assert problems({"prompt": "a", "metadata": {name: "x"}}).keys() == {"metadata"}


@pytest.mark.parametrize("columns", ["sku", b"sku", None, {"sku": 1}, 7, {"sku"}])
def test_columns_that_are_not_a_list_are_rejected(columns):
    with pytest.raises(InvalidArgumentsError, match=r"^metadata_columns=.*: a list of names is allowed$"):
        make_plan(prompt="a", arguments={"model": IMAGEN}, metadata_columns=columns, can_store=True)


@pytest.mark.parametrize(
    "name",
    [
        *("prompt", "name", "model", "seed", "metadata"),
        *("num_images", "aspect_ratio", "input_images", "convert_base64_to_url"),
    ],
)
@pytest.mark.parametrize("model", [IMAGEN, FLUX, "unknown/model"])
def test_keys_with_a_meaning_in_an_item_cannot_be_metadata(name, model):
    assert "rename the column" in problems([{"prompt": "a"}], name, model=model)["metadata_columns"]


def test_fields_of_any_model_that_may_be_used_cannot_be_metadata():
    """But the same name is fine for a model without this field."""
    assert metadata({"prompt": "a", "guidance_scale": "high"}, "guidance_scale") == [{"guidance_scale": "high"}]
    for asked in (
        problems({"prompt": "a"}, "guidance_scale", model=FLUX),
        problems([{"prompt": "a", "model": FLUX}], "guidance_scale"),
        problems({"prompt": "a"}, "guidance_scale", fallback_models=[FLUX]),
    ):
        assert f"it is a field of {FLUX}" in asked["metadata_columns"]


def test_a_value_given_twice_is_rejected():
    row = {"prompt": "a", "sku": "1", "metadata": {"sku": "1"}}
    assert problems([row], "sku") == {"prompt[0].sku": "it is also in `metadata`; remove one of them"}
    assert metadata([{"prompt": "a", "metadata": {"sku": "2"}}], "sku") == [{"sku": "2"}]


def test_an_unknown_key_is_rejected_and_the_error_says_how_to_declare_it():
    assert "name it in metadata_columns" in problems([{"prompt": "a", "sku": "T-100"}])["prompt[0].sku"]
    near = problems({"prompt": "a", "sead": 7})["sead"]
    assert "did you mean `seed`?" in near
    assert "metadata_columns" in near
    with pytest.raises(InvalidArgumentsError) as caught:
        make_plan(prompt="a", arguments={"model": IMAGEN, "sku": "T-100"}, can_store=True)
    assert "metadata_columns" not in str(caught.value)  # the value is not an item's


def test_the_size_of_metadata_is_limited():
    assert metadata({"prompt": "a", "metadata": {f"{'a' * 60}{n}": "x" for n in range(64)}})
    many = [{"prompt": "a", "metadata": {f"column {n}": "x"}} for n in range(65)]
    assert "at most 64" in problems(many)["metadata"]
    assert metadata({"prompt": "a", "metadata": {"one": "x" * 5_000, "two": "x" * 5_000}})
    assert (
        "have 10,001"
        in problems([{"prompt": "a", "metadata": {"one": "x" * 5_000, "two": "x" * 5_001}}])["prompt[0].metadata"]
    )


def test_metadata_changes_no_request():
    plain = plan([{"prompt": "a"}, {"prompt": "b"}])
    described = plan([{"prompt": "a", "sku": "1"}, {"prompt": "b", "metadata": {"page": 2}}], "sku")
    assert keys(plain) == keys(described)


def test_an_unknown_model_gets_no_metadata():
    (request,) = plan({"prompt": "a", "sku": "1", "metadata": {"page": 2}}, "sku", model="unknown/model").requests
    assert request.request.body == {"model": "unknown/model", "prompt": "a"}


def test_a_previous_attempts_image_has_the_metadata_of_the_current_plan(world):
    world.run(world.plan([{"prompt": "a", "metadata": {"campaign": "sping"}}, {"prompt": "b"}]))
    again = world.run(world.plan([{"prompt": "a", "metadata": {"campaign": "spring"}}, {"prompt": "b"}]))

    assert len(world.ports.posts) == 2
    assert [record.metadata for record in again.records] == [{"campaign": "spring"}, {"campaign": None}]


def test_a_superseded_image_keeps_the_metadata_it_was_requested_with(world):
    world.run(world.plan([{"prompt": "a", "name": "first", "metadata": {"campaign": "spring"}}]))
    result = world.run("b")

    assert [image.record.metadata for image in result.listed] == [None, {"campaign": "spring"}]
    assert [image.record.name for image in result.listed] == [None, "first"]


def test_an_attempt_without_a_plan_publishes_the_metadata_of_previous_ones(world):
    world.run(world.plan([{"prompt": "a", "name": "first", "metadata": {"campaign": "spring"}}]))
    state = read_journal(world.store)
    result = previous_result(state, plan=None, encryption=UrlEncryption(world.api_key), is_there=lambda _: True)

    assert [(record.name, record.metadata) for record in result.records] == [("first", {"campaign": "spring"})]


def test_failures_say_which_row_they_are_of(world, steps):
    world.ports.script("a", steps.pictures(withheld=(0,)))
    world.ports.script("b", *[steps.loses(billed=True)] * 9)
    result = world.run(world.plan([{"prompt": "a", "metadata": {"sku": 1}}, {"prompt": "b", "metadata": {"sku": 2}}]))
    later = world.run("c")  # which requests neither

    assert [(line.prompt, line.metadata) for line in result.failure_lines()] == [
        ("a", {"sku": "1"}),
        ("b", {"sku": "2"}),
    ]
    assert [(line.prompt, line.metadata) for line in later.failure_lines()] == [("b", {"sku": "2"})]


@pytest.mark.parametrize("prompt", [[{"prompt": "a"}, {"prompt": "b", None: ["", "c"]}], {"prompt": "b", None: ["c"]}])
def test_a_row_with_too_many_cells_is_reported_as_such(prompt):
    with pytest.raises(InvalidArgumentsError, match=r"the row has more cells than the table has columns") as caught:
        make_plan(prompt=prompt, arguments={"model": "imagen-3.0-generate-002"}, can_store=True)
    assert len(caught.value.problems) == 1
