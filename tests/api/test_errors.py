from __future__ import annotations

import functools
import json
import pickle
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_imagen.api.errors import error_for, read_error_body, read_retry_after
from airflow_provider_imagen.exceptions import (
    AuthenticationError,
    ConnectionFailedError,
    ImagenError,
    InvalidRequestError,
    LostAnswerError,
    ModelWithdrawnError,
    OutOfCreditsError,
    RateLimitedError,
    ServerError,
)

KEY = "feedc0de" + "9" * 24
NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


def plain_body(status, message="why", **more):
    return json.dumps({"requestId": "req-1", "statusCode": status, "path": "/v1", "message": message, **more}).encode()


def problem_body(status, message="why", kind="err_x"):
    error = {"name": "SomeException", "message": message, "data": {"kind": kind}}
    return json.dumps(
        {"title": "T", "status": status, "message": message, "requestId": "req-1", "error": error}
    ).encode()


def make_error(status, body=b"", headers=None, **facts):
    return error_for(status=status, headers=headers or {}, body=body, now=NOW, **{"model": "m-1", **facts})


@pytest.mark.parametrize("make", [plain_body, problem_body])
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidRequestError),
        (401, AuthenticationError),
        (402, OutOfCreditsError),
        (403, AuthenticationError),
        (404, ModelWithdrawnError),
        (408, LostAnswerError),
        (409, InvalidRequestError),
        (413, InvalidRequestError),
        (422, InvalidRequestError),
        (429, RateLimitedError),
        (500, ServerError),
        (502, ServerError),
        (503, ServerError),
        (504, LostAnswerError),
        (524, LostAnswerError),
    ],
)
def test_each_status_in_the_apis_envelope_has_its_error(make, status, kind):
    error = make_error(status, make(status), {"X-Inference-Id": "inf-1"}, client_request_id="c-1")

    assert type(error) is kind
    assert (error.status, error.request_id, error.inference_id) == (status, "req-1", "inf-1")
    assert (error.client_request_id, error.model) == ("c-1", "m-1")
    assert error.kind == ("err_x" if make is problem_body else None)


@pytest.mark.parametrize("body", [b"", b"<html>", b"null", b'{"message": "bad gateway"}', b'{"statusCode": 500}'])
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (302, InvalidRequestError),
        (400, InvalidRequestError),
        (401, AuthenticationError),
        (403, AuthenticationError),
        (404, InvalidRequestError),
        (407, ConnectionFailedError),
        (429, RateLimitedError),
        (500, LostAnswerError),
        (502, LostAnswerError),
        (503, LostAnswerError),
        (599, LostAnswerError),
    ],
)
def test_each_status_from_a_gateway_has_its_error(body, status, kind):
    error = make_error(status, body)

    assert type(error) is kind
    assert error.status == status


@pytest.mark.parametrize("kind", ["err_insufficent_credits", "err_insufficient_credits"])
def test_an_out_of_credits_403_is_recognized_by_its_kind_not_its_message(kind):
    assert type(make_error(403, problem_body(403, "anything", kind))) is OutOfCreditsError
    assert type(make_error(403, problem_body(403, "you ran out of credits", "err_scope"))) is AuthenticationError


def test_a_404_without_a_model_is_an_invalid_request():
    assert type(make_error(404, plain_body(404), model=None)) is InvalidRequestError


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("400 Invalid value: 'seed'", InvalidRequestError),
        ("Error: 422 blocked", InvalidRequestError),
        ('{"message": "400 Invalid value"}', InvalidRequestError),
        (["400 first", "second"], InvalidRequestError),
        ("404 model not found", ModelWithdrawnError),
        ("429 quota", ServerError),
        ("408 timeout", ServerError),
        ("500 internal", ServerError),
        ("4000 characters are too many", ServerError),
        ("It failed after 400 ms", ServerError),
        ("", ServerError),
    ],
)
def test_a_rejection_by_the_upstream_service_is_found_inside_a_500(words, kind):
    assert type(make_error(500, problem_body(500, words))) is kind


def test_every_field_error_is_listed_and_the_first_gives_the_errors_field():
    meta = {
        "_errors": ["not about a field"],
        "image_size": {"_errors": [], "width": {"_errors": ["too wide", 7]}},
        "seed": {"_errors": ["no number"]},
        "odd": "leaf",
    }

    error = make_error(400, plain_body(400, "Body validation error!", meta=meta))

    assert error.field == "image_size.width"
    assert str(error).endswith("Body validation error! (image_size.width: too wide; seed: no number).")


def test_an_error_without_a_reason_says_so():
    assert str(make_error(400)) == "The API rejected the request (400): no reason given."


def test_a_lost_response_keeps_the_cost_and_id_from_its_headers():
    error = make_error(504, b"<html>", {"x-aimlapi-usd-spent": "0.2", "x-inference-id": "inf-1"})

    assert (error.usd, error.inference_id) == (0.2, "inf-1")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500, 502, 503, 504])
def test_every_error_reports_its_cost(status):
    in_body = plain_body(status, meta={"usage": {"usd_spent": 0.3}})

    assert make_error(status, problem_body(status), {"x-aimlapi-usd-spent": "0.2"}).usd == 0.2
    assert make_error(status, in_body).usd == 0.3
    assert make_error(status, in_body, {"X-AIMLAPI-Credits-Used": "0"}).usd == 0
    assert make_error(status, problem_body(status)).usd is None


def test_no_part_of_an_error_shows_the_key_a_query_or_control_characters():
    text = f"{KEY} bearer abc https://x.test/a?sig=SECRET https://me:SECRET@x.test/ \x1b[31m \u202e"
    body = json.dumps(
        {
            "requestId": KEY,
            "message": text,
            "error": {"data": {"kind": f"k {KEY}"}},
            "meta": {KEY: {"_errors": [text]}},
        }
    ).encode()

    error = make_error(400, body, api_key=KEY)

    exposed = repr(vars(error)) + str(error)
    assert KEY not in exposed
    assert "SECRET" not in exposed
    assert "abc" not in exposed
    assert str(error).isprintable()


# --- Retry-After ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("17", 17.0),
        (" 0.5 ", 0.5),
        ("0", 0.0),
        (format_datetime(NOW + timedelta(minutes=2), usegmt=True), 120.0),
        (format_datetime(NOW - timedelta(minutes=2), usegmt=True), 0.0),
        ("Sat, 21 Nov 2026 13:00:30 +0100", 30.0),
        ("Sat, 21 Nov 2026 12:00:30 -0000", 30.0),
        ("-5", None),
        ("soon", None),
        ("", None),
        ("1e3", None),
        ("nan", None),
        ("٣", None),
        ("9" * 40, None),
        ("Mon, 99 Foo 99999 99:99:99 GMT", None),
        (None, None),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_anything_else_is_ignored(value, seconds):
    assert read_retry_after(value, now=NOW) == seconds


@pytest.mark.parametrize("status", [429, 500, 503])
def test_the_requested_wait_is_part_of_the_error(status):
    assert make_error(status, problem_body(status), {"Retry-After": "17"}).retry_after == 17.0


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40) | st.from_regex(r"\A[A-Z][a-z]{2}, \d{1,3} [A-Z][a-z]{2} \d{1,6} \d\d:\d\d:\d\d .{0,6}\Z"))
def test_any_retry_after_is_read_safely(value):
    seconds = read_retry_after(value, now=NOW)

    assert seconds is None or 0 <= seconds < float("inf")


# --- arbitrary input --------------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(min_value=-(10**400), max_value=10**400)
    | st.floats()
    | st.text(st.characters(codec=None), max_size=20)
    | st.sampled_from(["400 no", '{"message": "400 no"}', '{"message": {"message": ["x"]}}', "\ud800", KEY]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["requestId", "statusCode", "message", "meta", "_errors", "error", "data", "kind", "name", "code"]
            )
            | st.sampled_from(["title", "detail", KEY])
            | st.text(st.characters(codec=None), max_size=5),
            inner,
            max_size=5,
        )
    ),
    max_leaves=25,
)


def check_any_input(status, headers, body):
    error = error_for(status=status, headers=headers, body=body, api_key=KEY, client_request_id="c", model="m", now=NOW)

    assert isinstance(error, ImagenError)
    assert (error.status, error.client_request_id, error.model) == (status, "c", "m")
    assert str(error).isprintable()
    assert len(str(error)) < 1000
    assert KEY not in str(error) + repr(vars(error))
    assert vars(pickle.loads(pickle.dumps(error))) == vars(error)


@settings(max_examples=300, deadline=None)
@given(
    status=st.integers(0, 999),
    headers=st.dictionaries(
        st.sampled_from(["Retry-After", "X-Inference-Id", "x-aimlapi-usd-spent"]), st.text(max_size=9)
    ),
    body=st.binary(max_size=200),
)
def test_every_status_with_any_bytes_gives_one_of_our_errors(status, headers, body):
    check_any_input(status, headers, body)


@settings(max_examples=600, deadline=None)
@given(status=st.sampled_from([302, 400, 401, 403, 404, 429, 500, 502, 504]), answer=json_values)
def test_every_status_with_any_json_gives_one_of_our_errors(status, answer):
    check_any_input(status, {}, json.dumps(answer).encode())


@pytest.mark.parametrize("depth", [500, 900, 990, 5_000, 100_000])
@pytest.mark.parametrize("name", ["message", "error", "meta", "data", "detail"])
def test_deep_nesting_gives_one_of_our_errors(name, depth):
    check_any_input(500, {}, (f'{{"requestId": "r", "{name}": ' * depth + '"x"' + "}" * depth).encode())
    check_any_input(400, {}, (f'{{"message": "{{", "{name}": ' + "[" * depth + "]" * depth + "}").encode())


def test_a_message_of_megabytes_is_truncated():
    error = make_error(400, plain_body(400, (KEY + " ") * 100_000), api_key=KEY)

    assert len(str(error)) < 1000
    assert KEY[:8] not in str(error)


def test_a_body_without_an_envelope_is_not_from_the_api():
    assert read_error_body(b"<html>") == read_error_body(b"[1]")
    assert read_error_body(b"<html>").from_api is False


@pytest.mark.parametrize(
    "answer",
    [
        {"error": "too dark"},
        {"error": {"message": "too dark"}},
        {"title": "too dark"},
        {"message": {"error": "too dark"}},
        {"message": {"detail": "too dark"}},
        {"message": ["too dark", "", None]},
    ],
)
def test_the_reason_is_found_wherever_an_envelope_states_it(answer):
    assert read_error_body(json.dumps(answer).encode()).message == "too dark"


def test_the_search_for_a_reason_is_bounded():
    nested = functools.reduce(lambda inner, _: [inner], range(9), "too deep")
    assert read_error_body(json.dumps({"message": nested[0]}).encode()).message == "too deep"
    assert read_error_body(json.dumps({"message": nested}).encode()).message == ""
    assert (
        read_error_body(json.dumps({"message": list("abcdefghijkl")}).encode()).message
        == "a; b; c; d; e; f; g; h; i; j"
    )


@pytest.mark.parametrize("status", [400, 500])
def test_an_api_error_with_an_empty_message_says_so(status):
    assert "no reason given" in str(make_error(status, plain_body(status, message="")))


def test_a_date_in_retry_after_counts_from_the_date_of_the_response():
    dates = {
        "Date": format_datetime(NOW - timedelta(hours=3), usegmt=True),
        "Retry-After": format_datetime(NOW - timedelta(hours=3) + timedelta(seconds=30), usegmt=True),
    }
    assert make_error(429, plain_body(429), dates).retry_after == 30


@pytest.mark.parametrize("status", [300, 301, 307, 399])
def test_a_redirect_is_an_invalid_request_that_names_the_status(status):
    with_location = make_error(status, b"", {"Location": "https://elsewhere.example/"})
    assert type(with_location) is InvalidRequestError
    assert f"redirect ({status})" in str(with_location)


def test_names_in_an_error_are_short_text():
    answer = {"requestId": "r" * 200, "error": {"data": {"kind": "k" * 200}}, "meta": {"f" * 200: {"_errors": ["bad"]}}}
    found = read_error_body(json.dumps(answer).encode())
    assert [len(name) for name in (found.request_id, found.kind, found.field)] == [100, 100, 100]
    assert read_error_body(b'{"requestId": true, "error": {"code": true, "name": 7}}').kind == "7"
    assert not read_error_body(b'{"requestId": true}').from_api


def test_a_reason_that_only_looks_like_json_is_kept():
    assert read_error_body(b'{"message": "{seed} must be a number"}').message == "{seed} must be a number"
