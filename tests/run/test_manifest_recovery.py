from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from airflow_provider_imagen.image_record import ManifestLine, ResponseImage, StoredFile, read_record
from airflow_provider_imagen.journal.records import (
    Intent,
    JournalState,
    PresumedUnbilled,
    Response,
    Target,
    WriteCommitted,
    decode_record,
    encode_record,
)
from airflow_provider_imagen.journal.url_encryption import UrlEncryption
from airflow_provider_imagen.run.manifest_recovery import missed_records

ENCRYPTION = UrlEncryption("key")
SIGNED = "https://cdn.test/a.png?Expires=1&Signature=hush"

LINE = {
    "client_request_id": "r1",
    "image_index": 0,
    "url": None,
    "enhanced_prompt": None,
    "seed": None,
    "usd": 0.04,
    "inference_id": "inf",
    "model": "m",
    "created_at": "2026-11-27T12:00:00+00:00",
    "path": "/out/0.png",
    "file_name": "0.png",
    "sha256": "0" * 64,
    "bytes": 1,
    "mime_type": "image/png",
    "width": 1,
    "height": 1,
    "thumbnail": None,
}


def line(place: int = 0, **fields: Any) -> dict[str, Any]:
    return {**LINE, "image_index": place, "path": f"/out/{place}.png", "file_name": f"{place}.png", **fields}


def stored(place: int = 0) -> StoredFile:
    return StoredFile(
        path=f"/out/{place}.png",
        file_name=f"{place}.png",
        sha256="0" * 64,
        bytes=1,
        mime_type="image/png",
        width=1,
        height=1,
    )


def intent(name: str = "r1", *, key: str = "a#1", images: int = 1, first_image: int = 0) -> Intent:
    target = Target(
        prompt_index=0, image_index=first_image, images=images, prompt_images=first_image + images, prompt="a cat"
    )
    return Intent(key=key, client_request_id=name, model="m", at=1.0, target=target)


def missed(lines: list[dict[str, Any]], *journal: Any) -> list[Any]:
    state = JournalState()
    for record in journal or (intent(),):
        state.apply(record)
    return missed_records(
        state.requests,
        lines=[read for each in lines if (read := read_record(ManifestLine, each)) is not None],
        encryption=ENCRYPTION,
    )


def test_a_response_whose_image_the_manifest_lists_is_known():
    assert missed([LINE]) == [
        Response(
            key="a#1",
            client_request_id="r1",
            images=(ResponseImage(),),
            model="m",
            at=1795780800.0,
            usd=Decimal("0.04"),
            usd_is_estimate=True,
            inference_id="inf",
        ),
        WriteCommitted(key="a#1", image=0, file=stored()),
    ]


@pytest.mark.parametrize("images", [1, 3])
def test_an_image_listed_twice_is_one_image(images):
    lines = [line(place) for place in range(images)]
    assert missed([*lines, *reversed(lines)], intent(images=images)) == missed(lines, intent(images=images)) != []


def test_images_listed_twice_do_not_replace_missing_ones():
    assert missed([line(0), line(0), line(1), line(1)], intent(images=4)) == []


def test_a_recovered_request_is_no_longer_in_doubt():
    state = JournalState()
    for record in (intent(), *missed([LINE])):
        state.apply(record)
    assert state.all_unresolved() == {}
    assert state.requests["a#1"].files == {0: stored()}
    assert state.requests["a#1"].usd_spent == Decimal("0.04")


def test_the_details_of_an_image_are_kept_and_its_signed_url_is_encrypted():
    (answered, _) = missed([line(url=SIGNED, enhanced_prompt="two cats", seed=7, thumbnail=".imagen/t.webp")])
    (image,) = answered.images
    assert (image.prompt, image.seed) == ("two cats", 7)
    assert "hush" not in image.url
    assert ENCRYPTION.decrypt(image.url) == SIGNED


def test_images_of_one_response_keep_their_order_and_their_costs_add_up():
    first = intent(images=2, first_image=2)
    answered, *writes = missed([line(3, usd=0.03, seed=3), line(2, seed=2)], first)
    assert [image.seed for image in answered.images] == [2, 3]
    assert answered.usd == Decimal("0.07")
    assert writes == [WriteCommitted(key="a#1", image=place, file=stored(2 + place)) for place in (0, 1)]


def test_a_cost_missing_from_one_line_is_unknown():
    answered, *_ = missed([line(0, usd=None), line(1)], intent(images=2))
    assert answered.usd is None


def test_a_request_with_a_wrong_number_of_listed_images_stays_in_doubt():
    assert missed([line(1)], intent(images=2)) == []
    assert missed([line(0), line(1), line(2)], intent(images=2)) == []


def test_an_image_of_a_recorded_response_that_was_stored_without_a_record_is_found():
    answered = Response(key="a#1", client_request_id="r1", images=(ResponseImage(),), model="m", at=1.0)
    (record,) = missed([LINE], intent(), answered)
    assert isinstance(record, WriteCommitted)
    assert (record.image, record.file.file_name) == (0, LINE["file_name"])
    assert missed([LINE], intent(), answered, record) == []
    assert missed([line(image_index=1)], intent(), answered) == []


def test_only_requests_unresolved_in_the_journal_are_recovered():
    assert missed([LINE], intent("r2")) == []
    assert missed([], intent()) == []
    assert missed([line(client_request_id=None)], intent()) == []


def test_one_listed_post_of_a_request_is_enough():
    assert [record.key for record in missed([LINE], intent("r0"), intent("r1"), intent("r2"))] == ["a#1"] * 2
    two = missed([LINE, line(client_request_id="r2")], intent("r1"), intent("r2", key="b#1"))
    assert [record.key for record in two] == ["a#1", "a#1", "b#1", "b#1"]


def test_of_two_posts_that_the_manifest_lists_the_first_has_the_response_and_the_other_stays_in_doubt():
    """Both were charged; what became of the second one is looked up in the API's log."""
    state = JournalState()
    posts = intent("r1"), intent("r2")
    for record in (*posts, *missed([LINE, line(client_request_id="r2")], *posts)):
        state.apply(record)
    assert state.requests["a#1"].response.client_request_id == "r1"
    assert list(state.all_unresolved()) == ["r2"]


@pytest.mark.parametrize("first_has_all", [True, False])
def test_a_recorded_response_does_not_hide_the_requests_after_it(first_has_all):
    done = [intent(), Response(key="a#1", client_request_id="r1", images=(ResponseImage(),), model="m", at=1.0)]
    written = [WriteCommitted(key="a#1", image=0, file=stored())] if first_has_all else []
    lines = [LINE, line(client_request_id="r2"), line(client_request_id="r3")]
    recovered = missed(lines, *done, *written, intent("r2", key="b#1"), intent("r3", key="c#1"))
    assert [record.key for record in recovered] == ["a#1"] * (not first_has_all) + ["b#1"] * 2 + ["c#1"] * 2


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_edited_line_hides_no_other_at_any_position(place):
    lines = [LINE, line(client_request_id="r2")]
    lines.insert(place, line(client_request_id="r3", width="wide"))
    recovered = missed(lines, intent(), intent("r2", key="b#1"), intent("r3", key="c#1"))
    assert [record.key for record in recovered] == ["a#1"] * 2 + ["b#1"] * 2


def test_a_recovered_signed_url_is_readable_by_every_later_attempt():
    """The second attempt records it encrypted, as the first one would have; a third one reads it back."""
    state = JournalState()
    for record in (intent(), *missed([line(url=SIGNED)])):
        state.apply(decode_record(encode_record(record)))
    for _ in range(2):
        assert missed_records(state.requests, lines=[ManifestLine(**line(url=SIGNED))], encryption=ENCRYPTION) == []
        (image,) = state.requests["a#1"].response.images
        assert ENCRYPTION.decrypt(image.url) == SIGNED
        assert "hush" not in image.url


def test_a_request_presumed_unbilled_is_not_recovered():
    """It may have been sent again already."""
    assert missed([LINE], intent(), PresumedUnbilled(key="a#1", client_request_id="r1")) == []


@pytest.mark.parametrize("key", sorted(LINE))
def test_a_line_needs_only_the_mandatory_fields(key):
    """A user may have removed some of its fields."""
    found = missed([{name: value for name, value in LINE.items() if name != key}])
    is_optional = key in ("url", "enhanced_prompt", "seed", "usd", "inference_id", "thumbnail")
    assert len(found) == (2 if is_optional else 0)


def test_a_line_with_invalid_values_recovers_no_unreadable_record():
    """What is recovered goes into the journal, and a record of a wrong type would make all of it unreadable."""
    wrong = {}
    edits = [(key, value) for key in sorted(LINE) for value in (["edited"], {"by": "hand"}, True)]
    dates = ("yesterday", "1969-12-31T23:59:59+00:00", "0001-01-01T00:00:00", "9999-12-31T23:59:59+00:00")
    texts = [("usd", "much"), ("url", "https://cdn.test/a.png?sig=\ud800"), *(("created_at", date) for date in dates)]
    for key, value in [*edits, *texts]:
        try:
            for record in missed([{**LINE, key: value}]):
                assert decode_record(encode_record(record)) == record
        except Exception as error:
            wrong[f"{key}: {value}"] = repr(error)
    assert wrong == {}


@pytest.mark.parametrize("created_at", ["2026-11-27T12:00:00Z", "2026-11-27T12:00:00", "2026-11-27", "2026-W48-5"])
def test_any_date_in_iso_8601_is_enough(created_at):
    response, _ = missed([line(created_at=created_at)], intent())
    assert decode_record(encode_record(response)) == response


@pytest.mark.parametrize("edit", [{"width": -1}, {"bytes": 1.0}, {"client_request_id": ""}, {"sha256": None}])
def test_a_line_whose_file_or_request_was_edited_recovers_nothing(edit):
    assert missed([line(**edit)], intent()) == []
