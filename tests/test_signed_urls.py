from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_imagen.signed_urls import is_signed, url_expiry, without_query


def test_a_url_loses_its_query_and_fragment():
    assert without_query("https://x.test/a?b#c") == without_query("https://x.test/a#c?b") == "https://x.test/a"


@pytest.mark.parametrize(
    ("url", "signed"), [("https://x.test/a", False), ("https://x.test/a?b=1", True), ("https://[x?b", True)]
)
def test_a_url_with_a_query_counts_as_signed(url, signed):
    assert is_signed(url) is signed


@pytest.mark.parametrize(
    ("query", "expiry"),
    [
        ("se=2026-11-21T10%3A00%3A00Z&sig=x", datetime(2026, 11, 21, 10, tzinfo=UTC)),  # Azure
        ("se=2026-11-21&sig=x", datetime(2026, 11, 21, tzinfo=UTC)),
        ("se=2026-11-21T12:00:00%2B02:00", datetime(2026, 11, 21, 10, tzinfo=UTC)),
        ("Expires=1795255200&Signature=x", datetime(2026, 11, 21, 10, tzinfo=UTC)),  # older S3, CloudFront, Aliyun
        ("X-Amz-Date=20261121T090000Z&X-Amz-Expires=3600", datetime(2026, 11, 21, 10, tzinfo=UTC)),
        ("X-Tos-Date=20261120T100000Z&X-Tos-Expires=86400", datetime(2026, 11, 21, 10, tzinfo=UTC)),
        ("X-Goog-Date=20261121T090000Z&X-Goog-Expires=3600", datetime(2026, 11, 21, 10, tzinfo=UTC)),
        ("x-oss-date=20261121T090000Z&x-oss-expires=3600", datetime(2026, 11, 21, 10, tzinfo=UTC)),
        ("Expires=1795255200&se=2026-11-21T09:00:00Z", datetime(2026, 11, 21, 9, tzinfo=UTC)),  # the earlier one
    ],
)
def test_the_expiry_of_a_signed_url_is_found(query, expiry):
    assert url_expiry(f"https://cdn.example/a.png?{query}") == expiry


@pytest.mark.parametrize(
    "url",
    [
        "https://cdn.example/a.png",
        "https://cdn.example/a.png?se=&Expires=soon",
        "https://cdn.example/a.png?Expires=99999999999999999999",
        "https://cdn.example/a.png?X-Amz-Expires=3600",
        "https://cdn.example/a.png?X-Amz-Date=20261121T090000Z",
        "https://cdn.example/a.png?X-Amz-Date=20261121T090000Z&X-Amz-Expires=99999999999999",
        "https://cdn.example/Expires=1795255200",
        "http://[broken/?Expires=1795255200",
        "",
    ],
)
def test_a_url_without_a_valid_expiry_has_none(url):
    assert url_expiry(url) is None


@given(st.text(), st.sampled_from(["se", "Expires", "X-Amz-Date", "X-Tos-Expires"]))
def test_no_query_breaks_the_expiry_lookup(value, name):
    moment = url_expiry(f"https://cdn.example/a.png?{name}={value}&X-Amz-Expires=60&X-Tos-Date=20261121T090000Z")
    assert moment is None or moment.tzinfo is UTC


@pytest.mark.parametrize(
    "number", ["1_793_000_000", "１７９３００００００", " 1793000000", "+1793000000", "1793000000.0", "9" * 5000, ""]
)
def test_an_expiry_must_be_plain_digits(number):
    assert url_expiry(f"https://x.test/a?Expires={quote(number)}") is None
    assert url_expiry(f"https://x.test/a?X-Amz-Date=20261128T000000Z&X-Amz-Expires={quote(number)}") is None
