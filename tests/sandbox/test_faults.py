from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import get_args

import pytest
import requests

from airflow_provider_imagen.sandbox import Fault
from airflow_provider_imagen.sandbox.faults import KINDS, ArmedFaults, FaultKind

from .conftest import IMAGEN


def log_rows(sandbox, key):
    answer = requests.get(f"{sandbox.url}/v2/logs", params={"period": "1h"}, headers=key, timeout=10)
    return [(row["status"], row["cost"]["usd"]) for row in answer.json()["data"]]


# Which requests a fault hits.


def test_every_kind_is_described():
    assert tuple(KINDS) == get_args(FaultKind)
    assert all(kind.effect for kind in KINDS.values())


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"kind": "explode"}, "allowed: status, upstream_4xx"),
        ({"kind": "reset", "seconds": 1}, "its parameters: billed, logged"),
        ({"kind": "cut_image", "on": "generate"}, "allowed: download"),
        ({"kind": "fewer", "on": "download"}, "allowed: generate"),
        ({"kind": "drip", "path": "/v2/logs"}, "allowed: download"),
        ({"kind": "status", "on": "upload"}, "allowed: generate, download"),
        ({"kind": "status", "path": "v2/logs"}, "/v2/logs"),
        ({"kind": "status", "status": 42}, "100 to 599"),
        ({"kind": "status", "envelope": "new"}, "allowed: old, problem"),
        ({"kind": "shape", "shape": "F"}, "allowed: A, B, C, D, E"),
        ({"kind": "slow", "seconds": -1}, "0 or more"),
        ({"kind": "drip", "chunk_bytes": 0}, "1 or more"),
        ({"kind": "fewer", "count": 0}, "1 or more"),
        ({"kind": "reset", "probability": 2}, "0 to 1"),
        ({"kind": "withdrawn"}, "needs model"),
        ({"kind": "reset", "loudness": 3}, "its parameters: billed, logged (and times, "),
        ({"kind": "reset", "billd": True}, "did you mean billed?"),
        ({"kind": "reset", "tmies": 2}, "did you mean times?"),
        ({"kind": "rest"}, "did you mean reset?"),
        ({"kind": ["reset"]}, "allowed: status, upstream_4xx"),
        ({"kind": "reset", "billed": "no"}, "allowed: true, false"),
        ({"kind": "reset", "billed": 1}, "allowed: true, false"),
        ({"kind": "reset", "prompt": 5}, "allowed: text"),
        ({"kind": "status", "message": [1]}, "allowed: text"),
        ({"kind": "fewer", "count": 1.5}, "allowed: a whole number, 1 or more"),
        ({"kind": "reset", "times": 10**400}, "0 or more"),
        ({"kind": "reset", "times": True}, "0 or more"),
        ({"status": 500}, "needs kind"),
    ],
)
def test_an_invalid_fault_is_rejected_with_the_allowed_values(values, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        Fault.from_json(values)


def test_a_fault_survives_a_round_trip_through_json():
    for fault in (
        Fault("status", status=503, times=None, message=["a", "b"]),
        Fault("reset"),
        Fault("slow", path="/v1/key"),
    ):
        assert Fault.from_json(fault.to_json()) == fault


def test_a_fault_applies_as_often_as_configured(generate, sandbox):
    sandbox.add_fault(Fault("status", status=503, times=2))

    assert [generate().status_code for _ in range(4)] == [503, 503, 200, 200]


def test_a_fault_without_times_applies_until_cleared(generate, sandbox):
    sandbox.add_fault(Fault("status", status=503, times=None))

    assert [generate().status_code for _ in range(3)] == [503, 503, 503]
    sandbox.clear_faults()
    assert generate().status_code == 200


def test_a_fault_can_skip_the_first_requests(generate, sandbox):
    sandbox.add_fault(Fault("status", skip=2))

    assert [generate().status_code for _ in range(4)] == [200, 200, 500, 200]


def test_a_fault_applies_only_to_its_prompt_and_model(generate, sandbox):
    sandbox.add_fault(Fault("status", prompt="fox", model="gpt-image-2", times=None))

    assert generate(prompt="a fox").status_code == 200
    assert generate(prompt="a cat", model="openai/gpt-image-2").status_code == 200
    assert generate(prompt="a fox", model="openai/gpt-image-2").status_code == 500


def test_faults_in_one_slot_take_turns(generate, sandbox):
    sandbox.add_fault(Fault("status", status=429))
    sandbox.add_fault(Fault("status", status=502))

    assert [generate().status_code for _ in range(3)] == [429, 502, 200]


def test_faults_in_different_slots_apply_together(generate, sandbox):
    sandbox.add_fault(Fault("slow", seconds=0.2))
    sandbox.add_fault(Fault("status", status=503))
    began = time.monotonic()

    assert generate().status_code == 503
    assert time.monotonic() - began >= 0.2


def test_a_probability_is_decided_by_the_seed():
    def run(seed):
        book = ArmedFaults(seed)
        book.add(Fault("reset", probability=0.3, times=None))
        return [bool(book.hits("generate")) for _ in range(300)]

    assert run(1) == run(1) != run(2)
    assert 60 < sum(run(1)) < 120


def test_a_rejected_request_does_not_use_up_a_fault(generate, sandbox):
    sandbox.add_fault(Fault("status", status=503))

    assert [generate(num_images=9).status_code, generate().status_code] == [400, 503]


# Errors that are answered.


def test_the_problem_envelope(generate, sandbox, key):
    sandbox.add_fault(Fault("status", status=403, error_kind="err_insufficent_credits", message="No money"))
    answer = generate()

    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert (body["status"], body["message"], body["error"]["data"]) == (
        403,
        "No money",
        {"kind": "err_insufficent_credits"},
    )
    assert sandbox.ledger() == []
    assert log_rows(sandbox, key) == [("failed", 0.0)]


def test_the_old_envelope_with_a_status_as_text_and_a_list_of_messages(generate, sandbox):
    sandbox.add_fault(Fault("status", status=400, envelope="old", status_as_text=True, message=["one", "two"]))
    body = generate().json()

    assert body["statusCode"] == "400"
    assert body["message"] == ["one", "two"]


def test_retry_after_in_seconds_and_as_a_date(generate, sandbox, clock):
    sandbox.add_fault(Fault("status", status=429, retry_after=7))
    sandbox.add_fault(Fault("status", status=503, retry_after=90, retry_after_as_date=True))

    assert generate().headers["retry-after"] == "7"
    at = parsedate_to_datetime(generate().headers["retry-after"])
    assert (at - datetime.fromtimestamp(clock.now, UTC)).total_seconds() == 90


def test_an_upstream_rejection_is_wrapped_in_a_500(generate, sandbox):
    sandbox.add_fault(Fault("upstream_4xx", message="Prompt blocked"))
    answer = generate()

    assert answer.status_code == 500
    assert answer.json()["message"] == "400 Prompt blocked"
    assert sandbox.ledger() == []


@pytest.mark.parametrize("status", [200, 502, 504, 524])
@pytest.mark.parametrize("billed", [True, False])
def test_a_gateway_page_hides_whether_it_was_billed(generate, sandbox, key, status, billed):
    sandbox.add_fault(Fault("html", status=status, billed=billed))
    answer = generate()

    assert answer.status_code == status
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.text.startswith("<!DOCTYPE html>")
    assert "x-inference-id" not in answer.headers
    assert len(sandbox.ledger()) == billed
    assert log_rows(sandbox, key) == [("succeeded", 0.042) if billed else ("failed", 0.0)]


def test_a_504_of_the_api_can_be_billed(generate, sandbox):
    sandbox.add_fault(Fault("status", status=504, billed=True))

    assert generate().status_code == 504
    assert len(sandbox.ledger()) == 1


# Answers that are lost.


@pytest.mark.parametrize("billed", [True, False])
def test_a_reset_breaks_the_connection_before_the_response(generate, sandbox, key, billed):
    sandbox.add_fault(Fault("reset", billed=billed))

    with pytest.raises(requests.ConnectionError, match="reset by peer"):
        generate()

    assert len(sandbox.ledger()) == billed
    assert log_rows(sandbox, key) == [("succeeded", 0.042) if billed else ("failed", 0.0)]
    assert sandbox.seen("/v1/images/generations")[0].status is None
    assert generate().status_code == 200


def test_a_lost_request_can_be_missing_from_the_log(generate, sandbox, key):
    sandbox.add_fault(Fault("reset", logged=False))

    with pytest.raises(requests.ConnectionError):
        generate()

    assert log_rows(sandbox, key) == []


@pytest.mark.parametrize("billed", [True, False])
def test_a_hang_sends_nothing_until_the_client_disconnects(generate, sandbox, billed):
    sandbox.add_fault(Fault("hang", billed=billed))

    with pytest.raises(requests.ReadTimeout):
        generate(timeout=0.3)

    assert len(sandbox.ledger()) == billed
    assert generate().status_code == 200


def test_a_hang_ends_in_a_reset_after_its_seconds(generate, sandbox):
    sandbox.add_fault(Fault("hang", seconds=0.2))

    with pytest.raises(requests.ConnectionError, match="reset by peer"):
        generate()


def test_a_truncated_body_is_billed_and_shorter_than_declared(generate, sandbox):
    sandbox.add_fault(Fault("cut_body"))

    with pytest.raises(requests.exceptions.ChunkedEncodingError, match="more expected"):
        generate()

    assert len(sandbox.ledger()) == 1


def test_slow_waits_before_billing_and_bills_even_after_a_disconnect(generate, sandbox):
    sandbox.add_fault(Fault("slow", seconds=0.5))
    with pytest.raises(requests.ReadTimeout):
        generate(timeout=0.2)

    assert sandbox.ledger() == []
    wait_until(lambda: len(sandbox.ledger()) == 1)


def test_slow_after_billing_has_billed_when_the_client_disconnects(generate, sandbox):
    sandbox.add_fault(Fault("slow_after_billing", seconds=5))

    with pytest.raises(requests.ReadTimeout):
        generate(timeout=0.3)

    assert len(sandbox.ledger()) == 1


def test_latency_applies_to_every_generation(generate, sandbox):
    sandbox.configure(latency_seconds=0.2)
    began = time.monotonic()
    generate()

    assert time.monotonic() - began >= 0.2


def test_too_many_concurrent_requests_are_429_without_a_charge(generate, sandbox):
    sandbox.configure(max_concurrent=1)
    sandbox.add_fault(Fault("hang", billed=True))
    with ThreadPoolExecutor(1) as pool:
        patient = pool.submit(generate, timeout=1)
        wait_until(lambda: len(sandbox.ledger()) == 1)

        assert generate().status_code == 429
        assert isinstance(patient.exception(), requests.ReadTimeout)
    wait_until(lambda: generate().status_code == 200)
    assert len(sandbox.ledger()) == 2


# Answers that are not what was ordered.


def test_fewer_images_than_requested_are_billed_as_generated(generate, sandbox):
    sandbox.add_fault(Fault("fewer", count=1))
    body = generate(num_images=4).json()

    assert len(body["data"]) == 1
    assert body["meta"]["usage"]["usd_spent"] == 0.042
    assert sandbox.ledger()[0].images == 1


@pytest.mark.parametrize(("value", "data"), [("null", None), ("empty", [])])
@pytest.mark.parametrize("billed", [True, False])
def test_no_image_at_all(generate, sandbox, value, data, billed):
    sandbox.add_fault(Fault("none", value=value, billed=billed))
    answer = generate(num_images=2)

    assert answer.status_code == 200
    assert answer.json()["data"] == data
    assert answer.headers["x-aimlapi-usd-spent"] == ("0.084" if billed else "0")
    assert len(sandbox.ledger()) == billed


def test_an_error_inside_a_200_costs_nothing(generate, sandbox):
    sandbox.add_fault(Fault("error_in_200", message="Blocked"))
    answer = generate()

    assert answer.status_code == 200
    assert answer.json()["error"]["message"] == "Blocked"
    assert sandbox.ledger() == []


def test_json_in_an_unknown_format_is_billed(generate, sandbox):
    sandbox.add_fault(Fault("wrong_json"))

    assert not {"data", "images", "output", "error"} & set(generate().json())
    assert len(sandbox.ledger()) == 1


@pytest.mark.parametrize(
    ("shape", "keys"),
    [
        ("A", {"data", "meta"}),
        ("B", {"images", "seed", "timings", "has_nsfw_concepts", "prompt"}),
        ("C", {"images", "data", "seed", "timings", "has_nsfw_concepts", "prompt", "meta"}),
        ("D", {"created", "data", "usage", "meta"}),
        ("E", {"status", "output"}),
    ],
)
def test_any_model_can_respond_in_any_shape(generate, sandbox, shape, keys):
    sandbox.add_fault(Fault("shape", shape=shape))

    assert set(generate().json()) == keys


@pytest.mark.parametrize(
    ("way", "name", "start"),
    [
        ("data_uri", "url", "data:image/png;base64,iVBOR"),
        ("b64_json",) * 2 + ("iVBOR",),
        ("base64",) * 2 + ("iVBOR",),
        ("image_base64",) * 2 + ("iVBOR",),
    ],
)
def test_an_image_can_be_in_any_field(generate, sandbox, way, name, start):
    sandbox.add_fault(Fault("shape", shape=way))
    (item,) = generate().json()["data"]

    assert set(item) == {name}
    assert item[name].startswith(start)


def test_all_fields_of_an_image_can_be_null(generate, sandbox):
    sandbox.add_fault(Fault("shape", shape="nulls"))

    assert generate().json()["data"] == [{"url": None, "b64_json": None}]


@pytest.mark.parametrize(
    ("usage", "in_body", "in_headers"),
    [
        ("usd_spent", {"usage": {"usd_spent": 0.042}}, False),
        ("credits_used", {"usage": {"credits_used": 84000}}, False),
        ("tokens_used", {"usage": {"tokens_used": 84000}}, False),
        ("none", None, True),
        ("no_headers", {"usage": {"credits_used": 84000, "usd_spent": 0.042}}, False),
        ("nothing", None, False),
    ],
)
def test_the_cost_can_be_reported_anywhere_or_nowhere(generate, sandbox, usage, in_body, in_headers):
    sandbox.add_fault(Fault("usage", usage=usage))
    answer = generate()

    assert answer.json().get("meta") == in_body
    assert ("x-aimlapi-usd-spent" in answer.headers) == in_headers
    assert ("x-aimlapi-credits-used" in answer.headers) == in_headers
    assert "x-inference-id" in answer.headers


@pytest.mark.parametrize("status", [400, 429, 500])
def test_a_billed_error_can_state_its_cost(generate, sandbox, status):
    sandbox.add_fault(Fault("status", status=status, billed=True))
    assert "x-aimlapi-usd-spent" not in generate().headers

    sandbox.add_fault(Fault("status", status=status, billed=True))
    sandbox.add_fault(Fault("usage", usage="none"))
    answer = generate()
    assert (answer.status_code, answer.headers["x-aimlapi-usd-spent"]) == (status, "0.042")
    assert answer.headers["x-aimlapi-credits-used"] == "84000"
    assert len(sandbox.ledger()) == 2


def test_base64_that_cannot_be_decoded(generate, sandbox):
    sandbox.add_fault(Fault("bad_base64"))

    assert "%" in generate().json()["data"][0]["b64_json"]
    assert len(sandbox.ledger()) == 1


def test_flags_of_filtered_images(generate, sandbox):
    sandbox.add_fault(Fault("nsfw"))
    assert generate(model="flux/dev", num_images=2).json()["has_nsfw_concepts"] == [True, True]

    sandbox.add_fault(Fault("content_violation"))
    assert generate(model="reve/create-image").json()["data"][0]["content_violation"] is True


def test_a_fewer_and_a_shape_fault_combine(generate, sandbox):
    sandbox.add_fault(Fault("fewer", count=2))
    sandbox.add_fault(Fault("shape", shape="B"))

    assert len(generate(num_images=3).json()["images"]) == 2


# Other paths of the API.


def test_any_path_of_the_api_can_fail(sandbox, key):
    url = f"{sandbox.url}/v2/logs?period=1h"
    for fault in (
        Fault("status", path="/v2/logs", status=503, retry_after=3),
        Fault("html", path="/v2/logs", status=502),
        Fault("reset", path="/v2/logs"),
        Fault("slow", path="/v2/logs", seconds=0.2),
    ):
        sandbox.add_fault(fault)

    began = time.monotonic()
    first = requests.get(url, headers=key, timeout=10)
    assert (first.status_code, first.headers["retry-after"]) == (503, "3")
    assert time.monotonic() - began >= 0.2
    assert requests.get(url, headers=key, timeout=10).headers["content-type"].startswith("text/html")
    with pytest.raises(requests.ConnectionError):
        requests.get(url, headers=key, timeout=10)
    assert requests.get(url, headers=key, timeout=10).status_code == 200
    assert requests.get(f"{sandbox.url}/v1/key", headers=key, timeout=10).status_code == 200


def test_a_fault_for_another_path_does_not_apply_to_a_generation(generate, sandbox):
    sandbox.add_fault(Fault("status", path="/v1/key", times=None))

    assert generate(model=IMAGEN).status_code == 200


def test_requests_from_before_a_reset_are_not_counted_after_it(generate, sandbox):
    sandbox.add_fault(Fault("slow", seconds=0.4))
    with pytest.raises(requests.ReadTimeout):
        generate(timeout=0.1)
    sandbox.reset()
    time.sleep(0.5)  # long enough for the old request to be served

    assert sandbox.ledger() == []
    assert sandbox.balance_usd == 100


def wait_until(condition, seconds=5.0):
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.01)
