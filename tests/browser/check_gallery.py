"""
What people see: a real Airflow behind a base path, a real Chromium, two users.

Run by ``set-up.sh``, in an environment with the browser's driver but without Airflow. The tests depend on each other
and run in the order of this file.
"""

from __future__ import annotations

import json
import re
import shutil
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from gallery_in_browser import (
    BASE_PATH,
    PASSWORDS,
    WORK,
    Airflow,
    all_loaded,
    log_in,
    pictures_tab,
    screenshot,
    wait_for,
)
from playwright.sync_api import Browser, Page, expect


@pytest.fixture(scope="session")
def run_id(airflow: Airflow) -> str:
    run_id = airflow.start_run("many_pictures", output_path=str(WORK / "pictures"))
    airflow.wait_for("many_pictures", run_id, "success")
    return run_id


def test_the_connection_form_shows_its_fields_and_its_test_reports_key_and_balance(ann: Page, airflow: Airflow) -> None:
    ann.goto(f"{airflow.url}/connections")
    ann.get_by_role("button", name="Add Connection").click()
    ann.locator("input[name=connection_id]").fill("imagen_browser")
    ann.locator("input[aria-autocomplete=list]").first.click()
    ann.keyboard.type("AI/ML API Images")
    ann.keyboard.press("Enter")
    dialog = ann.get_by_role("dialog")
    expect(dialog.get_by_text("API key", exact=True)).to_be_visible()
    expect(dialog.locator("input[name=host]")).to_have_attribute("placeholder", "https://api.aimlapi.com")
    expect(dialog.locator("input[name=port]")).to_have_attribute("placeholder", re.compile("^Enter 0; Airflow 3.3"))
    for hidden in ("login", "schema"):
        expect(dialog.locator(f"input[name={hidden}]")).to_have_count(0)
    dialog.get_by_role("button", name="Extra Fields", exact=True).click()
    labels = ("Default model", "Connect timeout (seconds)", "Read timeout (seconds)", "Sandbox", "Verify TLS")
    for label in (*labels, "Cap per day (USD)", "Cap per month (USD)"):
        expect(dialog.locator("label", has_text=label)).to_be_visible()
    dialog.locator("input[name=element_max_usd_per_month]").fill("25.5")  # the cap per day stays empty
    ann.wait_for_timeout(500)  # the section slides open
    screenshot(ann, "01-connection-form")
    dialog.get_by_role("button", name="Standard Fields").click()
    dialog.locator("input[name=host]").fill(airflow.sandbox)
    dialog.locator("input[name=port]").fill("0")  # as the form says
    dialog.locator("input[name=password]").fill(airflow.key)
    screenshot(ann, "01-connection-standard-fields")
    dialog.get_by_role("button", name="Save").click()
    expect(dialog).to_have_count(0)
    ann.locator("tr", has_text="imagen_browser").get_by_role("button", name="Test Connection").click()
    tested = re.compile(
        r"Key 'sandbox' \(5a9db0c5…\) can generate images \(scope model:image\)\. Balance: \$\d+\.\d+\. "
        r"Spent this month \(UTC\): \$\d+\.\d+ of \$25\.50\."
    )
    expect(ann.get_by_text(tested)).to_be_visible()
    screenshot(ann, "02-connection-tested")


def test_a_misspelled_field_of_a_connection_is_reported_by_its_test(ann: Page, airflow: Airflow) -> None:
    typo = {
        "connection_id": "imagen_typo",
        "conn_type": "imagen",
        "password": airflow.key,
        "port": 0,
        "extra": json.dumps({"sandbxo": True}),
    }
    airflow.call("/api/v2/connections", typo)
    ann.goto(f"{airflow.url}/connections")
    ann.locator("tr", has_text="imagen_typo").get_by_role("button", name="Test Connection").click()
    expect(ann.get_by_text("unknown field 'sandbxo'; did you mean 'sandbox'?")).to_be_visible()


def test_a_person_fills_in_the_trigger_form_and_gets_the_requested_images(ann: Page, airflow: Airflow) -> None:
    wait_for(lambda: not airflow.call("/api/v2/dags/imagen_trigger_form")["is_paused"], "the DAG to be there")
    ann.goto(f"{airflow.url}/dags/imagen_trigger_form")
    ann.get_by_role("button", name=re.compile("^Trigger")).first.click()
    form = ann.get_by_role("dialog")
    expect(form.get_by_text("What to paint: subject, style, light.")).to_be_visible()
    expect(form.get_by_text("Square (1:1)")).to_be_visible()
    ann.wait_for_timeout(500)  # the section slides open
    screenshot(ann, "03-trigger-form")
    form.locator("[name=element_prompt]").fill("A harbour,\nengraving")
    form.locator("input[name=element_num_images]").fill("3")
    form.get_by_role("button", name="Folder", exact=True).click()
    form.locator("input[name=element_output_path]").fill(str(WORK / "forms"))
    ann.wait_for_timeout(500)
    form.get_by_role("button", name="Trigger", exact=True).click()
    expect(form).to_have_count(0)
    runs = "/api/v2/dags/imagen_trigger_form/dagRuns"
    wait_for(lambda: airflow.call(runs)["dag_runs"], "the run")
    run_id = airflow.call(runs)["dag_runs"][0]["dag_run_id"]
    airflow.wait_for("imagen_trigger_form", run_id, "success")
    images = airflow.result_of("imagen_trigger_form", run_id, "paint", "images")
    assert [image["prompt"] for image in images] == ["A harbour,\nengraving"] * 3
    assert all(Path(image["path"]).is_file() for image in images)


def test_the_run_tab_shows_its_images(ann: Page, airflow: Airflow, run_id: str) -> None:
    ann.goto(f"{airflow.url}/dags/many_pictures/runs/{run_id}")
    pictures_tab(ann).click()
    frame = ann.frame_locator("iframe[title=Pictures]")
    expect(frame.get_by_role("heading", name="Pictures", exact=True)).to_be_visible()
    expect(frame.locator("a.card")).to_have_count(13)
    inner = ann.frame(url=re.compile("/imagen/run"))
    wait_for(lambda: all_loaded(inner), "the previews")
    screenshot(ann, "04-run-tab-light")


def test_the_gallery_follows_airflows_theme(ann: Page, airflow: Airflow, run_id: str) -> None:
    inner = ann.frame(url=re.compile("/imagen/run"))
    light = inner.evaluate("getComputedStyle(document.body).backgroundColor")
    ann.evaluate("localStorage.setItem('theme', 'dark')")
    ann.reload()
    ann.frame_locator("iframe[title=Pictures]").locator("a.card").first.wait_for()
    inner = ann.frame(url=re.compile("/imagen/run"))
    wait_for(lambda: all_loaded(inner), "the previews")
    assert light == "rgb(255, 255, 255)"
    assert inner.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 29, 45)"
    screenshot(ann, "05-run-tab-dark")
    ann.evaluate("localStorage.setItem('theme', 'light')")


def test_the_search_in_the_run_tab_finds_images_of_all_tasks(ann: Page, airflow: Airflow, run_id: str) -> None:
    frame = ann.frame_locator("iframe[title=Pictures]")
    frame.get_by_role("searchbox", name="Search prompts, names and metadata").fill("raccoon WATERCOLOUR")
    ann.keyboard.press("Enter")
    expect(frame.get_by_text("3 images match.")).to_be_visible()
    expect(frame.locator("a.card")).to_have_count(3)
    expect(frame.get_by_text("page: 2")).to_have_count(2)
    screenshot(ann, "05-run-tab-search")
    frame.get_by_role("link", name="Show all").click()
    expect(frame.locator("a.card")).to_have_count(13)


def test_the_task_button_opens_its_images(ann: Page, airflow: Airflow, run_id: str) -> None:
    ann.goto(f"{airflow.url}/dags/many_pictures/runs/{run_id}/tasks/posters/details")
    link = ann.locator("a[href*='/imagen/task?']")
    link.scroll_into_view_if_needed()
    screenshot(ann, "06-task-link")
    link.click()
    ann.wait_for_url(re.compile(f"{BASE_PATH}/imagen/task"))
    expect(ann.locator("a.card")).to_have_count(9)
    expect(ann.get_by_text("withheld 1 of 2 images")).to_be_visible()
    wait_for(lambda: all_loaded(ann), "the previews")
    screenshot(ann, "07-task-gallery", full_page=True)


def test_each_mapped_task_instance_has_its_own_link(ann: Page, airflow: Airflow, run_id: str) -> None:
    for map_index in range(3):
        response = airflow.call(
            f"/api/v2/dags/many_pictures/dagRuns/{run_id}/taskInstances/banners/links?map_index={map_index}"
        )
        assert f"map_index={map_index}" in response["extra_links"]["Pictures"]
        ann.goto(f"{airflow.url}{response['extra_links']['Pictures'].removeprefix(BASE_PATH)}")
        expect(ann.locator("a.card")).to_have_count(1)


def test_an_image_page_is_complete_and_works_from_the_keyboard(ann: Page, airflow: Airflow, run_id: str) -> None:
    ann.goto(f"{airflow.url}/imagen/task?dag_id=many_pictures&run_id={run_id.replace('+', '%2B')}&task_id=posters")
    ann.locator("a.card").first.focus()
    ann.keyboard.press("ArrowRight")
    ann.keyboard.press("Enter")
    ann.get_by_role("link", name="All details of this image").click()
    ann.wait_for_url(re.compile("/imagen/picture"))
    wait_for(lambda: all_loaded(ann), "the picture")
    expect(ann.get_by_role("heading", name="Image 2 of 9")).to_be_visible()
    screenshot(ann, "08-picture", full_page=True)
    ann.get_by_role("button", name="Copy", exact=True).click()
    expect(ann.get_by_text("Copied.")).to_be_visible()
    copied = ann.evaluate("navigator.clipboard.readText()")
    assert "aspect_ratio='3:4'" in copied
    compile(copied, "copied", "exec")
    ann.keyboard.press("ArrowRight")
    expect(ann.get_by_role("heading", name="Image 3 of 9")).to_be_visible()
    ann.keyboard.press("Escape")
    ann.wait_for_url(re.compile("/imagen/task"))


def test_the_dag_tab_shows_the_newest_runs(ann: Page, airflow: Airflow, run_id: str) -> None:
    ann.goto(f"{airflow.url}/dags/many_pictures")
    pictures_tab(ann).click()
    frame = ann.frame_locator("iframe[title=Pictures]")
    expect(frame.locator("a.card").first).to_be_visible()
    inner = ann.frame(url=re.compile("/imagen/dag"))
    wait_for(lambda: all_loaded(inner), "the previews")
    screenshot(ann, "09-dag-tab")


def test_images_appear_while_their_task_runs_and_nothing_else_moves(ann: Page, airflow: Airflow) -> None:
    folder = WORK / "growing"
    Airflow(airflow.sandbox, airflow.sandbox).call(
        "/_sandbox/faults", {"kind": "slow", "seconds": 1.0, "times": None, "prompt": "growing"}
    )
    run = airflow.start_run("growing_pictures", output_path=str(folder))
    ann.set_viewport_size({"width": 1000, "height": 420})
    ann.goto(f"{airflow.url}/imagen/run?dag_id=growing_pictures&run_id={run.replace('+', '%2B')}")
    cards = ann.locator("a.card")
    expect(cards.nth(8)).to_be_attached()
    cards.nth(7).focus()
    ann.evaluate("document.activeElement.isTheOneWeSaw = true")
    before = ann.evaluate("[scrollY, document.activeElement.getBoundingClientRect().top]")
    expect(cards.nth(12)).to_be_attached()
    expect(ann.locator(".progress")).to_contain_text(re.compile(r"\d+ of 30, \$[\d.]+ so far"))
    assert ann.evaluate("document.activeElement.isTheOneWeSaw")
    assert ann.evaluate("[scrollY, document.activeElement.getBoundingClientRect().top]") == before
    screenshot(ann, "09-run-in-progress")

    requests: list[str] = []
    ann.on("request", lambda request: requests.append(request.url))
    hide = "is => { Object.defineProperty(document, 'hidden', {get: () => is, configurable: true}); }"
    ann.evaluate(f"({hide})(true); document.dispatchEvent(new Event('visibilitychange'))")
    ann.wait_for_timeout(1_000)  # for a request on its way
    requests.clear()
    ann.wait_for_timeout(4_000)
    assert requests == []
    ann.evaluate(f"({hide})(false); document.dispatchEvent(new Event('visibilitychange'))")

    expect(cards).to_have_count(30)
    expect(ann.locator(".progress")).to_have_count(0)
    expect(ann.locator("#announcement")).to_contain_text(re.compile(r"^Ended\.[\s\S]*Generated"))
    assert airflow.state_of("growing_pictures", run) == "success"
    ann.wait_for_timeout(24_000)  # for the last requests
    requests.clear()
    ann.wait_for_timeout(4_000)
    assert requests == []
    ann.set_viewport_size({"width": 1360, "height": 900})


def test_the_gallery_fits_a_phone_screen(browser: Browser, airflow: Airflow, run_id: str) -> None:
    context = log_in(browser, airflow, "ann", color_scheme="dark")
    page = context.new_page()
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"{airflow.url}/imagen/task?dag_id=many_pictures&run_id={run_id.replace('+', '%2B')}&task_id=posters")
    wait_for(lambda: all_loaded(page), "the previews")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    screenshot(page, "10-telephone-dark")
    context.close()


@pytest.fixture(scope="session")
def rejected_run_id(airflow: Airflow) -> str:
    run_id = airflow.start_run("partly_rejected", output_path=str(WORK / "partly"))
    airflow.wait_for("partly_rejected", run_id, "failed")
    return run_id


def test_a_rejected_instance_has_a_tile_with_its_label_its_error_and_a_link_to_its_log(
    ann: Page, airflow: Airflow, rejected_run_id: str
) -> None:
    ann.goto(f"{airflow.url}/dags/partly_rejected/runs/{rejected_run_id}")
    pictures_tab(ann).click()
    frame = ann.frame_locator("iframe[title=Pictures]")
    expect(frame.locator(".card")).to_have_count(3)
    tile = frame.locator(".card").nth(1)
    for part in ("Task failed", "aspect_ratio='2:1'", "An old town square in the rain", "square"):
        expect(tile).to_contain_text(part)
    expect(frame.get_by_text("2 of")).to_have_count(0)
    inner = ann.frame(url=re.compile("/imagen/run"))
    wait_for(lambda: all_loaded(inner), "the previews")
    screenshot(ann, "16-rejected-instance")
    tile.get_by_role("link", name="Open its log").click()
    ann.wait_for_url(re.compile("/tasks/paint/mapped/1"))


def test_dates_are_in_the_time_zone_chosen_in_airflow(ann: Page, airflow: Airflow, run_id: str) -> None:
    shown = {}
    for zone in ("UTC", "Asia/Tokyo"):
        ann.evaluate("zone => localStorage.setItem('timezone', JSON.stringify(zone))", zone)
        ann.goto(f"{airflow.url}/imagen/run?dag_id=many_pictures&run_id={run_id.replace('+', '%2B')}")
        shown[zone] = datetime.fromisoformat(ann.locator("time").first.text_content()[:19])
    ann.evaluate("localStorage.removeItem('timezone')")
    assert shown["Asia/Tokyo"] - shown["UTC"] == timedelta(hours=9)


@pytest.mark.parametrize(("scheme", "width"), [("light", 1360), ("dark", 1360), ("light", 390), ("dark", 390)])
def test_no_page_has_an_accessibility_problem(
    browser: Browser, airflow: Airflow, run_id: str, rejected_run_id: str, scheme: str, width: int
) -> None:
    context = log_in(browser, airflow, "ann", color_scheme=scheme)
    page = context.new_page()
    page.set_viewport_size({"width": width, "height": 900})
    many = f"dag_id=many_pictures&run_id={run_id.replace('+', '%2B')}"
    rejected = f"dag_id=partly_rejected&run_id={rejected_run_id.replace('+', '%2B')}"
    addresses = {
        "dag": "dag?dag_id=many_pictures",
        "run": f"run?{many}",
        "rejected": f"run?{rejected}",
        "problems": f"run?{many}&show=problems",
        "task": f"task?{many}&task_id=posters",
        "instance": f"task?{rejected}&task_id=paint&map_index=1",
        "image": f"picture?{many}&task_id=posters&prompt_index=0&image_index=0",
        "not-found": f"task?{many}&task_id=never",
    }
    found = {}
    for name, address in addresses.items():
        page.goto(f"{airflow.url}/imagen/{address}")
        page.wait_for_load_state("networkidle")
        screenshot(page, f"17-{name}-{scheme}-{width}", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        violations = Axe().run(page).response["violations"]
        found |= {name: [(each["id"], each["nodes"][0]["html"]) for each in violations]} if violations else {}
    context.close()
    assert found == {}


def test_a_person_picks_the_best_and_only_those_are_published(ann: Page, airflow: Airflow) -> None:
    run = airflow.start_run("imagen_pick_best", output_path=str(WORK / "picked"))
    airflow.wait_for("imagen_pick_best", run, "awaiting_input", "review")
    ann.goto(f"{airflow.url}/dags/imagen_pick_best/runs/{run}/tasks/review/required_actions")
    images = ann.locator("table img")
    expect(images).to_have_count(4)
    wait_for(lambda: all_loaded(ann), "the pictures of the review")
    screenshot(ann, "11-review", full_page=True)
    for number in ("2", "4"):
        ann.locator("input[aria-autocomplete=list]").last.click()
        ann.get_by_role("option", name=number, exact=True).click()
    screenshot(ann, "12-review-chosen", full_page=True)
    ann.get_by_role("button", name="OK").or_(ann.get_by_role("button", name="Respond")).or_(
        ann.get_by_role("button", name="Submit")
    ).first.click()
    airflow.wait_for("imagen_pick_best", run, "success")
    chosen = airflow.result_of("imagen_pick_best", run, "choose")
    assert [record["image_index"] for record in chosen] == [1, 3]
    assert airflow.result_of("imagen_pick_best", run, "publish") == [record["path"] for record in chosen]


def test_a_person_approves_before_anything_is_published(ann: Page, airflow: Airflow) -> None:
    run = airflow.start_run("imagen_approve", output_path=str(WORK / "approved"))
    airflow.wait_for("imagen_approve", run, "awaiting_input", "review")
    assert airflow.state_of("imagen_approve", run, "publish") in (None, "none", "scheduled")
    ann.goto(f"{airflow.url}/dags/imagen_approve/runs/{run}/tasks/review/required_actions")
    expect(ann.locator("table img")).to_have_count(2)
    wait_for(lambda: all_loaded(ann), "the pictures of the review")
    screenshot(ann, "13-approval", full_page=True)
    ann.get_by_role("button", name="Approve").click()
    airflow.wait_for("imagen_approve", run, "success")
    assert len(airflow.result_of("imagen_approve", run, "publish")) == 2


def test_a_user_without_access_sees_nothing(browser: Browser, airflow: Airflow, run_id: str) -> None:
    context = log_in(browser, airflow, "bob")
    page = context.new_page()
    query = f"dag_id=many_pictures&run_id={run_id.replace('+', '%2B')}"
    response = page.goto(f"{airflow.url}/imagen/run?{query}")
    assert response.status == 403
    screenshot(page, "14-no-access")
    for path in (
        "task?task_id=posters&",
        "dag?",
        "picture?task_id=posters&prompt_index=0&image_index=0&",
        "file?task_id=posters&prompt_index=0&image_index=0&",
    ):
        assert context.request.get(f"{airflow.url}/imagen/{path}{query}").status == 403
    context.close()


def test_a_visitor_without_a_session_logs_in_and_returns_to_the_page(
    browser: Browser, airflow: Airflow, run_id: str
) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{airflow.url}/imagen/dag?dag_id=many_pictures")
    page.fill("input[name=username]", "ann")
    page.fill("input[name=password]", PASSWORDS["ann"])
    page.click("button[type=submit]")
    page.wait_for_url(re.compile("/imagen/dag"))
    expect(page.locator("a.card").first).to_be_visible()
    context.close()


def test_a_missing_image_file_is_reported(ann: Page, airflow: Airflow, run_id: str) -> None:
    shutil.rmtree(WORK / "pictures")
    query = f"dag_id=many_pictures&run_id={run_id.replace('+', '%2B')}"
    ann.goto(f"{airflow.url}/imagen/picture?{query}&task_id=posters&prompt_index=0&image_index=0")
    expect(ann.get_by_text("The stored file is not there any more")).to_be_visible()
    screenshot(ann, "15-gone")


def test_no_page_violated_its_content_security_policy(ann: Page) -> None:
    assert ann.refused == []
