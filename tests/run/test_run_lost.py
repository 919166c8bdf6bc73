"""POSTs whose response was lost: looked up, counted, and never paid for twice."""

from __future__ import annotations

import threading
import time
from decimal import Decimal

import pytest
from msgspec.structs import replace

from airflow_provider_imagen.exceptions import (
    AuthenticationError,
    BudgetExceededError,
    ChargedButLostError,
    ConnectionFailedError,
    LostAnswerError,
    OwnershipLostError,
    StorageError,
    UnreadableResponseError,
)
from airflow_provider_imagen.image_record import ResponseImage
from airflow_provider_imagen.journal.log import Journal
from airflow_provider_imagen.journal.records import Response, Target, new_intent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(30)]

NAMES = [f"prompt {number}" for number in range(6)]


def test_a_billed_request_is_reported_lost_and_not_sent_again(world, steps):
    world.ports.script("prompt 2", steps.loses(billed=True))
    result = world.run(NAMES)
    (failure,) = result.failures
    assert isinstance(failure.error, ChargedButLostError)
    assert failure.error.usd == 0.04
    assert failure.error.inference_id == f"inf-{failure.error.client_request_id}"
    assert not failure.error.retry_helps
    assert result.usd_lost == Decimal("0.04")
    assert result.usd_spent == Decimal("0.24") == world.ports.billed_usd
    assert len(result.made) == 5


def test_every_later_attempt_reports_a_loss_again_and_counts_it_once(world, steps):
    world.ports.script("prompt 2", steps.loses(billed=True))
    world.run(NAMES)
    for _ in range(2):
        result = world.run(NAMES)
        assert [type(failure.error) for failure in result.failures] == [ChargedButLostError]
        assert result.usd_lost == Decimal("0.04")
        assert result.usd_spent == Decimal("0.24")
    assert world.ports.sent("prompt 2") == 1


def test_a_known_loss_is_sent_again_with_resend(world, steps):
    world.ports.script("prompt 2", steps.loses(billed=True))
    world.run(NAMES)
    result = world.run(NAMES, on_lost_answer="resend")
    assert len(result.made) == 6
    assert result.usd_lost == Decimal("0.04")
    assert result.usd_spent == Decimal("0.28") == world.ports.billed_usd
    assert len(world.run(NAMES).made) == 6


def test_a_request_logged_as_failed_is_sent_again(world, steps):
    world.ports.script("a", steps.loses(row="failed"))
    result = world.run("a", lost_answer_patience_seconds=60)
    assert len(result.made) == 1
    assert world.ports.sent("a") == 2
    assert result.usd_lost == 0


def test_a_request_missing_from_the_log_is_sent_again_after_the_patience(world, steps):
    world.ports.script("a", steps.loses())
    began = time.monotonic()
    result = world.run("a", lost_answer_patience_seconds=0.3)
    assert time.monotonic() - began >= 0.3
    assert len(result.made) == 1
    assert result.usd_lost == 0


def test_a_charge_logged_after_the_patience_is_counted_at_the_end(world, steps):
    lost = []

    def shows_late(ports, request, name):
        lost.append(name)
        ports.charges[name] = Decimal("0.04")
        raise LostAnswerError("lost")

    def meanwhile(ports, request, name):
        ports.log_row(lost[0], "succeeded", Decimal("0.04"))
        return steps.pictures()(ports, request, name)

    world.ports.script("a", shows_late, meanwhile)
    result = world.run("a")
    assert len(result.made) == 1
    assert result.usd_lost == Decimal("0.04")
    assert result.usd_spent == Decimal("0.08") == world.ports.billed_usd
    again = world.run("a")
    assert again.usd_lost == Decimal("0.04")
    assert again.usd_spent == Decimal("0.08")


def test_a_charge_logged_before_a_later_attempt_is_counted_by_it(world, steps):
    world.ports.script("a", steps.loses(billed=True, logged=False))
    world.run("a")
    (lost, _) = [name for _, name in world.ports.posts]
    world.ports.log_row(lost, "succeeded", Decimal("0.04"))
    result = world.run("a")
    assert (len(result.made), result.usd_lost, result.usd_spent) == (1, Decimal("0.04"), Decimal("0.08"))


def test_a_request_with_a_late_charge_is_not_sent_again_by_the_next_attempt(world, steps):
    def fails(ports, request, name):
        ports.log_row(world.ports.posts[0][1], "succeeded", Decimal("0.04"))
        raise LostAnswerError("lost again")

    world.ports.script("a", steps.loses(), fails, steps.loses())
    first = world.run("a")
    assert first.made == []
    posts = len(world.ports.posts)
    assert posts == 3
    result = world.run("a")
    assert isinstance(result.failures[0].error, ChargedButLostError)
    assert len(world.ports.posts) == posts


def test_a_request_whose_responses_keep_getting_lost_is_left_to_the_next_attempt(world, steps):
    world.ports.script("a", *[steps.loses() for _ in range(3)])
    result = world.run("a")
    assert isinstance(result.failures[0].error, LostAnswerError)
    assert result.failures[0].error.retry_helps
    assert world.ports.sent("a") == 3
    assert len(world.run("a").made) == 1


@pytest.mark.parametrize("error", [ConnectionFailedError("away"), AuthenticationError("no scope")])
def test_an_unreadable_log_leaves_the_outcome_unknown_and_nothing_is_sent_again(world, steps, error):
    world.ports.script("prompt 2", steps.loses(billed=True))
    world.ports.log_error = error
    first = world.run(NAMES, lost_answer_patience_seconds=0.2)
    assert type(first.failures[0].error) is LostAnswerError
    assert first.abort_reason is None
    second = world.run(NAMES)
    assert type(second.failures[0].error) is LostAnswerError
    assert world.ports.sent("prompt 2") == 1
    world.ports.log_error = None
    third = world.run(NAMES)
    assert isinstance(third.failures[0].error, ChargedButLostError)
    assert third.usd_spent == world.ports.billed_usd
    assert world.ports.sent("prompt 2") == 1


def test_fail_gives_up_at_once_with_an_error_that_a_retry_does_not_help(world, steps):
    world.ports.script("prompt 2", steps.loses(billed=True))
    for _ in range(2):
        result = world.run(NAMES, on_lost_answer="fail")
        assert type(result.failures[0].error) is LostAnswerError
        assert not result.failures[0].error.retry_helps
    assert world.ports.sent("prompt 2") == 1
    assert world.ports.looks == 0


def test_resend_sends_again_at_once_and_counts_both_costs(world, steps):
    world.ports.script("a", steps.loses(billed=True))
    result = world.run("a", on_lost_answer="resend", lost_answer_patience_seconds=60)
    assert len(result.made) == 1
    assert result.usd_lost == Decimal("0.04")
    assert result.usd_spent == Decimal("0.08") == world.ports.billed_usd


@pytest.mark.parametrize("on_lost_answer", ["check", "resend"])
def test_the_list_of_failures_says_when_a_billed_request_is_sent_again(world, steps, on_lost_answer):
    world.ports.script("a", steps.loses(billed=True))
    (line,) = world.run("a", on_lost_answer=on_lost_answer, lost_answer_patience_seconds=60).failure_lines()
    assert line.message.endswith('The request is sent again only with on_lost_answer="resend".')


# --- intents without a response, from a killed attempt ----------------------------------------------------------------


def leave_intent(
    world,
    prompt: str,
    *,
    age_seconds: float = 1000.0,
    name: str = "imagen.killed",
    clock_offset=None,
    account=None,
    **plan,
) -> str:
    """Leave in the journal what a killed attempt leaves there: an intent without a response."""
    (unit,) = world.plan(prompt, **plan).requests
    target = Target(prompt_index=0, image_index=0, images=1, prompt_images=1, prompt=prompt)
    intent = new_intent(
        unit.key,
        client_request_id=name,
        model=unit.model,
        usd=unit.quoted_usd,
        target=target,
        clock_offset=clock_offset,
        account=account,
    )
    journal = Journal(world.store)
    journal.open()
    journal.commit(replace(intent, at=round(time.time() - age_seconds, 3)))
    journal.close()
    return name


def test_a_billed_intent_of_a_killed_attempt_is_lost_and_not_sent_again(world):
    world.ports.charge(leave_intent(world, "a"), Decimal("0.04"))
    result = world.run("a")
    assert isinstance(result.failures[0].error, ChargedButLostError)
    assert result.usd_spent == result.usd_lost == Decimal("0.04")
    assert world.ports.posts == []


@pytest.mark.parametrize("row", ["failed", None])
def test_an_unbilled_intent_of_a_killed_attempt_is_sent_again(world, row):
    name = leave_intent(world, "a")
    if row:
        world.ports.log_row(name, row)
    result = world.run("a")
    assert len(result.made) == 1
    assert result.usd_spent == Decimal("0.04")


def test_a_request_possibly_still_in_flight_is_awaited_before_it_is_sent_again(world):
    """The attempt was killed a moment ago: the API may still bill it, and the log lags behind."""
    name = leave_intent(world, "a", age_seconds=0.1)
    threading.Timer(0.9, lambda: world.ports.charge(name, Decimal("0.04"))).start()
    result = world.run("a", lost_answer_patience_seconds=0.7)
    assert isinstance(result.failures[0].error, ChargedButLostError)
    assert world.ports.posts == []


def test_a_slow_response_is_awaited_for_the_full_timeout_before_the_request_is_sent_again(world):
    """The task was killed but the API was not: it bills when it is done, which may be long after the patience."""
    name = leave_intent(world, "a", age_seconds=0.1)
    threading.Timer(1.2, lambda: world.ports.charge(name, Decimal("0.04"))).start()
    result = world.run("a", lost_answer_patience_seconds=0.1, answer_timeout_seconds=2.0)
    assert isinstance(result.failures[0].error, ChargedButLostError)
    assert world.ports.posts == []


def test_the_clock_offset_of_the_sender_decides_how_long_its_request_is_awaited(world):
    """Its clock was ten minutes behind the API's and ours, so the request is not ten minutes old."""
    name = leave_intent(world, "a", age_seconds=600, clock_offset=600.0)
    threading.Timer(0.4, lambda: world.ports.charge(name, Decimal("0.04"))).start()
    result = world.run("a", lost_answer_patience_seconds=0.6)
    assert isinstance(result.failures[0].error, ChargedButLostError)
    assert world.ports.posts == []


@pytest.mark.parametrize(("age_days", "is_final"), [(0.9, False), (1.1, True), (90, True), (100, False)])
def test_a_request_missing_from_the_log_is_resolved_after_a_day_within_the_logs_retention(world, age_days, is_final):
    name = leave_intent(world, "a", age_seconds=age_days * 86400)
    result = world.run("a")
    assert len(result.made) == 1
    assert [request.client_request_id for request in result.in_doubt] == ([] if is_final else [name])
    assert result.usd_in_doubt == (0 if is_final else Decimal("0.04"))


def test_a_failed_row_resolves_a_request_whose_prompt_was_removed(world):
    names = [leave_intent(world, prompt, name=f"imagen.{prompt}") for prompt in ("first", "second", "third")]
    world.ports.log_row(names[1], "failed")
    for _ in range(2):
        result = world.run("a")
        assert [request.client_request_id for request in result.in_doubt] == [names[0], names[2]]
        assert (result.usd_in_doubt, result.usd_lost) == (Decimal("0.08"), 0)
    assert world.records_by_type()["rejected"] == 1


def test_a_request_in_doubt_is_not_sent_to_another_model(world, steps):
    other = "google/imagen-4.0-generate-001"
    plan = world.plan("a", fallback_models=[other])
    (first, second) = plan.slots[0].alternatives
    world.ports.withdrawn = {first[0].model}
    world.ports.script("a", steps.pictures(), steps.loses(billed=True, logged=False))
    world.ports.log_error = ConnectionFailedError("away")
    world.run(plan)
    assert world.ports.models == [first[0].model, second[0].model]
    world.ports.withdrawn = set()
    assert world.run(plan).made == []
    assert len(world.ports.posts) == 2


@pytest.mark.parametrize("usd", [Decimal("0.05"), None])
@pytest.mark.parametrize("is_priced", [True, False])
def test_a_response_recorded_after_its_loss_was_reported_is_kept(world, steps, usd, is_priced):
    """A previous attempt that is still alive records what it receives; the price may still be unknown."""
    price = Decimal("0.04") if is_priced else None
    plan = world.plan(["a", "b"], price=price)
    unit = next(iter(plan.requests))
    earlier = Journal(world.store)
    earlier.open()
    target = Target(prompt_index=0, image_index=0, images=1, prompt_images=1, prompt="a")
    earlier.commit(new_intent(unit.key, client_request_id="late", model=unit.model, usd=price, target=target))
    billed_without_amount(world, "late")

    def slow(ports, request, name):
        images = (ResponseImage(url="https://cdn.test/late.png"),)
        late = Response(
            key=unit.key, client_request_id="late", images=images, model=unit.model, at=time.time(), usd=usd
        )
        earlier.append(late)
        earlier.close()
        time.sleep(1.2)  # the journal is read again after a second
        return steps.pictures(usd=Decimal("0.07"))(ports, request, name)

    world.ports.script("b", slow)
    result = world.run(plan, concurrency=1)
    assert [record.prompt for record in result.records] == ["a", "b"]
    assert (result.failures, result.lost, result.usd_lost) == ([], [], 0)
    known = usd or price
    assert result.usd_spent == (known or 0) + Decimal("0.07")
    assert [request.client_request_id for request in result.in_doubt] == ([] if known else ["late"])
    again = world.run(plan)
    assert (again.reused, again.usd_lost) == (2, 0)
    assert again.usd_spent == (usd or 0) + Decimal("0.07")


def test_many_intents_are_looked_up_together_even_with_one_worker_and_a_tight_cap(world):
    names = [f"p{number}" for number in range(5)]
    for number, prompt in enumerate(names):
        leave_intent(world, prompt, name=f"imagen.killed.{number}")
    world.ports.charge("imagen.killed.3", Decimal("0.04"))
    for number in (0, 1, 2, 4):
        world.ports.log_row(f"imagen.killed.{number}", "failed")
    result = world.run(names, concurrency=1, max_usd=Decimal("0.20"))
    assert len(result.made) == 4
    assert result.usd_spent == Decimal("0.20") == world.ports.billed_usd


def test_requests_presumed_unbilled_keep_their_money_reserved(world):
    """The API's log may show the charge later, so the cap must have room for it."""
    names = [f"p{number}" for number in range(5)]
    for number, prompt in enumerate(names):
        leave_intent(world, prompt, name=f"imagen.killed.{number}")
    result = world.run(names, concurrency=1, max_usd=Decimal("0.28"))
    assert len(result.made) == 2
    assert isinstance(result.abort_reason, BudgetExceededError)
    assert (result.usd_spent, result.usd_in_doubt) == (Decimal("0.08"), Decimal("0.20"))
    assert [request.client_request_id for request in result.in_doubt] == [f"imagen.killed.{n}" for n in range(5)]
    for number in range(5):
        world.ports.charge(f"imagen.killed.{number}", Decimal("0.04"))
    late = world.run(names[:2])
    assert (late.usd_spent, late.usd_in_doubt) == (Decimal("0.28"), Decimal(0))
    assert late.usd_spent == world.ports.billed_usd


def test_a_request_that_was_sent_again_is_still_listed_until_its_outcome_is_known(world):
    """A worker killed between an intent and its POST leaves such a request, which the API's log never shows."""
    leave_intent(world, "a", name="imagen.killed")
    result = world.run(["a"])
    assert [record.prompt for record in result.records] == ["a"]
    (line,) = result.failure_lines()
    assert (line.client_request_id, line.outcome, line.error) == ("imagen.killed", "in_doubt", "LostAnswerError")
    assert (line.inference_id, line.prompt) == (None, "a")


def test_money_in_doubt_is_not_spent_on_other_requests(world):
    leave_intent(world, "a")
    world.ports.log_error = ConnectionFailedError("away")
    result = world.run(world.plan(["a", "b"], price=Decimal("0.04")), max_usd=Decimal("0.08"))
    assert [record.prompt for record in result.records] == ["b"]
    leave_intent(world, "c", name="imagen.killed.c")
    assert world.run(["a", "b", "c"], max_usd=Decimal("0.12")).usd_spent == Decimal("0.04")


def test_a_killed_request_whose_prompt_was_removed_still_counts(world):
    world.ports.charge(leave_intent(world, "gone"), Decimal("0.04"))
    result = world.run("a")
    assert result.usd_spent == world.ports.billed_usd == Decimal("0.08")
    assert result.usd_lost == Decimal("0.04")


def test_a_lost_request_keeps_its_money_reserved_until_it_is_resolved(world, steps):
    """With no known price the first request reserves the whole budget, so nothing else is sent while it is in doubt."""
    world.ports.script("a", steps.loses(billed=True, logged=False))

    def settle() -> None:
        assert world.ports.sent("b") == 0
        world.ports.log_row(world.ports.posts[0][1], "succeeded", Decimal("0.04"))

    timer = threading.Timer(0.4, settle)
    world.ports.before_post = lambda name: None if timer.ident else timer.start()
    plan = world.plan(["a", "b"], price=None)
    result = world.run(plan, max_usd=Decimal("0.05"), lost_answer_patience_seconds=5, concurrency=2)
    assert isinstance(result.failures[0].error, ChargedButLostError)
    assert isinstance(result.abort_reason, BudgetExceededError)
    assert world.ports.sent("b") == 0
    assert result.usd_spent == world.ports.billed_usd == Decimal("0.04")


# --- charges of unknown amount ----------------------------------------------------------------------------------------


def billed_without_amount(world, name):
    """Add a row to the log that says "billed" but not how much."""
    world.ports.rows.append({"client_request_id": name, "status": "succeeded", "inference_id": f"inf-{name}"})


def lose_without_amount(world):
    def step(ports, request, name):
        billed_without_amount(world, name)
        raise LostAnswerError("lost")

    return step


UNPRICED = ["response", "lost response", "unreadable response", "late charge", "replaced response"]


@pytest.fixture(params=UNPRICED)
def unpriced(request, world, steps):
    """Return the plan of a task that is charged an unknown amount, and options for its attempts."""
    plan, options = world.plan(["a", "b"], price=None), {"concurrency": 1}
    unsaid = steps.pictures(usd=Decimal(5), says_cost=False)
    if request.param == "response":
        world.ports.script("a", unsaid)
    elif request.param == "lost response":
        world.ports.script("a", lose_without_amount(world))
    elif request.param == "unreadable response":
        world.ports.script("a", steps.fails(lambda: UnreadableResponseError("what", status=200)))
    elif request.param == "late charge":
        billed_without_amount(world, leave_intent(world, "gone", price=None))
    else:
        options |= {"on_lost_answer": "resend"}
        world.ports.script("a", steps.pictures(usd=Decimal(5), says_cost=False, inline=True), unsaid)
        world.ports.save_error = StorageError("the disk is full")
        world.run(plan, max_usd=Decimal(1), **options)
        world.ports.save_error = None
    return plan, options


def test_a_charge_of_unknown_amount_blocks_sending_under_a_cap_in_this_and_later_attempts(world, unpriced):
    plan, options = unpriced
    for _ in range(3):
        result = world.run(plan, max_usd=Decimal(1), **options)
        assert isinstance(result.abort_reason, BudgetExceededError)
        assert "an unknown amount more may have been charged" in str(result.abort_reason)
        assert len(result.in_doubt) == 1
        assert (result.usd_spent, result.usd_lost) == (0, 0)
    assert world.ports.sent("b") == 0
    assert world.ports.sent("a") <= 1


def test_a_charge_of_unknown_amount_is_reported_with_its_id_by_every_attempt(world, unpriced):
    plan, options = unpriced
    unpriced_ids = set()
    for _ in range(3):
        result = world.run(plan, **options)
        unpriced_ids |= {name for name, usd in world.ports.charges.items() if usd == 5}
        unpriced_ids |= {row["client_request_id"] for row in world.ports.rows if "cost" not in row}
        unpriced_ids |= {name for _, name in world.ports.posts if name not in world.ports.charges}
        assert {request.client_request_id for request in result.in_doubt} == unpriced_ids
        lines = [line.client_request_id for line in result.failure_lines()]
        assert sorted(lines) == sorted(set(lines)) == sorted(unpriced_ids)
        assert result.usd_in_doubt == Decimal("0.04") * len(unpriced_ids)  # the cost of "b"


# --- another API key --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("account", "is_visible"), [("account", True), ("other", False)])
def test_a_request_that_the_log_does_not_show_to_this_key_stays_in_doubt(world, account, is_visible):
    """The log of another key says nothing about it, however long one looks."""
    name = leave_intent(world, "a", account=account)
    result = world.run("a")
    assert (len(result.made), len(world.ports.posts)) == (is_visible, is_visible)
    assert ([request.client_request_id for request in result.in_doubt], result.usd_in_doubt) == (
        [name],
        Decimal("0.04"),
    )
    if not is_visible:
        assert isinstance(result.failures[0].error, LostAnswerError)
        assert world.ports.looks == 0


@pytest.mark.parametrize("on_lost_answer", ["check", "resend", "fail"])
def test_only_resend_pays_again_for_a_request_of_another_key(world, on_lost_answer):
    leave_intent(world, "a", account="other")
    result = world.run("a", on_lost_answer=on_lost_answer)
    assert len(result.made) == (on_lost_answer == "resend")
    assert result.usd_in_doubt == Decimal("0.04")


@pytest.mark.parametrize(("account", "on_lost_answer"), [("other", "check"), (None, "fail")])
def test_nothing_waits_for_money_of_a_request_that_nobody_resolves(world, account, on_lost_answer):
    leave_intent(world, "a", account=account)
    leave_intent(world, "gone", name="imagen.gone", account=account)
    result = world.run(["a", "b"], max_usd=Decimal("0.08"), on_lost_answer=on_lost_answer, concurrency=1)
    assert isinstance(result.abort_reason, BudgetExceededError)
    assert (world.ports.posts, result.usd_in_doubt) == ([], Decimal("0.08"))


# --- attempts that are still alive ------------------------------------------------------------------------------------


def test_a_stop_while_a_killed_request_is_looked_up_leaves_its_money_in_doubt(world):
    name = leave_intent(world, "a", age_seconds=0.1)
    threading.Timer(0.3, world.cancel).start()
    result = world.run("a", lost_answer_patience_seconds=20)
    assert ([request.client_request_id for request in result.in_doubt], result.usd_in_doubt) == (
        [name],
        Decimal("0.04"),
    )
    assert world.ports.posts == []


def test_a_response_that_is_recorded_meanwhile_counts_what_it_brought_no_image_for(world):
    name = leave_intent(world, "a", age_seconds=0.1)
    (unit,) = world.plan("a").requests
    earlier = Journal(world.store)
    earlier.open()

    def record() -> None:
        earlier.append(
            Response(
                key=unit.key,
                client_request_id=name,
                images=(ResponseImage(url="https://cdn.test/late.png"),),
                model=unit.model,
                at=time.time(),
                usd=Decimal("0.08"),
                usd_undelivered=Decimal("0.04"),
            )
        )
        earlier.close()

    threading.Timer(0.3, record).start()
    for reused in (1, 1):
        result = world.run("a", lost_answer_patience_seconds=2.0)
        assert (result.reused, result.usd_spent, result.usd_lost) == (reused, Decimal("0.08"), Decimal("0.04"))
    assert world.ports.posts == []


def test_a_journal_that_is_deleted_during_a_lookup_lets_nothing_be_sent(world):
    """Another attempt has finished, or somebody deleted it: what it said about the request is gone."""
    name = leave_intent(world, "a", age_seconds=0.1)
    threading.Timer(0.3, world.store.texts.clear).start()
    result = world.run("a", lost_answer_patience_seconds=1.5)
    assert isinstance(result.abort_reason, OwnershipLostError)
    assert (world.ports.posts, result.made) == ([], [])
    assert [request.client_request_id for request in result.in_doubt] == [name]
