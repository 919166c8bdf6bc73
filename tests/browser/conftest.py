"""
The Chromium, the Airflow and the visitor that the checks in this folder share.

Other tests load this file too, in an environment without Playwright, which only the fixtures import.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gallery_in_browser import Airflow
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=60_000)  # pages load slowly on a busy machine
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def airflow() -> Iterator[Airflow]:
    from gallery_in_browser import serve_airflow

    with serve_airflow() as server:
        yield server


@pytest.fixture(scope="session")
def ann(browser: Browser, airflow: Airflow) -> Iterator[Page]:
    from gallery_in_browser import log_in

    context = log_in(browser, airflow, "ann", color_scheme="light")
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    # Collect policy violations, of which the last test expects none.
    page.refused = []
    page.on(
        "console",
        lambda message: page.refused.append(message.text) if "Content Security Policy" in message.text else None,
    )
    yield page
    context.close()
