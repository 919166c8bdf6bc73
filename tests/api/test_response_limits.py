"""Endless, huge and highly compressed responses: none may exceed its deadline or exhaust memory."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import textwrap
import time
import zlib

import pytest

from airflow_provider_imagen.api import client as client_module
from airflow_provider_imagen.api.client import ApiClient, ClientSettings
from airflow_provider_imagen.exceptions import (
    ConnectionFailedError,
    InvalidRequestError,
    LostAnswerError,
    UnreadableResponseError,
)

pytestmark = pytest.mark.usefixtures("no_proxies")

DONE = json.dumps({"data": [{"url": "http://cdn.test/a.png"}]}).encode()
BILLING_HEADERS = "x-inference-id: inf-1\r\nx-aimlapi-usd-spent: 0.5\r\n"


def client_for(server, read=5.0):
    return ApiClient(ClientSettings(base_url=server.url, api_key="k" * 32, read_timeout_seconds=read))


def generate(client, **body):
    return client.generate("/v1/images/generations", {"prompt": "a red fox"} | body, client_request_id="job-1.a")


def serve(raw_server, body, headers="", status="200 OK"):
    def behave(peer):
        while peer.read_request():
            peer.answer(body, status=status, headers=headers)

    return raw_server(behave)


def compressed(data, wbits):
    compressor = zlib.compressobj(9, zlib.DEFLATED, wbits)
    return compressor.compress(data) + compressor.flush()


# --- time -------------------------------------------------------------------------------------------------------------


def chunked(body):
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n" + body


EMPTY_DEFLATE_BLOCK = b"\x00\x00\x00\xff\xff"


@pytest.mark.parametrize(
    ("start", "drip"),
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b" ", id="body"),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\n", b" ", id="body until the connection closes"),
        pytest.param(chunked(b"\r\n"), b"1\r\n \r\n", id="chunks"),
        pytest.param(chunked(b"\r\n5;"), b"x", id="chunk extension"),
        pytest.param(chunked(b"\r\n0\r\n"), b"X-Trailer: yes\r\n", id="trailers"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 9999999\r\n\r\n" + gzip.compress(b"")[:10],
            EMPTY_DEFLATE_BLOCK,
            id="compressed nothing",
        ),
        pytest.param(b"HTTP/1.1 500 Oops\r\nContent-Length: 100000\r\n\r\n", b" ", id="the words of an error"),
    ],
)
def test_a_dripping_body_is_cut_off_at_its_deadline(raw_server, start, drip):
    def behave(peer):
        peer.read_request()
        peer.send(start)
        while not peer.server.ending.wait(0.05):
            peer.send(drip)

    started = time.monotonic()
    with pytest.raises(LostAnswerError):
        generate(client_for(raw_server(behave), read=0.5))

    assert 0.4 < time.monotonic() - started < 1.2


def test_silence_at_the_end_of_a_body_does_not_extend_its_deadline(raw_server):
    def behave(peer):
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        time.sleep(0.8)
        peer.send(b" ")
        peer.hold()

    started = time.monotonic()
    with pytest.raises(LostAnswerError, match="no response in time"):
        generate(client_for(raw_server(behave), read=1.0))

    assert 0.9 < time.monotonic() - started < 1.5


def test_a_nearly_used_up_deadline_does_not_shorten_the_next_request(raw_server):
    def behave(peer):
        for _ in range(3):
            peer.read_request()
            peer.send(f"HTTP/1.1 200 OK\r\nContent-Length: {len(DONE)}\r\n\r\n".encode())
            time.sleep(0.7)
            peer.send(DONE)

    server = raw_server(behave)
    client = client_for(server, read=1.0)

    for _ in range(3):
        assert generate(client).urls == ["http://cdn.test/a.png"]
    assert server.connections == 1


# --- size -------------------------------------------------------------------------------------------------------------


def test_a_free_call_reads_at_most_the_text_limit(raw_server):
    server = serve(raw_server, b" " * (client_module.MAX_TEXT_BYTES + 1))

    with pytest.raises(UnreadableResponseError, match="larger than 16777216 bytes"):
        client_for(server).get_balance()


@pytest.mark.parametrize(
    ("body", "limit"),
    [({"num_images": 1}, 2_000), ({"n": "3"}, 4_000), ({}, 5_000), ({"num_images": 400}, 9_000), ({"n": -1}, 2_000)],
)
def test_the_limit_grows_with_the_number_of_requested_images(raw_server, monkeypatch, body, limit):
    for name, size in (("MAX_TEXT_BYTES", 1_000), ("MAX_IMAGE_BYTES", 1_000), ("MAX_RESPONSE_BYTES", 9_000)):
        monkeypatch.setattr(client_module, name, size)

    fits = serve(raw_server, DONE + b" " * (limit - len(DONE)), BILLING_HEADERS)
    assert generate(client_for(fits), **body).urls == ["http://cdn.test/a.png"]

    too_large = serve(raw_server, DONE + b" " * (limit - len(DONE) + 1), BILLING_HEADERS)
    with pytest.raises(UnreadableResponseError, match=f"larger than {limit} bytes") as caught:
        generate(client_for(too_large), **body)
    assert (caught.value.status, caught.value.inference_id, caught.value.usd) == (200, "inf-1", 0.5)


def test_an_inline_image_fits_with_room_to_spare(raw_server):
    encoded = "A" * 50_000_000
    server = serve(raw_server, json.dumps({"data": [{"b64_json": encoded}]}).encode())

    (image,) = generate(client_for(server, read=30), num_images=1).pictures

    assert len(image.data) == 37_500_000


def test_commas_in_strings_do_not_count_as_values(raw_server):
    prompt = 'a "fox", [a {hen}], ' * 100_000
    server = serve(raw_server, json.dumps({"data": [{"url": "http://cdn.test/a.png", "prompt": prompt}]}).encode())

    assert generate(client_for(server)).pictures[0].prompt == prompt


def test_a_huge_error_body_still_raises_its_error(raw_server):
    server = serve(raw_server, b'{"message": "' + b"no " * 20_000_000, status="400 Bad Request")

    with pytest.raises(InvalidRequestError):
        generate(client_for(server))
    assert len(server.received) < 1_000


# --- memory -----------------------------------------------------------------------------------------------------------

VALUES = {
    "objects": b'{"data": [' + b"{}," * 19_000_000 + b"{}]}",
    "lists": b"[" + b"[]," * 19_000_000 + b"[]]",
    "numbers": b'{"data": [' + b"1," * 29_000_000 + b"1]}",
    "keys": b'{"data": {' + b'"":0,' * 11_000_000 + b'"":0}}',
    "escaped": b'{"data": ["' + b'\\"' * 20_000_000 + b'"' + b",{}" * 7_000_000 + b"]}",
}


@pytest.mark.skipif(sys.platform != "linux", reason="counts the process's memory as Linux does")
@pytest.mark.parametrize("kind", VALUES)
def test_60_mb_of_json_take_less_than_400_mb(raw_server, kind):
    server = serve(raw_server, VALUES[kind], BILLING_HEADERS)
    script = f"""
        import re
        from pathlib import Path
        from airflow_provider_imagen.api.client import ApiClient, ClientSettings
        from airflow_provider_imagen.exceptions import UnreadableResponseError
        client = ApiClient(ClientSettings(base_url={server.url!r}, api_key="k" * 32))
        try:
            client.generate("/v1/images/generations", {{"num_images": 1}}, client_request_id="job-1.a")
        except UnreadableResponseError as error:
            peak = re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())
            print(error.usd, error.inference_id, int(peak[1]) // 1024, error)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, env=os.environ, timeout=60
    )
    usd, inference_id, megabytes, *_ = ran.stdout.split() or pytest.fail(ran.stderr)

    assert (usd, inference_id) == ("0.5", "inf-1")
    assert int(megabytes) < 400
    assert "contains more than 250000 JSON values" in ran.stdout


# --- content codings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "x-gzip", "deflate"])
def test_a_single_content_coding_is_decoded(raw_server, coding):
    body = compressed(DONE, zlib.MAX_WBITS | (16 if "gzip" in coding.lower() else 0))

    assert generate(client_for(serve(raw_server, body, f"Content-Encoding: {coding}\r\n"))).urls


@pytest.mark.parametrize("coding", ["", "identity", "utf-8", "binary", "aws-chunked, utf-8"])
def test_a_content_coding_that_changes_nothing_is_accepted(raw_server, coding):
    assert generate(client_for(serve(raw_server, DONE, f"Content-Encoding: {coding}\r\n"))).urls


@pytest.mark.parametrize(
    "coding", ["gzip, gzip", "gzip,deflate", "deflate, x-gzip , gzip", "gzip\r\nContent-Encoding: gzip"]
)
@pytest.mark.parametrize("status", [200, 400])
def test_several_content_codings_are_not_decoded(raw_server, coding, status):
    bomb = gzip.compress(gzip.compress(b"\0" * 50_000_000))
    server = serve(raw_server, bomb, f"Content-Encoding: {coding}\r\n{BILLING_HEADERS}", status=f"{status} X")

    with pytest.raises(UnreadableResponseError if status == 200 else InvalidRequestError) as caught:
        generate(client_for(server))
    assert caught.value.status == status
    if status == 200:
        assert (caught.value.usd, caught.value.inference_id) == (0.5, "inf-1")
        assert "only gzip or deflate, applied once, is accepted" in str(caught.value)


def test_a_compression_bomb_is_decompressed_only_up_to_the_limit(raw_server):
    server = serve(raw_server, gzip.compress(b" " * 300_000_000), f"Content-Encoding: gzip\r\n{BILLING_HEADERS}")

    with pytest.raises(UnreadableResponseError, match="larger than 79691776 bytes"):
        generate(client_for(server), num_images=1)


def test_only_supported_codings_are_requested(raw_server):
    server = serve(raw_server, DONE)
    generate(client_for(server))

    (line,) = [line for line in bytes(server.received).lower().split(b"\r\n") if line.startswith(b"accept-encoding")]
    assert line == b"accept-encoding: gzip, deflate"


def test_a_dripping_free_call_is_a_failed_connection(raw_server):
    def behave(peer):
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while not peer.server.ending.wait(0.05):
            peer.send(b" ")

    with pytest.raises(ConnectionFailedError, match="no response in time"):
        client_for(raw_server(behave), read=0.3).get_balance()
