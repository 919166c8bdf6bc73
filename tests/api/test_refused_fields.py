"""A gateway rejects a field: the request is resent without it, unless the rejection states a cost."""

from __future__ import annotations

import pytest

from airflow_provider_imagen.api.client import ApiClient, ClientSettings
from airflow_provider_imagen.exceptions import InvalidRequestError

REFUSAL = b'{"error": {"message": "Unknown parameter: \'response_format\'."}}'
IMAGE = b'{"data": [{"url": "https://cdn.test/a.png"}]}'
COST = "x-aimlapi-usd-spent: 0.25\r\n"


@pytest.mark.parametrize(("headers", "posts"), [("", 2), (COST, 1)], ids=["free", "charged"])
def test_a_rejected_field_is_dropped_and_resent_only_if_nothing_was_charged(raw_server, headers, posts):
    seen = []

    def behave(peer):
        while seen_request := peer.read_request():
            seen.append(seen_request)
            if len(seen) == 1:
                peer.answer(REFUSAL, status="400 Bad Request", headers=headers)
            else:
                peer.answer(IMAGE)

    client = ApiClient(ClientSettings(base_url=raw_server(behave).url, api_key="k" * 32))
    body = {"model": "gpt-image-1", "prompt": "a fox", "response_format": "url"}

    def send():
        return client.generate("/v1/images/generations", body, client_request_id="c-1")

    if posts == 2:
        assert [image.url for image in send().pictures] == ["https://cdn.test/a.png"]
    else:
        with pytest.raises(InvalidRequestError) as caught:
            send()
        assert caught.value.usd == 0.25
    client.close()
    assert len(seen) == posts
