from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from airflow_provider_imagen.image_record import ResponseImage, StoredFile
from airflow_provider_imagen.journal.records import (
    ChargeLost,
    Finished,
    Intent,
    JournalState,
    Missing,
    PresumedUnbilled,
    Rejected,
    RequestState,
    Response,
    Target,
    WriteCommitted,
    WriteStarted,
    decode_record,
    encode_record,
    new_intent,
)

CENT = Decimal("0.01")

FILE = StoredFile(
    path="s3://c@b/a.png", file_name="a.png", sha256="0f", bytes=9, mime_type="image/png", width=2, height=3
)

FORMAT_2 = {
    '{"t":"intent","client_request_id":"r","model":"m","at":1.5,"target":{"prompt_index":1,"image_index":2,"images":3,'
    '"prompt_images":5,"prompt":"a cat","name":"cat"},"usd":"0.04","clock_offset":-0.5,"key":"k#1"}': Intent(
        key="k#1",
        client_request_id="r",
        model="m",
        at=1.5,
        target=Target(prompt_index=1, image_index=2, images=3, prompt_images=5, prompt="a cat", name="cat"),
        usd=Decimal("0.04"),
        clock_offset=-0.5,
    ),
    '{"t":"intent","client_request_id":"r","model":"m","at":1.5,"target":{"prompt_index":1,"image_index":2,"images":3,'
    '"prompt_images":5,"prompt":""},"key":"k#1"}': Intent(
        key="k#1",
        client_request_id="r",
        model="m",
        at=1.5,
        target=Target(prompt_index=1, image_index=2, images=3, prompt_images=5, prompt=""),
    ),
    '{"t":"rejected","client_request_id":"r","key":"k#1"}': Rejected(key="k#1", client_request_id="r"),
    '{"t":"response","client_request_id":"r","images":[{"url":"https://x/y","prompt":"two cats","seed":7},'
    '{"withheld":true},{"broken":"no base64"},{}],"model":"m","at":2.5,"usd":"0.04","usd_is_estimate":true,'
    '"usd_undelivered":"0.01","inference_id":"i","key":"k#1"}': Response(
        key="k#1",
        client_request_id="r",
        images=(
            ResponseImage(url="https://x/y", prompt="two cats", seed=7),
            ResponseImage(withheld=True),
            ResponseImage(broken="no base64"),
            ResponseImage(),
        ),
        model="m",
        at=2.5,
        usd=Decimal("0.04"),
        usd_is_estimate=True,
        usd_undelivered=CENT,
        inference_id="i",
    ),
    '{"t":"write_started","image":0,"file":{"path":"s3://c@b/a.png","file_name":"a.png","sha256":"0f","bytes":9,'
    '"mime_type":"image/png","width":2,"height":3},"key":"k#1"}': WriteStarted(key="k#1", image=0, file=FILE),
    '{"t":"write_committed","image":0,"file":{"path":"s3://c@b/a.png","file_name":"a.png","sha256":"0f","bytes":9,'
    '"mime_type":"image/png","width":2,"height":3},"key":"k#1"}': WriteCommitted(key="k#1", image=0, file=FILE),
    '{"t":"missing","image":0,"key":"k#1"}': Missing(key="k#1", image=0),
    '{"t":"charge_lost","client_request_id":"r","usd":"0.04","inference_id":"i","key":"k#1"}': ChargeLost(
        key="k#1", client_request_id="r", usd=Decimal("0.04"), inference_id="i"
    ),
    '{"t":"presumed_unbilled","client_request_id":"r","key":"k#1"}': PresumedUnbilled(key="k#1", client_request_id="r"),
    '{"t":"finished"}': Finished(),
}
"""What records of format 2 look like in a store; a journal may outlive the release that wrote it."""


def intent(key: str = "a#1", name: str = "r1", *, images: int = 1) -> Intent:
    target = Target(prompt_index=0, image_index=0, images=images, prompt_images=images, prompt="a cat")
    return new_intent(key, client_request_id=name, model="m", usd=4 * CENT, target=target)


def response(key: str = "a#1", name: str = "r1", **fields: Any) -> Response:
    defaults = {"images": (ResponseImage(url="https://x/y"),), "usd": 4 * CENT}
    return Response(key=key, client_request_id=name, model="m", at=1.0, **{**defaults, **fields})


def lost(key: str = "a#1", name: str = "r1", usd: Decimal | None = 4 * CENT) -> ChargeLost:
    return ChargeLost(key=key, client_request_id=name, usd=usd)


def replay(*records: Any) -> JournalState:
    state = JournalState()
    for record in records:
        state.apply(record)
    return state


def request(*records: Any) -> RequestState:
    return replay(*records).requests["a#1"]


# --- lines ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", FORMAT_2, ids=lambda line: line.split('"')[3])
def test_a_record_of_format_2_is_read_and_written_unchanged(line):
    assert decode_record(line) == FORMAT_2[line]
    assert encode_record(FORMAT_2[line]) == line


@given(st.text(st.characters()) | st.sampled_from(["\ud800", "a\udfffb", "\u2028\n\r\t\0", "\x85"]))
def test_a_record_is_one_line_of_ascii_whatever_its_content(text):
    record = Intent(
        key=text,
        client_request_id=text,
        model=text,
        at=1.0,
        target=Target(prompt_index=0, image_index=0, images=1, prompt_images=1, prompt=text, name=text),
    )
    line = encode_record(record)
    assert line.isascii()
    assert len(line.splitlines()) == 1
    assert decode_record(line) == record


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "null",
        "[]",
        '"text"',
        "{}",
        '{"key":"a#1"}',
        '{"t":"intent","key":"a#1"}',
        '{"t":"refunded","key":"a#1"}',
        '{"t":"rejected","key":"a#1","client_request_id":"r","because":"new"}',
        '{"t":"rejected","key":1,"client_request_id":"r"}',
        '{"t":"missing","key":"a#1","image":"0"}',
        '{"t":"charge_lost","key":"a#1","client_request_id":"r","usd":"much"}',
        '{"t":"response","key":"a#1","client_request_id":"r","images":[{"bogus":1}],"model":"m","at":1}',
        '{"t":"write_committed","key":"a#1","image":0}',
        '{"t":"finished","when":1}',
        "[" * 100_000,
        '{"t":"missing","key":"a#1","image":' + "9" * 5000 + "}",
    ],
    ids=lambda line: line[:60],
)
def test_an_unknown_type_or_field_or_value_is_an_error_rather_than_skipped(line):
    with pytest.raises(ValueError):  # noqa: PT011 - whatever its message
        decode_record(line)


# --- one request ------------------------------------------------------------------------------------------------------


def test_a_post_without_a_known_outcome_is_open_and_unresolved():
    state = request(intent(name="r1"), intent(name="r2"))
    assert list(state.open_intents) == list(state.unresolved) == ["r1", "r2"]
    assert state.target == intent().target


@pytest.mark.parametrize("outcome", [Rejected(key="a#1", client_request_id="r1"), response(), lost()])
def test_a_post_whose_outcome_is_known_is_resolved(outcome):
    assert request(intent(), outcome).unresolved == {}
    presumed = PresumedUnbilled(key="a#1", client_request_id="r1")
    assert request(intent(), presumed, outcome).unresolved == {}


def test_a_post_presumed_unbilled_may_be_sent_again_and_stays_unresolved():
    presumed = PresumedUnbilled(key="a#1", client_request_id="r1")
    state = request(intent(), presumed, presumed, intent(name="r2"))
    assert list(state.open_intents) == ["r2"]
    assert list(state.presumed_unbilled) == ["r1"]
    assert state.unresolved.keys() == {"r1", "r2"}
    assert state.usd_spent == 0


def test_a_late_charge_of_a_request_presumed_unbilled_is_lost_money():
    state = request(intent(), PresumedUnbilled(key="a#1", client_request_id="r1"), lost())
    assert state.presumed_unbilled == {}
    assert state.charges_lost == {"r1": lost()}
    assert (state.usd_spent, state.usd_lost) == (4 * CENT, 4 * CENT)


def test_a_late_response_to_a_request_presumed_unbilled_is_used():
    """An attempt that lost the journal still records what it receives."""
    state = request(intent(), response(), PresumedUnbilled(key="a#1", client_request_id="r1"))
    assert state.response == response()
    assert state.unresolved == {}
    assert (state.usd_spent, state.usd_lost) == (4 * CENT, 0)


@pytest.mark.parametrize("records", [(response(), lost()), (lost(), response())])
def test_a_lost_charge_whose_response_is_recorded_counts_once(records):
    """The previous owner may record its response after the next one has given up on it."""
    assert request(intent(), *records).usd_spent == 4 * CENT


def test_a_charge_of_unknown_amount_is_lost_and_adds_nothing():
    state = request(intent(), lost(usd=None))
    assert state.charges_lost.keys() == {"r1"}
    assert (state.usd_spent, state.usd_lost) == (0, 0)


def test_money_for_undelivered_images_is_lost():
    state = request(intent(images=2), response(usd=8 * CENT, usd_undelivered=4 * CENT))
    assert (state.usd_missing, state.usd_lost, state.usd_spent) == (4 * CENT, 4 * CENT, 8 * CENT)
    assert state.response is not None
    assert state.response.usd_per_image == 4 * CENT


def test_money_for_a_missing_image_is_lost_until_the_image_is_found_again():
    images = (ResponseImage(url="https://x/0"), ResponseImage(url="https://x/1"))
    delivered = (intent(images=3), response(images=images, usd=9 * CENT, usd_undelivered=3 * CENT))
    gone = (WriteCommitted(key="a#1", image=1, file=FILE), Missing(key="a#1", image=1))
    assert request(*delivered).usd_missing == 3 * CENT
    missing = request(*delivered, *gone)
    assert (missing.missing, missing.files) == ({1}, {})
    assert (missing.usd_missing, missing.usd_lost, missing.usd_spent) == (6 * CENT, 6 * CENT, 9 * CENT)
    found = request(*delivered, *gone, WriteCommitted(key="a#1", image=1, file=FILE))
    assert (found.missing, found.files) == (frozenset(), {1: FILE})
    assert (found.usd_missing, found.usd_spent) == (3 * CENT, 9 * CENT)


def test_a_response_without_images_has_no_price_per_image():
    empty = response(images=(), usd_undelivered=4 * CENT)
    assert empty.usd_per_image is None
    assert (request(intent(), empty).usd_lost, request(intent(), empty).usd_spent) == (4 * CENT, 4 * CENT)


def test_a_response_of_unknown_cost_adds_nothing():
    state = request(intent(), response(usd=None), Missing(key="a#1", image=0))
    assert (state.usd_spent, state.usd_missing, state.usd_lost) == (0, 0, 0)


def test_a_second_response_turns_the_full_cost_of_the_first_into_lost_money():
    state = request(
        intent(),
        response(),
        WriteStarted(key="a#1", image=0, file=FILE),
        Missing(key="a#1", image=0),
        intent(name="r2"),
        response(name="r2", usd=5 * CENT),
    )
    assert state.response is not None
    assert state.response.client_request_id == "r2"
    assert (state.files, state.writes_started, state.missing) == ({}, frozenset(), frozenset())
    assert (state.usd_replaced, state.usd_missing) == (4 * CENT, 0)
    assert (state.usd_lost, state.usd_spent) == (4 * CENT, 9 * CENT)


def test_a_response_recorded_twice_costs_once():
    state = request(intent(), response(), WriteCommitted(key="a#1", image=0, file=FILE), response())
    assert (state.usd_spent, state.usd_lost) == (4 * CENT, 0)
    assert state.files == {0: FILE}


def test_a_started_write_is_distinct_from_a_committed_one():
    started = WriteStarted(key="a#1", image=0, file=FILE)
    begun = request(intent(), response(), started)
    assert (begun.files, begun.writes_started) == ({0: FILE}, {0})
    done = request(intent(), response(), started, WriteCommitted(key="a#1", image=0, file=FILE))
    assert (done.files, done.writes_started) == ({0: FILE}, frozenset())


@dataclass
class Inline:
    image: ResponseImage
    records: tuple[Any, ...]
    is_unreachable: bool


@pytest.mark.parametrize(
    "case",
    [
        Inline(ResponseImage(), (), is_unreachable=True),
        Inline(ResponseImage(), (WriteStarted(key="a#1", image=0, file=FILE),), is_unreachable=False),
        Inline(ResponseImage(), (WriteCommitted(key="a#1", image=0, file=FILE),), is_unreachable=False),
        Inline(
            ResponseImage(),
            (WriteStarted(key="a#1", image=0, file=FILE), Missing(key="a#1", image=0)),
            is_unreachable=True,
        ),
        Inline(ResponseImage(url="https://x/y"), (), is_unreachable=False),
        Inline(ResponseImage(withheld=True), (), is_unreachable=False),
        Inline(ResponseImage(broken="no base64"), (), is_unreachable=False),
    ],
    ids=repr,
)
def test_only_an_inline_image_whose_write_did_not_start_is_unreachable(case):
    state = request(intent(), response(images=(case.image,)), *case.records)
    assert state.has_unreachable_images is case.is_unreachable


# --- all requests -----------------------------------------------------------------------------------------------------


def test_images_are_numbered_within_their_prompt_with_surplus_ones_last():
    target = Target(prompt_index=0, image_index=2, images=2, prompt_images=6, prompt="a cat")
    assert [target.index_of(place) for place in range(5)] == [2, 3, 8, 9, 14]


def test_requests_are_in_the_order_they_were_first_sent():
    state = replay(intent("b#1", "r1"), intent("a#1", "r2"), response("a#1", "r2"), intent("b#1", "r3"))
    assert list(state.requests) == ["b#1", "a#1"]
    assert state.all_unresolved().keys() == {"r1", "r3"}


def test_after_the_end_of_a_task_only_its_unresolved_requests_matter():
    state = replay(
        intent("a#1", "r1"),
        response("a#1", "r1"),
        intent("b#1", "r2"),
        intent("c#1", "r3"),
        PresumedUnbilled(key="c#1", client_request_id="r3"),
        Finished(),
    )
    assert state.requests == {}
    assert state.unresolved.keys() == state.all_unresolved().keys() == {"r2", "r3"}
    again = replay(intent("b#1", "r2"), Finished(), intent("b#1", "r4"), Finished(), intent("a#1", "r5"))
    assert again.requests.keys() == {"a#1"}
    assert again.all_unresolved().keys() == {"r2", "r4", "r5"}


@pytest.mark.parametrize("outcome", [Rejected(key="a#1", client_request_id="r1"), lost()])
def test_a_request_of_a_finished_task_is_resolved_by_its_outcome(outcome):
    state = replay(intent(), Finished(), outcome)
    assert state.all_unresolved() == {}
    assert state.requests == {}


@pytest.mark.parametrize("outcome", [Rejected(key="a#1", client_request_id="r1"), lost()])
def test_a_request_of_a_finished_task_is_resolved_even_if_the_cleared_task_sends_it_again(outcome):
    state = replay(intent(), Finished(), intent(name="r2"), outcome)
    assert state.all_unresolved().keys() == {"r2"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("usd", "1E+999999999"),
        ("usd", "NaN"),
        ("usd", "-1"),
        ("usd", "Infinity"),
        ("at", float("inf")),
        ("at", float("nan")),
        ("at", -1),
        ("at", 1e300),
        ("clock_offset", 1e300),
        ("target.images", 10**9),
        ("target.images", -1),
        ("target.image_index", 10**30),
    ],
)
def test_an_invalid_number_is_rejected(field, value):
    record = {
        "t": "intent",
        "key": "a#1",
        "client_request_id": "r",
        "model": "m",
        "at": 1.0,
        "usd": "0.04",
        "target": {"prompt_index": 0, "image_index": 0, "images": 1, "prompt_images": 1, "prompt": "a"},
    }
    decode_record(json.dumps(record))
    *place, name = field.split(".")
    (record[place[0]] if place else record)[name] = value
    with pytest.raises(ValueError, match=f"{name}|is no number"):
        decode_record(json.dumps(record))


def test_a_file_of_any_size_in_pixels_round_trips():
    file = StoredFile("/a.png", "a.png", "0" * 64, 10, "image/png", 1_500_000, 1)
    record = WriteCommitted(key="k", image=0, file=file)
    assert decode_record(encode_record(record)) == record


# --- what later attempts rely on --------------------------------------------------------------------------------------


def test_a_request_is_visible_only_to_the_key_that_sent_it_or_to_any_if_that_is_unknown():
    assert replace(intent(), account="mine").is_visible_to("mine")
    assert not replace(intent(), account="mine").is_visible_to("another")
    assert intent().is_visible_to("another")


def test_an_image_that_went_missing_is_no_longer_being_written():
    state = request(intent(), response(), WriteStarted(key="a#1", image=0, file=FILE), Missing(key="a#1", image=0))
    assert state.writes_started == frozenset()


def test_a_charge_is_unpriced_until_a_record_states_its_amount():
    assert request(intent(), lost(usd=None)).unpriced.keys() == {"r1"}
    assert request(intent(), lost(usd=None), response()).unpriced == {}


def test_only_delivered_images_without_a_file_remain_to_be_stored():
    images = (
        ResponseImage(url="https://x/0"),
        ResponseImage(url="https://x/1"),
        ResponseImage(withheld=True),
        ResponseImage(broken="no base64"),
        ResponseImage(),
    )
    received = (intent(images=5), response(images=images))
    assert request(intent()).positions_without_file == []
    assert request(*received, WriteCommitted(key="a#1", image=1, file=FILE)).positions_without_file == [0, 4]


def test_a_journal_has_loose_ends_until_every_request_is_resolved_and_every_image_stored():
    stored = WriteCommitted(key="a#1", image=0, file=FILE)
    assert not replay().has_loose_ends
    assert replay(intent()).has_loose_ends
    assert replay(intent(), response()).has_loose_ends
    assert not replay(intent(), response(), stored).has_loose_ends
    assert replay(intent(), response(), stored, intent("b#1", "r2")).has_loose_ends
