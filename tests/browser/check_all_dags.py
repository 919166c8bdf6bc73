"""
The page about all DAGs in a real Chromium: its entry in the navigation, its charts, its accessibility, and what a user
sees who may read only one DAG.

Run by ``set-up.sh``.
"""

from __future__ import annotations

import re
import sqlite3
from typing import TYPE_CHECKING

import pytest
from axe_playwright_python.sync_playwright import Axe
from gallery_in_browser import WORK, Airflow, all_loaded, log_in, screenshot, wait_for
from playwright.sync_api import expect

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="session")
def runs(airflow: Airflow) -> None:
    """Run DAGs on several days; as this takes too long, make most of the runs older."""
    for dag_id, ages in (("three_models", (20, 6, 4, 3, 1, 0)), ("one_model", (5, 2, 0))):
        for days in ages:
            run_id = airflow.start_run(dag_id, output_path=str(WORK / f"{dag_id}-{days}"))
            airflow.wait_for(dag_id, run_id, "failed" if dag_id == "three_models" else "success")
            with sqlite3.connect(WORK / "home" / "airflow.db", timeout=60) as database:
                for table, column in (("xcom", "timestamp"), ("task_instance", "end_date")):
                    database.execute(
                        f"UPDATE {table} SET {column} = strftime('%Y-%m-%d %H:%M:%f', {column}, ?) WHERE run_id = ?",
                        (f"-{days} days", run_id),
                    )


def test_the_navigation_leads_to_the_page_about_all_dags(ann: Page, airflow: Airflow, runs: None) -> None:
    ann.goto(f"{airflow.url}/")
    entry = ann.get_by_role("link", name="Pictures", exact=True)
    expect(entry).to_be_visible()
    wait_for(lambda: entry.locator("img").evaluate("image => image.naturalWidth > 0"), "its icon")
    entry.click()
    frame = ann.frame_locator("iframe[title=Pictures]")
    expect(frame.get_by_role("heading", name="Pictures of all DAGs")).to_be_visible()
    expect(frame.locator("section.newest")).to_have_count(2)
    expect(frame.get_by_role("img", name="Cost per day and model")).to_be_visible()
    frame.locator("section.newest").last.scroll_into_view_if_needed()
    wait_for(lambda: all_loaded(frame.locator("html")), "the previews")
    frame.locator("html").evaluate("() => scrollTo(0, 0)")
    screenshot(ann, "21-all-dags")

    frame.get_by_role("link", name="three_models", exact=True).click()
    expect(frame.get_by_role("heading", name="Pictures by run")).to_be_visible()
    frame.get_by_role("link", name="All DAGs", exact=True).click()
    expect(frame.get_by_role("heading", name="Pictures of all DAGs")).to_be_visible()


def test_the_chart_and_its_table_show_the_same_costs(ann: Page, airflow: Airflow, runs: None) -> None:
    ann.goto(f"{airflow.url}/imagen/dags?days=30")
    figure = ann.locator("figure", has_text="Cost per day and model")
    legend = dict(re.findall(r"(\S+) (\$[\d.]+)", figure.locator(".legend").inner_text()))
    assert len(legend) == 4
    figure.get_by_text("As a table").click()
    (heads,) = [row.split("\t") for row in figure.locator("thead").all_inner_texts()]
    (totals,) = [row.split("\t") for row in figure.locator("tfoot").all_inner_texts()]
    assert dict(zip(heads[1:-1], totals[1:-1], strict=True)) == legend
    assert totals[-1] == figure.locator("figcaption span").inner_text()
    screenshot(ann, "22-all-dags-table", full_page=True)
    ann.get_by_role("link", name="Last 7 days").click()
    expect(figure.locator("figcaption span")).not_to_have_text(totals[-1])


def test_a_user_who_may_read_one_dag_sees_only_that(browser: Browser, airflow: Airflow, runs: None) -> None:
    for name, dags in (("cat", ["one_model"]), ("bob", [])):
        context = log_in(browser, airflow, name)
        page = context.new_page()
        page.goto(f"{airflow.url}/imagen/dags")
        assert page.locator("section.newest h2").all_inner_texts() == dags
        expect(page.locator(".empty")).to_have_count(0 if dags else 1)
        assert "three_models" not in page.content()
        screenshot(page, f"23-all-dags-{name}")
        context.close()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1360), ("dark", 1360), ("light", 390), ("dark", 390)])
def test_the_page_about_all_dags_has_no_accessibility_problem(
    browser: Browser, airflow: Airflow, runs: None, scheme: str, width: int
) -> None:
    context = log_in(browser, airflow, "ann", color_scheme=scheme)
    page = context.new_page()
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(f"{airflow.url}/imagen/dags?days=30")
    page.wait_for_load_state("networkidle")
    page.get_by_text("As a table").first.click()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    screenshot(page, f"24-all-dags-{scheme}-{width}", full_page=True)
    violations = Axe().run(page).response["violations"]
    context.close()
    assert [(each["id"], each["nodes"][0]["html"]) for each in violations] == []


def test_the_page_about_all_dags_obeys_its_content_security_policy(ann: Page) -> None:
    assert ann.refused == []
