"""``airflow-imagen demo --ui``: a person logs in with what it prints, and sees the images. Run by ``set-up.sh``."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect
from running_airflow import Processes, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser

WORK = Path(os.environ["IMAGEN_WORK"])
TEMPORARY = WORK / "demo-tmp"


@pytest.fixture(scope="module")
def demo() -> Iterator[Processes]:
    TEMPORARY.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_")}
    processes = Processes(WORK, environment | {"TMPDIR": str(TEMPORARY)}, python=os.environ["AIRFLOW_PYTHON"])
    processes.start(
        "demo", "airflow_provider_imagen.cli", "demo", "--ui", "--num-images", "2", "A raccoon, watercolour"
    )
    wait_until(lambda: processes.all_live() and "Press Ctrl-C" in processes.output("demo"), "the demo's UI")
    yield processes
    processes.end()


def test_a_person_logs_in_and_sees_the_images(demo: Processes, browser: Browser) -> None:
    printed = dict(re.findall(r"^(Address|Username|Password): +(\S+)$", demo.output("demo"), re.MULTILINE))
    context = browser.new_context(viewport={"width": 1360, "height": 900})
    page = context.new_page()
    page.goto(printed["Address"])
    page.fill("input[name=username]", printed["Username"])
    page.fill("input[name=password]", printed["Password"])
    page.click("button[type=submit]")

    images = page.frame_locator("iframe[title=Pictures]").locator("a.card img")
    expect(images).to_have_count(2)
    for image in images.all():
        wait_until(lambda image=image: image.evaluate("image => image.naturalWidth > 0"), "an image")
    page.screenshot(path=Path(os.environ["ARTIFACTS"], "20-demo.png"))
    context.close()


def test_it_ends_when_interrupted_and_leaves_only_the_images(demo: Processes) -> None:
    os.kill(demo.pid("demo"), signal.SIGTERM)

    wait_until(lambda: demo.has_ended("demo"), "the end of the demo", patience_seconds=20)
    assert list(TEMPORARY.iterdir()) == []
    assert len(list((WORK / "imagen-demo").glob("*.png"))) == 2
