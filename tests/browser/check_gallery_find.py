"""
Search, filters, orders, selection and downloads in a real Chromium.

Run by ``set-up.sh``, as ``check_gallery.py`` is. The last test depends on all others.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING
from urllib.parse import quote
from zipfile import ZipFile

import pytest
from axe_playwright_python.sync_playwright import Axe
from gallery_in_browser import WORK, Airflow, all_loaded, log_in, pictures_tab, screenshot, wait_for
from playwright.sync_api import Browser, Page, expect

if TYPE_CHECKING:
    from playwright.sync_api import Download, Frame, Locator

BOX = "input[name=image]"


def query(dag_id: str, run_id: str) -> str:
    return f"dag_id={dag_id}&run_id={quote(run_id, safe='')}"


@pytest.fixture(scope="session")
def many(airflow: Airflow) -> str:
    """Return the id of a run with two pages of images."""
    run_id = airflow.start_run("two_pages", output_path=str(WORK / "found"))
    airflow.wait_for("two_pages", run_id, "success")
    return run_id


@pytest.fixture
def address(airflow: Airflow, many: str) -> str:
    """Return the URL of its page."""
    return f"{airflow.url}/imagen/run?{query('two_pages', many)}"


@pytest.fixture
def models(airflow: Airflow) -> str:
    """Return the URL of the page of a run with three models and a failure."""
    run_id = airflow.start_run("compared_models", output_path=str(WORK / "found_models"))
    airflow.wait_for("compared_models", run_id, "success")
    return f"{airflow.url}/imagen/run?{query('compared_models', run_id)}"


def selected(page: Page | Frame) -> int:
    return page.locator(f"{BOX}:checked").count()


def images_in(download: Download) -> list[str]:
    with ZipFile(download.path()) as archive:
        assert archive.testzip() is None
        lines = [json.loads(line) for line in archive.read("metadata.jsonl").splitlines()]
        names = [name for name in archive.namelist() if name != "metadata.jsonl"]
    assert [line["file_name"] for line in lines] == names
    return [line["prompt"] for line in lines]


def choose(page: Page, **values: str) -> None:
    for name, value in values.items():
        page.locator(f"select[name={name}]").select_option(value)
    page.get_by_role("button", name="Apply").click()


# --- find -------------------------------------------------------------------------------------------------------------


def test_filters_order_and_preview_size_are_chosen_in_the_form_and_stay(ann: Page, models: str) -> None:
    ann.goto(models)
    expect(ann.locator("a.card")).to_have_count(7)
    choose(ann, model="flux/schnell", sort="-name", size="large")
    expect(ann.locator("a.card")).to_have_count(2)
    expect(ann.locator("a.card .name")).to_have_text(["raccoon", "lighthouse"])
    assert re.search(r"model=flux%2Fschnell&sort=-name&size=large$", ann.url)
    wait_for(lambda: all_loaded(ann), "the previews")
    screenshot(ann, "40-filtered")
    choose(ann, status="missing")
    expect(ann.locator(".card.missing")).to_have_count(1)
    expect(ann.locator("a.card")).to_have_count(0)
    ann.get_by_role("link", name="Show all").click()
    expect(ann.locator("a.card")).to_have_count(7)
    assert "sort=-name" in ann.url
    ann.go_back()
    expect(ann.locator("select[name=status]")).to_have_value("missing")


def test_page_numbers_lead_to_the_same_view(ann: Page, address: str) -> None:
    ann.goto(f"{address}&sort=-time&size=small")
    ann.get_by_role("navigation", name="Pages", exact=True).get_by_role("link", name="Page 2").click()
    expect(ann.locator("a.card")).to_have_count(10)
    assert "sort=-time" in ann.url
    expect(ann.locator(".grid.small")).to_be_visible()
    ann.get_by_role("navigation", name="Pages, repeated").get_by_role("link", name="Previous").click()
    expect(ann.locator("a.card")).to_have_count(60)
    wait_for(lambda: all_loaded(ann), "the previews")
    screenshot(ann, "41-small-previews")


# --- choose and take --------------------------------------------------------------------------------------------------


def test_images_are_selected_by_click_range_and_page_and_downloaded(ann: Page, address: str) -> None:
    ann.goto(address)
    box, button = ann.locator(BOX), ann.get_by_role("button", name="Download selected")
    expect(button).to_be_disabled()
    box.nth(3).check()
    box.nth(7).click(modifiers=["Shift"])
    expect(ann.get_by_text("5 selected")).to_be_visible()
    box.nth(5).uncheck()
    screenshot(ann, "42-selected")
    with ann.expect_download() as started:
        button.click()
    assert images_in(started.value) == [f"A postage stamp, number {n}" for n in (3, 4, 6, 7)]
    assert re.fullmatch(r".*\.zip", started.value.suggested_filename)

    ann.get_by_label("All on this page").check()
    assert selected(ann) == 60
    ann.get_by_label("All on this page").uncheck()
    assert selected(ann) == 0


def test_a_range_is_selected_with_the_keyboard(ann: Page, address: str) -> None:
    ann.goto(address)
    ann.locator(BOX).nth(2).focus()
    ann.keyboard.press("Space")
    ann.keyboard.press("Tab")  # the next card
    ann.keyboard.press("Tab")
    ann.keyboard.press("Tab")
    ann.keyboard.press("Tab")
    ann.keyboard.press("Shift+Space")
    expect(ann.get_by_text("3 selected")).to_be_visible()


def test_everything_that_matches_is_downloaded_from_all_pages(ann: Page, address: str) -> None:
    ann.goto(f"{address}&sort=-time")
    with ann.expect_download() as started:
        ann.get_by_role("button", name="Download all 70 images").click()
    assert len(images_in(started.value)) == 70
    ann.get_by_role("searchbox").fill("number 6")
    ann.keyboard.press("Enter")
    with ann.expect_download() as started:
        ann.get_by_role("button", name="Download all 16 matching images").click()
    assert all("6" in prompt for prompt in images_in(started.value))


@pytest.mark.parametrize("sandbox", [None, "allow-scripts allow-same-origin allow-forms"])
def test_downloads_work_in_airflows_tab(ann: Page, airflow: Airflow, many: str, sandbox: str | None) -> None:
    """Airflow's tabs allow downloads since 3.3.2 only."""
    ann.goto(f"{airflow.url}/dags/two_pages/runs/{many}")
    pictures_tab(ann).click()
    element = ann.locator("iframe[title=Pictures]")
    frame = ann.frame_locator("iframe[title=Pictures]")
    expect(frame.locator("a.card").first).to_be_visible()
    if sandbox is not None:
        element.evaluate("(frame, flags) => { frame.sandbox = flags; frame.contentWindow.location.reload(); }", sandbox)
        ann.wait_for_timeout(2_000)
        expect(frame.locator("a.card").first).to_be_visible()
    frame.locator(BOX).nth(1).check()
    with ann.expect_download() as started:
        frame.get_by_role("button", name="Download selected").click()
    assert images_in(started.value) == ["A postage stamp, number 1"]
    with ann.expect_download() as started:
        frame.get_by_role("button", name="Download all 70 images").click()
    assert len(images_in(started.value)) == 70
    screenshot(ann, "43-tab")


def test_two_to_four_selected_images_are_compared(ann: Page, address: str) -> None:
    ann.goto(address)
    button = ann.get_by_role("button", name="Compare 2 to 4")
    for count in range(1, 6):
        ann.locator(BOX).nth(count).check()
        expect(button).to_be_enabled() if 2 <= count <= 4 else expect(button).to_be_disabled()
    ann.locator(BOX).nth(5).uncheck()
    button.click()
    ann.wait_for_url(re.compile("/imagen/compare"))
    expect(ann.get_by_text("A postage stamp, number 4", exact=True)).to_be_visible()


def test_a_selection_survives_the_updates_of_a_live_page(ann: Page, airflow: Airflow) -> None:
    Airflow(airflow.sandbox, airflow.sandbox).call(
        "/_sandbox/faults", {"kind": "slow", "seconds": 1.0, "times": None, "prompt": "growing"}
    )
    run = airflow.start_run("growing_pictures", output_path=str(WORK / "growing_selected"))
    ann.goto(f"{airflow.url}/imagen/run?{query('growing_pictures', run)}")
    boxes = ann.locator(BOX)
    expect(boxes.nth(3)).to_be_attached()
    for number in (0, 2):
        boxes.nth(number).check()
    expect(boxes.nth(8)).to_be_attached()
    assert [boxes.nth(number).is_checked() for number in range(4)] == [True, False, True, False]
    expect(ann.get_by_text("2 selected")).to_be_visible()
    expect(ann.get_by_role("button", name="Download selected")).to_be_enabled()
    airflow.wait_for("growing_pictures", run, "success")
    expect(boxes).to_have_count(30)
    assert selected(ann) == 2


def test_the_page_of_an_image_copies_its_prompt_and_downloads_it(ann: Page, address: str) -> None:
    ann.goto(address)
    ann.goto(ann.locator("a.card").nth(4).evaluate("card => card.href"))
    ann.get_by_role("button", name="Copy prompt").click()
    expect(ann.get_by_text("Copied.")).to_be_visible()
    assert ann.evaluate("navigator.clipboard.readText()") == "A postage stamp, number 4"
    screenshot(ann, "44-picture")
    with ann.expect_download() as started:
        ann.get_by_role("link", name="Download this image").click()
    assert started.value.path().read_bytes().startswith(b"\x89PNG")
    assert started.value.suggested_filename == "stamps-4-0.png"


def test_forms_and_downloads_work_without_a_script(browser: Browser, airflow: Airflow, address: str) -> None:
    context = log_in(browser, airflow, "ann")
    session = context.storage_state()
    context.close()
    context = browser.new_context(java_script_enabled=False, storage_state=session)
    page = context.new_page()
    page.goto(address)
    page.locator("input[name=q]").fill("number 1")
    choose(page, sort="-time", size="small")
    expect(page.locator("a.card")).to_have_count(16)
    boxes: Locator = page.locator(BOX)
    boxes.nth(0).check()
    boxes.nth(10).check()
    with page.expect_download() as started:
        page.get_by_role("button", name="Download selected").click()
    assert len(images_in(started.value)) == 2
    with page.expect_download() as started:
        page.get_by_role("button", name="Download all 16 matching images").click()
    assert len(images_in(started.value)) == 16
    context.close()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1360), ("dark", 1360), ("light", 390), ("dark", 390)])
def test_no_page_has_an_accessibility_problem(
    browser: Browser, airflow: Airflow, address: str, models: str, scheme: str, width: int
) -> None:
    context = log_in(browser, airflow, "ann", color_scheme=scheme)
    page = context.new_page()
    page.set_viewport_size({"width": width, "height": 900})
    addresses = {
        "many": address,
        "small": f"{address}&size=small&page=2",
        "large": f"{models}&size=large&sort=-cost",
        "nothing": f"{address}&q=nothing",
    }
    found = {}
    for name, url in addresses.items():
        page.goto(url)
        page.wait_for_load_state("networkidle")
        if (box := page.locator(BOX)).count():
            box.first.check()
        screenshot(page, f"45-{name}-{scheme}-{width}")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        violations = Axe().run(page).response["violations"]
        found |= {name: [(each["id"], each["nodes"][0]["html"]) for each in violations]} if violations else {}
    context.close()
    assert found == {}


def test_no_page_violated_its_content_security_policy(ann: Page) -> None:
    assert ann.refused == []
