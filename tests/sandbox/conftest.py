"""One sandbox with small images for the whole session, reset before each test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import requests

from airflow_provider_imagen.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

IMAGEN = "imagen-3.0-generate-002"


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 1_795_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="session")
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def _server(clock: Clock) -> Iterator[Sandbox]:
    with Sandbox(picture_scale=0.0625, clock=clock) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(_server: Sandbox) -> Sandbox:
    _server.reset()
    return _server


@pytest.fixture
def key(sandbox: Sandbox) -> dict[str, str]:
    return {"Authorization": f"Bearer {sandbox.api_key}"}


@pytest.fixture
def generate(sandbox: Sandbox, key: dict[str, str]) -> Callable[..., requests.Response]:
    """POST a generation; ``headers`` and ``timeout`` are passed to requests, everything else is the body."""

    def post(*, headers: dict[str, str] | None = None, timeout: float = 10, **body: Any) -> requests.Response:
        body = {"model": IMAGEN, "prompt": "a red fox"} | body
        return requests.post(
            f"{sandbox.url}/v1/images/generations", json=body, headers=key | (headers or {}), timeout=timeout
        )

    return post
