from __future__ import annotations

from decimal import Decimal
from io import BytesIO

import pytest
from PIL import Image

from airflow_provider_imagen.exceptions import InvalidArgumentsError
from airflow_provider_imagen.hooks.imagen import ImagenHook
from airflow_provider_imagen.sandbox import Fault


@pytest.fixture
def hook(imagen_connection):
    hook = ImagenHook(imagen_connection)
    yield hook
    hook.close()


def test_a_quote_matches_what_the_sandbox_charges(hook, sandbox):
    quote = hook.quote("a cat", model="flux/dev", num_images=3)
    hook.generate_images("a cat", model="flux/dev", num_images=3)
    assert (quote.source, quote.images, quote.requests) == ("live", 3, 1)
    assert quote.usd == sum(charge.usd for charge in sandbox.ledger())


def test_a_quote_covers_lists_of_prompts_and_models_with_one_image_per_request(hook, sandbox):
    quote = hook.quote(["a", {"prompt": "b", "model": "openai/gpt-image-2", "num_images": 2}], model="flux/schnell")
    assert (quote.images, quote.requests) == (3, 3)
    assert sandbox.ledger() == []


def test_the_requested_quality_has_its_own_price(hook):
    prices = [hook.quote("a", model="openai/gpt-image-2", parameters={"quality": q}).usd for q in ("low", "high")]
    assert prices == [Decimal("0.0135"), Decimal("0.216")]


def test_without_live_prices_the_last_known_ones_are_used_and_marked(hook, sandbox):
    sandbox.add_fault(Fault("status", path="/v1/models", times=None))
    quote = hook.quote("a", model="flux/schnell", num_images=2)
    assert (quote.usd, quote.source) == (Decimal("0.008"), "last known")
    unknown = hook.quote(["a", {"prompt": "b", "model": "openai/gpt-image-1"}], model="flux/schnell")
    assert (unknown.usd, unknown.source) == (None, "unknown")


def test_a_quote_rejects_what_a_task_would_reject(hook):
    with pytest.raises(InvalidArgumentsError):
        hook.quote("a", model="flux/schnell", num_images=5)
    with pytest.raises(InvalidArgumentsError, match="does not exist"):
        hook.quote("a", model="reve/edit-image", input_images="/nowhere/cat.png")


def test_models_are_judged_by_the_apis_live_lists(hook, sandbox):
    sandbox.add_fault(Fault("withdrawn", model="flux/dev", replaced_by="flux/schnell", times=None))
    states = hook.check_models(["flux/dev", "flux/schnell", "flux/nothing"])
    assert [state.state for state in states] == ["withdrawn", "alive", "unknown"]
    assert states[0].successor == "flux/schnell"


@pytest.mark.parametrize("model", ["reve/edit-image", "bytedance/seedream-v4-edit", "openai/gpt-image-1"])
def test_the_hook_edits_a_stored_image(hook, sandbox, tmp_path, model):
    path = tmp_path / "red.png"
    Image.new("RGB", (64, 64), (220, 20, 20)).save(path)

    (generation,) = hook.generate_images("night market", model=model, input_images=str(path))

    with Image.open(BytesIO(hook.download(generation.urls[0]))) as edited:
        red, green, blue = edited.convert("RGB").resize((1, 1)).getpixel((0, 0))
    assert red > green
    assert red > blue


def test_the_hook_rejects_a_missing_image(hook, sandbox):
    with pytest.raises(InvalidArgumentsError) as caught:
        hook.generate_images("x", model="reve/edit-image", input_images="/nowhere/cat.png")
    assert [problem.field for problem in caught.value.problems] == ["input_images"]
    assert sandbox.ledger() == []


def test_an_unknown_id_is_looked_up_in_the_live_list_for_free(hook, sandbox):
    chat = hook.look_up_model("openai/gpt-6")
    assert (chat.id, chat.can_make_images, chat.health.state) == (None, False, "unknown")
    known = hook.look_up_model("gpt-image-2")
    assert (known.id, known.known_as, known.can_make_images) == ("openai/gpt-image-2", "openai/gpt-image-2", True)
    assert [seen.query for seen in sandbox.seen("/v1/models")] == [{"id": ["openai/gpt-6"]}, {"id": ["gpt-image-2"]}]
    assert sandbox.ledger() == []


def test_a_retired_id_that_is_looked_up_names_its_replacement(hook):
    gone = hook.look_up_model("dall-e-3")
    assert (gone.can_make_images, gone.health.state) == (False, "withdrawn")


def test_an_alias_is_sent_as_written(hook, sandbox):
    hook.generate_images("a cat", model="gpt-image-2", aspect_ratio="3:2")
    (sent,) = sandbox.seen("/v1/images/generations")
    assert (sent.json["model"], sent.json["size"]) == ("gpt-image-2", "1536x1024")
