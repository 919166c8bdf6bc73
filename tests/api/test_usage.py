"""What the key has spent, as ``GET /v2/usage`` reports it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from airflow_provider_imagen.api.client import ApiClient, ClientSettings
from airflow_provider_imagen.exceptions import UnreadableResponseError

START = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture
def read(raw_server):
    def read(body):
        def behave(peer):
            peer.read_request()
            peer.answer(json.dumps(body).encode())

        client = ApiClient(ClientSettings(base_url=raw_server(behave).url, api_key="k"))
        try:
            return client.get_usage(start=START, end=START + timedelta(days=30))
        finally:
            client.close()

    return read


@pytest.mark.parametrize("spend", [13.704199, "13.704199"])
def test_the_amount_is_exact(read, spend):
    assert read({"spend": spend, "currency": "USD"}) == Decimal("13.704199")


@pytest.mark.parametrize(
    "body",
    [{}, {"spend": None}, {"spend": "much"}, {"spend": -1}, {"spend": True}, {"spend": 1, "currency": "EUR"}],
)
def test_a_response_without_an_amount_in_usd_is_unreadable(read, body):
    with pytest.raises(UnreadableResponseError, match="GET /v2/usage did not return an amount in USD"):
        read(body)


def test_the_window_is_what_was_asked_for(sandbox):
    client = ApiClient(ClientSettings(base_url=sandbox.url, api_key=sandbox.api_key))
    client.get_usage(start=START, end=START + timedelta(days=30))
    client.close()
    (seen,) = sandbox.seen("/v2/usage")
    assert seen.query == {"start": ["2026-11-01T00:00:00+00:00"], "end": ["2026-12-01T00:00:00+00:00"]}
