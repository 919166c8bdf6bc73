"""
The lightbox, comparisons, and the table of prompts and models, in a real Chromium.

Run by ``set-up.sh``, as ``check_gallery.py`` is. The last test depends on all others.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from axe_playwright_python.sync_playwright import Axe
from gallery_in_browser import WORK, Airflow, all_loaded, log_in, pictures_tab, screenshot, wait_for
from playwright.sync_api import Browser, Page, expect

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import Frame, Locator

DIALOG = "dialog#lightbox"
FULL = f"{DIALOG} zoom-frame img[alt]:not([alt=''])"


def query(dag_id: str, run_id: str) -> str:
    return f"dag_id={dag_id}&run_id={quote(run_id, safe='')}"


@pytest.fixture(scope="session")
def stamps(airflow: Airflow) -> str:
    """Return the URL of a run with two pages of images."""
    run_id = airflow.start_run("two_pages", output_path=str(WORK / "stamps"))
    airflow.wait_for("two_pages", run_id, "success")
    return f"{airflow.url}/imagen/run?{query('two_pages', run_id)}"


@pytest.fixture(scope="session")
def models(airflow: Airflow) -> str:
    """Return the query that names a run that compares models."""
    run_id = airflow.start_run("compared_models", output_path=str(WORK / "models"))
    airflow.wait_for("compared_models", run_id, "success")
    return query("compared_models", run_id)


@pytest.fixture
def comparison(airflow: Airflow, models: str) -> str:
    """Return the URL of a comparison of three models."""
    images = "".join(f"&image=paint%3A-1%3A{number}%3A0" for number in range(3))
    return f"{airflow.url}/imagen/compare?{models}{images}"


def position(page: Page) -> str:
    return page.locator(f"{DIALOG} .position").text_content()


def is_loaded(page: Page | Frame) -> bool:
    return page.locator(FULL).evaluate("image => image.complete && image.naturalWidth > 0")


def open_card(page: Page, number: int) -> None:
    page.locator("a.card").nth(number).click()
    expect(page.locator(DIALOG)).to_be_visible()
    wait_for(lambda: is_loaded(page), "the image")


def focused_card(page: Page) -> int:
    return page.evaluate("[...document.querySelectorAll('a.card')].indexOf(document.activeElement)")


def rectangle(image: Locator) -> dict[str, float]:
    return image.evaluate("image => image.getBoundingClientRect().toJSON()")


@pytest.mark.parametrize("leave", [lambda page: page.keyboard.press("Escape"), lambda page: page.go_back()])
def test_escape_and_back_return_to_the_same_place(ann: Page, stamps: str, leave: Callable[[Page], Any]) -> None:
    ann.goto(stamps)
    ann.locator("a.card").nth(40).scroll_into_view_if_needed()
    ann.wait_for_timeout(300)  # cards in view get their real size
    before = ann.evaluate("scrollY")
    assert before > 0
    open_card(ann, 40)
    assert position(ann) == "Image 41 of 60 on this page"
    screenshot(ann, "30-lightbox")

    leave(ann)

    expect(ann.locator(DIALOG)).to_be_hidden()
    expect(ann).to_have_url(stamps)
    ann.wait_for_timeout(300)
    assert (focused_card(ann), ann.evaluate("scrollY")) == (40, before)


def test_the_back_button_closes_the_lightbox_in_airflows_tab(ann: Page, airflow: Airflow, stamps: str) -> None:
    ann.goto(f"{airflow.url}/dags/two_pages/runs/{stamps.rpartition('run_id=')[2]}")
    pictures_tab(ann).click()
    tab = ann.frame_locator("iframe[title=Pictures]")
    tab.locator("a.card").nth(2).click()
    expect(tab.locator(DIALOG)).to_be_visible()
    inner = ann.frame(url=re.compile("/imagen/run"))
    wait_for(lambda: is_loaded(inner), "the image")
    screenshot(ann, "30-lightbox-in-tab")
    ann.evaluate("history.back()")  # go_back() would wait for a page to load
    expect(tab.locator(DIALOG)).to_be_hidden()
    expect(tab.locator("a.card")).to_have_count(60)
    expect(tab.locator("a.card").nth(2)).to_be_focused()


def test_arrow_keys_move_through_preloaded_images_and_the_last_one_gets_the_focus(ann: Page, stamps: str) -> None:
    ann.goto(stamps)
    open_card(ann, 3)
    sent: list[str] = []
    ann.on("request", lambda request: sent.append(request.url))
    ann.wait_for_timeout(1_500)  # for the neighbours

    sent.clear()
    ann.keyboard.press("ArrowRight")
    assert position(ann) == "Image 5 of 60 on this page"
    assert is_loaded(ann)
    wait_for(lambda: any("prompt_index=5&" in url for url in sent), "the next neighbour")
    assert not any("prompt_index=4&" in url for url in sent)
    ann.keyboard.press("ArrowLeft")
    ann.keyboard.press("ArrowLeft")
    assert position(ann) == "Image 3 of 60 on this page"
    assert "prompt_index%3D2" in ann.url or "prompt_index=2" in ann.url
    ann.keyboard.press("Escape")
    expect(ann.locator(DIALOG)).to_be_hidden()
    expect(ann).to_have_url(stamps)
    assert focused_card(ann) == 2


def test_the_arrow_keys_lead_to_the_next_page_and_back(ann: Page, stamps: str) -> None:
    ann.goto(stamps)
    open_card(ann, 59)
    ann.keyboard.press("ArrowRight")
    ann.wait_for_url(re.compile(r"page=2.*#image\?"))
    expect(ann.locator(f"{DIALOG} .position")).to_have_text("Image 1 of 10 on this page")
    ann.keyboard.press("ArrowRight")
    expect(ann.locator(f"{DIALOG} .position")).to_have_text("Image 2 of 10 on this page")
    ann.keyboard.press("ArrowLeft")
    ann.keyboard.press("ArrowLeft")
    expect(ann.locator(f"{DIALOG} .position")).to_have_text("Image 60 of 60 on this page")
    ann.keyboard.press("Escape")
    expect(ann.locator(DIALOG)).to_be_hidden()
    assert focused_card(ann) == 59


def test_the_image_can_be_zoomed_and_panned(ann: Page, stamps: str) -> None:
    ann.goto(stamps)
    open_card(ann, 0)
    image = ann.locator(FULL)
    natural = image.evaluate("image => image.naturalWidth / devicePixelRatio")
    whole = rectangle(image)
    frame = rectangle(ann.locator(f"{DIALOG} zoom-frame"))
    assert whole["height"] == pytest.approx(frame["height"], abs=1)

    ann.keyboard.press("1")
    actual = rectangle(image)
    assert actual["width"] == pytest.approx(natural, abs=0.5)
    expect(ann.get_by_role("button", name="Actual pixels")).to_have_attribute("aria-pressed", "true")
    ann.keyboard.press("+")
    ann.keyboard.press("+")
    screenshot(ann, "31-lightbox-zoomed")
    zoomed = rectangle(image)
    assert zoomed["width"] == pytest.approx(natural * 2.25, rel=0.01)
    ann.keyboard.press("Shift+ArrowRight")
    assert rectangle(image)["left"] < zoomed["left"]
    middle = (frame["left"] + frame["width"] / 2, frame["top"] + frame["height"] / 2)
    ann.mouse.move(*middle)
    ann.mouse.down()
    ann.mouse.move(middle[0] + 40, middle[1] + 30, steps=3)
    before = rectangle(image)
    ann.mouse.move(middle[0] + 50, middle[1] + 35)
    assert rectangle(image)["left"] - before["left"] == pytest.approx(10, abs=0.5)
    ann.mouse.up()
    ann.keyboard.press("0")
    assert rectangle(image) == pytest.approx(whole)
    ann.mouse.wheel(0, -300)
    wait_for(lambda: rectangle(image)["width"] > whole["width"], "the zoom")
    ann.keyboard.press("0")
    ann.mouse.dblclick(*middle)
    assert rectangle(image)["width"] == pytest.approx(natural, abs=0.5)
    ann.keyboard.press("ArrowRight")
    wait_for(lambda: is_loaded(ann), "the next image")
    assert rectangle(ann.locator(FULL))["height"] == pytest.approx(frame["height"], abs=1)
    ann.keyboard.press("Escape")


def test_failures_are_skipped_and_the_panel_tells_about_the_image(ann: Page, airflow: Airflow, models: str) -> None:
    ann.goto(f"{airflow.url}/imagen/run?{models}")
    expect(ann.locator(".card")).to_have_count(10)
    open_card(ann, 2)
    assert position(ann) == "Image 3 of 7"
    ann.keyboard.press("ArrowRight")
    assert position(ann) == "Image 4 of 7"
    info = ann.get_by_role("region", name="About this image")
    for part in ("A lighthouse on a cliff", "lighthouse", "imagen-3.0-generate-002", "$0.042", "seed 7", "autumn"):
        expect(info).to_contain_text(part)
    wait_for(lambda: is_loaded(ann), "the image")
    screenshot(ann, "32-lightbox-info")
    ann.keyboard.press("i")
    expect(info).to_be_hidden()
    screenshot(ann, "33-lightbox-without-info")
    ann.get_by_role("button", name="Info").click()
    ann.get_by_role("link", name="All details of this image").click()
    ann.wait_for_url(re.compile("/imagen/picture"))
    expect(ann.get_by_role("heading", name="Image 4 of 7")).to_be_visible()
    ann.go_back()
    expect(ann.locator(DIALOG)).to_be_visible()
    assert position(ann) == "Image 4 of 7"
    ann.reload()
    expect(ann.locator(DIALOG)).to_be_visible()
    ann.get_by_role("button", name="Close").click()
    expect(ann.locator(DIALOG)).to_be_hidden()
    ann.wait_for_url(re.compile("^[^#]*$"))
    expect(ann.locator(DIALOG)).to_be_hidden()


def test_the_lightbox_works_from_the_keyboard_alone(ann: Page, airflow: Airflow, models: str) -> None:
    ann.goto(f"{airflow.url}/imagen/run?{models}")
    ann.locator("a.card").first.focus()
    ann.keyboard.press("Enter")
    expect(ann.locator(DIALOG)).to_be_visible()
    named = []
    for _ in range(9):
        ann.keyboard.press("Tab")
        named.append(ann.evaluate("document.activeElement.closest('dialog') && document.activeElement.outerHTML"))
    reached = "".join(filter(None, named))
    for part in ("Next image", "About this image", "All details", "Zoom out", "Zoom in", "1:1", "Info", "Close"):
        assert part in reached, part
    ann.keyboard.press("Escape")
    expect(ann.locator(DIALOG)).to_be_hidden()
    assert focused_card(ann) == 0


def test_the_lightbox_stays_as_it_is_while_images_appear(ann: Page, airflow: Airflow) -> None:
    Airflow(airflow.sandbox, airflow.sandbox).call(
        "/_sandbox/faults", {"kind": "slow", "seconds": 1.0, "times": None, "prompt": "growing"}
    )
    run_id = airflow.start_run("growing_pictures", output_path=str(WORK / "growing-in-lightbox"))
    ann.goto(f"{airflow.url}/imagen/run?{query('growing_pictures', run_id)}")
    expect(ann.locator("a.card").nth(1)).to_be_attached()
    count = ann.locator("a.card").count()
    open_card(ann, 0)
    ann.locator(FULL).evaluate("image => { image.isTheOneWeSaw = true; }")
    ann.keyboard.press("+")
    zoomed = rectangle(ann.locator(FULL))

    expect(ann.locator("a.card").nth(count + 2)).to_be_attached()
    assert position(ann).startswith("Image 1 of ")
    assert int(position(ann).split()[3]) > count + 1
    assert ann.locator(FULL).evaluate("image => image.isTheOneWeSaw")
    assert rectangle(ann.locator(FULL)) == zoomed
    for _ in range(count + 1):
        ann.keyboard.press("ArrowRight")
    assert position(ann).startswith(f"Image {count + 2} of ")
    airflow.wait_for("growing_pictures", run_id, "success")
    expect(ann.locator(".progress")).to_have_count(0)
    assert position(ann) == f"Image {count + 2} of 30"
    ann.keyboard.press("Escape")
    expect(ann.locator(DIALOG)).to_be_hidden()
    assert focused_card(ann) == count + 1


def test_a_comparison_zooms_and_pans_all_images_together(ann: Page, comparison: str) -> None:
    ann.goto(comparison)
    wait_for(lambda: all_loaded(ann), "the images")
    screenshot(ann, "34-comparison", full_page=True)
    images = ann.locator(".compared img")

    def shown_parts() -> list[tuple[float, float]]:
        """Return how many times as wide as its frame each image is, and what of it is in the middle."""
        script = """images => images.map((image) => {
            const [inner, outer] = [image, image.closest("zoom-frame")].map((each) => each.getBoundingClientRect());
            return [inner.width / outer.width, (outer.x + outer.width / 2 - inner.x) / inner.width];
        })"""
        return images.evaluate_all(script)

    whole = shown_parts()
    ann.get_by_role("button", name="Actual pixels").click()
    frame = rectangle(ann.locator("zoom-frame").nth(1))
    ann.mouse.move(frame["left"] + 90, frame["top"] + 90)
    ann.keyboard.down("Control")
    ann.mouse.wheel(0, -60)
    ann.keyboard.up("Control")
    ann.mouse.down()
    ann.mouse.move(frame["left"] + 150, frame["top"] + 120, steps=4)
    ann.mouse.up()
    ann.wait_for_timeout(200)
    parts = shown_parts()
    screenshot(ann, "35-comparison-zoomed")
    zoom = [part[0] / before[0] for part, before in zip(parts, whole, strict=True)]
    assert zoom == pytest.approx([zoom[0]] * 3, rel=0.01)
    assert zoom[0] > 1
    assert [part[1] for part in parts] == pytest.approx([parts[0][1]] * 3, abs=0.15)  # they differ in shape
    before = ann.evaluate("scrollY")
    ann.mouse.wheel(0, 200)  # without Ctrl, it scrolls the page
    wait_for(lambda: ann.evaluate("scrollY") > before, "the page to scroll")
    assert shown_parts() == parts
    ann.locator("zoom-frame").nth(2).focus()
    ann.keyboard.press("0")
    assert shown_parts()[0] == pytest.approx(whole[0], abs=0.01)
    ann.keyboard.press("+")
    assert shown_parts()[1][0] > whole[1][0]

    expect(ann.locator(".compared li").first.locator("mark").first).to_have_text("imagen-3.0-generate-002")
    expect(ann.get_by_role("region", name="The same in all of them")).to_contain_text("A raccoon eating ice-cream")


def test_the_table_shows_prompts_and_models_and_leads_to_a_comparison(ann: Page, airflow: Airflow, models: str) -> None:
    ann.goto(f"{airflow.url}/imagen/run?{models}")
    ann.get_by_role("link", name="Compare the models prompt by prompt").click()
    table = ann.get_by_role("table", name="4 prompts and 3 models")
    expect(table.locator("a.card")).to_have_count(7)
    wait_for(lambda: all_loaded(ann), "the previews")
    screenshot(ann, "36-matrix", full_page=True)
    expect(table.get_by_role("columnheader", name="flux/schnell")).to_contain_text("2 images")
    expect(table.get_by_role("row", name=re.compile("bowl of oranges")).locator(".badge")).to_have_text(["Failed"] * 3)
    expect(table.get_by_role("row", name=re.compile("old town square"))).to_contain_text("Not requested")
    open_card(ann, 1)
    assert position(ann) == "Image 2 of 7"
    ann.keyboard.press("Escape")
    expect(ann.locator(DIALOG)).to_be_hidden()
    ann.keyboard.press("ArrowDown")
    assert focused_card(ann) == 4
    ann.get_by_role("link", name="names").click()
    ann.get_by_role("link", name="Compare the images of lighthouse").click()
    expect(ann.get_by_role("heading", name="3 images side by side")).to_be_visible()


def test_without_a_script_cards_lead_to_the_page_of_their_image(
    browser: Browser, airflow: Airflow, models: str, comparison: str
) -> None:
    context = log_in(browser, airflow, "ann")
    state = context.storage_state()
    context.close()
    context = browser.new_context(java_script_enabled=False, storage_state=state)
    page = context.new_page()
    page.goto(f"{airflow.url}/imagen/run?{models}")
    page.locator("a.card").first.click()
    page.wait_for_url(re.compile("/imagen/picture"))
    page.goto(comparison)
    assert page.locator(".compared img").count() == 3
    expect(page.get_by_role("button", name="Zoom in")).to_have_count(0)
    screenshot(page, "37-comparison-without-script", full_page=True)
    context.close()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1360), ("dark", 1360), ("light", 390), ("dark", 390)])
def test_no_page_has_an_accessibility_problem(
    browser: Browser, airflow: Airflow, models: str, comparison: str, scheme: str, width: int
) -> None:
    context = log_in(browser, airflow, "ann", color_scheme=scheme)
    page = context.new_page()
    page.set_viewport_size({"width": width, "height": 844})
    addresses = {
        "lightbox": f"{airflow.url}/imagen/run?{models}",
        "comparison": comparison,
        "two-images": comparison.rpartition("&")[0],
        "matrix": f"{airflow.url}/imagen/matrix?{models}",
        "one-image": f"{airflow.url}/imagen/compare?{models}&image=paint%3A-1%3A0%3A0",
    }
    found = {}
    for name, address in addresses.items():
        page.goto(address)
        if name == "lightbox":
            open_card(page, 0)
        page.wait_for_load_state("networkidle")
        screenshot(page, f"38-{name}-{scheme}-{width}", full_page=name != "lightbox")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        violations = Axe().run(page).response["violations"]
        found |= {name: [(each["id"], each["nodes"][0]["html"]) for each in violations]} if violations else {}
    context.close()
    assert found == {}


def test_a_swipe_and_a_pinch_work_on_a_phone(browser: Browser, airflow: Airflow, models: str) -> None:
    context = log_in(browser, airflow, "ann", has_touch=True, is_mobile=True)
    page = context.new_page()
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"{airflow.url}/imagen/run?{models}")
    page.locator("a.card").first.tap()
    expect(page.locator(DIALOG)).to_be_visible()
    wait_for(lambda: is_loaded(page), "the image")
    touch = context.new_cdp_session(page)

    def move(*paths: tuple[tuple[float, float], tuple[float, float]]) -> None:
        def points(share: float) -> list[dict[str, float]]:
            return [
                {"x": start[0] + share * (end[0] - start[0]), "y": start[1] + share * (end[1] - start[1]), "id": number}
                for number, (start, end) in enumerate(paths)
            ]

        touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": points(0)})
        for step in range(1, 9):
            touch.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": points(step / 8)})
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    move(((300, 300), (100, 305)))
    assert position(page) == "Image 2 of 7"
    wait_for(lambda: is_loaded(page), "the image")
    before = rectangle(page.locator(FULL))["width"]
    move(((180, 300), (80, 300)), ((210, 300), (310, 300)))
    assert rectangle(page.locator(FULL))["width"] > 2 * before
    assert position(page) == "Image 2 of 7"
    screenshot(page, "39-phone-zoomed")
    context.close()


def test_nobody_without_access_compares_images(
    browser: Browser, airflow: Airflow, models: str, comparison: str
) -> None:
    context = log_in(browser, airflow, "bob")
    for address in (comparison, f"{airflow.url}/imagen/matrix?{models}"):
        assert context.request.get(address).status == 403
    context.close()


def test_no_page_violated_its_content_security_policy(ann: Page) -> None:
    assert ann.refused == []
