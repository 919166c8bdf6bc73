"""Resolutions of requests in doubt, added to a journal from outside, without taking it over."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from airflow_provider_imagen.exceptions import JournalError
from airflow_provider_imagen.image_record import ResponseImage
from airflow_provider_imagen.journal.log import HEADER, Journal, annotate_journal, read_journal
from airflow_provider_imagen.journal.records import (
    ChargeLost,
    Intent,
    PresumedUnbilled,
    Rejected,
    Response,
    Target,
    new_intent,
)

pytestmark = pytest.mark.timeout(60)

TARGET = Target(prompt_index=0, image_index=0, images=1, prompt_images=1, prompt="a cat")


def opened(store: Any) -> Journal:
    journal = Journal(store, try_number=1)
    journal.open()
    return journal


def intent(name: str, key: str = "a#1") -> Intent:
    return new_intent(key, client_request_id=name, model="m", usd=Decimal("0.04"), target=TARGET)


def response(name: str, key: str = "a#1") -> Response:
    return Response(key=key, client_request_id=name, images=(ResponseImage(url="https://x/y"),), model="m", at=1.0)


def rejected(name: str, key: str = "a#1") -> Rejected:
    return Rejected(key=key, client_request_id=name)


def lost(name: str, key: str = "a#1") -> ChargeLost:
    return ChargeLost(key=key, client_request_id=name, usd=Decimal("0.04"))


def finished(store: Any, *records: Any) -> None:
    journal = opened(store)
    for record in records:
        journal.commit(record)
    journal.close()
    journal.finish()


def test_the_next_attempt_knows_the_resolutions_of_in_doubt_requests(memory_store):
    journal = opened(memory_store)
    for name in ("r1", "r2", "r3"):
        journal.commit(intent(name))
    journal.close()
    annotate_journal(memory_store, [rejected("r1"), lost("r2")])
    later = opened(memory_store)
    assert later.unresolved.keys() == {"r3"}
    assert later.state.requests["a#1"].charges_lost.keys() == {"r2"}
    assert later.state.requests["a#1"].usd_lost == Decimal("0.04")


def test_annotating_does_not_take_the_journal_over(memory_store):
    journal = opened(memory_store)
    journal.commit(intent("r1"))
    annotate_journal(memory_store, [rejected("r1")])
    assert json.loads(memory_store.texts[HEADER])["owner"] == journal.owner
    journal.commit(intent("r2"))
    journal.commit(response("r2"))
    journal.confirm_ownership(max_age_seconds=0)
    journal.close()
    assert read_journal(memory_store).all_unresolved() == {}


def test_the_owner_deletes_the_journal_if_annotations_resolved_every_request(memory_store):
    opened(memory_store).commit(intent("r1"))
    journal = opened(memory_store)
    annotate_journal(memory_store, [rejected("r1")])
    journal.close()
    journal.finish()
    assert memory_store.texts == {}


@pytest.mark.parametrize("outcome", [rejected("r1"), lost("r1")])
def test_the_journal_of_a_finished_task_is_deleted_once_nothing_in_it_is_unresolved(memory_store, outcome):
    finished(memory_store, intent("r1"), PresumedUnbilled(key="a#1", client_request_id="r1"), intent("r2", "b#1"))
    annotate_journal(memory_store, [outcome])
    assert read_journal(memory_store).all_unresolved().keys() == {"r2"}
    annotate_journal(memory_store, [rejected("r2", "b#1")])
    assert memory_store.texts == {}


def test_a_segment_that_its_owner_stored_but_did_not_count_is_deleted_as_well(memory_store):
    """The owner died between writing it and counting it."""
    finished(memory_store, intent("r1"), PresumedUnbilled(key="a#1", client_request_id="r1"))
    owner = json.loads(memory_store.texts[HEADER])["owners"][0]
    memory_store.texts[f"{owner}/1"] = memory_store.texts[f"{owner}/0"]
    annotate_journal(memory_store, [rejected("r1")])
    assert memory_store.texts == {}


def test_the_journal_of_an_unfinished_task_stays(memory_store):
    journal = opened(memory_store)
    for record in (intent("r1"), response("r1"), intent("r2", "b#1")):
        journal.commit(record)
    journal.close()
    annotate_journal(memory_store, [rejected("r2", "b#1")])
    state = read_journal(memory_store)
    assert state.all_unresolved() == {}
    assert state.requests["a#1"].response == response("r1")


def test_a_response_that_turns_up_after_its_charge_was_recorded_as_lost_is_used(memory_store):
    journal = opened(memory_store)
    journal.commit(intent("r1"))
    annotate_journal(memory_store, [lost("r1")])
    journal.commit(response("r1"))
    journal.close()
    request = read_journal(memory_store).requests["a#1"]
    assert request.response == response("r1")
    assert request.charges_lost == {}


def test_interrupted_annotating_leaves_the_journal_unchanged(memory_store):
    finished(memory_store, intent("r1"))
    header = memory_store.texts[HEADER]

    def killed(name: str, text: str) -> None:
        if name == HEADER:
            raise KeyboardInterrupt

    memory_store.on_write = killed
    with pytest.raises(KeyboardInterrupt):
        annotate_journal(memory_store, [rejected("r1")])
    assert memory_store.texts[HEADER] == header
    assert read_journal(memory_store).all_unresolved().keys() == {"r1"}


def test_annotating_with_nothing_changes_nothing(memory_store):
    finished(memory_store, intent("r1"))
    before = dict(memory_store.texts)
    annotate_journal(memory_store, [])
    assert memory_store.texts == before


def test_annotating_creates_no_journal(memory_store):
    annotate_journal(memory_store, [rejected("r1")])
    assert memory_store.texts == {}


@pytest.mark.parametrize("header", ["{", '{"version":3}', '{"k":"a#1","t":"intent","id":"r1","model":"m","at":1.0}\n'])
def test_an_untrustworthy_journal_is_left_unchanged(memory_store, header):
    memory_store.texts = {HEADER: header}
    with pytest.raises(JournalError):
        annotate_journal(memory_store, [rejected("r1")])
    assert memory_store.texts == {HEADER: header}
