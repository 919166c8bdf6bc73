"""What a run promises while things around it fail: the journal, other attempts, the folder, the API's responses."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from decimal import Decimal

import pytest
from msgspec.structs import replace

from airflow_provider_imagen.exceptions import (
    BudgetExceededError,
    ChargedButLostError,
    DownloadError,
    LinkExpiredError,
    OwnershipLostError,
    RateLimitedError,
    StorageError,
)
from airflow_provider_imagen.journal.log import Journal
from airflow_provider_imagen.run import finish

pytestmark = pytest.mark.timeout(60)

NAMES = [f"prompt {number}" for number in range(12)]


# --- images inside responses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 3, 8])
def test_unsaved_inline_images_never_outnumber_the_requests_in_flight(world, steps, concurrency):
    at_risk = []
    for name in NAMES:
        world.ports.script(name, steps.pictures(inline=True))
    save, answered, lock = world.ports.save, [], threading.Lock()

    def slow_save(*args, **kwargs):
        time.sleep(0.02)
        return save(*args, **kwargs)

    def before_post(name):
        with lock:
            answered.append(name)
            at_risk.append(len(answered) - len(world.ports.saved))

    world.ports.save, world.ports.before_post = slow_save, before_post
    assert len(world.run(NAMES, concurrency=concurrency).made) == 12
    assert max(at_risk) <= concurrency


def test_a_slow_write_of_an_inline_image_holds_the_next_request_back(world, steps):
    world.ports.script("prompt 0", steps.pictures(inline=True))
    save, stored_at_post = world.ports.save, []

    def slow_save(*args, **kwargs):
        time.sleep(0.5)
        return save(*args, **kwargs)

    world.ports.save = slow_save
    world.ports.before_post = lambda _: stored_at_post.append(len(world.ports.saved))
    world.run(NAMES[:2], concurrency=1)
    assert stored_at_post == [0, 1]


# --- an unavailable journal -------------------------------------------------------------------------------------------


def test_while_the_journal_is_unavailable_paid_images_are_stored_and_nothing_new_is_sent(world, steps, monkeypatch):
    monkeypatch.setattr(finish, "JOURNAL_PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr("airflow_provider_imagen.journal.log.RETRY_PAUSE_SECONDS", 0.05)
    all_in_flight = threading.Barrier(4, action=lambda: setattr(world.store, "is_away", True))
    world.ports.before_post = lambda _: all_in_flight.wait(30) if len(world.ports.posts) < 4 else None
    seen = {}

    def come_back():
        seen.update(posts=len(world.ports.posts), files=len(world.ports.files))
        world.store.is_away = False

    timer = threading.Timer(1.5, come_back)
    timer.start()
    result = world.run(NAMES, concurrency=4)
    assert seen == {"posts": 4, "files": 4}
    assert len(result.made) == 12
    assert world.records_by_type()["response"] == 12


# --- two attempts at once ---------------------------------------------------------------------------------------------


def overlap(world, *, prompts, concurrency, in_flight):
    """Take the journal over while an attempt has requests in flight; return its result and request ids."""
    old = {}
    taken_over, release = threading.Event(), threading.Event()
    world.ports.latency_seconds = 0.0
    waiting = threading.Barrier(in_flight, action=taken_over.set)
    first_ids = set()

    def before_post(name):
        if not release.is_set():
            first_ids.add(name)
            waiting.wait(30)
            release.wait(30)

    world.ports.before_post = before_post
    thread = threading.Thread(target=lambda: old.update(result=world.run(prompts, concurrency=concurrency)))
    thread.start()
    assert taken_over.wait(30)
    opened = Journal(world.store)
    opened.open()  # the new attempt owns the journal from here on
    opened.close()
    release.set()
    thread.join(30)
    return old["result"], first_ids


@pytest.mark.parametrize("concurrency", [1, 4])
def test_an_attempt_that_lost_the_journal_sends_nothing_more_and_keeps_what_it_receives(world, concurrency):
    result, sent = overlap(world, prompts=NAMES, concurrency=concurrency, in_flight=concurrency)
    assert isinstance(result.abort_reason, OwnershipLostError)
    assert len(world.ports.posts) == concurrency == len(sent)
    assert len(world.ports.files) == concurrency

    second = world.run(NAMES)
    assert (len(second.made), second.reused, second.usd_lost) == (12, concurrency, 0)
    assert len(world.ports.posts) == 12
    assert second.usd_spent == world.ports.billed_usd


def test_a_response_recorded_late_by_the_previous_owner_is_reused_and_not_reported_lost(world, steps):
    """The new attempt sees the charge in the API's log before the old one has recorded the response."""
    in_flight, release = threading.Event(), threading.Event()

    def slow(ports, request, name):
        ports.charge(name, Decimal("0.04"))
        in_flight.set()
        release.wait(30)
        return steps.pictures()(ports, request, name)

    world.ports.script("a", slow)
    old = threading.Thread(target=lambda: world.run("a"))
    old.start()
    assert in_flight.wait(30)
    threading.Timer(0.5, release.set).start()
    second = world.run("a", lost_answer_patience_seconds=5.0)
    old.join(30)
    assert second.failures == []
    assert (len(second.made), second.reused, second.usd_lost) == (1, 1, 0)
    assert world.ports.sent("a") == 1
    assert second.usd_spent == Decimal("0.04")


# --- files that disappear ---------------------------------------------------------------------------------------------


def delete_once(world, name):
    """Delete a file right before the run checks that all exist."""
    find, gone = world.ports.find_missing, []

    def find_missing(stored):
        if not gone:
            gone.append(world.ports.files.pop(name))
        return find(stored)

    world.ports.find_missing = find_missing


def test_a_file_that_disappears_while_the_task_runs_is_downloaded_again(world):
    delete_once(world, "003-0.png")
    result = world.run(NAMES)
    assert (len(result.made), len(world.ports.files), len(world.ports.posts)) == (12, 12, 12)
    assert len(world.ports.fetched) == 13
    assert result.failures == []


def test_a_file_that_disappears_from_a_cancelled_attempt_is_left_to_the_next_one(world):
    delete_once(world, "000-0.png")
    world.ports.before_post = lambda _: world.cancel()
    result = world.run("a", grace_seconds=60)
    assert (result.made, len(world.ports.fetched)) == ([], 1)
    assert [item.prompt for item in result.not_sent] == ["a"]
    world.resume()
    assert len(world.run("a").made) == 1
    assert len(world.ports.posts) == 1


def test_an_inline_image_that_disappears_is_reported_lost_and_not_listed(world, steps):
    world.ports.script("prompt 3", steps.pictures(inline=True))
    delete_once(world, "003-0.png")
    result = world.run(NAMES)
    (failure,) = result.failures
    assert isinstance(failure.error, ChargedButLostError)
    assert [record.prompt_index for record in result.records] == [n for n in range(12) if n != 3]
    assert result.usd_lost == Decimal("0.04")


# --- money without an image -------------------------------------------------------------------------------------------


def test_a_dead_url_is_lost_money_once_over_all_attempts_until_it_works_again(world):
    world.ports.fetch_error = LinkExpiredError("403")
    for _ in range(2):
        result = world.run(NAMES[:2])
        assert (result.usd_lost, result.usd_spent) == (Decimal("0.08"), Decimal("0.08"))
    world.ports.fetch_error = None
    result = world.run(NAMES[:2])
    assert (len(result.made), result.usd_lost) == (2, 0)
    assert world.run(NAMES[:2]).usd_lost == 0


def test_a_charged_empty_response_is_lost_money(world, steps):
    world.ports.script("a", steps.pictures(0))
    for _ in range(2):
        assert world.run("a").usd_lost == Decimal("0.04")


@pytest.mark.parametrize("nulls", [1, 2])
def test_nulls_in_place_of_images_are_lost_money_by_their_share(world, steps, nulls):
    def some_nulls(ports, request, name):
        answered = steps.pictures(3 - nulls, usd=Decimal("0.12"))(ports, request, name)
        return replace(answered, null_items=nulls)

    world.ports.script("a", some_nulls)
    result = world.run({"prompt": "a", "num_images": 3})
    assert (result.usd_spent, result.usd_lost) == (Decimal("0.12"), nulls * Decimal("0.04"))
    assert [record.usd for record in result.records] == [0.04] * (3 - nulls)


# --- removed prompts --------------------------------------------------------------------------------------------------


def test_images_of_removed_prompts_are_listed_and_fetched_but_not_returned(world):
    world.run(NAMES[:3])
    del world.ports.files["001-0.png"]
    result = world.run(["prompt 0", "new"])
    assert [made.record.prompt for made in result.listed] == ["prompt 0", "new", "prompt 1", "prompt 2"]
    assert [made.received.item.is_superseded for made in result.listed] == [False, False, True, True]
    assert len(result.urls) == 2
    assert result.summary().superseded == 2
    assert world.ports.sent("prompt 1") == 1


def test_images_of_removed_prompts_are_listed_although_nothing_is_requested_any_more(world):
    world.run(NAMES[:2])
    result = world.run([])
    assert [made.record.prompt for made in result.listed] == NAMES[:2]
    assert (result.made, len(world.ports.posts)) == ([], 2)


def test_a_dead_url_of_a_removed_prompt_is_lost_money_and_fails_nothing(world):
    world.run(NAMES[:2])
    del world.ports.files["001-0.png"]
    world.ports.fetch_error = LinkExpiredError("403")
    result = world.run(NAMES[:1])
    assert (len(result.made), result.failures, result.superseded) == (1, [], [])
    assert result.usd_lost == Decimal("0.04")


# --- the cap over attempts --------------------------------------------------------------------------------------------


def test_the_next_attempt_knows_the_prices_that_previous_ones_paid(world, steps):
    for name in NAMES:
        world.ports.script(name, steps.pictures(usd=Decimal("0.20")))
    first = world.run(NAMES, max_usd=Decimal("0.50"), concurrency=8)
    assert first.usd_spent == Decimal("0.40")
    second = world.run(NAMES, max_usd=Decimal("1.00"), concurrency=8)
    assert second.usd_spent == Decimal("1.00") == world.ports.billed_usd


@pytest.mark.parametrize(("cap", "price"), [("1.20", "0.20"), ("3.20", "0.40")])
def test_a_price_far_above_the_quoted_one_does_not_exceed_the_cap(world, steps, cap, price):
    for name in NAMES * 4:
        world.ports.script(name, *[steps.pictures(usd=Decimal(price)) for _ in range(4)])
    world.ports.latency_seconds = 0.01
    result = world.run(NAMES * 4, max_usd=Decimal(cap) + 1, concurrency=16)
    assert result.usd_spent == world.ports.billed_usd <= Decimal(cap) + 1


def test_a_price_that_rises_mid_run_exceeds_the_cap_by_the_requests_in_flight_at_most(world, steps):
    names = [f"p{number}" for number in range(60)]
    for number, name in enumerate(names):
        world.ports.script(name, steps.pictures(usd=Decimal("0.04") if number < 20 else Decimal("0.40")))
    world.ports.latency_seconds = 0.01
    result = world.run(names, max_usd=Decimal("2.50"), concurrency=8)
    assert world.ports.billed_usd <= Decimal("2.50") + 8 * Decimal("0.36")
    assert result.usd_spent == world.ports.billed_usd


def test_paid_images_are_stored_even_if_the_rest_does_not_fit_under_the_cap(world, steps):
    """The first attempt paid but could not download; its URLs would expire."""
    for name in NAMES[:3]:
        world.ports.script(name, steps.pictures(usd=Decimal("0.08")))
    world.ports.fetch_error = DownloadError("the CDN is away")
    world.run(NAMES[:3], max_usd=Decimal("0.30"))
    world.ports.fetch_error = None
    result = world.run(NAMES, max_usd=Decimal("0.30"))
    assert isinstance(result.abort_reason, BudgetExceededError)
    assert (len(result.made), len(world.ports.files), len(world.ports.posts)) == (3, 3, 3)


# --- regressions ------------------------------------------------------------------------------------------------------


def test_a_charge_logged_before_the_next_attempt_is_not_paid_again(world, steps):
    world.ports.script("a", *[steps.loses(billed=True, logged=False)] * 3)
    world.run("a")
    for name, usd in world.ports.charges.items():
        world.ports.log_row(name, "succeeded", usd)
    result = world.run("a")
    assert isinstance(result.failures[0].error, ChargedButLostError)
    assert len(world.ports.posts) == 3
    assert result.usd_spent == result.usd_lost == world.ports.billed_usd == Decimal("0.12")


@pytest.mark.parametrize("fault", ["is away", "refuses"])
def test_responses_that_could_not_be_recorded_are_not_counted_twice(world, steps, monkeypatch, fault):
    monkeypatch.setattr(finish, "JOURNAL_PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr("airflow_provider_imagen.journal.log.RETRY_PAUSE_SECONDS", 0.05)

    def break_the_store():
        world.store.is_away, world.store.fails_after = fault == "is away", None if fault == "is away" else 0

    all_in_flight = threading.Barrier(4, action=break_the_store)
    for name in NAMES[:4]:
        world.ports.script(name, lambda *args: (all_in_flight.wait(30), steps.pictures()(*args))[1])
    threading.Timer(2, lambda: setattr(world.store, "is_away", False)).start()
    result = world.run(NAMES[:4], concurrency=4)
    assert (len(result.made), result.usd_lost) == (4, 0)
    assert result.usd_spent == world.ports.billed_usd == Decimal("0.16")


def test_a_charge_of_unknown_amount_blocks_the_cap_in_the_next_attempt_too(world, steps):
    for name in NAMES:
        world.ports.script(name, steps.pictures(usd=Decimal(5), says_cost=False))
    for _ in range(3):
        result = world.run(world.plan(NAMES, price=None), max_usd=Decimal(1))
        assert isinstance(result.abort_reason, BudgetExceededError)
        assert len(result.in_doubt) == 1
    assert len(world.ports.posts) == 1


def test_a_response_without_a_cost_counts_at_the_highest_price_seen(world, steps):
    world.ports.script("prompt 0", steps.pictures(usd=Decimal("0.08")))
    world.ports.script("prompt 1", steps.pictures(usd=Decimal("0.08"), says_cost=False))
    result = world.run(NAMES[:2], concurrency=1)
    assert result.usd_spent == world.ports.billed_usd == Decimal("0.16")
    assert result.usd_is_estimate


def test_an_inline_image_that_cannot_be_stored_is_lost_in_the_same_attempt(world, steps):
    world.ports.script("a", steps.pictures(inline=True))
    world.ports.save_error = StorageError("the disk is full")
    assert world.run("a").usd_lost == Decimal("0.04")
    world.ports.save_error = None
    assert world.run("a").usd_lost == Decimal("0.04")


def test_an_intent_that_was_not_sent_is_not_in_doubt_for_the_next_attempt(world):
    """The journal was taken over between the intent and the ownership check."""
    taken = []

    def take_over(name, text):
        if '"t":"intent"' in text and not taken:
            taken.append(name)
            later = Journal(world.store)
            later.open()
            later.close()

    world.store.on_write = take_over
    result = world.run("a")
    assert isinstance(result.abort_reason, OwnershipLostError)
    assert (world.ports.posts, result.in_doubt) == ([], [])
    assert world.requests.popitem()[1].open_intents == {}
    assert len(world.run("a", on_lost_answer="fail").made) == 1


def test_an_intent_whose_journal_is_taken_over_right_before_its_post_is_withdrawn(world, monkeypatch):
    """The write of the intent still found its owner; the last look before the POST does not."""
    monkeypatch.setattr("airflow_provider_imagen.run.submit.OWNERSHIP_MAX_AGE_SECONDS", -1)
    read, taken = world.store.read, []

    def read_and_take_over(name):
        text = read(name)
        if '"t":"intent"' in world.store.text and not taken:
            taken.append(name)
            later = Journal(world.store)
            later.open()
            later.close()
        return text

    world.store.read = read_and_take_over
    result = world.run("a")
    assert isinstance(result.abort_reason, OwnershipLostError)
    assert (world.ports.posts, result.in_doubt) == ([], [])
    assert world.requests.popitem()[1].open_intents == {}


class EvenPacer:
    """A pacer that never waits, for an API that refuses one request again and again and takes all others."""

    refused_for_seconds = 0.0

    def __init__(self, **_):
        pass

    @contextmanager
    def permit(self, prepare, *, undo):
        yield prepare()


def test_a_request_that_is_limited_again_and_again_fails_alone_after_some_posts_and_the_patience(
    world, steps, monkeypatch
):
    monkeypatch.setattr("airflow_provider_imagen.run.runner.Pacer", EvenPacer)

    def refuse(ports, request, name):
        time.sleep(0.05)
        raise RateLimitedError("429", status=429)

    world.ports.script("prompt 0", *[refuse] * 100)
    for patience in (0.01, 0.6):
        world.ports.posts.clear()
        began = time.monotonic()
        result = world.run(NAMES[:2], rate_limit_patience_seconds=patience)
        assert [type(failure.error) for failure in result.failures] == [RateLimitedError]
        assert (result.abort_reason, len(result.made)) == (None, 1)
        assert 6 <= world.ports.sent("prompt 0") <= 14
        assert time.monotonic() - began >= patience
