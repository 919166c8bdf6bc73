from __future__ import annotations

from decimal import Decimal

import pytest

from airflow_provider_imagen.catalogue.request_builder import ImageRequest
from airflow_provider_imagen.exceptions import InvalidArgumentsError
from airflow_provider_imagen.run.plan import fingerprint, make_plan

MODEL = "imagen-3.0-generate-002"


def plan(prompt, *, fallback_models=(), can_store=True, **arguments):
    return make_plan(
        prompt=prompt,
        arguments={"model": MODEL, **arguments},
        fallback_models=fallback_models,
        can_store=can_store,
        price=lambda request: Decimal("0.04") * request.expected_images,
    )


def keys(planned):
    return [unit.key for unit in planned.requests]


@pytest.mark.parametrize("prompt", ["a fox", {"prompt": "a fox"}, ["a fox"], [{"prompt": "a fox"}], ("a fox",)])
def test_every_way_to_pass_one_prompt_gives_the_same_request(prompt):
    assert keys(plan(prompt)) == keys(plan("a fox"))


def test_an_item_overrides_the_common_arguments():
    planned = plan([{"prompt": "a", "num_images": 4, "name": "first"}, "b"], num_images=2)
    assert [item.images for item in planned.items] == [4, 2]
    assert [item.name for item in planned.items] == ["first", None]
    assert planned.images == 6
    assert [unit.quoted_usd for unit in planned.requests] == [Decimal("0.16"), Decimal("0.08")]
    assert "name" not in planned.slots[0].alternatives[0][0].request.body


def test_equal_requests_have_distinct_keys_that_are_the_same_in_every_attempt():
    first, again = plan(["a", "b", "a"]), plan(["a", "b", "a"])
    assert keys(first) == keys(again)
    assert len(set(keys(first))) == 3
    assert keys(plan(["b", "a", "a"]))[0] == keys(first)[1]


def test_adding_a_fallback_model_later_changes_no_existing_key():
    prompts = [{"prompt": "x", "model": "imagen-3.0-generate-002"}, {"prompt": "x", "model": "flux/dev"}]
    first = plan(prompts)
    second = plan(prompts, fallback_models=["flux/dev"])
    assert [slot.alternatives[0][0].key for slot in second.slots] == [
        slot.alternatives[0][0].key for slot in first.slots
    ]
    every = [unit.key for unit in second.requests]
    assert len(every) == len(set(every))


def test_the_fingerprint_covers_everything_that_is_sent():
    bodies = [{}, {"seed": 1}, {"seed": 2}, {"aspect_ratio": "16:9"}, {"num_images": 2}]
    assert len({keys(plan("a", **body))[0] for body in bodies}) == len(bodies)


def test_a_fingerprint_accepts_any_text():
    request = ImageRequest("/v1/images/generations", {"prompt": "é", "note": "\ud800"}, 1, False)
    assert len(fingerprint(request)) == 20


@pytest.mark.parametrize(
    ("given", "name"), [(1001, "1001"), (1001.0, "1001"), (Decimal(1001), "1001"), (0, "0"), ("1001.0", "1001.0")]
)
def test_a_whole_number_is_accepted_as_a_name(given, name):
    assert plan([{"prompt": "a", "name": given}]).items[0].name == name


@pytest.mark.parametrize("model", ["imagen-3.0-generate-002", "somebody/new-model"])
@pytest.mark.parametrize(("text", "index"), [("a \ud83d cat", 2), ("a\0cat", 1)])
def test_text_that_databases_reject_is_refused_with_its_field_and_index(model, text, index):
    fields = {"name": text, "negative_prompt": text, "style": {"deep": [{"er": text}]}, "loras": [{text: 1}]}
    for field, value in {name: {name: each} for name, each in fields.items()}.items():
        with pytest.raises(InvalidArgumentsError) as caught:
            plan([{"prompt": "a", **value}], model=model)
        assert [problem.field for problem in caught.value.problems] == [f"prompt[0].{field}"]
        assert f"at index {index}" in caught.value.problems[0].allowed


@pytest.mark.parametrize("name", [1.5, float("nan"), float("inf"), True, ["a"], " "])
def test_an_invalid_name_is_refused_with_its_position(name):
    with pytest.raises(InvalidArgumentsError, match=r"prompt\[1\]\.name="):
        plan([{"prompt": "a"}, {"prompt": "b", "name": name}])


def test_the_alternative_text_of_an_item_is_not_sent_and_changes_no_key():
    described, plain = (plan([{"prompt": "a", **more}]) for more in ({"alt_text": "A fox"}, {}))
    assert [item.alt_text for item in (*described.items, *plain.items)] == ["A fox", None]
    assert next(described.requests) == next(plain.requests)
    assert "alt_text" not in next(described.requests).request.body


@pytest.mark.parametrize("alt_text", [7, ["a"], "a\0b"])
def test_an_invalid_alternative_text_is_refused_with_its_position(alt_text):
    with pytest.raises(InvalidArgumentsError, match=r"prompt\[1\]\.alt_text="):
        plan(["a", {"prompt": "b", "alt_text": alt_text}])


URL = "https://pictures.example/cat.png"


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        ("flux/kontext-pro/image-to-image", {"input_images": URL}),
        ("flux/kontext-pro/image-to-image", {"image_url": URL}),
        ("bytedance/seedream-v4-edit", {"image_urls": [URL]}),
        ("openai/gpt-image-1", {"input_images": [URL], "mask": URL}),
        ("a-model-of-tomorrow", {"image_url": URL}),
    ],
)
def test_a_request_that_sends_images_says_so(model, fields):
    given = plan([{"prompt": "a", **fields}], model=model)
    assert [request.target.has_input_images for request in given.requests] == [True]
    assert [request.target.has_input_images for request in plan("a").requests] == [False]


def test_a_model_without_a_count_gets_one_slot_per_image():
    planned = plan("a", model="openai/gpt-image-1", num_images=3)
    assert [(slot.alternatives[0][0].target.image_index, slot.images) for slot in planned.slots] == [
        (0, 1),
        (1, 1),
        (2, 1),
    ]
    assert planned.items[0].images == 3


def test_a_fallback_model_is_asked_for_as_many_images_in_its_own_way():
    planned = plan("a", num_images=3, fallback_models=["openai/gpt-image-1"])
    (slot,) = planned.slots
    assert [sum(unit.request.expected_images for unit in units) for units in slot.alternatives] == [3, 3]
    assert [len(units) for units in slot.alternatives] == [1, 3]
    assert [unit.model for unit in planned.requests] == [MODEL, *["openai/gpt-image-1"] * 3]


def test_a_count_in_the_first_models_own_field_also_applies_to_the_fallback():
    planned = plan("a", model="x-ai/grok-imagine-image", n=2, fallback_models=[MODEL])
    assert planned.slots[0].alternatives[1][0].request.body["num_images"] == 2


def test_an_unknown_fallback_model_gets_no_count_that_was_not_given():
    planned = plan("a", fallback_models=["someone/new-model"])
    assert "num_images" not in planned.slots[0].alternatives[1][0].request.body


def test_problems_of_all_items_are_reported_together_and_a_shared_one_only_once():
    with pytest.raises(InvalidArgumentsError) as caught:
        plan([{"prompt": "a", "seed": -1}, {"prompt": "b", "name": " "}, 7, "c"], aspect_ratio="5:1")
    fields = [problem.field for problem in caught.value.problems]
    assert "prompt[0].seed" in fields
    assert "prompt[1].name" in fields
    assert "prompt[2]" in fields
    assert sum("aspect_ratio" in field for field in fields) == 1


@pytest.mark.parametrize("prompt", [7, b"bytes", 1.5])
def test_an_invalid_prompt_is_refused(prompt):
    with pytest.raises(InvalidArgumentsError):
        plan(prompt)


def test_an_empty_list_gives_an_empty_plan():
    planned = plan([])
    assert planned.items == planned.slots == ()
