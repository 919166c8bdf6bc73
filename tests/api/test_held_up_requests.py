"""A request delayed until another attempt may have taken over is not sent."""

from __future__ import annotations

import time
from itertools import chain, repeat
from types import SimpleNamespace

import pytest

from airflow_provider_imagen.api import client as client_module
from airflow_provider_imagen.api.client import ApiClient, ClientSettings
from airflow_provider_imagen.exceptions import ConnectionFailedError


@pytest.fixture
def client(sandbox):
    client = ApiClient(ClientSettings(base_url=sandbox.url, api_key=sandbox.api_key))
    yield client
    client.close()


@pytest.mark.parametrize("jump_seconds", [3600, -3600], ids=["slept", "clock set back"])
def test_a_request_delayed_before_its_first_byte_is_never_sent(sandbox, client, monkeypatch, jump_seconds):
    jumps = chain([0], repeat(jump_seconds))
    clock = SimpleNamespace(time=lambda: time.time() + next(jumps), monotonic=time.monotonic)
    monkeypatch.setattr("airflow_provider_imagen.api.send_tracking.time", clock)
    with pytest.raises(ConnectionFailedError, match=r"delayed too long and has expired.*Nothing was sent"):
        client.get_json("/v1/key")
    monkeypatch.undo()
    assert sandbox.seen("/v1/key") == []
    assert client.get_json("/v1/key")["data"]


def test_connection_time_does_not_count_as_delay(client, monkeypatch):
    monkeypatch.setattr(client_module, "EXPIRES_AFTER_SECONDS", 0.0)
    assert client.get_json("/v1/key")["data"]


@pytest.mark.parametrize("jump_seconds", [0.0, client_module.EXPIRES_AFTER_SECONDS + 3 * 10.0])
def test_a_request_is_sent_before_it_expires_even_by_a_coarse_clock(client, monkeypatch, jump_seconds):
    jumps = chain([0.0], repeat(jump_seconds))
    clock = SimpleNamespace(time=lambda: 1_700_000_000.0 + next(jumps), monotonic=time.monotonic)
    monkeypatch.setattr("airflow_provider_imagen.api.send_tracking.time", clock)
    assert client.get_json("/v1/key")["data"]
