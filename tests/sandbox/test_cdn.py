from __future__ import annotations

import io
import time
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from PIL import Image

from airflow_provider_imagen.sandbox import Fault
from airflow_provider_imagen.sandbox.cdn import bomb


@pytest.fixture
def link(generate):
    return generate().json()["data"][0]["url"]


def fetch(url, **options):
    return requests.get(url, timeout=10, **options)


def test_an_image_is_served_by_another_host_without_a_key(link, sandbox):
    answer = fetch(link)

    assert not link.startswith(sandbox.url)
    assert answer.headers["content-type"] == "image/png"
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert Image.open(io.BytesIO(answer.content)).format == "PNG"
    (seen,) = [seen for seen in sandbox.seen() if seen.host == "cdn"]
    assert "authorization" not in seen.headers
    assert seen.status == 200


def test_head_works_for_an_unsigned_url(link):
    answer = requests.head(link, timeout=10)

    assert answer.status_code == 200
    assert int(answer.headers["content-length"]) == len(fetch(link).content)


def test_an_unknown_url_is_404_in_the_format_of_an_object_store(sandbox):
    answer = fetch(f"{sandbox.cdn_url}/generations/eagle/nothing.png")

    assert answer.status_code == 404
    assert "<Code>NoSuchKey</Code>" in answer.text


@pytest.mark.parametrize(
    ("style", "names"),
    [
        ("expires", {"Expires", "Signature"}),
        ("amz", {"X-Amz-Date", "X-Amz-Expires", "X-Amz-Signature"}),
        ("se", {"se", "sig"}),
        ("tos", {"X-Tos-Date", "X-Tos-Expires", "X-Tos-Signature"}),
    ],
)
def test_a_signed_url_works_until_it_expires(generate, sandbox, clock, style, names):
    sandbox.add_fault(Fault("signed_links", seconds=3600, style=style))
    link = generate().json()["data"][0]["url"]

    assert names <= set(parse_qs(urlsplit(link).query))
    assert fetch(link).status_code == 200
    assert fetch(link.split("?")[0]).status_code == 403
    assert requests.head(link, timeout=10).status_code == 403
    clock.now += 3600
    assert fetch(link).status_code == 403


def test_a_download_can_fail_and_then_work(link, sandbox):
    sandbox.add_fault(Fault("status", on="download", status=503, retry_after=2))
    first = fetch(link)

    assert (first.status_code, first.headers["retry-after"]) == (503, "2")
    assert fetch(link).status_code == 200


def test_a_download_can_be_slow_hang_or_break(link, sandbox):
    sandbox.add_fault(Fault("slow", on="download", seconds=0.2))
    began = time.monotonic()
    fetch(link)
    assert time.monotonic() - began >= 0.2

    sandbox.add_fault(Fault("hang", on="download"))
    with pytest.raises(requests.ReadTimeout):
        requests.get(link, timeout=0.2)

    sandbox.add_fault(Fault("reset", on="download"))
    with pytest.raises(requests.ConnectionError, match="reset by peer"):
        fetch(link)


def test_a_truncated_image_declares_its_full_size_and_is_complete_the_next_time(link, sandbox):
    whole = fetch(link).content
    sandbox.add_fault(Fault("cut_image", bytes_sent=100))
    answer = fetch(link, stream=True)

    assert int(answer.headers["content-length"]) == len(whole)
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        _ = answer.content
    assert fetch(link).content == whole


def test_a_range_request_returns_the_whole_image(link):
    """RFC 9110 allows this, and browsers and download tools accept it."""
    answer = fetch(link, headers={"Range": "bytes=5-"})

    assert answer.status_code == 200
    assert answer.content == fetch(link).content


def test_the_content_type_can_be_wrong(link, sandbox):
    sandbox.add_fault(Fault("wrong_content_type"))
    sandbox.add_fault(Fault("wrong_content_type", content_type="application/octet-stream"))

    answers = [fetch(link) for _ in range(2)]
    assert [answer.headers["content-type"] for answer in answers] == ["image/jpeg", "application/octet-stream"]
    assert answers[0].content.startswith(b"\x89PNG")


def test_a_download_can_be_html_or_json_instead_of_an_image(link, sandbox):
    sandbox.add_fault(Fault("html", on="download", status=200))
    sandbox.add_fault(Fault("not_an_image"))

    assert fetch(link).text.startswith("<!DOCTYPE html>")
    other = fetch(link)
    assert other.headers["content-type"] == "image/png"
    assert other.json()


def test_an_oversized_image_never_ends(link, sandbox):
    sandbox.add_fault(Fault("oversized"))
    received = 0
    with requests.get(link, stream=True, timeout=10) as answer:
        assert "content-length" not in answer.headers
        for chunk in answer.iter_content(65536):
            received += len(chunk)
            if received > 20_000_000:
                break

    assert received > 20_000_000
    assert fetch(link).status_code == 200


def test_an_oversized_image_can_declare_its_length(link, sandbox):
    sandbox.add_fault(Fault("oversized", content_length=10**10))
    with requests.get(link, stream=True, timeout=10) as answer:
        assert answer.headers["content-length"] == str(10**10)


def test_a_bomb_is_small_and_decodes_to_huge(link, sandbox):
    sandbox.add_fault(Fault("bomb"))
    data = fetch(link).content

    assert len(data) < 200_000
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(data))


def test_a_bomb_is_a_valid_png():
    picture = Image.open(io.BytesIO(bomb(500)))
    picture.load()

    assert picture.size == (500, 500)


def test_redirects_end_at_the_image(link, sandbox):
    whole = fetch(link).content
    sandbox.add_fault(Fault("redirect", hops=3))
    answer = fetch(link)

    assert [step.status_code for step in answer.history] == [302, 302, 302]
    assert answer.content == whole


@pytest.mark.parametrize(
    ("location", "start"),
    [
        ("private", "http://169.254.169.254/"),
        ("scheme", "file:"),
        ("downgrade", "http://127.0.0.1/"),
        ("https://elsewhere.example/a.png", "https://elsewhere.example/a.png"),
    ],
)
def test_a_redirect_can_lead_anywhere(link, sandbox, location, start):
    sandbox.add_fault(Fault("redirect", location=location))
    answer = fetch(link, allow_redirects=False)

    assert answer.status_code == 302
    assert answer.headers["location"].startswith(start)


def test_a_redirect_can_lead_to_the_api_or_loop(link, sandbox):
    sandbox.add_fault(Fault("redirect", location="other_port"))
    assert fetch(link, allow_redirects=False).headers["location"] == f"{sandbox.url}/v1/key"

    sandbox.add_fault(Fault("redirect", location="loop", times=None))
    with pytest.raises(requests.TooManyRedirects):
        fetch(link)


@pytest.mark.parametrize(("status", "code"), [(403, "AccessDenied"), (404, "NoSuchKey"), (410, "NoSuchKey")])
def test_a_url_can_be_expired(link, sandbox, status, code):
    sandbox.add_fault(Fault("expired", status=status))
    answer = fetch(link)

    assert answer.status_code == status
    assert f"<Code>{code}</Code>" in answer.text


def test_an_image_can_drip(link, sandbox):
    whole = fetch(link).content
    sandbox.add_fault(Fault("drip", seconds=0.05, chunk_bytes=len(whole) // 4 + 1))
    began = time.monotonic()

    assert fetch(link).content == whole
    assert time.monotonic() - began >= 0.2


def test_a_download_fault_applies_only_to_images_of_its_prompt(generate, sandbox):
    fox, cat = (generate(prompt=prompt).json()["data"][0]["url"] for prompt in ("a fox", "a cat"))
    sandbox.add_fault(Fault("expired", prompt="fox", times=None))

    assert (fetch(fox).status_code, fetch(cat).status_code) == (403, 200)


def test_a_reset_removes_all_images(link, sandbox):
    sandbox.reset()

    assert fetch(link).status_code == 404
