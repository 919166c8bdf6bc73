"""
The review page in a real Chromium: marking with mouse and keyboard, answering, and who may answer.

Run by ``set-up.sh``, as ``check_gallery.py`` is. The tests depend on each other and run in the order of this file.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

import pytest
from axe_playwright_python.sync_playwright import Axe
from gallery_in_browser import WORK, Airflow, all_loaded, log_in, pictures_tab, screenshot, wait_for
from playwright.sync_api import Browser, Page, expect

COUNTS = "#counts"


def address(airflow: Airflow, dag_id: str, run_id: str, task_id: str = "review", **query: Any) -> str:
    ids = {"dag_id": dag_id, "run_id": run_id, "task_id": task_id, **query}
    return f"{airflow.url}/imagen/review?" + "&".join(f"{name}={quote(str(id_), safe='')}" for name, id_ in ids.items())


def wait_for_question(airflow: Airflow, dag_id: str, run_id: str, task_id: str) -> None:
    waiting = ("awaiting_input", "deferred")  # since Airflow 3.3, and before
    wait_for(lambda: airflow.state_of(dag_id, run_id, task_id) in waiting, f"{dag_id} {task_id} to wait for a person")


@pytest.fixture(scope="session")
def posters(airflow: Airflow) -> str:
    """Return the id of a run that waits for a review of eight images."""
    run_id = airflow.start_run("imagen_review", output_path=str(WORK / "review"))
    wait_for_question(airflow, "imagen_review", run_id, "review")
    return run_id


@pytest.fixture(scope="session")
def stamps(airflow: Airflow) -> str:
    """Return the id of a run that waits for a review of two pages of images."""
    run_id = airflow.start_run("many_to_review", output_path=str(WORK / "review-stamps"))
    wait_for_question(airflow, "many_to_review", run_id, "review")
    return run_id


def test_who_may_only_read_sees_the_images_and_that_they_cannot_answer(
    browser: Browser, airflow: Airflow, posters: str
) -> None:
    context = log_in(browser, airflow, "cleo")
    page = context.new_page()
    page.goto(address(airflow, "imagen_review", posters))
    expect(page.get_by_text("Airflow does not let you answer this task")).to_be_visible()
    expect(page.get_by_role("article")).to_have_count(8)
    expect(page.get_by_role("button")).to_have_count(0)
    screenshot(page, "review-read-only")
    own = f"{airflow.url}/api/v2/dags/imagen_review/dagRuns/{posters}/taskInstances/review/-1/hitlDetails"
    answer = {"chosen_options": ["Send the review"], "params_input": {"verdicts": []}}
    assert context.request.patch(own, data=answer).status == 403
    context.close()


def test_who_may_not_read_sees_nothing(browser: Browser, airflow: Airflow, posters: str) -> None:
    context = log_in(browser, airflow, "bob")
    assert context.request.get(address(airflow, "imagen_review", posters)).status == 403
    context.close()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1360), ("dark", 1360), ("light", 390), ("dark", 390)])
def test_the_page_has_no_accessibility_problem(
    browser: Browser, airflow: Airflow, posters: str, scheme: str, width: int
) -> None:
    context = log_in(browser, airflow, "ann", color_scheme=scheme)
    page = context.new_page()
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(address(airflow, "imagen_review", posters))
    wait_for(lambda: all_loaded(page), "the images")
    found = {}
    for state, keys in {"unmarked": "", "marked": "fjxjsjp"}.items():
        page.get_by_role("article").first.focus()
        for key in keys:
            page.keyboard.press(key)
        screenshot(page, f"review-{state}-{scheme}-{width}", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), state
        violations = Axe().run(page).response["violations"]
        found |= {state: [(each["id"], each["nodes"][0]["html"]) for each in violations]} if violations else {}
    context.close()
    assert found == {}


def test_the_run_and_the_required_action_lead_to_the_review(ann: Page, airflow: Airflow, posters: str) -> None:
    ann.goto(f"{airflow.url}/dags/imagen_review/runs/{posters}")
    pictures_tab(ann).click()
    frame = ann.frame_locator("iframe[title=Pictures]")
    expect(frame.get_by_role("link", name="review waits for a person to answer")).to_be_visible()
    screenshot(ann, "review-link-in-run")
    ann.goto(f"{airflow.url}/dags/imagen_review/runs/{posters}/tasks/review/required_actions")
    link = ann.get_by_role("link", name="Look at the images and mark them")
    expect(link).to_be_visible()
    screenshot(ann, "review-required-action")
    target = link.get_attribute("href")
    ann.goto(f"{airflow.url.removesuffix('/data/airflow')}{target}")
    expect(ann.get_by_role("heading", name="Which posters may be printed?")).to_be_visible()


def test_a_person_marks_with_mouse_and_keyboard_and_the_run_goes_on(ann: Page, airflow: Airflow, posters: str) -> None:
    ann.goto(address(airflow, "imagen_review", posters))
    images = ann.get_by_role("article")
    expect(images).to_have_count(8)
    send = ann.get_by_role("button", name="Send the review")
    expect(send).to_be_disabled()
    images.nth(0).locator("img").click()
    expect(ann.locator(COUNTS)).to_have_text("1 favourite, 0 again, 0 not good, 7 without a verdict")
    images.nth(0).locator("img").click()
    expect(ann.locator(COUNTS)).to_have_text("0 favourites, 0 again, 0 not good, 8 without a verdict")
    images.nth(0).get_by_text("Favourite").click()

    images.nth(1).focus()
    ann.keyboard.press("f")
    ann.keyboard.press("j")
    ann.keyboard.press("s")
    images.nth(2).get_by_label("Composition").check()
    wait_for(lambda: all_loaded(ann), "the images")
    screenshot(ann, "review-page")
    images.nth(2).get_by_label("In your own words").fill("  fjx {{ run_id }} <b>too dark</b> ")
    images.nth(3).focus()
    ann.keyboard.press("p")
    changed = images.nth(3).get_by_role("textbox", name="Changed prompt")
    expect(changed).to_be_focused()
    send.click()
    expect(ann.locator("#result")).to_contain_text("Image 4 is to get a changed prompt: change it, or")
    screenshot(ann, "review-unchanged-prompt")
    changed.fill("A harbour in the rain, linocut")
    images.nth(4).focus()
    ann.keyboard.press("x")
    images.nth(4).get_by_label("Text").check()
    ann.reload()
    expect(ann.locator(COUNTS)).to_have_text("2 favourites, 2 again, 1 not good, 3 without a verdict")
    expect(changed).to_have_value("A harbour in the rain, linocut")
    wait_for(lambda: all_loaded(ann), "the images")
    screenshot(ann, "review-before-sending", full_page=True)
    send.click()
    expect(ann.locator("#result")).to_have_text("Sent. The run goes on.")
    screenshot(ann, "review-sent")

    wait_for_question(airflow, "imagen_review", posters, "review_again")
    answer = airflow.result_of("imagen_review", posters, "review")
    assert answer["responded_by_user"]["name"] == "ann"
    verdicts = answer["params_input"]["verdicts"]
    assert [verdict["choice"] for verdict in verdicts] == ["favourite", "favourite", "new_seed", "new_prompt", "reject"]
    assert verdicts[2]["comment"] == "fjx {{ run_id }} <b>too dark</b>"
    assert verdicts[2]["reasons"] == ["Composition"]
    made = airflow.result_of("imagen_review", posters, "again", "images")
    assert [image["prompt"] for image in made] == ["A poster of a harbour, linocut", "A harbour in the rain, linocut"]

    ann.reload()
    expect(ann.get_by_text("ann answered")).to_be_visible()
    expect(images.nth(2)).to_contain_text("Again, new seed: Composition")
    expect(images.nth(2)).to_contain_text("<b>too dark</b>")
    screenshot(ann, "review-answered", full_page=True)
    ann.goto(address(airflow, "imagen_review", posters, "review_again"))
    images.nth(1).locator("img").click()
    ann.get_by_role("button", name="Send the review").click()
    expect(ann.locator("#result")).to_have_text("Sent. The run goes on.")
    airflow.wait_for("imagen_review", posters, "success")
    assert len(airflow.result_of("imagen_review", posters, "publish")) == 3


def test_marks_survive_paging_and_the_first_answer_counts(ann: Page, airflow: Airflow, stamps: str) -> None:
    ann.goto(address(airflow, "many_to_review", stamps))
    images = ann.get_by_role("article")
    expect(images).to_have_count(24)
    images.nth(23).focus()
    ann.keyboard.press("f")
    ann.get_by_role("link", name="Next").last.click()
    expect(images).to_have_count(6)
    images.nth(5).focus()
    ann.keyboard.press("f")
    expect(ann.locator(COUNTS)).to_have_text("2 favourites, 0 again, 0 not good, 28 without a verdict")
    screenshot(ann, "review-second-page")
    other = ann.context.new_page()
    other.goto(address(airflow, "many_to_review", stamps))
    expect(other.get_by_role("radio", name="Favourite").nth(23)).to_be_checked()
    other.get_by_role("button", name="Send the review").click()
    expect(other.locator("#result")).to_have_text("Sent. The run goes on.")
    other.close()
    images.nth(4).focus()
    ann.keyboard.press("x")
    ann.get_by_role("button", name="Send the review").click()
    expect(ann.locator("#result")).to_have_text(re.compile("^Somebody else has answered first"))
    screenshot(ann, "review-answered-by-another")
    airflow.wait_for("many_to_review", stamps, "success")
    verdicts = airflow.result_of("many_to_review", stamps, "review")["params_input"]["verdicts"]
    assert [verdict["prompt_index"] for verdict in verdicts] == [23, 29]


def test_a_task_that_no_longer_waits_takes_no_answer(ann: Page, airflow: Airflow) -> None:
    run_id = airflow.start_run("many_to_review", output_path=str(WORK / "review-expired"))
    wait_for_question(airflow, "many_to_review", run_id, "review")
    ann.goto(address(airflow, "many_to_review", run_id))
    ann.get_by_role("article").first.focus()
    ann.keyboard.press("f")
    ann.request.patch(
        f"{airflow.url}/api/v2/dags/many_to_review/dagRuns/{quote(run_id, safe='')}/taskInstances/review",
        data={"new_state": "failed"},
    )
    airflow.wait_for("many_to_review", run_id, "failed", "review")
    ann.get_by_role("button", name="Send the review").click()
    expect(ann.locator("#result")).to_have_text("This task no longer waits for an answer: it is failed.")
    ann.reload()
    expect(ann.get_by_text("This task no longer waits for an answer: it is failed.")).to_be_visible()
    expect(ann.get_by_role("button")).to_have_count(0)


def test_no_review_page_violated_its_content_security_policy(ann: Page) -> None:
    assert ann.refused == []
