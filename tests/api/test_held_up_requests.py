"""The last check before a request is sent: once it fails, the API gets nothing it could act on."""

from __future__ import annotations

import pytest

from airflow_provider_imagen.api.client import ApiClient, ClientSettings
from airflow_provider_imagen.exceptions import ConnectionFailedError, OwnershipLostError

PATH = "/v1/images/generations"
BODY = {"model": "imagen-3.0-generate-002", "prompt": "a red fox"}


@pytest.fixture
def client(sandbox):
    client = ApiClient(ClientSettings(base_url=sandbox.url, api_key=sandbox.api_key))
    yield client
    client.close()


class Check:
    """Counts its calls; fails from one of them on, as if another attempt had taken over."""

    def __init__(self, fails_from: int | None = None) -> None:
        self.calls = 0
        self.fails_from = fails_from

    def __call__(self) -> None:
        self.calls += 1
        if self.fails_from is not None and self.calls >= self.fails_from:
            raise OwnershipLostError("taken over")


@pytest.mark.parametrize("fails_from", [1, 2], ids=["before its headers", "before its body"])
@pytest.mark.parametrize("is_connected", [False, True], ids=["new connection", "idle connection"])
def test_a_request_whose_last_check_fails_is_never_charged(sandbox, client, fails_from, is_connected):
    if is_connected:
        client.get_json("/v1/key")
    with pytest.raises(OwnershipLostError, match="taken over"):
        client.generate(PATH, BODY, client_request_id="late", before_send=Check(fails_from))
    assert client.generate(PATH, BODY, client_request_id="next", before_send=Check()).pictures
    assert [charge.client_request_id for charge in sandbox.ledger()] == ["next"]


def test_a_form_whose_last_check_fails_is_never_charged(sandbox, client):
    fields = {"model": "openai/gpt-image-1", "prompt": "a red fox"}
    files = [("image", ("fox.png", b"\x89PNG" + bytes(100_000), "image/png"))]
    with pytest.raises(OwnershipLostError, match="taken over"):
        client.generate("/v1/images/edits", fields, files=files, client_request_id="late", before_send=Check(2))
    assert sandbox.ledger() == []


def test_the_last_check_comes_after_connecting():
    """Connecting may take long, and what was true before may no longer be true."""
    check = Check()
    client = ApiClient(ClientSettings(base_url="http://127.0.0.1:1", api_key="k"))
    with pytest.raises(ConnectionFailedError):
        client.generate(PATH, BODY, client_request_id="c", before_send=check)
    assert check.calls == 0
