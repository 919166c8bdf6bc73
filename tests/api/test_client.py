from __future__ import annotations

import json
import logging
import pickle
import select
import socket
import threading
import time
import traceback
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import format_datetime

import pytest
import requests
from rich.pretty import pretty_repr

from airflow_provider_imagen.api import client as client_module
from airflow_provider_imagen.api.client import ApiClient, ClientSettings
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
    UnreadableResponseError,
)
from airflow_provider_imagen.sandbox import Fault, Sandbox

KEY = "feedc0de" + "9" * 24
PATH = "/v1/images/generations"
BODY = {"model": "imagen-3.0-generate-002", "prompt": "a red fox", "convert_base64_to_url": True}
DONE = json.dumps({"data": [{"url": "http://cdn.test/a.png"}]}).encode()

pytestmark = pytest.mark.usefixtures("no_proxies")


@pytest.fixture
def make_client():
    clients = []

    def make(base_url, *, api_key=KEY, connect=2.0, read=5.0, verify=True):
        clients.append(
            ApiClient(
                ClientSettings(
                    base_url=base_url,
                    api_key=api_key,
                    connect_timeout_seconds=connect,
                    read_timeout_seconds=read,
                    verify=verify,
                )
            )
        )
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def client(sandbox, make_client):
    return make_client(sandbox.url, api_key=sandbox.api_key)


def send(client, request_id="job-1.a", **body):
    return client.generate(PATH, BODY | body, client_request_id=request_id)


def failure(client, kind=ImagenError, **body):
    with pytest.raises(ImagenError) as caught:
        send(client, **body)
    assert type(caught.value) is kind, repr(caught.value)
    assert caught.value.client_request_id == "job-1.a"
    assert caught.value.model == BODY["model"]
    return caught.value


def exposed_text(error):
    """Return everything that a log, a traceback, a pickle or a debugger's ``vars`` could show of an error."""
    chain = []
    while error is not None:
        chain += [str(error), repr(error), repr(vars(error)), *traceback.format_exception(error)]
        error = error.__cause__
    return "\n".join(chain)


# --- responses --------------------------------------------------------------------------------------------------------


def test_a_generation_has_its_images_cost_and_ids(sandbox, client):
    generation = send(client, num_images=2)

    (charge,) = sandbox.ledger()
    assert len(generation.pictures) == len(generation.urls) == 2
    assert all(url.startswith(sandbox.cdn_url) for url in generation.urls)
    assert (generation.usd, generation.usd_source) == (charge.usd, "header")
    assert generation.inference_id == charge.inference_id
    assert (generation.client_request_id, charge.client_request_id) == ("job-1.a", "job-1.a")
    assert generation.model == BODY["model"]


def test_one_call_is_one_post_with_exactly_the_given_body(sandbox, client):
    send(client, seed=7)

    (seen,) = sandbox.seen()
    assert (seen.method, seen.path, seen.json) == ("POST", PATH, BODY | {"seed": 7})
    assert seen.headers["authorization"] == f"Bearer {sandbox.api_key}"
    assert seen.headers["x-client-request-id"] == "job-1.a"
    assert seen.headers["user-agent"] == client_module.USER_AGENT


def test_images_come_inline_when_requested(client):
    (image,) = send(client, convert_base64_to_url=False).pictures

    assert image.url is None
    assert image.data.startswith(b"\x89PNG")


@pytest.mark.parametrize("shape", ["A", "B", "C", "D", "E", "data_uri", "b64_json", "base64", "image_base64"])
def test_every_response_shape_gives_every_image_once(sandbox, client, shape):
    sandbox.add_fault(Fault("shape", shape=shape))

    images = send(client, num_images=3).pictures

    assert len(images) == 3
    assert all((image.url is None) != (image.data is None) for image in images)
    assert len({image.url or image.data for image in images}) == 3
    assert not any(image.broken or image.withheld for image in images)


@pytest.mark.parametrize(
    ("usage", "source"),
    [("none", "header"), ("no_headers", "usage"), ("usd_spent", "usage"), ("credits_used", "usage")],
)
def test_the_cost_is_found_wherever_it_is_reported(sandbox, client, usage, source):
    sandbox.add_fault(Fault("usage", usage=usage))

    generation = send(client)

    assert (generation.usd, generation.usd_source) == (sandbox.ledger()[0].usd, source)


def test_a_missing_cost_is_none_rather_than_zero(sandbox, client):
    sandbox.add_fault(Fault("usage", usage="nothing"))

    generation = send(client)

    assert (generation.usd, generation.usd_source) == (None, None)


@pytest.mark.parametrize("value", ["null", "empty"])
def test_a_response_without_images_is_an_empty_generation(sandbox, client, value):
    sandbox.add_fault(Fault("none", value=value))

    generation = send(client)

    assert generation.pictures == ()
    assert generation.usd == sandbox.ledger()[0].usd


def test_fewer_images_than_requested_are_returned_as_they_are(sandbox, client):
    sandbox.add_fault(Fault("fewer", count=1))

    assert len(send(client, num_images=4).pictures) == 1


@pytest.mark.parametrize("kind", ["nsfw", "content_violation"])
def test_flagged_images_are_marked_and_their_urls_withheld(sandbox, client, kind):
    sandbox.add_fault(Fault(kind))

    generation = send(client, num_images=2)

    assert [image.withheld for image in generation.pictures] == [True, True]
    assert generation.urls == []


def test_undecodable_base64_is_reported_on_its_image(sandbox, client):
    sandbox.add_fault(Fault("bad_base64"))

    generation = send(client, num_images=2)

    assert [image.broken for image in generation.pictures] == ["base64 data that cannot be decoded"] * 2
    assert generation.usd == sandbox.ledger()[0].usd


# --- errors the API returns -------------------------------------------------------------------------------------------


def test_a_wrong_key_is_an_authentication_error(sandbox, make_client):
    error = failure(make_client(sandbox.url), AuthenticationError)

    assert error.status == 401
    assert error.request_id
    assert error.retry_helps is False


def test_a_key_without_the_scope_is_an_authentication_error(sandbox, client):
    sandbox.add_fault(Fault("status", status=403, error_kind="err_scope"))

    error = failure(client, AuthenticationError)

    assert (error.status, error.kind) == (403, "err_scope")
    assert error.inference_id


def test_an_empty_account_is_recognized_by_the_kind_of_its_403(sandbox, client):
    sandbox.configure(balance_usd=Decimal("0.001"))

    error = failure(client, OutOfCreditsError)

    assert (error.status, error.kind) == (403, "err_insufficent_credits")
    assert error.request_id
    assert error.retry_helps is False


def test_a_rejected_field_is_named_in_the_error(sandbox, client):
    error = failure(client, InvalidRequestError, aspect_ratio="5:1")

    assert (error.status, error.field) == (400, "aspect_ratio")
    assert "aspect_ratio" in str(error)
    assert error.request_id
    assert sandbox.ledger() == []


@pytest.mark.parametrize("envelope", ["old", "problem"])
@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("the prompt is too long", "the prompt is too long"),
        (["the prompt is too long", "so is the seed"], "the prompt is too long; so is the seed"),
        (json.dumps({"error": {"message": "the prompt is too long"}}), "the prompt is too long"),
    ],
)
def test_the_reason_is_read_from_both_envelopes_in_every_format(sandbox, client, envelope, message, shown):
    as_text = envelope == "old" or None
    sandbox.add_fault(Fault("status", status=400, envelope=envelope, message=message, status_as_text=as_text))

    error = failure(client, InvalidRequestError)

    assert str(error) == f"The API rejected the request (400): {shown}."
    assert error.request_id
    assert error.kind == ("err_bad_request" if envelope == "problem" else None)


def test_a_500_that_wraps_a_model_rejection_is_an_invalid_request(sandbox, client):
    sandbox.add_fault(Fault("upstream_4xx", status=400, message="Prompt blocked"))

    error = failure(client, InvalidRequestError)

    assert error.status == 500
    assert error.retry_helps is False
    assert "Prompt blocked" in str(error)


def test_a_500_that_wraps_a_missing_model_is_a_retired_model(sandbox, client):
    sandbox.add_fault(Fault("upstream_4xx", status=404, message="Publisher model not found"))

    assert failure(client, ModelWithdrawnError).status == 500


def test_a_500_that_wraps_a_transient_rejection_may_be_retried(sandbox, client):
    sandbox.add_fault(Fault("upstream_4xx", status=429, message="Quota exceeded"))

    assert failure(client, ServerError).retry_helps is True


def test_a_retired_model_is_named_in_the_error(sandbox, client):
    sandbox.add_fault(Fault("withdrawn", model=BODY["model"]))

    error = failure(client, ModelWithdrawnError)

    assert error.status == 404
    assert BODY["model"] in str(error)


def test_a_rate_limit_may_give_its_wait_in_seconds(sandbox, client):
    sandbox.add_fault(Fault("status", status=429, retry_after=17))

    error = failure(client, RateLimitedError)

    assert (error.status, error.retry_after) == (429, 17.0)


def test_a_rate_limit_may_give_its_wait_as_a_date(sandbox, client):
    sandbox.add_fault(Fault("status", status=429, retry_after=3600, retry_after_as_date=True))

    assert 3500 < failure(client, RateLimitedError).retry_after <= 3600


def test_a_rate_limit_without_retry_after_has_no_wait(sandbox, client):
    sandbox.configure(requests_per_minute=0)

    assert failure(client, RateLimitedError).retry_after is None


@pytest.mark.parametrize("status", [500, 502, 503])
def test_a_failure_in_the_apis_own_envelope_is_a_server_error(sandbox, client, status):
    sandbox.add_fault(Fault("status", status=status, retry_after=3))

    error = failure(client, ServerError)

    assert (error.status, error.retry_after) == (status, 3.0)
    assert error.request_id
    assert error.inference_id
    assert error.retry_helps is True


def test_an_error_inside_a_200_is_an_invalid_request_with_its_cost(sandbox, client):
    sandbox.add_fault(Fault("error_in_200", billed=True, message="No image came out"))

    error = failure(client, InvalidRequestError)

    assert (error.status, error.kind) == (200, "image_generation_failed")
    assert error.usd == float(sandbox.ledger()[0].usd) > 0
    assert "No image came out" in str(error)


def test_a_200_in_an_unknown_format_is_unreadable_with_its_cost(sandbox, client):
    sandbox.add_fault(Fault("wrong_json"))

    error = failure(client, UnreadableResponseError)

    assert error.status == 200
    assert error.inference_id == sandbox.ledger()[0].inference_id
    assert error.usd == float(sandbox.ledger()[0].usd) > 0


# --- lost responses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 504, 520, 524])
def test_a_gateway_timeout_leaves_the_outcome_unknown_even_in_the_apis_envelope(sandbox, client, status):
    sandbox.add_fault(Fault("status", status=status, billed=True))

    assert failure(client, LostAnswerError).status == status
    assert len(sandbox.ledger()) == 1


@pytest.mark.parametrize("status", [200, 500, 502, 503])
def test_a_gateways_html_page_leaves_the_outcome_unknown(sandbox, client, status):
    sandbox.add_fault(Fault("html", status=status, billed=True))

    assert failure(client, LostAnswerError).status == status


@pytest.mark.parametrize(
    "body",
    [
        b'{"message": "Internal server error"}',
        b'{"statusCode": 500, "message": "Internal server error"}',
        b'{"message": "An invalid response was received from the upstream server", "request_id": "4e1f"}',
        b'{"title": "Error 502: Bad gateway", "status": 502, "instance": "8f0", "retryable": true}',
        b"[]",
        b"",
    ],
)
def test_a_gateways_json_does_not_prove_that_nothing_was_billed(raw_server, make_client, body):
    def behave(peer):
        peer.read_request()
        peer.answer(body, "502 Bad Gateway", "Content-Type: application/json\r\n")

    assert failure(make_client(raw_server(behave).url), LostAnswerError).status == 502


def test_a_truncated_response_is_lost_but_keeps_its_cost_and_id(sandbox, client):
    sandbox.add_fault(Fault("cut_body"))

    error = failure(client, LostAnswerError)

    (charge,) = sandbox.ledger()
    assert error.status == 200
    assert (error.inference_id, error.usd) == (charge.inference_id, float(charge.usd))


@pytest.mark.parametrize("tail", [b"ff\r\n{", b"zz\r\n", b""])
def test_a_response_cut_between_or_inside_chunks_is_lost(raw_server, make_client, tail):
    def behave(peer):
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{    \r\n" + tail)

    assert failure(make_client(raw_server(behave).url), LostAnswerError).status == 200


def test_a_response_that_cannot_be_decompressed_is_lost(raw_server, make_client):
    def behave(peer):
        peer.read_request()
        peer.answer(b"this is no gzip", headers="Content-Encoding: gzip\r\n")

    assert failure(make_client(raw_server(behave).url), LostAnswerError).status == 200


def test_a_silent_server_is_abandoned_after_the_read_timeout(sandbox, make_client):
    sandbox.add_fault(Fault("hang", billed=True, seconds=30))
    started = time.monotonic()

    error = failure(make_client(sandbox.url, api_key=sandbox.api_key, read=0.3), LostAnswerError)

    assert time.monotonic() - started < 5
    assert "no response in time" in str(error)
    assert error.status is None


def test_a_dripping_response_ends_at_the_read_timeout(raw_server, make_client):
    def behave(peer):
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while not peer.server.ending.wait(0.02):
            peer.send(b" ")

    started = time.monotonic()
    failure(make_client(raw_server(behave).url, read=0.3), LostAnswerError)

    assert time.monotonic() - started < 5


DRIPS = pytest.mark.parametrize(
    "first",
    [b"", b"HTTP/1.1 200 OK\r\nX-Slow: ", b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"],
    ids=["status line", "headers", "body"],
)


def drip(peer, first):
    peer.send(first)
    while not peer.server.ending.wait(0.02):
        peer.send(b" ")


@DRIPS
def test_the_read_timeout_applies_behind_a_plain_proxy(raw_server, make_client, monkeypatch, first):
    def behave(peer):
        assert peer.read_request().startswith(b"POST http://api.test/")
        drip(peer, first)

    monkeypatch.setenv("HTTP_PROXY", raw_server(behave).url)
    started = time.monotonic()
    failure(make_client("http://api.test", read=0.3), LostAnswerError)

    assert time.monotonic() - started < 3


@DRIPS
def test_the_read_timeout_applies_inside_a_tunnel(raw_server, make_client, monkeypatch, own_certificate, first):
    context, certificate = own_certificate

    def behave(peer):
        peer.read_request()
        peer.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
        with context.wrap_socket(peer.connection, server_side=True) as inner:
            peer.connection = inner
            peer.read_request()
            drip(peer, first)

    monkeypatch.setenv("HTTPS_PROXY", raw_server(behave).url)
    started = time.monotonic()
    failure(make_client("https://127.0.0.1", verify=certificate, read=0.3), LostAnswerError)

    assert time.monotonic() - started < 3


INTERIM = {
    "100": b"HTTP/1.1 100 Continue\r\n\r\n",
    "102": b"HTTP/1.1 102 Processing\r\n\r\n",
    "103": b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nLink: </b.js>; rel=preload\r\n\r\n",
    "unassigned": b"HTTP/1.1 199 So\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
}


@pytest.mark.parametrize("interim", [[name] for name in INTERIM] + [list(INTERIM), ["103", "100", "102"] * 30])
@pytest.mark.parametrize("pause", [0, 0.05])
def test_every_request_gets_its_own_final_response_after_interim_ones(raw_server, make_client, interim, pause):
    received = []

    def behave(peer):
        while peer.read_request():
            received.append(peer)
            for name in interim[: 5 if pause else None]:
                peer.send(INTERIM[name])
                time.sleep(pause)
            peer.answer(DONE.replace(b"a.png", f"{len(received)}.png".encode()))

    server = raw_server(behave)
    client = make_client(server.url)
    urls = [send(client).pictures[0].url for _ in range(3)]

    assert urls == [f"http://cdn.test/{number}.png" for number in (1, 2, 3)]
    assert server.connections == 1


@pytest.mark.parametrize("stray", [10, 100_000, 1_000_000])
@pytest.mark.parametrize("pause", [0, 0.1])
def test_unsolicited_data_is_never_read_as_a_response(raw_server, make_client, stray, pause):
    received = []

    def behave(peer):
        while peer.read_request():
            received.append(peer)
            peer.answer(DONE.replace(b"a.png", f"{len(received)}.png".encode()))
            time.sleep(pause)
            peer.answer(DONE.replace(b"a.png", b"stray.png") + b" " * stray)

    client = make_client(raw_server(behave).url)
    urls = []
    for _ in range(3):
        urls.append(send(client).pictures[0].url)
        time.sleep(0.3)

    assert urls == [f"http://cdn.test/{number}.png" for number in (1, 2, 3)]


def test_a_rejection_after_an_interim_response_is_the_outcome(raw_server, make_client):
    def behave(peer):
        peer.read_request()
        peer.send(INTERIM["102"])
        peer.answer(b'{"message": "no"}', status="401 Unauthorized")

    failure(make_client(raw_server(behave).url), AuthenticationError)


@pytest.mark.parametrize("ending", ["close", "reset", "nonsense", "101 only"])
def test_an_interim_response_alone_leaves_the_outcome_unknown_and_closes_the_connection(
    raw_server, make_client, ending
):
    def behave(peer):
        peer.read_request()
        if peer.server.connections > 1:
            peer.answer(DONE)
            return
        peer.send(INTERIM["103"])
        if ending == "reset":
            peer.reset()
        elif ending == "nonsense":
            peer.send(b"nonsense\r\n\r\n")
        elif ending == "101 only":
            peer.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n")
            peer.answer(b'{"of": "another protocol"}')
            peer.hold()

    server = raw_server(behave)
    client = make_client(server.url)
    failure(client, LostAnswerError)

    assert send(client).pictures[0].url == "http://cdn.test/a.png"
    assert server.connections == 2


@pytest.mark.parametrize("drip", [INTERIM["100"], INTERIM["102"], INTERIM["103"], b"X-Slow: yes\r\n", b"x"])
def test_endless_headers_end_at_the_read_timeout(raw_server, make_client, drip):
    def behave(peer):
        peer.read_request()
        if not drip.startswith(b"HTTP"):
            peer.send(b"HTTP/1.1 200 OK\r\n")
        while not peer.server.ending.wait(0.1):
            peer.send(drip)

    started = time.monotonic()
    error = failure(make_client(raw_server(behave).url, read=0.5), LostAnswerError)

    assert time.monotonic() - started < 3
    assert "no response in time" in str(error)


def test_a_flood_of_interim_responses_ends_at_the_read_timeout(raw_server, make_client):
    def behave(peer):
        peer.read_request()
        while True:
            peer.send(INTERIM["102"] * 1000)

    started = time.monotonic()
    failure(make_client(raw_server(behave).url, read=0.5), LostAnswerError)

    assert time.monotonic() - started < 3


def test_a_body_has_its_own_timeout_after_slow_headers(raw_server, make_client):
    def behave(peer):
        peer.read_request()
        time.sleep(0.7)
        peer.send(INTERIM["102"] + f"HTTP/1.1 200 OK\r\nContent-Length: {len(DONE)}\r\n\r\n".encode())
        time.sleep(0.7)
        peer.send(DONE)

    assert send(make_client(raw_server(behave).url, read=1.0)).pictures[0].url == "http://cdn.test/a.png"


def test_an_oversized_response_is_not_read_into_memory(raw_server, make_client, monkeypatch):
    monkeypatch.setattr(client_module, "MAX_RESPONSE_BYTES", 1000)

    def behave(peer):
        peer.read_request()
        peer.answer(b" " * 5_000_000, headers="x-inference-id: inf-1\r\nx-aimlapi-usd-spent: 0.5\r\n")

    error = failure(make_client(raw_server(behave).url), UnreadableResponseError)

    assert (error.status, error.inference_id, error.usd) == (200, "inf-1", 0.5)


@pytest.mark.parametrize(("status", "kind"), [(401, AuthenticationError), (429, RateLimitedError)])
def test_a_rejection_counts_even_if_its_body_is_truncated(raw_server, make_client, status, kind):
    def behave(peer):
        peer.read_request()
        peer.send(f'HTTP/1.1 {status} No\r\nContent-Length: 500\r\n\r\n{{"requestId": "r'.encode())

    assert failure(make_client(raw_server(behave).url), kind).status == status


def test_a_server_error_with_a_truncated_body_is_a_lost_response(raw_server, make_client):
    def behave(peer):
        peer.read_request()
        peer.send(b'HTTP/1.1 500 No\r\nContent-Length: 500\r\n\r\n{"requestId": "r')

    assert failure(make_client(raw_server(behave).url), LostAnswerError).status == 500


# --- never sent, or outcome unknown -----------------------------------------------------------------------------------


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def test_a_refused_connection_sends_nothing(make_client):
    error = failure(make_client(f"http://127.0.0.1:{free_port()}"), ConnectionFailedError)

    assert str(error).endswith("no connection was made (connection refused). Nothing was sent.")


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 70 + ".invalid"])
def test_an_unresolvable_host_name_sends_nothing(make_client, host):
    error = failure(make_client(f"http://{host}"), ConnectionFailedError)

    assert "the host name cannot be resolved" in str(error)


def test_a_connect_timeout_sends_nothing(make_client):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        callers = [socket.socket() for _ in range(4)]  # more than the backlog holds: further connections wait
        for caller in callers:
            caller.setblocking(False)
            caller.connect_ex(listener.getsockname())
        try:
            client = make_client(f"http://127.0.0.1:{listener.getsockname()[1]}", connect=0.2)
            error = failure(client, ConnectionFailedError)
        finally:
            for caller in callers:
                caller.close()

    assert "connecting timed out" in str(error)


def test_an_untrusted_certificate_is_rejected_before_anything_is_sent(raw_server, make_client, own_certificate):
    server = raw_server(lambda peer: peer.read_request(), tls=own_certificate[0])

    error = failure(make_client(server.url), ConnectionFailedError)

    assert "certificate is not trusted" in str(error)
    assert (server.connections, bytes(server.received)) == (1, b"")


def test_a_hanging_tls_handshake_sends_nothing(raw_server, make_client):
    server = raw_server(lambda peer: peer.hold())

    failure(make_client(server.url.replace("http:", "https:"), connect=0.3), ConnectionFailedError)

    assert server.received.startswith(b"\x16\x03")  # the handshake only
    assert b"fox" not in server.received


def test_a_server_without_tls_receives_nothing(raw_server, make_client):
    server = raw_server(lambda peer: (peer.connection.recv(10), peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")))

    failure(make_client(server.url.replace("http:", "https:")), ConnectionFailedError)

    assert bytes(server.received) == b""


def test_nothing_is_sent_through_an_unreachable_proxy(make_client, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{free_port()}")

    error = failure(make_client("https://api.test"), ConnectionFailedError)

    assert "behind a proxy" in str(error)


@pytest.mark.parametrize(
    "reply", [b"HTTP/1.1 403 Forbidden\r\n\r\n", b"HTTP/1.1 407 Who\r\n\r\n", b"junk\r\n\r\n", b""]
)
def test_a_proxy_that_refuses_a_tunnel_receives_nothing_of_the_request(raw_server, make_client, monkeypatch, reply):
    def behave(peer):
        peer.read_request()
        peer.send(reply)

    proxy = raw_server(behave)
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)

    failure(make_client("https://api.test"), ConnectionFailedError)

    assert proxy.received.startswith(b"CONNECT api.test:443 ")
    assert KEY.encode() not in proxy.received
    assert b"fox" not in proxy.received


def test_a_proxy_that_hangs_on_connect_receives_nothing_of_the_request(raw_server, make_client, monkeypatch):
    proxy = raw_server(lambda peer: peer.hold())
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)

    failure(make_client("https://api.test", connect=0.3), ConnectionFailedError)

    assert b"fox" not in proxy.received


@pytest.mark.parametrize("scheme", ["socks5", "nonsense"])
def test_nothing_is_sent_through_an_unsupported_proxy(raw_server, make_client, monkeypatch, scheme):
    server = raw_server(lambda peer: peer.read_request())
    monkeypatch.setenv("HTTP_PROXY", f"{scheme}://127.0.0.1:{server.port}")

    with pytest.raises(ImagenError) as caught:
        send(make_client("http://api.test"))

    assert isinstance(caught.value, ConnectionFailedError)
    assert b"fox" not in server.received


def test_a_proxy_that_requires_credentials_is_a_failed_connection(raw_server, make_client, monkeypatch):
    def behave(peer):
        peer.read_request()
        peer.answer(b"<html>", "407 Proxy Authentication Required")

    monkeypatch.setenv("HTTP_PROXY", raw_server(behave).url)

    assert failure(make_client("http://api.test"), ConnectionFailedError).status == 407


def test_a_plain_proxy_reset_after_the_request_leaves_the_outcome_unknown(raw_server, make_client, monkeypatch):
    """requests raises ``ProxyError`` for this, just as for a proxy that it never reached."""

    def behave(peer):
        peer.read_request()
        peer.reset()

    proxy = raw_server(behave)
    monkeypatch.setenv("HTTP_PROXY", proxy.url)

    failure(make_client("http://api.test"), LostAnswerError)

    assert b"fox" in proxy.received


def test_a_tunnel_closed_after_the_request_leaves_the_outcome_unknown(
    raw_server, make_client, monkeypatch, own_certificate
):
    context, certificate = own_certificate
    read = []

    def behave(peer):
        peer.read_request()
        peer.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
        with context.wrap_socket(peer.connection, server_side=True) as inner:
            peer.connection = inner
            read.append(peer.read_request())

    monkeypatch.setenv("HTTPS_PROXY", raw_server(behave).url)

    failure(make_client("https://127.0.0.1", verify=certificate), LostAnswerError)

    assert b"fox" in read[0]


def test_a_reset_before_the_request_was_read_leaves_the_outcome_unknown(raw_server, make_client):
    def behave(peer):
        select.select([peer.connection], [], [], 5)  # the request has arrived and stays unread
        peer.reset()

    server = raw_server(behave)

    failure(make_client(server.url), LostAnswerError)

    assert bytes(server.received) == b""


def test_a_connection_closed_without_a_response_leaves_the_outcome_unknown(raw_server, make_client):
    failure(make_client(raw_server(lambda peer: peer.read_request()).url), LostAnswerError)


@pytest.mark.parametrize("billed", [True, False])
def test_a_reset_after_the_request_was_read_leaves_the_outcome_unknown(sandbox, client, billed):
    sandbox.add_fault(Fault("reset", billed=billed))

    error = failure(client, LostAnswerError)

    assert "the connection was reset" in str(error)
    assert len(sandbox.seen(PATH)) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\n{}",  # requests: InvalidHeader
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000 + b"\r\n\r\n",
        b"\x00" * 100,
    ],
)
def test_an_invalid_http_response_leaves_the_outcome_unknown(raw_server, make_client, answer):
    def behave(peer):
        peer.read_request()
        peer.send(answer)

    failure(make_client(raw_server(behave).url), LostAnswerError)


def test_an_earlier_connection_failure_is_not_mistaken_for_this_one(sandbox, client):
    sandbox.add_fault(Fault("reset", billed=True))

    try:
        requests.get(f"http://127.0.0.1:{free_port()}", timeout=1)
    except requests.ConnectionError:
        failure(client, LostAnswerError)  # sent while the other error is being handled

    assert len(sandbox.ledger()) == 1


def test_an_expired_idle_connection_is_replaced_without_losing_a_response(raw_server, make_client):
    def behave(peer):
        peer.read_request()
        peer.answer(DONE)  # then closes, as a server does with idle connections

    server = raw_server(behave)
    client = make_client(server.url)

    assert len(send(client).pictures) == 1
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and not idle_connections_closed(client):
        time.sleep(0.01)
    assert len(send(client).pictures) == 1

    assert server.connections == 2
    assert server.received.count(b"POST ") == 2


def idle_connections_closed(client):
    """Return whether the client has noticed that the server closed its idle connections."""
    from urllib3.util.connection import is_connection_dropped

    pools = client._local.session.get_adapter(client.settings.base_url).poolmanager.pools
    (pool,) = (pools[key] for key in pools.keys())  # noqa: SIM118 - not a dict
    return all(is_connection_dropped(connection) for connection in pool.pool.queue if connection is not None)


@pytest.mark.parametrize("body", [{"seed": float("nan")}, {"seed": float("inf")}])
def test_a_body_that_is_not_json_is_rejected_before_anything_is_sent(sandbox, client, body):
    with pytest.raises(ValueError, match="cannot be encoded"):
        send(client, **body)

    assert sandbox.seen() == []


@pytest.mark.parametrize("request_id", ["", "a b", "ä", "x" * 129, "a\n", "a/b"])
def test_an_id_the_api_would_drop_silently_is_rejected(sandbox, client, request_id):
    with pytest.raises(ValueError, match="client_request_id"):
        send(client, request_id=request_id)

    assert sandbox.seen() == []


# --- where the key goes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_never_followed(raw_server, make_client, status):
    other = raw_server(lambda peer: peer.read_request())

    def behave(peer):
        while peer.read_request():
            peer.answer(b"", f"{status} Over there", f"Location: {other.url}/v1/images/generations\r\n")

    server = raw_server(behave)
    client = make_client(server.url)

    assert failure(client, InvalidRequestError).status == status
    with pytest.raises(InvalidRequestError):
        client.get_key()
    assert other.connections == 0
    assert server.received.count(b"/v1/") == 2


@pytest.mark.parametrize("location", ["http://[bad", "http://", "http://a:b", "\xff", "//", "file:///etc/passwd"])
def test_a_redirect_to_an_invalid_location_is_still_only_a_redirect(raw_server, make_client, location):
    def behave(peer):
        peer.read_request()
        peer.send(b"HTTP/1.1 302 There\r\nContent-Length: 0\r\nLocation: " + location.encode("latin-1") + b"\r\n\r\n")

    assert failure(make_client(raw_server(behave).url), InvalidRequestError).status == 302


def test_netrc_is_not_read(raw_server, make_client, monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password netrc-secret\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))

    def behave(peer):
        while peer.read_request():
            peer.answer(b'{"data": []}')

    server = raw_server(behave)
    make_client(server.url).list_models()
    make_client(server.url, api_key=None).list_models()

    assert server.received.lower().count(b"authorization:") == 1
    assert f"Bearer {KEY}".encode() in server.received


def test_a_proxy_does_not_see_a_key_sent_over_tls(raw_server, make_client, monkeypatch, own_certificate):
    context, certificate = own_certificate
    inside = []

    def behave(peer):
        peer.read_request()
        peer.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
        with context.wrap_socket(peer.connection, server_side=True) as inner:
            peer.connection = inner
            peer.server = type("Inside", (), {"received": bytearray()})()
            inside.append(peer.read_request())
            peer.answer(DONE)

    proxy = raw_server(behave)
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)

    assert len(send(make_client("https://127.0.0.1", verify=certificate)).pictures) == 1
    assert KEY.encode() in inside[0]
    assert KEY.encode() not in proxy.received


def test_an_explicit_verify_setting_wins_over_the_environment(raw_server, make_client, monkeypatch, own_certificate):
    context, certificate = own_certificate

    def behave(peer):
        peer.read_request()
        peer.answer(DONE)

    server = raw_server(behave, tls=context)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/bundle")
    assert len(send(make_client(server.url, verify=certificate)).pictures) == 1
    with pytest.warns(Warning, match="Unverified HTTPS request"):
        assert len(send(make_client(server.url, verify=False)).pictures) == 1

    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certificate)
    assert len(send(make_client(server.url)).pictures) == 1


@pytest.mark.parametrize("how", ["verify", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
@pytest.mark.parametrize(("content", "reason"), [(None, "not exist"), (b"", "cannot be read"), (b"junk", "cannot be")])
def test_an_unusable_ca_bundle_is_named_before_anything_is_sent(
    raw_server, make_client, own_certificate, monkeypatch, tmp_path, how, content, reason
):
    server = raw_server(lambda peer: peer.read_request(), tls=own_certificate[0])
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    if how != "verify":
        monkeypatch.setenv(how, str(path))

    with pytest.raises(ValueError, match=rf"^{how}='.*ca\.pem': .*{reason}"):
        make_client(server.url, verify=str(path) if how == "verify" else True)

    assert server.connections == 0


def test_a_missing_ca_bundle_matters_only_where_it_is_used(sandbox, make_client, monkeypatch):
    monkeypatch.setenv("CURL_CA_BUNDLE", "/no/such/bundle")
    make_client(sandbox.url)  # no TLS
    make_client("https://gateway.test", verify=False)


@pytest.mark.parametrize("host", ["plain.gateway.test", "10.0.0.5:8080", "[fd00::1]", "localhost.gateway.test"])
def test_sending_the_key_unencrypted_is_warned_about_once(make_client, caplog, host):
    """Once per host and process; no other test uses these hosts."""
    for _ in range(2):
        make_client(f"http://{host}/v1")

    (warning,) = caplog.records
    assert "sent unencrypted" in warning.message
    assert KEY not in caplog.text


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8765", "http://127.9.9.9", "http://[::1]", "http://LOCALHOST", "http://api.localhost"]
)
def test_loopback_and_https_are_not_warned_about(make_client, caplog, url):
    make_client(url)
    make_client("https://gateway.test")
    make_client("http://keyless.gateway.test", api_key=None)
    assert not caplog.records


FAULTS = [
    Fault("status", status=400, message=f"Authorization: Bearer {KEY} is odd, see https://x.test/a?sig=SIGNATURE"),
    Fault("status", status=401, message=[KEY, "no"], envelope="old"),
    Fault("status", status=403, error_kind=KEY),
    Fault("status", status=429, message=json.dumps({"message": f"key={KEY}"})),
    Fault("status", status=500, message=f"400 {KEY}"),
    Fault("status", status=503, message="https://user:SIGNATURE@proxy.test/ failed"),
    Fault("error_in_200", message=f"{KEY}"),
    Fault("reset"),
    Fault("hang", seconds=30),
    Fault("cut_body"),
    Fault("html"),
    Fault("wrong_json"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.kind}-{fault.status}")
def test_no_error_and_no_log_line_shows_the_key_or_a_signature(sandbox, make_client, caplog, fault):
    sandbox.configure(api_key=KEY)
    sandbox.add_fault(fault)

    with caplog.at_level(logging.DEBUG), pytest.raises(ImagenError) as caught:
        send(make_client(sandbox.url, read=0.5))

    exposed = exposed_text(caught.value) + exposed_text(pickle.loads(pickle.dumps(caught.value))) + caplog.text
    assert KEY not in exposed
    assert "SIGNATURE" not in exposed
    assert str(caught.value)


@pytest.mark.parametrize("status", ["200 OK", "200 cut off", "400 Bad Request", "500 Oops"])
@pytest.mark.parametrize(
    "form", [str, lambda key: b64encode(f"me:{key}".encode()).decode(), lambda key: key.replace("/", "%2F")]
)
def test_a_key_echoed_by_the_api_appears_in_no_result_or_error(raw_server, make_client, status, form):
    key = "sk-gateway/" + "7" * 24

    def behave(peer):
        peer.read_request()
        shown = form(key)
        entry = {"url": "http://cdn.test/a.png", "revised_prompt": f"a fox {shown}", "seed": 1}
        body = json.dumps(
            {"data": [entry, {"b64_json": "QUJD", "prompt": shown}], "message": shown, "error": {}}
        ).encode()
        headers = f"x-inference-id: inf-{shown}\r\nx-aimlapi-model: m-{shown}\r\n"
        peer.answer(body[:-9] if "cut" in status else body, status=status, headers=headers)

    client = make_client(raw_server(behave).url, api_key=key)
    if status.startswith("200"):
        generation = send(client)
        exposed = repr(generation)
        assert [image.url or image.data for image in generation.pictures] == ["http://cdn.test/a.png", b"ABC"]
        if status == "200 OK":
            assert all(image.prompt.endswith("***") for image in generation.pictures)
    else:
        exposed = exposed_text(failure(client, LostAnswerError if status[0] != "4" else InvalidRequestError))

    assert "7777" not in exposed
    assert b64encode(key.encode()).decode()[8:24] not in exposed
    assert "inf-" in exposed


def test_no_repr_shows_the_key(make_client):
    client = make_client("http://127.0.0.1:9")

    assert KEY not in repr(client.settings)
    assert KEY not in repr(client)
    assert KEY not in repr(vars(client))
    assert KEY not in pretty_repr([client.settings, vars(client)])  # as tracebacks that show variables print it


@pytest.mark.parametrize("key", [f"{KEY}\n", f"{KEY}\r\nX: y", f"{KEY} x", f"{KEY}ä", f"{KEY}\ud800", ""])
def test_a_key_that_is_invalid_in_a_header_is_rejected_without_showing_it(key):
    with pytest.raises(ValueError, match="password") as caught:
        ApiClient(ClientSettings(api_key=key))

    assert KEY not in exposed_text(caught.value)


# --- base URLs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_the_base_url_may_end_in_v1(sandbox, make_client, suffix):
    send(make_client(f"{sandbox.url}{suffix}", api_key=sandbox.api_key))

    assert [seen.path for seen in sandbox.seen()] == [PATH]


def test_a_path_before_v1_is_kept(raw_server, make_client):
    def behave(peer):
        peer.read_request()
        peer.answer(DONE)

    server = raw_server(behave)
    send(make_client(f"{server.url}/gateway/v1"))

    assert server.received.startswith(b"POST /gateway/v1/images/generations HTTP/1.1")


@pytest.mark.parametrize(
    "base_url", ["ftp://x", "https://", "http://[bad", "http://a:b", "http://a:99999", "https://*.x", "a b", "/", ""]
)
def test_an_unusable_base_url_is_rejected(base_url):
    with pytest.raises(ValueError, match="host="):
        ApiClient(ClientSettings(base_url=base_url))


@pytest.mark.parametrize("base_url", ["https://me:hidden@api.test", "ftp://me:hidden@api.test", "me:hidden@api.test"])
def test_a_password_in_the_base_url_is_rejected_and_not_shown(base_url):
    with pytest.raises(ValueError, match="host") as caught:
        ApiClient(ClientSettings(base_url=base_url))

    assert "hidden" not in exposed_text(caught.value)


# --- free calls -------------------------------------------------------------------------------------------------------


def test_the_key_and_the_balance_can_be_read(sandbox, client):
    assert client.get_key()["prefix"] == sandbox.api_key[:8]
    assert client.get_balance() == {"current_balance": 100.0, "currency": "USD"}


def test_the_catalogue_needs_no_key(sandbox, make_client):
    client = make_client(sandbox.url, api_key=None)

    models = client.list_models(include_pricing=True)

    assert BODY["model"] in {model["id"] for model in models}
    assert all("pricing" in model for model in models)
    assert "pricing" not in client.list_models()[0]
    assert "authorization" not in sandbox.seen()[0].headers
    assert client.list_deprecations()


def test_the_log_is_read_page_by_page(sandbox, client, monkeypatch):
    monkeypatch.setattr(client_module, "LOG_PAGE_ROWS", 2)
    for number in range(5):
        send(client, request_id=f"job-{number}")
    now = datetime.now(UTC)

    rows = list(client.iter_request_logs(start=now - timedelta(hours=1), end=now + timedelta(hours=1)))

    assert sorted(row["client_request_id"] for row in rows) == [f"job-{number}" for number in range(5)]
    assert len(sandbox.seen("/v2/logs")) == 3


def test_the_log_can_be_limited_to_models(client):
    send(client)
    now = datetime.now(UTC)
    window = {"start": now - timedelta(hours=1), "end": now + timedelta(hours=1)}

    assert len(list(client.iter_request_logs(**window, model=[BODY["model"], "flux-pro"]))) == 1
    assert list(client.iter_request_logs(**window, model="flux-pro")) == []


@pytest.mark.parametrize(
    "page",
    [
        {},
        {"data": [], "pagination": None},
        {"data": [], "pagination": {}},
        {"data": None, "pagination": {"has_more": False}},
        {"data": [], "pagination": {"has_more": True}},
        {"error": {"message": "The log is away."}},
    ],
)
def test_a_page_that_may_hide_rows_is_not_read_as_an_empty_log(raw_server, make_client, page):
    def behave(peer):
        peer.read_request()
        peer.answer(json.dumps(page).encode())

    now = datetime.now(UTC)
    with pytest.raises(UnreadableResponseError):
        list(make_client(raw_server(behave).url).iter_request_logs(start=now, end=now))


def test_the_ledger_is_read_to_its_end(sandbox, client, monkeypatch):
    monkeypatch.setattr(client_module, "TRANSACTIONS_PAGE_ROWS", 2)
    for number in range(5):
        send(client, request_id=f"job-{number}")
    now = datetime.now(UTC)

    rows = list(client.iter_transactions(start=now - timedelta(hours=1), end=now + timedelta(hours=1)))

    charged = [charge.inference_id for charge in sandbox.ledger()]
    assert [row["reference_id"] for row in rows] == charged[::-1]
    assert len(sandbox.seen("/v2/billing/transactions")) == 3
    assert list(client.iter_transactions(start=now - timedelta(hours=2), end=now - timedelta(hours=1))) == []


@pytest.mark.parametrize("cursor", [None, 7, "", "same"])
def test_a_ledger_that_does_not_say_how_to_go_on_is_unreadable(raw_server, make_client, cursor):
    page = {"data": [{"type": "BONUS"}], "pagination": {"has_more": True, "next_cursor": cursor}}

    def behave(peer):
        while peer.read_request():
            peer.answer(json.dumps(page).encode())

    now = datetime.now(UTC)
    with pytest.raises(UnreadableResponseError, match="the position of its next page"):
        list(make_client(raw_server(behave).url).iter_transactions(start=now, end=now))


def test_an_invalid_row_leaves_an_empty_one(raw_server, make_client):
    page = {"data": [None, {"usd": 1}, "x"], "pagination": {"has_more": False}}

    def behave(peer):
        while peer.read_request():
            peer.answer(json.dumps(page).encode())

    client, now = make_client(raw_server(behave).url), datetime.now(UTC)
    assert list(client.iter_request_logs(start=now, end=now)) == [{}, {"usd": 1}, {}]
    assert list(client.iter_transactions(start=now, end=now)) == [{}, {"usd": 1}, {}]


def test_a_page_is_requested_again_only_if_the_caller_can_wait(sandbox, client):
    sandbox.add_fault(Fault("status", path="/v2/logs", status=429, retry_after=5, times=2))
    now = datetime.now(UTC)
    waits = []

    with pytest.raises(RateLimitedError):
        list(client.iter_request_logs(start=now - timedelta(hours=1), end=now))
    assert list(client.iter_request_logs(start=now - timedelta(hours=1), end=now, wait=waits.append)) == []
    assert len(waits) == 1
    assert 5 <= waits[0] <= 6


class Clock:
    """A clock that moves only during sleeps."""

    def __init__(self):
        self.now = 1_795_000_000.0
        self.sleeps = []
        self.lock = threading.Lock()

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        with self.lock:
            self.sleeps.append(seconds)
            self.now += seconds


def test_a_long_log_is_read_within_its_rate_limit(monkeypatch):
    """This takes minutes by the virtual clock that client and server share."""
    clock = Clock()
    with Sandbox(picture_scale=0.0625, logs_per_minute=200, clock=clock, balance_usd=Decimal(100)) as sandbox:
        settings = ClientSettings(base_url=sandbox.url, api_key=sandbox.api_key)
        client = ApiClient(settings, clock=clock, sleep=clock.sleep)
        for number in range(250):
            send(client, request_id=f"job-{number}")
        monkeypatch.setattr(client_module, "LOG_PAGE_ROWS", 1)
        now = datetime.fromtimestamp(clock.now, UTC)
        rows = list(client.iter_request_logs(start=now - timedelta(hours=1), end=now + timedelta(hours=1)))
        client.close()

    assert len(rows) == 250
    assert len(clock.sleeps) == 249


def test_threads_share_the_logs_rate_limit(sandbox, monkeypatch):
    clock = Clock()
    client = ApiClient(
        ClientSettings(base_url=sandbox.url, api_key=sandbox.api_key), clock=clock, sleep=clock.sleeps.append
    )
    now = datetime.now(UTC)
    with ThreadPoolExecutor(4) as threads:
        for _ in threads.map(lambda _: list(client.iter_request_logs(start=now, end=now)), range(4)):
            pass
    client.close()

    interval = client_module.LOG_INTERVAL_SECONDS
    assert sorted(clock.sleeps) == pytest.approx([interval, 2 * interval, 3 * interval])


@pytest.mark.parametrize("fault", [Fault("reset", path="/v1/key"), Fault("hang", path="/v1/key", seconds=30)])
def test_a_free_call_without_a_response_is_a_failed_connection(sandbox, make_client, fault):
    sandbox.add_fault(fault)

    with pytest.raises(ConnectionFailedError):
        make_client(sandbox.url, api_key=sandbox.api_key, read=0.3).get_key()


def test_a_rejected_free_call_says_why(sandbox, client):
    sandbox.add_fault(Fault("status", path="/v2/logs", status=429, retry_after=5))
    now = datetime.now(UTC)

    with pytest.raises(RateLimitedError) as caught:
        list(client.iter_request_logs(start=now - timedelta(hours=1), end=now))

    assert caught.value.retry_after == 5


@pytest.mark.parametrize("body", [b"[]", b"<html>", b"", b"null", b"[" * 100_000, b"\xff"])
def test_a_free_call_that_returns_no_object_is_unreadable(raw_server, make_client, body):
    def behave(peer):
        peer.read_request()
        peer.answer(body)

    with pytest.raises(UnreadableResponseError):
        make_client(raw_server(behave).url).get_key()


# --- the API's clock --------------------------------------------------------------------------------------------------


def http_date(ahead_seconds):
    return format_datetime(datetime.now(UTC) + timedelta(seconds=ahead_seconds), usegmt=True)


@pytest.fixture
def client_receiving(raw_server, make_client):
    """Return a function that creates a client whose server sends these headers, one set per response."""

    def start(*headers, status="200 OK"):
        waiting = list(headers)

        def behave(peer):
            while waiting and peer.read_request():
                peer.answer(headers=waiting.pop(0), status=status)

        return make_client(raw_server(behave).url)

    return start


def test_the_apis_clock_is_unknown_before_the_first_response(client):
    assert client.clock_offset_seconds is None
    client.get_key()
    assert client.clock_offset_seconds == pytest.approx(0, abs=2)


@pytest.mark.parametrize("skew", [-10_800, -600, 600, 10_800])
def test_the_apis_clock_is_read_from_every_response(sandbox, client, skew):
    sandbox.configure(clock_skew_seconds=skew)
    send(client)
    assert client.clock_offset_seconds == pytest.approx(skew, abs=2)
    sandbox.configure(clock_skew_seconds=2 * skew)
    sandbox.add_fault(Fault("status", path="/v1/key", status=500))
    with pytest.raises(ServerError):
        client.get_key()
    assert client.clock_offset_seconds == pytest.approx(2 * skew, abs=2)


@pytest.mark.parametrize(
    "headers",
    [
        "",
        "Date: soon\r\n",
        "Date:\r\n",
        "Date: Mon, 99 Foo 2026 00:00:00 GMT\r\n",
        "Date: Fri, 31 Dec 9999 23:59:59 GMT\r\n",
        "Date: Mon, 01 Jan 0001 00:00:00 +1400\r\n",
        pytest.param(f"Date: {http_date(-600)}\r\nAge: 600\r\n", id="from a cache ten minutes ago"),
    ],
)
def test_a_response_without_a_usable_date_changes_nothing(client_receiving, headers):
    client = client_receiving(headers, f"Date: {http_date(600)}\r\n", headers)
    client.get_key()
    assert client.clock_offset_seconds is None
    client.get_key()
    assert client.clock_offset_seconds == pytest.approx(600, abs=5)
    client.get_key()
    assert client.clock_offset_seconds == pytest.approx(600, abs=5)


def test_a_retry_after_date_is_read_by_the_apis_clock(client_receiving):
    client = client_receiving(
        f"Date: {http_date(7200)}\r\nRetry-After: {http_date(7230)}\r\n", status="429 Too Many Requests"
    )
    with pytest.raises(RateLimitedError) as caught:
        client.get_key()
    assert caught.value.retry_after == pytest.approx(30, abs=1)


# --- threads ----------------------------------------------------------------------------------------------------------


def test_many_threads_share_a_client_and_none_gets_anothers_response(sandbox, client):
    with ThreadPoolExecutor(8) as threads:
        generations = list(threads.map(lambda number: send(client, request_id=f"job-{number}"), range(24)))

    ids = {charge.client_request_id: charge.inference_id for charge in sandbox.ledger()}
    assert [ids[generation.client_request_id] for generation in generations] == [
        generation.inference_id for generation in generations
    ]
    assert len(ids) == 24


def test_a_closed_client_can_be_used_again_and_closed_again(client):
    send(client)
    client.close()
    send(client)
    client.close()

    assert client._sessions == []


def test_a_slow_proxy_does_not_shorten_the_tls_handshakes_timeout(
    raw_server, make_client, monkeypatch, own_certificate
):
    context, certificate = own_certificate

    def behave(peer):
        peer.read_request()
        peer.send(b"HTTP/1.1 200 Connection established\r\n")
        time.sleep(1.3)
        peer.send(b"Via: 1.1 proxy\r\n")
        time.sleep(0.05)
        peer.send(b"\r\n")
        time.sleep(1.3)
        with context.wrap_socket(peer.connection, server_side=True) as inner:
            peer.connection = inner
            peer.read_request()
            peer.answer(DONE)

    monkeypatch.setenv("HTTPS_PROXY", raw_server(behave).url)

    assert len(send(make_client("https://127.0.0.1", verify=certificate, connect=2.0)).pictures) == 1


@pytest.mark.parametrize("read", ["iter_request_logs", "iter_transactions"])
@pytest.mark.parametrize(
    ("pages", "rows"),
    [
        (["ab", "bc"], "abc"),  # one new row moved the others
        (["abc", "abc", "d"], "abcd"),  # a page of new rows did
        (["aa", "bb"], "aabb"),  # equal rows on one page are several
        (["ab", "cd"], "abcd"),
        (["ab", "ca"], "abca"),
    ],
)
def test_rows_that_move_to_the_next_page_are_read_once(raw_server, make_client, read, pages, rows):
    left = enumerate(pages, start=1)

    def behave(peer):
        while peer.read_request():
            number, letters = next(left)
            pagination = {"has_more": number < len(pages), "next_cursor": str(number)}
            document = {"data": [{"id": letter} for letter in letters], "pagination": pagination}
            peer.answer(json.dumps(document).encode())

    now = datetime.now(UTC)
    found = getattr(make_client(raw_server(behave).url), read)(start=now, end=now)
    assert "".join(row["id"] for row in found) == rows


def test_charges_made_while_the_ledger_is_read_move_no_entry(sandbox, client, monkeypatch):
    monkeypatch.setattr(client_module, "TRANSACTIONS_PAGE_ROWS", 2)
    for number in range(5):
        send(client, request_id=f"job-{number}")
    charged = [charge.inference_id for charge in sandbox.ledger()]
    now = datetime.now(UTC)
    found = []
    for row in client.iter_transactions(start=now - timedelta(hours=1), end=now + timedelta(hours=1)):
        found.append(row["reference_id"])
        send(client, request_id=f"new-{len(found)}")

    assert found == charged[::-1]
