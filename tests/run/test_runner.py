"""One attempt, and several, with an API that works or fails in ways that cost nothing."""

from __future__ import annotations

import json
import re
import threading
import time
from decimal import Decimal

import pytest

from airflow_provider_imagen.exceptions import (
    BadImageError,
    ChargedButLostError,
    DownloadError,
    EmptyResultError,
    FilteredError,
    InvalidRequestError,
    LinkExpiredError,
    ModelWithdrawnError,
    RateLimitedError,
    ServerError,
    StorageError,
    UnreadableResponseError,
)

pytestmark = pytest.mark.timeout(30)

NAMES = [f"prompt {number}" for number in range(12)]


def test_results_are_in_prompt_order_whichever_finishes_first(world, steps):
    slow = threading.Event()

    def late(ports, request, name):
        slow.wait(5)
        return steps.pictures()(ports, request, name)

    def last(ports, request, name):
        slow.set()
        return steps.pictures()(ports, request, name)

    world.ports.script("prompt 0", late)
    world.ports.script("prompt 11", last)
    result = world.run(NAMES, concurrency=4)
    assert [record.prompt for record in result.records] == NAMES
    prompt_of = {name: prompt for prompt, name in world.ports.posts}
    assert [prompt_of[name] for name in world.ports.charges].index("prompt 0") >= 8
    assert result.failures == result.not_sent == []
    assert result.abort_reason is None
    assert result.usd_spent == Decimal("0.48") == world.ports.billed_usd


@pytest.mark.parametrize("concurrency", [1, 3, 8, 50])
def test_exactly_concurrency_requests_are_in_flight(world, steps, concurrency):
    at_once = min(concurrency, len(NAMES))
    together = threading.Barrier(at_once, timeout=10)

    def meet(ports, request, name):
        together.wait()
        return steps.pictures()(ports, request, name)

    for name in NAMES[:at_once]:
        world.ports.script(name, meet)
    world.ports.latency_seconds = 0.005
    assert len(world.run(NAMES, concurrency=concurrency).made) == len(NAMES)
    assert world.ports.most_in_flight == at_once


def test_an_empty_plan_is_done_at_once(world):
    result = world.run([])
    assert result.records == []
    assert result.abort_reason is None


def test_every_finished_image_is_reported_with_its_seconds_and_the_count_so_far(world):
    world.ports.latency_seconds = 0.05
    reports = []
    world.run(NAMES[:3], concurrency=1, on_image=lambda *report: reports.append(report))
    assert sorted(image.record.prompt for image, _ in reports) == NAMES[:3]
    assert all(0.05 <= seconds < 10 for seconds in (image.received.seconds for image, _ in reports))
    assert sorted(count for _, count in reports) == [1, 2, 3]


def test_an_intent_is_durable_before_its_post_and_a_response_before_its_image_is_stored(world):
    seen = []

    def before_post(name):
        seen.append(f'"t":"intent","client_request_id":"{name}"' in world.store.text)

    real_save = world.ports.save

    def save(data, received, *args):
        seen.append(f'"t":"response","client_request_id":"{received.response.client_request_id}"' in world.store.text)
        return real_save(data, received, *args)

    world.ports.before_post, world.ports.save = before_post, save
    world.run(NAMES)
    assert seen == [True] * 24


def test_every_post_has_a_unique_id_that_the_api_accepts(world, steps):
    world.ports.script("prompt 0", steps.fails(lambda: ServerError("x", status=500)), steps.loses(row="failed"))
    world.run(NAMES)
    ids = [name for _, name in world.ports.posts]
    assert len(ids) == len(set(ids)) == 14
    assert all(re.fullmatch(r"imagen:dag:task:[0-9a-f]{20}:[0-9a-f]{16}", name) for name in ids)


def test_the_journal_holds_no_bytes_no_signature_and_no_key(world, steps):
    world.ports.script("prompt 0", steps.pictures(inline=True))
    world.ports.script("prompt 1", steps.pictures(signed=True))
    result = world.run(NAMES)
    assert "hush-hush" not in world.store.text
    assert world.api_key not in world.store.text
    assert "inline" not in world.store.text
    assert "b64_json" not in world.store.text
    assert "hush-hush" not in json.dumps([record.to_json() for record in result.records])
    assert world.ports.fetched[0].endswith(".png") or world.ports.fetched[0].endswith("hush-hush")
    assert any(url.endswith("hush-hush") for url in world.ports.fetched)


# --- previous attempts ------------------------------------------------------------------------------------------------


def test_a_second_attempt_sends_nothing_and_has_the_same_result(world):
    first = world.run(NAMES)
    fetched = list(world.ports.fetched)
    second = world.run(NAMES)
    assert second.records == first.records
    assert second.reused == 12
    assert len(world.ports.posts) == 12
    assert world.ports.fetched == fetched
    assert second.usd_spent == first.usd_spent


def test_a_stored_image_that_was_deleted_is_downloaded_but_not_requested_again(world):
    world.run(NAMES)
    del world.ports.files["003-0.png"]
    result = world.run(NAMES)
    assert len(result.made) == 12
    assert len(world.ports.posts) == 12
    assert "003-0.png" in world.ports.files


def test_an_image_that_could_not_be_downloaded_is_downloaded_by_the_next_attempt(world):
    def refuse(url):
        raise DownloadError("cdn away")

    fetch, world.ports.fetch = world.ports.fetch, refuse
    first = world.run(NAMES[:2])
    assert [type(failure.error) for failure in first.failures] == [DownloadError] * 2
    assert first.usd_lost == 0
    for failure in first.failures:
        error, name = failure.error, dict(world.ports.posts)[failure.item.prompt]
        assert (error.inference_id, error.client_request_id, error.model) == (f"inf-{name}", name, MODEL)
    world.ports.fetch = fetch
    second = world.run(NAMES[:2])
    assert len(second.made) == 2
    assert len(world.ports.posts) == 2
    assert second.usd_lost == 0


def test_an_inline_image_that_was_not_stored_is_lost_and_counted_once_in_every_attempt(world, steps):
    world.ports.script("a", steps.pictures(inline=True, usd=Decimal("0.08")))
    world.ports.save_error = StorageError("disk full")
    first = world.run({"prompt": "a", "num_images": 2})
    assert isinstance(first.failures[0].error, StorageError)
    world.ports.save_error = None
    for _ in range(2):
        result = world.run({"prompt": "a", "num_images": 2})
        assert isinstance(result.failures[0].error, ChargedButLostError)
        assert result.failures[0].error.usd == 0.04
        assert result.usd_lost == Decimal("0.08") == result.usd_spent
    assert len(world.ports.posts) == 1


@pytest.mark.parametrize("inline", [False, True])
def test_an_image_that_is_no_image_is_lost_only_if_it_cannot_be_downloaded_again(world, steps, inline):
    def refuse(*_):
        raise BadImageError("half a picture")

    world.ports.script("a", steps.pictures(inline=inline))
    save, world.ports.save = world.ports.save, refuse
    lost = Decimal("0.04") if inline else Decimal(0)
    for _ in range(2):
        result = world.run("a")
        assert (result.made, result.usd_lost) == ([], lost)
        assert world.records_by_type().get("missing", 0) == inline
    world.ports.save = save
    assert len(world.run("a").made) == (not inline)
    assert len(world.ports.posts) == 1


def test_an_inline_image_whose_write_failed_is_not_recorded_as_missing(world, steps):
    """Its file may exist after all, and the next attempt looks for it."""
    world.ports.script("a", steps.pictures(inline=True))
    world.ports.save_error = StorageError("disk full")
    world.run("a")
    assert "missing" not in world.records_by_type()
    world.ports.save_error = None
    world.ports.files["000-0.png"] = b"inline"
    result = world.run("a")
    assert (len(result.made), result.usd_lost) == (1, 0)


def test_only_an_inline_image_of_a_previous_attempt_is_waited_for(world, steps, monkeypatch):
    """No other attempt can be storing a new image, and one with a URL can be downloaded again."""
    monkeypatch.setattr("airflow_provider_imagen.run.reconcile.STRAGGLER_SECONDS", 20)
    world.ports.script("inline", steps.pictures(inline=True))
    world.ports.fetch_error = DownloadError("cdn away")
    began = time.monotonic()
    world.run(["inline", "url"], lost_answer_patience_seconds=60)
    world.ports.fetch_error = None
    assert len(world.run(["inline", "url"], lost_answer_patience_seconds=60).made) == 2
    assert time.monotonic() - began < 15


@pytest.mark.parametrize(
    ("age_seconds", "text"),
    [(-5, "0 seconds"), (100, "100 seconds"), (125, "2 minutes"), (8_000, "2 hours"), (250_000, "3 days")],
)
def test_a_dead_url_is_reported_with_its_age(world, age_seconds, text):
    world.ports.fetch_error = DownloadError("cdn away")
    world.run("a")
    for name, stored in world.store.texts.items():
        records = [json.loads(line) for line in stored.splitlines()]
        for record in records:
            if record.get("t") == "response":
                record["at"] = time.time() - age_seconds
        world.store.texts[name] = "".join(f"{json.dumps(record)}\n" for record in records)
    world.ports.fetch_error = LinkExpiredError("403")
    (failure,) = world.run("a").failures
    assert str(failure.error) == f"403 The API returned the URL {text} ago."


def test_a_lost_inline_image_is_requested_again_with_resend(world, steps):
    world.ports.script("a", steps.pictures(inline=True))
    world.ports.save_error = StorageError("disk full")
    world.run("a")
    world.ports.save_error = None
    result = world.run("a", on_lost_answer="resend")
    assert len(result.made) == 1
    assert result.usd_lost == Decimal("0.04")
    assert result.usd_spent == Decimal("0.08") == world.ports.billed_usd
    again = world.run("a", on_lost_answer="resend")
    assert len(world.ports.posts) == 2
    assert again.usd_lost == Decimal("0.04")
    assert again.usd_spent == Decimal("0.08")


def test_a_lost_inline_image_of_unknown_cost_is_sent_again_and_adds_nothing_to_the_losses(world, steps):
    plan = world.plan("a", price=None)
    world.ports.script("a", steps.pictures(inline=True, says_cost=False))
    world.ports.save_error = StorageError("disk full")
    world.run(plan)
    world.ports.save_error = None
    result = world.run(plan, on_lost_answer="resend")
    assert (len(result.made), result.usd_lost, result.usd_spent) == (1, 0, Decimal("0.04"))
    assert len(result.in_doubt) == 1


def test_an_image_that_was_lost_is_not_counted_again_when_its_response_is_replaced(world, steps):
    def save(data, received, position, *args):
        raise BadImageError("half a picture") if position == 0 else StorageError("disk full")

    prompt = {"prompt": "a", "num_images": 2}
    world.ports.script("a", steps.pictures(inline=True))
    real, world.ports.save = world.ports.save, save
    assert world.run(prompt).usd_lost == Decimal("0.08")
    world.ports.save = real
    result = world.run(prompt, on_lost_answer="resend")
    assert (len(result.made), result.usd_lost, result.usd_spent) == (2, Decimal("0.08"), Decimal("0.16"))
    assert world.run(prompt).usd_lost == Decimal("0.08")


def test_a_deleted_inline_image_is_reported_lost_and_can_then_be_requested_again(world, steps):
    world.ports.script("a", steps.pictures(inline=True))
    world.run("a")
    world.ports.files.clear()
    assert isinstance(world.run("a").failures[0].error, ChargedButLostError)
    result = world.run("a", on_lost_answer="resend")
    assert len(result.made) == 1
    assert len(world.ports.posts) == 2


def test_an_inline_image_with_no_folder_to_store_it_is_reported_lost(world, steps):
    world.ports.stores = False
    world.ports.script("a", steps.pictures(inline=True))
    result = world.run("a")
    assert isinstance(result.failures[0].error, ChargedButLostError)
    assert result.usd_lost == Decimal("0.04")


def test_without_a_folder_urls_are_returned_and_nothing_is_downloaded(world, steps):
    world.ports.stores = False
    world.ports.script("prompt 0", steps.pictures(signed=True))
    result = world.run(NAMES)
    assert world.ports.fetched == []
    assert result.urls[0].endswith("hush-hush")
    assert all(url.startswith("https://cdn.test/") for url in result.urls)


def test_a_url_encrypted_with_another_key_causes_no_new_request(world, steps):
    world.ports.script("a", steps.pictures(signed=True))
    world.ports.fetch_error = DownloadError("away")
    world.run("a")
    world.ports.fetch_error, world.api_key = None, "0" * 32
    result = world.run("a")
    assert isinstance(result.failures[0].error, LinkExpiredError)
    assert len(world.ports.posts) == 1


def test_money_spent_on_removed_prompts_still_counts(world):
    world.run(NAMES)
    result = world.run(NAMES[:2])
    assert result.usd_spent == Decimal("0.48")
    assert len(world.ports.posts) == 12


# --- images that are withheld, broken or too many ---------------------------------------------------------------------


def test_fewer_images_than_requested_are_kept_and_reported(world, steps):
    world.ports.script("a", steps.pictures(1, usd=Decimal("0.04")))
    result = world.run({"prompt": "a", "num_images": 3})
    assert len(result.made) == 1
    (failure,) = result.filtered
    assert (failure.error.requested, failure.error.made, failure.made) == (3, 1, 1)
    assert result.summary().filtered == 2


def test_no_image_at_all_is_an_empty_result(world, steps):
    world.ports.script("a", steps.pictures(0, usd=Decimal(0)))
    result = world.run("a")
    assert isinstance(result.failures[0].error, EmptyResultError)
    assert world.run("a").usd_spent == 0
    assert len(world.ports.posts) == 1


def test_a_filtered_image_is_dropped_and_the_others_keep_their_numbers(world, steps):
    world.ports.script("a", steps.pictures(withheld=(0,)))
    result = world.run({"prompt": "a", "num_images": 3})
    assert [record.image_index for record in result.records] == [1, 2]
    assert isinstance(result.failures[0].error, FilteredError)
    assert not isinstance(result.failures[0].error, EmptyResultError)


def test_more_images_than_requested_are_kept_under_distinct_names(world, steps):
    for number in range(3):
        world.ports.script(f"p{number}", *[steps.pictures(3) for _ in range(9)])
    plan = world.plan([f"p{number}" for number in range(3)], model="openai/gpt-image-1", num_images=2)
    result = world.run(plan)
    assert len(result.made) == 18 == len(world.ports.files)
    for item in range(3):
        numbers = [record.image_index for record in result.records if record.prompt_index == item]
        assert len(set(numbers)) == 6
        assert {0, 1} <= set(numbers)
    assert world.run(plan).records == result.records


def test_surplus_images_of_a_fallback_that_takes_several_requests_overwrite_nothing(world, steps):
    world.ports.script("a", steps.fails(lambda: ModelWithdrawnError("gone")), *[steps.pictures(2) for _ in range(3)])
    plan = world.plan({"prompt": "a", "num_images": 3}, fallback_models=["openai/gpt-image-1"])
    result = world.run(plan)
    assert len(result.made) == 6 == len(world.ports.files)


def test_images_of_a_fallback_that_takes_several_requests_are_numbered_within_their_prompt(world, steps):
    items = [{"prompt": name, "num_images": images} for name, images in (("a", 3), ("b", 1), ("c", 2))]
    world.ports.script(
        "a", steps.fails(lambda: ModelWithdrawnError("gone")), steps.pictures(), steps.loses(billed=True)
    )
    plan = world.plan(items, fallback_models=["openai/gpt-image-1"])
    first = world.run(plan, concurrency=1)
    places = [(record.prompt_index, record.image_index) for record in first.records]
    assert places == [(0, 0), (1, 0), (2, 0), (2, 1)]
    result = world.run(plan, on_lost_answer="resend")
    places = [(record.prompt_index, record.image_index) for record in result.records]
    assert places == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1)]
    assert [record.path for record in result.records] == [f"/out/{p:03}-{i}.png" for p, i in places]
    assert (result.reused, len(world.ports.saved)) == (4, 6)
    assert len({record.client_request_id for record in result.records}) == 6
    assert world.run(plan).records == result.records


@pytest.mark.parametrize("on_lost_answer", ["check", "resend", "fail"])
def test_an_unreadable_image_is_not_requested_again_by_later_attempts(world, steps, on_lost_answer):
    world.ports.script("a", steps.pictures(broken=(1,)))
    for _ in range(3):
        result = world.run({"prompt": "a", "num_images": 3}, on_lost_answer=on_lost_answer)
        assert [record.image_index for record in result.records] == [0, 2]
        assert [type(error) for error in result.failures[0].errors] == [UnreadableResponseError]
        assert (result.usd_spent, result.usd_in_doubt) == (Decimal("0.12"), 0)
        assert result.usd_lost == Decimal("0.04")
    assert len(world.ports.posts) == 1


def test_an_unreadable_image_does_not_affect_the_others(world, steps):
    world.ports.script("a", steps.pictures(broken=(1,)))
    result = world.run({"prompt": "a", "num_images": 3})
    assert [record.image_index for record in result.records] == [0, 2]
    assert isinstance(result.failures[0].error, UnreadableResponseError)


def test_an_invalid_image_file_does_not_affect_the_others(world):
    real = world.ports.save

    def save(data, received, *args):
        if received.item.index == 5:
            raise BadImageError("half a picture")
        return real(data, received, *args)

    world.ports.save = save
    result = world.run(NAMES)
    assert len(result.made) == 11
    assert [failure.item.index for failure in result.failed] == [5]
    assert result.abort_reason is None


def test_writes_that_fail_now_and_then_do_not_end_the_run(world):
    real = world.ports.save

    def save(data, received, *args):
        if received.item.index % 2:
            raise StorageError("busy")
        return real(data, received, *args)

    world.ports.save = save
    result = world.run(NAMES, concurrency=1)
    assert (result.abort_reason, len(result.made), len(result.failed)) == (None, 6, 6)


# --- rejections and retries -------------------------------------------------------------------------------------------


def test_a_request_that_certainly_cost_nothing_is_sent_again(world, steps):
    world.ports.script(
        "a",
        steps.fails(lambda: ServerError("500", status=500)),
        steps.fails(lambda: RateLimitedError("429", status=429)),
        steps.fails(lambda: ServerError("503", status=503, retry_after=0.01)),
    )
    result = world.run("a")
    assert len(result.made) == 1
    assert world.ports.sent("a") == 4
    assert world.records_by_type() == {"intent": 4, "rejected": 3, "response": 1, "write_committed": 1}


def test_an_invalid_request_is_not_sent_again_and_fails_only_its_item(world, steps):
    world.ports.script("prompt 3", steps.fails(lambda: InvalidRequestError("no", status=400)))
    result = world.run(NAMES)
    assert len(result.made) == 11
    assert world.ports.sent("prompt 3") == 1
    assert result.abort_reason is None
    world.ports.script("prompt 3")
    assert len(world.run(NAMES).made) == 12


def test_a_request_that_keeps_failing_fails_only_its_item(world, steps):
    world.ports.script("prompt 3", *[steps.fails(lambda: ServerError("500", status=500)) for _ in range(20)])
    result = world.run(NAMES, first_wait_seconds=0.001)
    assert len(result.made) == 11
    assert world.ports.sent("prompt 3") == 6
    assert isinstance(result.failures[0].error, ServerError)
    assert result.abort_reason is None


def test_an_error_inside_a_200_that_states_a_cost_is_lost_money(world, steps):
    world.ports.script("a", steps.fails(lambda: InvalidRequestError("no image", status=200, usd=0.04)))
    world.ports.script("b", steps.fails(lambda: InvalidRequestError("no image", status=200, usd=0.0)))
    world.ports.script("c", steps.fails(lambda: InvalidRequestError("no image", status=200)))
    result = world.run(["a", "b", "c"])
    assert result.usd_lost == result.usd_spent == Decimal("0.04")
    again = world.run(["a", "b", "c"])
    assert again.usd_lost == Decimal("0.04")
    assert isinstance(again.failures[0].error, ChargedButLostError)
    assert len(again.made) == 2


def test_an_unreadable_200_counts_as_billed_at_the_known_price(world, steps):
    world.ports.script("a", steps.fails(lambda: UnreadableResponseError("what", status=200)))
    result = world.run("a")
    assert result.usd_lost == Decimal("0.04")
    assert result.usd_is_estimate


def test_a_missing_cost_is_estimated_and_marked_as_an_estimate(world, steps):
    world.ports.script("a", steps.pictures(says_cost=False))
    assert not world.run("b").usd_is_estimate
    result = world.run(["a", "b"])
    assert result.usd_spent == Decimal("0.08")
    assert result.usd_is_estimate
    assert world.run(["a", "b"]).usd_is_estimate


# --- retired models ---------------------------------------------------------------------------------------------------

MODEL = "imagen-3.0-generate-002"
OTHER = "google/imagen-4.0-generate-001"


def retired(steps):
    return steps.fails(lambda: ModelWithdrawnError("gone", status=404, replaced_by="x"))


def test_a_retired_model_gets_no_more_posts_but_other_models_do(world):
    world.ports.withdrawn = {MODEL}
    items = [{"prompt": name} for name in NAMES] + [{"prompt": "other", "model": OTHER}]
    result = world.run(items, concurrency=1)
    assert world.ports.models == [MODEL, OTHER]
    assert len(result.made) == 1
    assert all(isinstance(failure.error, ModelWithdrawnError) for failure in result.failures)
    assert {failure.error.replaced_by for failure in result.failures} == {"x"}
    assert result.abort_reason is None


def test_a_fallback_model_replaces_a_retired_one_and_its_images_are_reused(world):
    world.ports.withdrawn = {MODEL}
    plan = world.plan(NAMES, fallback_models=[OTHER])
    first = world.run(plan, concurrency=1)
    assert len(first.made) == 12
    assert {record.model for record in first.records} == {OTHER}
    world.ports.withdrawn = set()
    world.ports.files.pop("004-0.png")
    second = world.run(plan)
    assert second.records == first.records
    assert len(world.ports.posts) == 13


def test_images_of_a_model_are_reused_after_it_was_retired(world, steps):
    plan = world.plan(NAMES, fallback_models=[OTHER])
    for name in NAMES[:6]:
        world.ports.script(name, steps.fails(lambda: InvalidRequestError("no", status=400)))
    assert len(world.run(plan).made) == 6
    world.ports.withdrawn = {MODEL}
    result = world.run(plan, concurrency=1)
    assert [record.model for record in result.records] == [OTHER] * 6 + [MODEL] * 6
    assert result.reused == 6
    assert world.ports.billed_usd == result.usd_spent == Decimal("0.48")


def test_images_reused_from_a_fallback_model_need_no_room_under_the_cap(world):
    world.ports.withdrawn = {MODEL}
    plan = world.plan(NAMES, fallback_models=[OTHER])
    world.run(plan)
    assert len(world.run(plan, max_usd=Decimal("0.48")).made) == 12


def test_a_slot_that_one_model_began_is_not_sent_to_the_next(world, steps):
    """The first fallback generates one of three images and is then retired: the second does not generate three more."""
    first, second = "openai/gpt-image-1", "openai/gpt-image-1-mini"
    world.ports.script("a", retired(steps), steps.pictures(), retired(steps))
    plan = world.plan({"prompt": "a", "num_images": 3}, fallback_models=[first, second])
    result = world.run(plan)
    assert len(result.made) == 1
    assert isinstance(result.failures[0].error, ModelWithdrawnError)
    assert second not in world.ports.models


# --- crashes ----------------------------------------------------------------------------------------------------------


def test_an_unexpected_error_with_one_image_does_not_affect_the_others(world):
    real = world.ports.save

    def save(data, received, *args):
        if received.item.index == 5:
            raise ZeroDivisionError("a bug")
        return real(data, received, *args)

    world.ports.save = save
    result = world.run(NAMES)
    assert len(result.made) == 11
    assert isinstance(result.failures[0].error, StorageError)
    assert "ZeroDivisionError" in str(result.failures[0].error)


def test_a_failing_listener_costs_no_image(world):
    def on_image(*picture):
        raise ZeroDivisionError("a bug")

    assert len(world.run(NAMES, on_image=on_image).made) == 12


@pytest.mark.parametrize("concurrency", [1, 40])
def test_a_crashing_finisher_ends_the_run_without_a_deadlock(world, concurrency):
    world.ports.save_error = SystemExit("a crash")
    with pytest.raises(SystemExit):
        world.run([f"p{number}" for number in range(200)], concurrency=concurrency)
    for thread in threading.enumerate():  # the end of the process would end them
        if thread.name.startswith("imagen-submitter"):
            thread.join(30)
    world.ports.save_error = None
    paid = len(world.ports.posts)
    result = world.run([f"p{number}" for number in range(200)], concurrency=16)
    assert len(result.made) == 200
    assert len(world.ports.posts) == 200
    assert paid <= 200


@pytest.mark.parametrize("concurrency", [1, 8])
def test_a_crashing_submitter_ends_the_run_and_the_next_attempt_looks_up_its_post(world, steps, concurrency):
    def crash(ports, request, name):
        ports.charge(name, Decimal("0.04"))
        raise ZeroDivisionError("a bug")

    world.ports.script("prompt 3", crash)
    with pytest.raises(ZeroDivisionError):
        world.run(NAMES, concurrency=concurrency)
    result = world.run(NAMES, concurrency=concurrency)
    assert isinstance(result.failures[0].error, ChargedButLostError)
    assert len(result.made) == 11
    assert result.usd_spent == world.ports.billed_usd == Decimal("0.48")
    assert world.ports.sent("prompt 3") == 1


def test_a_slow_folder_throttles_sending_so_that_few_images_wait_in_memory(world, steps):
    release = threading.Event()
    real = world.ports.save

    def save(*args, **kwargs):
        release.wait(10)
        return real(*args, **kwargs)

    world.ports.save = save
    threading.Timer(0.5, release.set).start()
    high_water = []
    threading.Timer(0.4, lambda: high_water.append(len(world.ports.posts))).start()
    result = world.run([f"p{number}" for number in range(300)], concurrency=4)
    assert len(result.made) == 300
    assert high_water[0] <= 4 + 16 + 8
