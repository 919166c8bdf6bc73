"""The Chromium that all checks in this folder share."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    # Imported here, because the other tests load this file too, in an environment without Playwright.
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=60_000)  # pages load slowly on a busy machine
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()
