"""The sandbox's page in a real Chromium without JavaScript: a person injects a fault, and the next request fails."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import HTTPError

import pytest
from playwright.sync_api import Browser, Page, expect

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def sandbox() -> Iterator[str]:
    """Run the command and return its URL."""
    command = [os.environ["AIRFLOW_PYTHON"], "-m", "airflow_provider_imagen.cli", "sandbox", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[1]
        process.terminate()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(java_script_enabled=False, viewport={"width": 1280, "height": 900})
    yield context.new_page()
    context.close()


def _generate(sandbox: str, prompt: str) -> int:
    """Return the status of a generation."""
    with urllib.request.urlopen(f"{sandbox}/_sandbox/settings", timeout=20) as response:
        key = json.load(response)["api_key"]
    request = urllib.request.Request(
        f"{sandbox}/v1/images/generations",
        json.dumps({"model": "imagen-3.0-generate-002", "prompt": prompt}).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status
    except HTTPError as error:
        return error.code


def test_a_person_injects_a_fault_and_the_next_request_fails(page: Page, sandbox: str) -> None:
    console: list[str] = []
    page.on("console", lambda message: console.append(message.text))
    for prompt in ("A harbour in the fog", "<b>A lighthouse</b> on a cliff at dawn", "An old town square in the rain"):
        assert _generate(sandbox, prompt) == 200
    page.goto(sandbox)
    page.get_by_role("button", name="Error 500").click()
    expect(page.locator(".armed li")).to_have_text(["status"])
    page.locator(".images img").last.scroll_into_view_if_needed()
    page.wait_for_load_state("networkidle")
    thumbnails = page.locator(".images img").evaluate_all("images => images.map((image) => image.naturalWidth)")
    page.screenshot(path=Path(os.environ["ARTIFACTS"]) / "16-sandbox.png", full_page=True)

    assert [_generate(sandbox, "A boat"), _generate(sandbox, "A boat")] == [500, 200]
    page.get_by_role("link", name="Refresh").click()
    expect(page.locator(".armed li")).to_have_count(0)
    page.get_by_role("button", name="Reset the sandbox").click()
    expect(page.get_by_text("No request has been billed yet.")).to_be_visible()
    assert (thumbnails, console) == ([400] * 3, [])
