from __future__ import annotations

import base64
import html
import json
import logging
import re
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_imagen.download.downloader import Downloader
from airflow_provider_imagen.redaction import (
    elide_url,
    hide,
    keep_queries_out_of_logs,
    scrub,
    scrub_id,
    scrub_storage_text,
)
from airflow_provider_imagen.sandbox import Fault

KEY = "feedc0de" + "9" * 24


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        (f"key {KEY}!", "key ***!"),
        (f"{KEY}{KEY}", "******"),
        ("Authorization: Bearer abc.def-1", "Authorization: Bearer ***"),
        ("BEARER abc", "BEARER ***"),
        ("see https://x.test/a?sig=1&b=2 there", "see https://x.test/a there"),
        ("see HTTPS://x.test/a#frag", "see HTTPS://x.test/a"),
        ("'https://x.test/a?sig=1'", "'https://x.test/a'"),
        ("https://me:hidden@x.test/a", "https://x.test/a"),
        ("https://me:hid@den@x.test/a", "https://x.test/a"),
        ("-https://me:hidden@x.test/a", "-https://x.test/a"),
        ("s3://bucket/a?X-Amz-Signature=1", "s3://bucket/a"),
        ("url: /a/b?sv=1&sig=abc&x=2", "url: /a/b?sv=1&sig=***&x=2"),
        ("/a?X-Amz-Signature=abc", "/a?X-Amz-Signature=***"),
        ("Bearer%20abc", "Bearer ***"),
        (f"Authorization: Basic {base64.b64encode(b'me:hidden').decode()}", "Authorization: Basic ***"),
        ("basic dXNlcjpwYXNzd29yZA", "basic ***"),
        (f"Basic {base64.urlsafe_b64encode(b'>>>>:hidden').decode()}", "Basic ***"),
        (f"Basic {base64.urlsafe_b64encode(b'????:hidden').decode()}", "Basic ***"),
        ("a basic question of basic validity", "a basic question of basic validity"),
        ("more basic questions remain", "more basic questions remain"),
        ("Incorrect API key provided: sk-proj-0123456789abcdefXYZ.", "Incorrect API key provided: ***."),
        ("ask-me-anything-about-it-all", "ask-me-anything-about-it-all"),
        ("socks5://me:hidden@x.test", "socks5://x.test"),
        ("\x1b[31mred\x07\n\nand \u202e more", "[31mred and more"),
        ("half \ud800 a pair", "half a pair"),
        ("", ""),
    ],
)
def test_scrubbed_text_has_no_secrets_or_control_characters(text, scrubbed):
    assert scrub(text, KEY) == scrubbed


KEYS = [KEY, "sk-gateway+Key/with=signs==", "odd\"quote\\back<>&'{}|^`~", "%41percent%25", "$.*+?()[]"]


def encoded_forms(key):
    yield key
    yield quote(key, safe="")
    yield quote(key)
    yield quote_plus(key)
    yield re.sub("%..", lambda found: found[0].lower(), quote(key, safe=""))
    yield quote(quote(key, safe=""), safe="")
    yield "".join(f"%{byte:02x}" for byte in key.encode())
    yield json.dumps(key)[1:-1]
    yield json.dumps(json.dumps(key)[1:-1])[1:-1]
    yield key.replace("/", "\\/").replace("=", "\\u003d")
    yield "".join(f"\\u{ord(character):04X}" for character in key)
    yield html.escape(key)
    yield "".join(f"&#{ord(character)};" for character in key)
    yield repr(key)[1:-1]


@pytest.mark.parametrize("key", KEYS)
def test_every_encoding_of_the_key_is_masked(key):
    for form in encoded_forms(key):
        assert hide(f"<{form}>", key) == "<***>", form


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("login", ["", ":", "me:", "user:", "myproxy:"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_the_key_is_masked_in_base64_whatever_surrounds_it(key, login, encode):
    for behind in ("", "x", "xy", "xyz"):
        for wrap in (str, lambda text: quote(text, safe=""), lambda text: json.dumps(text).replace("/", "\\/")):
            text = hide(wrap(encode(f"{login}{key}{behind}".encode()).decode()), key)
            whole = encode(key.encode()).decode()
            for start in range(len(text) - 8):
                assert text[start : start + 8] not in whole


@pytest.mark.parametrize("key", [">" * 60, "?" * 60])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize(
    "wrap",
    [str, lambda text: quote(text, safe=""), lambda text: text.replace("/", "\\/")],
    ids=["plain", "url", "json"],
)
def test_a_long_key_is_redacted_to_its_end_although_its_base64_is_full_of_signs(key, encode, wrap):
    assert hide(f"<{wrap(encode(key.encode()).decode())}>", key) == "<***>"


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\\n", "\\r\\n"])
def test_the_key_is_masked_in_base64_split_across_lines(key, end):
    whole = base64.b64encode(f"me:{key}".encode()).decode()
    lines = end.join(whole[start : start + 7] for start in range(0, len(whole), 7))
    left = hide(lines, key).replace(end, "")
    assert "***" in left
    assert whole[8:16] not in left


ENCODED_KEYS = (
    "k-1_x+/y.Z9",
    base64.b64encode(b"k-1_x+/y.Z9").decode(),
    base64.urlsafe_b64encode(b"login:k-1_x+/y.Z9").decode(),
    quote("k-1_x+/y.Z9", safe=""),
    json.dumps("k-1_x+/y.Z9").replace("/", r"\/"),
    "".join(f"\\u{ord(letter):04x}" for letter in "k-1_x+/y.Z9"),
    "".join(f"&#{ord(letter)};" for letter in "k-1_x+/y.Z9"),
    "k-1_x+/y.Z",
    "a plain word",
)


@given(st.lists(st.sampled_from(ENCODED_KEYS) | st.text(max_size=4), max_size=4).map("".join))
def test_a_key_is_masked_in_a_single_word_as_in_a_sentence(word):
    """Words without blanks and escapes are checked in a shorter way."""
    assert hide(word, "k-1_x+/y.Z9") + " " == hide(word + " ", "k-1_x+/y.Z9")


@pytest.mark.parametrize(
    "text", ["", "a red fox", "100 % of it\n\ttwo", "https://x.test/a?b=1", "\\u0041 \\\\ &amp; %41"]
)
def test_a_text_without_the_key_is_unchanged(text):
    assert hide(text, KEY, None, "") == text


def test_scrubbing_works_without_any_secret():
    assert scrub("text", None, "") == "text"


def test_a_long_text_is_truncated():
    assert scrub("x" * 1000, limit=10) == "xxxxxxxxx…"


@given(
    st.lists(st.sampled_from([KEY, " ", " " * 500, "x" * 300, "https://a.test/b?c=", "\n", "word"]), max_size=60).map(
        "".join
    )
)
def test_truncation_leaves_no_part_of_the_key(text):
    assert KEY[:8] not in scrub(text, KEY, limit=100)


@pytest.mark.parametrize("text", ["", " " * 100_000, "\n" * 9_000, "x" * 100_000, " " * 50_000 + KEY])
def test_blank_and_very_long_texts_can_be_scrubbed(text):
    scrubbed = scrub(text, KEY, limit=100)
    assert len(scrubbed) <= 100
    assert KEY[:8] not in scrubbed


@pytest.mark.parametrize("style", ["expires", "amz", "se", "tos"])
def test_a_debug_log_of_a_download_shows_the_path_but_no_signature(sandbox, caplog, style):
    import requests

    sandbox.add_fault(Fault("signed_links", style=style))
    response = requests.post(
        f"{sandbox.url}/v1/images/generations",
        json={"model": "imagen-3.0-generate-002", "prompt": "a red fox"},
        headers={"Authorization": f"Bearer {sandbox.api_key}"},
        timeout=10,
    )
    url = response.json()["data"][0]["url"]
    path, _, query = url.removeprefix(sandbox.cdn_url).partition("?")
    assert query
    keep_queries_out_of_logs()

    with caplog.at_level(logging.DEBUG), Downloader(allow_private_hosts=True) as downloader:
        assert downloader.fetch(url).data

    assert path in caplog.text
    assert query not in caplog.text
    assert "?" not in caplog.text


def test_other_log_lines_are_kept_without_queries(caplog):
    keep_queries_out_of_logs()
    log = logging.getLogger("urllib3.connectionpool")

    with caplog.at_level(logging.DEBUG):
        log.debug("Starting new %s connection (%d)", "HTTPS", 1)
        log.warning("Failed to parse headers (url=%s): %s", "https://x.test/a?sig=1", ValueError("odd"))
        log.debug("nothing?")
        log.debug("%(name)s", {"name": "by name"})

    assert [record.getMessage() for record in caplog.records] == [
        "Starting new HTTPS connection (1)",
        "Failed to parse headers (url=https://x.test/a): odd",
        "nothing?",
        "by name",
    ]


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("s3://conn@bucket/a", "s3://conn@bucket/a"),
        ("s3://conn:hidden@bucket/a", "s3://conn:***@bucket/a"),
        ("GET https://x.test/a?sig=1#b failed", "GET https://x.test/a failed"),
        ("AccountKey=abc;EndpointSuffix=x.test", "AccountKey=***;EndpointSuffix=x.test"),
        ("Authorization: Bearer abc", "Authorization: ***"),
        ("two\n lines", "two lines"),
        ("x" * 300, "x" * 300),
        ("x" * 301, "x" * 299 + "…"),
        ("x" * 400, "x" * 299 + "…"),
    ],
)
def test_a_store_message_keeps_the_connection_id_but_no_secret(text, scrubbed):
    assert scrub_storage_text(text) == scrubbed


@pytest.mark.parametrize(
    ("value", "elided"),
    [
        ("https://me:hidden@x.test/a?sig=1#b", "https://…@x.test/a?…"),
        ("https://x.test/a", "https://x.test/a"),
        ("a red fox?", "a red fox?"),
    ],
)
def test_an_elided_url_shows_that_it_had_a_login_and_a_query(value, elided):
    assert elide_url(value) == elided


@pytest.mark.parametrize(
    ("value", "scrubbed"),
    [(None, None), ("", None), (" \n", None), ("req-1", "req-1"), (KEY, "***"), ("x" * 201, "x" * 199 + "…")],
)
def test_an_id_is_none_only_when_it_says_nothing(value, scrubbed):
    assert scrub_id(value, KEY) == scrubbed
